"""The shape of a decoder: everything that decides what the function computes, and nothing about where it runs."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformer_lab.errors import ConfigurationError
from transformer_lab.model.limits import LIMITS, require_positive, require_whole


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer, put together from parts. Frozen and hashable, so a compiler can take it as fixed.

    `vocab_size` V, `context_length` C, `hidden_size` D. `blocks`: one description for each layer, of `block/`; layers
    that are alike share one, and its compilation. `norm`: of the stream before the head, or None. `position`: what is
    added to the embedding, such as `Learned()`, or None where the attention knows positions, or nobody.
    `embedding_scale`: the embedding is multiplied by it (Gemma, Granite); `embedding_norm`: then goes through it
    (BLOOM). `tied_head`: the embedding is the head too. `head_bias`: the head adds one. `logits_scale`: logits are
    multiplied by it (Cohere, Granite); `logits_cap`: they become cap * tanh(logits / cap) (Gemma 2).
    `end_of_text_id` ends a generation, `begin_of_text_id` starts an empty prompt; either may be None.

    Raises ConfigurationError, in words, for values that make no decoder.
    """

    vocab_size: int
    context_length: int
    hidden_size: int
    blocks: tuple[Any, ...]
    norm: Any
    position: Any = None
    embedding_scale: float = 1.0
    embedding_norm: Any = None
    tied_head: bool = True
    head_bias: bool = False
    logits_scale: float = 1.0
    logits_cap: float | None = None
    end_of_text_id: int | None = None
    begin_of_text_id: int | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "context_length", "hidden_size"):
            require_whole(name, getattr(self, name), LIMITS[name])
        require_whole("num_layers", self.num_layers, LIMITS["num_layers"])
        for name in ("embedding_scale", "logits_scale", *(["logits_cap"] if self.logits_cap is not None else [])):
            require_positive(name, getattr(self, name))
        if getattr(self.position, "in_attention", False):
            message = f"position is {type(self.position).__name__}, which belongs to the attention of a block instead."
            raise ConfigurationError(message)
        for name in ("end_of_text_id", "begin_of_text_id"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or not 0 <= value < self.vocab_size):
                message = f"{name} is {value!r}, which is not an id of a vocabulary of {self.vocab_size}."
                raise ConfigurationError(message)

    @property
    def num_layers(self) -> int:
        return len(self.blocks)

    @cached_property
    def rotaries(self) -> tuple[Any, ...]:
        """The rotary positions of all layers, each once: every one has a table of angles. Every pass asks for them."""
        positions = (block.attention.position for block in self.blocks)
        return tuple(dict.fromkeys(position for position in positions if hasattr(position, "turn")))
