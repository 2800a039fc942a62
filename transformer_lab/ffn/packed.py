"""The gated network with gate and up in one product, as Phi-3 stores them. `ffn=packed` builds it."""

from dataclasses import dataclass
from typing import Any, ClassVar

from transformer_lab.ffn.dense import ACTIVATIONS
from transformer_lab.model.axes import Axis, Shape
from transformer_lab.model.limits import LIMITS, require_choice, require_whole


@dataclass(frozen=True)
class Packed:
    """`down(act(gate(x)) * up(x))`, the columns of the gate before those of up. size: the inner width F."""

    taps: ClassVar[tuple[str, ...]] = ("pre", "act")

    size: int
    activation: str = "silu"

    def __post_init__(self) -> None:
        require_whole("ffn.size", self.size, 100 * LIMITS["hidden_size"])
        require_choice("ffn.activation", self.activation, ACTIVATIONS)

    def shapes(self, hidden_size: int) -> dict[str, Shape]:
        """The parameters below `blocks.{i}.ffn`, by dotted name, kernels as [in, out]."""
        return {
            "gate_up.kernel": (hidden_size, Axis(2 * self.size, "gate_up")),
            "down.kernel": (Axis(self.size, "ffn"), hidden_size),
        }

    def __call__(self, ops: Any, params: Any, x: Any, tap: Any) -> Any:
        """x [B, T, D] -> [B, T, D]. Taps: `pre` [B, T, F] before the activation, `act` [B, T, F] after it."""
        both = ops.linear(x, params["gate_up"]["kernel"])  # [B, T, 2 F]
        pre = tap("pre", both[..., : self.size])
        act = tap("act", getattr(ops, self.activation)(pre) * both[..., self.size :])
        return ops.linear(act, params["down"]["kernel"])
