"""The dense feed-forward network: two linear maps with an activation between them, or the gated form of it.

It is what `ffn=dense` builds. It knows neither the block around it nor where its parameters come from.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from transformer_lab.errors import ConfigurationError

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
        if self.activation not in ACTIVATIONS:
            message = f"ffn.activation is {self.activation!r}; choose one of {', '.join(ACTIVATIONS)}."
            raise ConfigurationError(message)
        if not isinstance(self.size, int) or self.size < 1:
            message = f"ffn.size is {self.size!r}; it must be a whole number of at least 1."
            raise ConfigurationError(message)

    def shapes(self, hidden_size: int) -> dict[str, tuple[int, ...]]:
        """The parameters below `blocks.{i}.ffn`, by dotted name, kernels as [in, out]."""
        maps = {"up": (hidden_size, self.size), "down": (self.size, hidden_size)}
        if self.gated:
            maps["gate"] = (hidden_size, self.size)
        shapes: dict[str, tuple[int, ...]] = {f"{name}.kernel": shape for name, shape in maps.items()}
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
