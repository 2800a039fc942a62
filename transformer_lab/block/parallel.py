"""Attention and the feed-forward network side by side, both added to the stream at once. `block=parallel` builds it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformer_lab.ffn.network import network, network_taps
from transformer_lab.model.axes import Shape
from transformer_lab.model.taps import within
from transformer_lab.model.tokens import Tokens


@dataclass(frozen=True)
class Parallel:
    """x + attention(norm_1(x)) + ffn(norm_1(x)) (GPT-J, Wang and Komatsuzaki 2021; Phi, Cohere), or with two_norms
    ffn(norm_2(x)) (GPT-NeoX, Black et al. 2022, arXiv 2204.06745).
    """

    attention: Any
    ffn: Any
    norm: Any
    two_norms: bool = False

    @property
    def taps(self) -> list[str]:
        second = ["norm_2"] if self.two_norms else []
        return [
            "norm_1",
            *(f"attn.{name}" for name in self.attention.taps),
            *second,
            *network_taps(self.ffn),
            "resid_post",
        ]

    def shapes(self, hidden_size: int) -> dict[str, Shape]:
        """The parameters below `blocks.{i}`, in the order of the computation."""
        parts = {"norm_1": self.norm, "attn": self.attention}
        parts |= ({"norm_2": self.norm} if self.two_norms else {}) | {"ffn": self.ffn}
        return {
            f"{title}.{name}": shape
            for title, part in parts.items()
            for name, shape in part.shapes(hidden_size).items()
        }

    def __call__(
        self, ops: Any, params: Any, x: Any, tokens: Tokens, cache: Any, tap: Callable[[str, Any], Any]
    ) -> tuple[Any, Any]:
        """x [B, T, D] -> ([B, T, D], the layer's cache)."""
        normal = tap("norm_1", self.norm(ops, params.get("norm_1", {}), x))
        attended, cache = self.attention(ops, params["attn"], normal, tokens, cache, within(tap, "attn."))
        if self.two_norms:
            normal = tap("norm_2", self.norm(ops, params.get("norm_2", {}), x))
        out = network(self.ffn, ops, params.get("ffn", {}), normal, tokens, tap)
        # A sum of three, which implementations add in any order: so it is one, for whoever judges or rounds it.
        return tap("resid_post", ops.xp.sum(ops.xp.stack([x, attended, out]), axis=0)), cache
