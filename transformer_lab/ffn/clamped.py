"""The gated network whose gate and up are clamped before their product, which DeepSeek-V4 has for every token.

Clamped experts are the `Experts` with a `limit`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from transformer_lab.ffn.dense import ACTIVATIONS
from transformer_lab.model.axes import Axis, Shape
from transformer_lab.model.limits import LIMITS, require_choice, require_positive, require_whole


@dataclass(frozen=True)
class Clamped:
    """`down(act(gate(x)) * up(x))`, with gate at most `limit` and up between -limit and limit (DeepSeek-AI 2026,
    DeepSeek-V4 technical report; transformers' `deepseek_v4`). size: the inner width F."""

    taps: ClassVar[tuple[str, ...]] = ("pre", "act")

    size: int
    activation: str = "silu"
    limit: float = 10.0

    def __post_init__(self) -> None:
        require_whole("ffn.size", self.size, 100 * LIMITS["hidden_size"])
        require_choice("ffn.activation", self.activation, ACTIVATIONS)
        require_positive("ffn.limit", self.limit)

    def shapes(self, hidden_size: int) -> dict[str, Shape]:
        """The parameters below `blocks.{i}.ffn`, by dotted name, kernels as [in, out]."""
        inner = Axis(self.size, "ffn")
        return {
            "gate.kernel": (hidden_size, inner),
            "up.kernel": (hidden_size, inner),
            "down.kernel": (inner, hidden_size),
        }

    def __call__(self, ops: Any, params: Any, x: Any, tap: Any) -> Any:
        """x [B, T, D] -> [B, T, D]. Taps: `pre` [B, T, F] before the clamp and the activation, `act` [B, T, F] after
        them."""
        pre = tap("pre", ops.linear(x, params["gate"]["kernel"]))
        gate = getattr(ops, self.activation)(ops.xp.clip(pre, None, self.limit))
        up = ops.xp.clip(ops.linear(x, params["up"]["kernel"]), -self.limit, self.limit)
        return ops.linear(tap("act", gate * up), params["down"]["kernel"])
