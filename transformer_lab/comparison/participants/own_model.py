"""One of our models as a participant: its taps, block by block, from the functions that its backend compiles.

A block is one compiled call whose taps are extra outputs, so what is held at a time are the taps of one block. The
tokens may be fed at once, in pieces over a cache, or as one row of a batch, beside rows of other lengths too: the
definition says that the taps are the same, and in exact mode they are, bit for bit.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np

from transformer_lab.backends.plain.manual import HIDDEN
from transformer_lab.cache.by_itself import fed_by_itself
from transformer_lab.cache.contiguous import Contiguous
from transformer_lab.cache.policy import CachePolicy
from transformer_lab.config import component
from transformer_lab.errors import ConfigurationError
from transformer_lab.language_model import LanguageModel
from transformer_lab.language_model.placing import placed
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.decoder import angles_of, embedding, forward, read_out
from transformer_lab.model.parameters import shapes
from transformer_lab.model.tokens import tokens_of


@dataclass(frozen=True)
class Feeding:
    """How token ids come into the model.

    single: how many of the last tokens are fed one by one. pieces: into how many the rest is cut. Unless that is one
    piece and nothing single, keys and values are kept in a cache. beside: the other rows of a batch, each by how many
    tokens it is ahead of the examined row (negative: behind); they hold other tokens. Where rows are unequal, the first
    piece is padded on the right to the longest, as in generation, and what follows is written over the padding.
    compiled: False runs the operations one by one where the backend would compile them. cache: the policy of the cache;
    what it stores in fewer bits is allowed for, and what it does not keep is not.
    """

    pieces: int = 1
    single: int = 0
    beside: tuple[int, ...] = ()
    compiled: bool = True
    cache: CachePolicy = field(default_factory=Contiguous)

    @property
    def row(self) -> int:
        """The place of the examined row: in the middle, so that it is neither the first nor the last of three."""
        return (len(self.beside) + 1) // 2

    def cuts(self, length: int) -> list[tuple[int, int]]:
        """(start, end) of every piece of `length` tokens; at least one token stays for the first piece."""
        single = min(self.single, length - 1)
        rest = length - single
        ends = [rest * piece // self.pieces for piece in range(1, self.pieces + 1)]
        ends = sorted({*ends, *range(rest, length + 1)} - {0})
        return list(zip([0, *ends[:-1]], ends, strict=True))


WHOLE = Feeding()


@dataclass(frozen=True)
class Piece:
    """ids [B, t], start and lengths [B], on the backend. tokens: how many of the examined row are in it; behind them is
    padding. reach: the end of the positions in a cache that it writes, of all rows."""

    ids: Any
    start: Any
    lengths: Any
    tokens: int
    reach: int


class OwnModel:
    """A participant (see `participant.py`). model: a LanguageModel. feeding: how the tokens are given to it.

    certificate: in exact mode, what was rounded at each tap of the last run: {tap name: (roundings, doubtful)}.
    """

    kind = "backend"

    def __init__(self, model: LanguageModel, feeding: Feeding = WHOLE, name: str | None = None) -> None:
        self.model, self.feeding = model, feeding
        self.precision = model.backend.precision
        self.name = name or f"{model.backend.name} {self.precision}"
        self.version, self.device = model.backend.version, model.backend.device
        self.config = model.config
        self.operations = dict(model.backend.ops)
        self.certificate: dict[str, tuple[int, int]] = {}
        ops, config = model.backend, model.config
        compiled = ops.compile if feeding.compiled else ops.uncompiled
        self._axes = growing_axes(config)

        def run_embedding(params: Any, ids: Any, start: Any, lengths: Any) -> Any:
            kept, tokens = Kept(ops, ["embed"]), tokens_of(ops, ids, start, lengths)
            x, angles = embedding(ops, config, params, tokens, kept)
            each = [angles_of(config, layer, angles) for layer in range(config.num_layers)]
            return x, tokens, each, kept.taps

        def run_read_out(params: Any, x: Any) -> Any:
            kept = Kept(ops, ["final_norm", "logits"])
            read_out(ops, config, params, x, kept)
            return kept.taps

        def running(block: Any) -> Callable[..., Any]:
            def run_block(params: Any, x: Any, tokens: Any, cache: Any) -> Any:
                kept = Kept(ops, block.taps)
                x, cache = block(ops, params, x, tokens, cache, kept)
                return x, cache, kept.taps

            return compiled(run_block)

        self._embedding, self._read_out = compiled(run_embedding), compiled(run_read_out)
        compiled_blocks = {block: running(block) for block in dict.fromkeys(config.blocks)}
        self._blocks = [compiled_blocks[block] for block in config.blocks]

    def taps(self, token_ids: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """token_ids [T] -> (tap name, array with B = 1), in the order of the computation, a block at a time."""
        ops, config, params = self.model.backend, self.model.config, self.model.params
        length = len(token_ids)
        self.certificate = {}
        ops.certificate.places.clear()
        pieces = self._pieces(np.asarray(token_ids))
        begun = [self._embedding(params, piece.ids, piece.start, piece.lengths) for piece in pieces]
        streams, tokens, angles, found = map(list, zip(*begun, strict=True))
        yield from self._joined(found, pieces, ["embed"], length)
        policy = self.feeding.cache
        batch, capacity = 1 + len(self.feeding.beside), max(piece.reach for piece in pieces)
        for layer, (block, run) in enumerate(zip(params["blocks"], self._blocks, strict=True)):
            # Only this layer's cache is held: pieces meet nothing of another layer's.
            cache = policy.of_block(ops, config.blocks[layer], batch, capacity) if len(pieces) > 1 else None
            found = []
            for place in range(len(pieces)):
                here = tokens[place]._replace(angles=angles[place][layer])
                streams[place], cache, taps = run(block, streams[place], here, cache)
                found.append(taps)
            yield from self._joined(found, pieces, config.blocks[layer].taps, length, f"blocks.{layer}.")
        found = [self._read_out(params, x) for x in streams]
        yield from self._joined(found, pieces, ["final_norm", "logits"], length)

    def read_otherwise(self, name: str, value: np.ndarray) -> np.ndarray | None:
        """What attention reads in place of value [1, K, T, N], keys or values, because the cache stores it in fewer
        bits; None of other taps and caches."""
        if not name.endswith((".attn.k", ".attn.v")) or self.feeding.cache.contract != "bounded":
            return None
        ops, attention = self.model.backend, self.config.blocks[int(name.split(".")[1])].attention
        with ops.scope():
            layer = self.feeding.cache.layer(ops, attention, 1, value.shape[2])
        return fed_by_itself(ops, layer, attention.num_heads, value, value, 0)[1][0]

    def _pieces(self, token_ids: np.ndarray) -> list[Piece]:
        ops, limit, length = self.model.backend, self.model.config.context_length, len(token_ids)
        row, beside = self.feeding.row, self.feeding.beside
        ahead = np.array([*beside[:row], 0, *beside[row:]])  # [B]
        longest = min(length + int(ahead.max()), limit)
        rows = [np.resize(np.roll(token_ids[::-1], number + 1), longest) for number in range(len(ahead))]
        rows[row] = np.resize(token_ids, longest)
        cuts = self.feeding.cuts(length)
        made = []
        for first, end in cuts:
            # A row that has come to the end of the context, or that would be behind the first token, stays there and
            # computes the same once more.
            starts = np.clip(first + ahead, 1, longest - (end - first)) if first else np.zeros_like(ahead)
            ends = np.clip(end + ahead, 1, longest) if not first else starts + (end - first)
            width = int((ends - starts).max())
            if len(cuts) == 1:  # padded as LanguageModel does it, so that a backend that compiles sees few lengths
                width = ops.bucket(width, limit)
            ids = np.zeros((len(rows), width), np.int64)
            for tokens, here, start, stop in zip(rows, ids, starts, ends, strict=True):
                here[: stop - start] = tokens[start:stop]
            reach = int(starts.max()) + width
            ids, starts, lengths = map(ops.asarray, (ids, starts, ends - starts))
            made.append(Piece(ids, starts, lengths, end - first, reach))
        return made

    def _joined(
        self, found: list[dict[str, Any]], pieces: list[Piece], names: list[str], length: int, prefix: str = ""
    ) -> Iterator[tuple[str, np.ndarray]]:
        """The taps of all pieces put together again, those of the examined row, without padding."""
        ops, row = self.model.backend, self.feeding.row
        for place, counts in ops.certificate.places.items():
            self.certificate[prefix + place] = counts
        ops.certificate.places.clear()
        for name in names:  # a compiler may hand out a dictionary sorted by its keys
            if not all(name in taps for taps in found):  # some caches show fewer once they hold something
                continue
            axis, *keys = self._axes[prefix + name]
            parts = []
            for taps, piece in zip(found, pieces, strict=True):
                part = ops.to_numpy(taps[name])[row : row + 1]
                part = part[(slice(None),) * axis + (slice(piece.tokens),)]
                for along in keys:  # of the keys: what lies behind the examined row is not visible to it
                    part = part[(slice(None),) * along + (slice(length),)]
                    rest = [(0, 0)] * part.ndim
                    rest[along] = (0, length - part.shape[along])
                    part = np.pad(part, rest, constant_values=HIDDEN.get(name.rpartition(".")[2], 0))
                parts.append(part)
            yield prefix + name, parts[0] if len(parts) == 1 else np.concatenate(parts, axis=axis)


@cache
def growing_axes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Of every tap, the axes that grow with the text: its tokens, and for some its keys.

    They are found by looking: one block of each kind, on two rows of one token and of two. Raises ConfigurationError
    for a tap that is not of each token.
    """
    kinds = tuple(dict.fromkeys(config.blocks))
    small = replace(config, blocks=kinds, vocab_size=2, context_length=8, end_of_text_id=None, begin_of_text_id=None)
    ops = component("backend", "numpy", precision="float64", ops="manual")
    params = placed(small, ops, {name: np.full(shape, 0.01) for name, shape in shapes(small).items()})
    seen: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for length, found in zip((1, 2), seen, strict=True):

        def look(name: str, x: Any, found: dict[str, Any] = found) -> Any:
            found[name] = x.shape
            return x

        forward(ops, small, params, np.zeros((2, length), np.int64), np.zeros(2, np.int64), tap=look)
    short, long = seen
    for name, shape in long.items():
        if not shape or shape[0] != 2 or shape == short[name]:
            message = (
                f"The tap {name} has the shape {list(shape)} for 2 rows of 2 tokens. A tap that is compared holds "
                "something of each token: the rows first, and an axis of tokens."
            )
            raise ConfigurationError(message)
    axes = {name: tuple(axis for axis, n in enumerate(shape) if n != short[name][axis]) for name, shape in long.items()}
    layers = {
        f"blocks.{layer}.{name}": axes[f"blocks.{kinds.index(block)}.{name}"]
        for layer, block in enumerate(config.blocks)
        for name in block.taps
    }
    return {name: found for name, found in axes.items() if not name.startswith("blocks.")} | layers


class Kept:
    """A tap that keeps what it sees, by its local name, and says to exact mode's certificate where we are."""

    def __init__(self, ops: Any, names: list[str]) -> None:
        self.ops, self.names = ops, names
        self.taps: dict[str, Any] = {}
        ops.certificate.place = names[0]

    def __call__(self, name: str, x: Any) -> Any:
        if name not in self.names or name in self.taps:
            said = "is shown twice" if name in self.taps else "is not declared"
            message = (
                f"The tap {name} {said}. A component lists each of its taps once in `taps`, shows it once, and calls "
                "none of them `out`, which is what the decoder calls its result."
            )
            raise ConfigurationError(message)
        self.taps[name] = x
        place = self.names.index(name) + 1
        self.ops.certificate.place = self.names[place] if place < len(self.names) else ""
        return x
