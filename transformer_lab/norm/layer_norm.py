"""Layer norm, with or without what is learned about it. `norm=layer_norm` builds it."""

from dataclasses import dataclass
from typing import Any

from transformer_lab.model.axes import Shape
from transformer_lab.model.limits import require_positive


@dataclass(frozen=True)
class LayerNorm:
    """(x - mean) / sqrt(variance + epsilon) * weight + bias (Ba et al. 2016, arXiv 1607.06450).

    weight, bias: whether they are learned; without them they are 1 and 0 (OLMo has neither, Cohere no bias).
    """

    epsilon: float = 1e-5
    weight: bool = True
    bias: bool = True

    def __post_init__(self) -> None:
        require_positive("norm.epsilon", self.epsilon)

    def shapes(self, size: int) -> dict[str, Shape]:
        """The parameters, by name, of a norm over a last axis of this size."""
        return {name: (size,) for name in ("weight", "bias") if getattr(self, name)}

    def __call__(self, ops: Any, params: Any, x: Any) -> Any:
        """x [..., size] -> [..., size]."""
        weight = params["weight"] if self.weight else _constant(ops, x, 1.0)
        bias = params["bias"] if self.bias else _constant(ops, x, 0.0)
        return ops.layer_norm(x, weight, bias, self.epsilon)


def _constant(ops: Any, x: Any, value: float) -> Any:
    return ops.xp.full((x.shape[-1],), value, dtype=x.dtype, device=ops.array_device)
