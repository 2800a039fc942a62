"""SMEBU, soft-clamped momentum updates of the experts' bias (Singh et al. 2026, arXiv 2602.17004).

As the sign of DeepSeek-V3's, but small where little is amiss, and with a momentum that damps swinging to and fro.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from transformer_lab.errors import ConfigurationError
from transformer_lab.model.axes import Axis, Shape
from transformer_lab.model.limits import require_positive


@dataclass(frozen=True)
class SMEBU:
    """change_i = rate * tanh(sharpness * (mean load - load_i) / mean load), less the mean of the changes;
    momentum = beta * momentum + (1 - beta) * change; bias += momentum."""

    moves: ClassVar[str] = "bias"  # of the router

    rate: float = 0.0005
    sharpness: float = 2.0
    beta: float = 0.5

    def __post_init__(self) -> None:
        require_positive("balancer.rate", self.rate)
        require_positive("balancer.sharpness", self.sharpness)
        if isinstance(self.beta, bool) or not 0.0 <= self.beta < 1.0:
            message = f"balancer.beta is {self.beta!r}; it must be at least 0 and below 1."
            raise ConfigurationError(message)

    def states(self, experts: int) -> dict[str, Shape]:
        return dict.fromkeys(("bias", "momentum"), (Axis(experts, "experts"),))

    def training_terms(
        self, ops: Any, router: Any, state: Mapping[str, Any], taps: Mapping[str, Any], share: Any
    ) -> tuple[Any, dict[str, Any]]:
        return None, {}

    def moved(self, ops: Any, state: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
        xp, load = ops.xp, found["load"]
        mean = xp.mean(load)
        change = self.rate * xp.tanh(self.sharpness * (mean - load) / mean)
        momentum = self.beta * state["momentum"] + (1.0 - self.beta) * (change - xp.mean(change))
        return {"bias": state["bias"] + momentum, "momentum": momentum}
