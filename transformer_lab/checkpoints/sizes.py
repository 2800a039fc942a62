"""The sizes that every config.json of transformers has, under the names that most families share."""

from dataclasses import dataclass
from typing import Any

from transformer_lab.checkpoints.config_fields import Fields
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.limits import LIMITS


@dataclass(frozen=True)
class Sizes:
    """Those of a family's defaults: what an absent field means. num_key_value_heads, head_dim: None is what follows
    from the others. bos, eos: the ids, None for none."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    tied: bool = False
    bos: int | None = None
    eos: int | None = None

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    def read(self, fields: Fields) -> "Sizes":
        """Those that the fields say. Whatever no decoder here has is refused, by name."""

        def whole(name: str, limit: str) -> int:
            return fields.whole(name, getattr(self, name), LIMITS[limit])

        context = whole("max_position_embeddings", "context_length")
        hidden, heads = whole("hidden_size", "hidden_size"), whole("num_attention_heads", "num_heads")
        head = self._or_null(fields, "head_dim", "head_size")
        if head is None and hidden % heads:  # transformers 5 asks for it with head_dim too, without a need
            fields.refuse("hidden_size", f"is {hidden}, which is not divisible by num_attention_heads, {heads}")
        groups = self._or_null(fields, "num_key_value_heads", "num_kv_heads") or heads
        if heads % groups:
            fields.refuse("num_key_value_heads", f"is {groups}, which does not divide num_attention_heads, {heads}")
        vocab, layers = whole("vocab_size", "vocab_size"), whole("num_hidden_layers", "num_layers")
        tied = fields.flag("tie_word_embeddings", self.tied)
        begin = next(iter(fields.token_ids("bos_token_id", self.bos, vocab)), None)
        end = next(iter(self.end_ids(fields)), None)
        return Sizes(vocab, hidden, layers, heads, context, groups, head or hidden // heads, tied, begin, end)

    def _or_null(self, fields: Fields, name: str, limit: str) -> int | None:
        value = fields.values.get(name, getattr(self, name))
        return None if value is None else fields.whole(name, value, LIMITS[limit])

    def end_ids(self, fields: Fields) -> tuple[int, ...]:
        """Every id that ends a text."""
        vocab = fields.whole("vocab_size", self.vocab_size, LIMITS["vocab_size"])
        return fields.token_ids("eos_token_id", self.eos, vocab)

    def model(self, blocks: tuple[Any, ...], norm: Any, **more: Any) -> ModelConfig:
        """A decoder of these sizes."""
        own = {"end_of_text_id": self.eos, "begin_of_text_id": self.bos, "tied_head": self.tied}
        sizes = (self.vocab_size, self.max_position_embeddings, self.hidden_size)
        return ModelConfig(*sizes, blocks, norm, **own | more)


def size_fields(config: ModelConfig) -> dict[str, Any]:
    """The inverse: the fields of a decoder whose layers have heads alike."""
    attention = config.blocks[0].attention
    return {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads,
        "head_dim": attention.head_size,
        "tie_word_embeddings": config.tied_head,
        "bos_token_id": config.begin_of_text_id,
        "eos_token_id": config.end_of_text_id,
        "pad_token_id": None,  # the default of some families lies outside of small vocabularies
    }
