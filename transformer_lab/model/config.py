"""The shape of a decoder: everything that decides what the function computes, and nothing about where it runs."""

import math
from dataclasses import dataclass
from typing import Any

from transformer_lab.errors import ConfigurationError

# Far above any model that exists; a damaged config.json is refused here, before anything is allocated for it.
LIMITS = {
    "vocab_size": 10_000_000,
    "context_length": 100_000_000,
    "hidden_size": 1_000_000,
    "num_layers": 10_000,
    "num_heads": 10_000,
    "num_kv_heads": 10_000,
    "head_size": 100_000,
}


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer. Frozen and hashable, so that it can be a static argument of a compiler.

    Sizes: `vocab_size` V, `context_length` C, `hidden_size` D, `num_layers`, `num_heads` H, `num_kv_heads` K (K < H is
    grouped-query attention, Ainslie et al. 2023, arXiv 2305.13245), `head_size` (D / H if not given).
    `ffn` is a frozen component of `transformer_lab.ffn`, such as `Dense(size=4 * D)`.
    `position`: "learned" adds a row per position to the embedding (GPT-2, Radford et al. 2019); "rotary" turns queries
    and keys (RoPE, Su et al. 2021, arXiv 2104.09864), with base `rotary_base`.
    `norm`: "layer_norm" (Ba et al. 2016, arXiv 1607.06450) or "rms_norm" (Zhang and Sennrich 2019, arXiv 1910.07467).
    `attention_scale`: scores are divided by sqrt(head_size); `attention_scale_by_layer`: and by the layer's number,
    from 1. `attention_bias`: the projections of the attention add one. `tied_head`: the embedding is the head too.
    `end_of_text_id` ends a generation, `begin_of_text_id` starts an empty prompt; either may be None.

    Raises ConfigurationError, in words, for values that make no decoder.
    """

    vocab_size: int
    context_length: int
    hidden_size: int
    num_layers: int
    num_heads: int
    ffn: Any
    num_kv_heads: int = None  # type: ignore[assignment]  # filled in below, like the next
    head_size: int = None  # type: ignore[assignment]
    position: str = "learned"
    rotary_base: float = 10000.0
    norm: str = "layer_norm"
    norm_epsilon: float = 1e-5
    attention_scale: bool = True
    attention_scale_by_layer: bool = False
    attention_bias: bool = True
    tied_head: bool = True
    end_of_text_id: int | None = None
    begin_of_text_id: int | None = None

    def __post_init__(self) -> None:
        if self.num_kv_heads is None:
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        if self.head_size is None:
            if isinstance(self.num_heads, int) and self.num_heads > 0 and self.hidden_size % self.num_heads:
                self._refuse(f"hidden_size {self.hidden_size} is not divisible by num_heads {self.num_heads}.")
            object.__setattr__(self, "head_size", self.hidden_size // max(self.num_heads, 1))
        for name, largest in LIMITS.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
                self._refuse(f"{name} is {value!r}; it must be a whole number from 1 to {largest}.")
        if self.num_heads % self.num_kv_heads:
            self._refuse(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}.")
        for name, choices in (("position", ("learned", "rotary")), ("norm", ("layer_norm", "rms_norm"))):
            if getattr(self, name) not in choices:
                self._refuse(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}.")
        if self.position == "rotary" and self.head_size % 2:
            self._refuse(f"head_size {self.head_size} is odd; rotary positions turn pairs, so it must be even.")
        for name in ("norm_epsilon", "rotary_base"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                self._refuse(f"{name} is {value!r}; it must be a positive number.")
        for name in ("end_of_text_id", "begin_of_text_id"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or not 0 <= value < self.vocab_size):
                self._refuse(f"{name} is {value!r}, which is not an id of a vocabulary of {self.vocab_size}.")

    @staticmethod
    def _refuse(message: str) -> None:
        raise ConfigurationError(message)

    def score_scale(self, layer: int) -> float:
        """What the attention scores of this layer (from 0) are multiplied by."""
        scale = 1.0 / math.sqrt(self.head_size) if self.attention_scale else 1.0
        return scale / (layer + 1) if self.attention_scale_by_layer else scale
