"""The dense feed-forward network: two linear maps with an activation between them, or the gated form of it.

It is what `ffn=dense` builds. It knows neither the block around it nor where its parameters come from.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from transformer_lab.model.axes import Axis, Shape
from transformer_lab.model.limits import LIMITS, require_choice, require_whole

ACTIVATIONS = ("gelu_tanh", "gelu_erf", "relu", "silu")


@dataclass(frozen=True)
class Dense:
    """`down(act(up(x)))`, or `down(act(gate(x)) * up(x))` if `gated` (GLU variants, Shazeer 2020, arXiv 2002.05202).

    size: the inner width F. activation: one of ACTIVATIONS. bias: whether the linear maps add one.
    """

    taps: ClassVar[tuple[str, ...]] = ("pre", "act")

    size: int
    activation: str = "gelu_tanh"
    gated: bool = False
    bias: bool = True

    def __post_init__(self) -> None:
        require_choice("ffn.activation", self.activation, ACTIVATIONS)
        require_whole("ffn.size", self.size, 100 * LIMITS["hidden_size"])

    def shapes(self, hidden_size: int) -> dict[str, Shape]:
        """The parameters below `blocks.{i}.ffn`, by dotted name, kernels as [in, out]."""
        inner = Axis(self.size, "ffn")
        maps = {"up": (hidden_size, inner), "down": (inner, hidden_size)}
        if self.gated:
            maps["gate"] = (hidden_size, inner)
        shapes: dict[str, Shape] = {f"{name}.kernel": shape for name, shape in maps.items()}
        if self.bias:
            shapes |= {f"{name}.bias": shape[1:] for name, shape in maps.items()}
        return shapes

    def __call__(self, ops: Any, params: Any, x: Any, tap: Any) -> Any:
        """x [B, T, D] -> [B, T, D]. Taps: `pre` [B, T, F] before the activation, `act` [B, T, F] after it."""
        activation = getattr(ops, self.activation)
        up = ops.linear(x, params["up"]["kernel"], params["up"].get("bias"))  # [B, T, F]
        if self.gated:
            pre = tap("pre", ops.linear(x, params["gate"]["kernel"], params["gate"].get("bias")))
            act = tap("act", activation(pre) * up)
        else:
            act = tap("act", activation(tap("pre", up)))
        return ops.linear(act, params["down"]["kernel"], params["down"].get("bias"))
