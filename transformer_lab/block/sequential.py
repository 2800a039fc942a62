"""Attention, then the feed-forward network, each added to the stream. `block=sequential` builds it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformer_lab.ffn.network import network, network_taps
from transformer_lab.model.axes import Shape
from transformer_lab.model.limits import require_choice, require_positive
from transformer_lab.model.taps import within
from transformer_lab.model.tokens import Tokens


@dataclass(frozen=True)
class Sequential:
    """x + attention(x), then x + ffn(x), where norms say `norms`.

    "before" each of them: norm_1, norm_2 (GPT-2, Radford et al. 2019). "after" each, before it is added: post_norm_1,
    post_norm_2 (OLMo 2, arXiv 2501.00656). "around": all four (Gemma 2, arXiv 2408.00118).
    residual_scale: what each is multiplied by when it is added (Granite).
    """

    attention: Any
    ffn: Any
    norm: Any
    norms: str = "before"
    residual_scale: float = 1.0

    def __post_init__(self) -> None:
        require_choice("block.norms", self.norms, ("before", "after", "around"))
        require_positive("block.residual_scale", self.residual_scale)

    @property
    def taps(self) -> list[str]:
        names = ["norm_1", *(f"attn.{name}" for name in self.attention.taps), "post_norm_1", "resid_mid", "norm_2"]
        names += [*network_taps(self.ffn), "post_norm_2", "resid_post"]
        return [name for name in names if "norm_" not in name or name in self._norms]

    @property
    def _norms(self) -> list[str]:
        before = ["norm_1", "norm_2"] if self.norms != "after" else []
        return before + (["post_norm_1", "post_norm_2"] if self.norms != "before" else [])

    def shapes(self, hidden_size: int) -> dict[str, Shape]:
        """The parameters below `blocks.{i}`, in the order of the computation."""
        parts = {"norm_1": self.norm, "attn": self.attention, "post_norm_1": self.norm}
        parts |= {"norm_2": self.norm, "ffn": self.ffn, "post_norm_2": self.norm}
        return {
            f"{title}.{name}": shape
            for title, part in parts.items()
            if part is not self.norm or title in self._norms
            for name, shape in part.shapes(hidden_size).items()
        }

    def __call__(
        self, ops: Any, params: Any, x: Any, tokens: Tokens, cache: Any, tap: Callable[[str, Any], Any]
    ) -> tuple[Any, Any]:
        """x [B, T, D] -> ([B, T, D], the layer's cache)."""

        before, after = self.norms != "after", self.norms != "before"

        def normal(name: str, x: Any) -> Any:
            return tap(name, self.norm(ops, params.get(name, {}), x))

        given = normal("norm_1", x) if before else x
        attended, cache = self.attention(ops, params["attn"], given, tokens, cache, within(tap, "attn."))
        x = tap("resid_mid", x + self._scaled(normal("post_norm_1", attended) if after else attended))
        given = normal("norm_2", x) if before else x
        out = network(self.ffn, ops, params.get("ffn", {}), given, tokens, tap)
        return tap("resid_post", x + self._scaled(normal("post_norm_2", out) if after else out)), cache

    def _scaled(self, x: Any) -> Any:
        return x if self.residual_scale == 1.0 else x * self.residual_scale
