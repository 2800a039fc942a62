"""The experts of a layer: feed-forward networks of one form, each with kernels of its own, stacked along a first axis.

How the rows of a batch come to their experts is told by `dispatch.py`; here is what an expert does with a row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformer_lab.errors import ConfigurationError
from transformer_lab.ffn.dense import ACTIVATIONS
from transformer_lab.model.axes import Axis, Shape
from transformer_lab.model.limits import LIMITS, require_choice, require_positive, require_whole


@dataclass(frozen=True)
class Experts:
    """`count` networks E of inner width `size` F: down(act(up(x))), or down(act(gate(x)) * up(x)) if `gated`.

    activation: one of ACTIVATIONS. bias: whether the linear maps add one. limit: gate is at most that, and up between
    -limit and limit, before the activation and the product. sharpness, with a limit: the form of GPT-OSS (OpenAI 2025,
    arXiv 2508.10925), down(gate * sigmoid(sharpness * gate) * (up + 1)), in place of the activation; None keeps the
    activation (DeepSeek-V4).
    """

    count: int
    size: int
    activation: str = "silu"
    gated: bool = True
    bias: bool = False
    limit: float | None = None
    sharpness: float | None = 1.702

    def __post_init__(self) -> None:
        require_whole("ffn.experts.count", self.count, LIMITS["num_experts"])
        require_whole("ffn.experts.size", self.size, 100 * LIMITS["hidden_size"])
        require_choice("ffn.experts.activation", self.activation, ACTIVATIONS)
        if self.sharpness is not None:
            require_positive("ffn.experts.sharpness", self.sharpness)
        if self.limit is not None:
            require_positive("ffn.experts.limit", self.limit)
            if not self.gated:
                message = "ffn.experts.limit belongs to gated experts; set ffn.experts.gated=true too."
                raise ConfigurationError(message)

    def shapes(self, hidden_size: int) -> dict[str, Shape]:
        """Kernels [E, in, out] and biases [E, out]."""
        experts, inner = Axis(self.count, "experts"), Axis(self.size, "ffn")
        maps = {"up": (hidden_size, inner), "down": (inner, hidden_size)}
        maps = ({"gate": (hidden_size, inner)} if self.gated else {}) | maps
        shapes: dict[str, Shape] = {f"{name}.kernel": (experts, *shape) for name, shape in maps.items()}
        if self.bias:
            shapes |= {f"{name}.bias": (experts, shape[1]) for name, shape in maps.items()}
        return shapes

    def __call__(self, ops: Any, product: Callable[[str, Any], Any], x: Any) -> Any:
        """x [R, D] -> [R, D]. product(name, rows): each row times the kernel `name` of its expert, plus the bias."""
        up = product("up", x)
        if not self.gated:
            return product("down", getattr(ops, self.activation)(up))
        gate = product("gate", x)
        if self.limit is not None:
            gate = ops.xp.clip(gate, None, self.limit)
            up = ops.xp.clip(up, -self.limit, self.limit)
            if self.sharpness is not None:
                return product("down", gate * ops.sigmoid(gate * self.sharpness) * (up + 1.0))
        return product("down", getattr(ops, self.activation)(gate) * up)
