"""Root mean square norm. `norm=rms_norm` builds it."""

from dataclasses import dataclass
from typing import Any

from transformer_lab.model.axes import Shape
from transformer_lab.model.limits import require_positive


@dataclass(frozen=True)
class RMSNorm:
    """x / sqrt(mean(x^2) + epsilon) * weight (Zhang and Sennrich 2019, arXiv 1910.07467).

    from_one: what is learned is `offset`, the weight's distance from 1 (Gemma, Gemma Team 2024, arXiv 2403.08295).
    """

    epsilon: float = 1e-5
    from_one: bool = False

    def __post_init__(self) -> None:
        require_positive("norm.epsilon", self.epsilon)

    def shapes(self, size: int) -> dict[str, Shape]:
        """The parameters, by name, of a norm over a last axis of this size."""
        return {"offset" if self.from_one else "weight": (size,)}

    def __call__(self, ops: Any, params: Any, x: Any) -> Any:
        """x [..., size] -> [..., size]."""
        weight = 1.0 + params["offset"] if self.from_one else params["weight"]
        return ops.rms_norm(x, weight, self.epsilon)
