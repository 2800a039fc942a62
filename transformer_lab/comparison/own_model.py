"""One of our models as a participant: its taps, block by block, from the functions that its backend compiles.

A block is one compiled call whose taps are extra outputs, so what is held at a time are the taps of one block. The
tokens may be fed at once, in pieces over a cache, or as one row of a batch: the definition says that the taps are the
same, and in exact mode they are, bit for bit.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from transformer_lab.cache.contiguous import Contiguous
from transformer_lab.language_model import LanguageModel
from transformer_lab.model.decoder import decoder_block, embedding, read_out, tap_names

LENGTH_AXES = {"attn.q": 2, "attn.k": 2, "attn.v": 2, "attn.scores": 2, "attn.pattern": 2}  # 1 for all others
KEYS_AXIS = 3  # of scores and pattern
NOT_VISIBLE = {"attn.scores": -np.inf, "attn.pattern": 0.0}


@dataclass(frozen=True)
class Feeding:
    """How token ids come into the model.

    single: how many of the last tokens are fed one by one. pieces: into how many the rest is cut. Unless that is one
    piece and nothing single, keys and values are kept in a cache. batch: rows at a time; the others hold other tokens.
    compiled: False runs the operations one by one where the backend would compile them.
    """

    pieces: int = 1
    single: int = 0
    batch: int = 1
    compiled: bool = True

    def cuts(self, length: int) -> list[tuple[int, int]]:
        """(start, end) of every piece of `length` tokens; at least one token stays for the first piece."""
        single = min(self.single, length - 1)
        rest = length - single
        ends = [rest * piece // self.pieces for piece in range(1, self.pieces + 1)]
        ends = sorted({*ends, *range(rest, length + 1)} - {0})
        return list(zip([0, *ends[:-1]], ends, strict=True))


WHOLE = Feeding()


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
        inside = [name.split(".", 2)[2] for name in tap_names(config) if name.startswith("blocks.0.")]
        self._order = ["embed", *inside, "final_norm", "logits"]

        def run_embedding(params: Any, ids: Any, start: Any) -> Any:
            kept = Kept(ops, ["embed"])
            return *embedding(ops, config, params, ids, start, kept), kept.taps

        def run_read_out(params: Any, x: Any) -> Any:
            kept = Kept(ops, ["final_norm", "logits"])
            read_out(ops, config, params, x, kept)
            return kept.taps

        def block_of(layer: int) -> Callable[..., Any]:
            def run_block(params: Any, x: Any, start: Any, angles: Any, cache: Any) -> Any:
                kept = Kept(ops, inside, f"blocks.{layer}.")
                x, cache = decoder_block(ops, config, layer, params, x, start, angles, cache, kept)
                return x, cache, kept.taps

            return compiled(run_block)

        self._embedding, self._read_out = compiled(run_embedding), compiled(run_read_out)
        # Layers differ in their number alone, and it matters where the scores are scaled by it.
        by_scale: dict[float, Callable[..., Any]] = {}
        for layer in range(config.num_layers):
            if config.score_scale(layer) not in by_scale:
                by_scale[config.score_scale(layer)] = block_of(layer)
        self._blocks = [by_scale[config.score_scale(layer)] for layer in range(config.num_layers)]

    def taps(self, token_ids: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """token_ids [T] -> (tap name, array with B = 1), in the order of the computation, a block at a time."""
        ops, config, params = self.model.backend, self.model.config, self.model.params
        length = len(token_ids)
        self.certificate = {}
        ops.certificate.places.clear()
        pieces = self._pieces(np.asarray(token_ids))
        streams, angles = [], []
        found = []
        for ids, start in pieces:
            x, turns, taps = self._embedding(params, ids, start)
            streams.append(x)
            angles.append(turns)
            found.append(taps)
        yield from self._joined(found, "", length)
        cached = len(pieces) > 1
        policy = Contiguous()
        for layer, (block, run) in enumerate(zip(params["blocks"], self._blocks, strict=True)):
            # Only this layer's cache is held: pieces meet nothing of another layer's.
            cache = policy.allocate(ops, config, self.feeding.batch, length)[layer] if cached else None
            found = []
            for piece, (_, start) in enumerate(pieces):
                streams[piece], cache, taps = run(block, streams[piece], start, angles[piece], cache)
                found.append(taps)
            yield from self._joined(found, f"blocks.{layer}.", length)
        found = [self._read_out(params, x) for x in streams]
        yield from self._joined(found, "", length)

    def _pieces(self, token_ids: np.ndarray) -> list[tuple[Any, Any]]:
        """(ids [B, t], start [B]) of every piece, on the backend."""
        ops, length = self.model.backend, len(token_ids)
        rows = np.stack([np.roll(token_ids[::-1] if row else token_ids, row) for row in range(self.feeding.batch)])
        cuts = self.feeding.cuts(length)
        if len(cuts) == 1:  # padded as LanguageModel does it, so that a backend that compiles sees few lengths
            width = ops.bucket(length, self.model.config.context_length)
            rows = np.pad(rows, ((0, 0), (0, width - length)))
            cuts = [(0, width)]
        return [
            (ops.asarray(rows[:, first:end]), ops.asarray(np.full(self.feeding.batch, first, np.int64)))
            for first, end in cuts
        ]

    def _joined(self, found: list[dict[str, Any]], prefix: str, length: int) -> Iterator[tuple[str, np.ndarray]]:
        """The taps of all pieces put together again, those of the first row, without padding."""
        ops = self.model.backend
        for place, counts in ops.certificate.places.items():
            self.certificate[prefix + place] = counts
        ops.certificate.places.clear()
        for name in self._order:  # a compiler may hand out a dictionary sorted by its keys
            if name not in found[0]:
                continue
            axis = LENGTH_AXES.get(name, 1)
            parts = []
            for taps in found:
                part = ops.to_numpy(taps[name])[:1]
                if name in NOT_VISIBLE:
                    part = part[..., :length]
                    missing = length - part.shape[KEYS_AXIS]
                    part = np.pad(part, ((0, 0),) * 3 + ((0, missing),), constant_values=NOT_VISIBLE[name])
                parts.append(part)
            joined = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=axis)
            yield prefix + name, np.take(joined, range(length), axis=axis) if joined.shape[axis] > length else joined


class Kept:
    """A tap that keeps what it sees, by its local name, and says to exact mode's certificate where we are."""

    def __init__(self, ops: Any, names: list[str], prefix: str = "") -> None:
        self.ops, self.names, self.prefix = ops, names, prefix
        self.taps: dict[str, Any] = {}
        ops.certificate.place = names[0]

    def __call__(self, name: str, x: Any) -> Any:
        local = name.removeprefix(self.prefix)
        self.taps[local] = x
        place = self.names.index(local) + 1
        self.ops.certificate.place = self.names[place] if place < len(self.names) else ""
        return x
