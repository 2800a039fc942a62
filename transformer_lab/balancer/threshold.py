"""The moving threshold of expert-threshold routing (arXiv 2603.11535): an expert takes every token whose score is above
a moving average of the score that its part of the tokens would have had to reach.

The choice hangs on no other token, so it is causal, and decoding does what training did.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from transformer_lab.balancer.histogram import below, quantile
from transformer_lab.errors import ConfigurationError
from transformer_lab.model.axes import Axis, Shape
from transformer_lab.model.limits import LIMITS, require_whole


@dataclass(frozen=True)
class Threshold:
    """threshold_i += rate * (quantile of its scores above which k/E of all tokens lie - threshold_i).

    k: how many experts a token shall have in the mean. rate: above 0, at most 1; the first steps take more, 1/n, so
    that the zeros of the beginning are soon forgotten. `seen` [1] counts the steps.
    """

    moves: ClassVar[str] = "threshold"  # of the router

    k: int = 2
    rate: float = 0.02

    def __post_init__(self) -> None:
        require_whole("balancer.k", self.k, LIMITS["num_experts"])
        if isinstance(self.rate, bool) or not 0.0 < self.rate <= 1.0:
            message = f"balancer.rate is {self.rate!r}; it must be above 0 and at most 1."
            raise ConfigurationError(message)

    def states(self, experts: int) -> dict[str, Shape]:
        require_whole("balancer.k", self.k, experts)
        return {"threshold": (Axis(experts, "experts"),), "seen": (1,)}

    def training_terms(
        self, ops: Any, router: Any, state: Mapping[str, Any], taps: Mapping[str, Any], share: Any
    ) -> tuple[Any, dict[str, Any]]:
        """It asks for "scores" [E, 29], how many scores lie below each edge."""
        scores = router.scores(ops, taps["router.logits"])
        return None, {"scores": below(ops, scores, state["threshold"], share)}

    def moved(self, ops: Any, state: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
        xp, threshold = ops.xp, state["threshold"]
        experts = threshold.shape[0]
        target = quantile(ops, found["scores"] * experts, threshold, found["tokens"] * (experts - self.k))
        seen = state["seen"] + 1.0
        rate = xp.clip(1.0 / seen, self.rate, None)
        return {"threshold": threshold + rate * (target - threshold), "seen": seen}
