"""Quantile balancing: the bias with which each expert would have got its part of the last step's tokens.

Moonshot AI 2026, Kimi K3 technical report, section 2.3.3. A token takes expert i if its bias is larger than the score
that i would have to beat, less i's own score. Of these differences over all tokens the k/E quantile is the bias that
gives i its part, as long as the others stay where they are; so it is approached by `rate`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from transformer_lab.balancer.histogram import below, quantile
from transformer_lab.errors import ConfigurationError
from transformer_lab.model.axes import Axis, Shape


@dataclass(frozen=True)
class Quantile:
    """bias += rate * (quantile - bias), less the mean of the biases. rate: above 0, at most 1."""

    moves: ClassVar[str] = "bias"  # of the router

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
        xp, scores, ids = ops.xp, router.scores(ops, taps["router.logits"]), taps["router.expert_ids"]
        experts = scores.shape[-1]
        numbers = xp.arange(experts, dtype=ids.dtype, device=ops.array_device)
        chosen = xp.any(ids[..., None] == numbers, axis=2)  # [B, T, E]; not by scores, which a compiler may round anew
        biased = scores + state["bias"]
        last_in = xp.min(xp.where(chosen, biased, math.inf), axis=-1, keepdims=True)
        first_out = xp.max(xp.where(chosen, -math.inf, biased), axis=-1, keepdims=True)
        needed = xp.where(chosen, first_out, last_in) - scores
        return None, {"needed": below(ops, needed, state["bias"], share)}

    def moved(self, ops: Any, state: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
        # k/E of the tokens: E times as many against k times all, in whole numbers.
        needed = found["needed"] * found["needed"].shape[0]
        target = quantile(ops, needed, state["bias"], ops.xp.sum(found["load"]))
        bias = state["bias"] + self.rate * (target - state["bias"])
        return {"bias": bias - ops.xp.mean(bias)}
