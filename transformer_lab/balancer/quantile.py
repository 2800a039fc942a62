"""Quantile balancing: the bias with which each expert would have got its part of the last step's tokens.

Moonshot AI 2026, Kimi K3 technical report, section 2.3.3. A token takes expert i if its bias is larger than the score
that i would have to beat, less i's own score. Of these differences over all tokens the k/E quantile is the bias that
gives i its part, as long as the others stay where they are; so it is approached by `rate`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformer_lab.balancer.histogram import EDGES, below, quantile
from transformer_lab.errors import ConfigurationError
from transformer_lab.model.axes import Axis, Shape


@dataclass(frozen=True)
class Quantile:
    """bias += rate * (quantile - bias), less the mean of the biases. rate: above 0, at most 1."""

    rate: float = 0.5

    def __post_init__(self) -> None:
        if isinstance(self.rate, bool) or not 0.0 < self.rate <= 1.0:
            message = f"balancer.rate is {self.rate!r}; it must be above 0 and at most 1."
            raise ConfigurationError(message)

    def states(self, experts: int) -> dict[str, Shape]:
        return {"bias": (Axis(experts, "experts"),)}

    def training_terms(
        self, ops: Any, router: Any, state: Mapping[str, Any], taps: Mapping[str, Any], share: Any
    ) -> tuple[Any, dict[str, Any]]:
        """It asks for "needed" [E, 29], of the biases that tokens would need how many lie below each edge."""
        xp, scores = ops.xp, router.scores(ops, taps["router.logits"])
        slots = router.slots(scores.shape[-1])
        if slots == scores.shape[-1]:
            return None, {"needed": xp.zeros((slots, len(EDGES)), dtype=share.dtype, device=ops.array_device)}
        biased = scores + state["bias"]
        best = ops.top_k(biased, slots + 1)[0]
        last_in, first_out = best[..., slots - 1 : slots], best[..., slots:]
        needed = xp.where(biased >= last_in, first_out, last_in) - scores  # of those that are in, what keeps them in
        return None, {"needed": below(ops, needed, state["bias"], share)}

    def moved(self, ops: Any, state: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
        load = found["load"]
        part = ops.xp.sum(load) / load.shape[0]  # k / E
        target = quantile(ops, found["needed"], state["bias"], part)
        bias = state["bias"] + self.rate * (target - state["bias"])
        return {"bias": bias - ops.xp.mean(bias)}
