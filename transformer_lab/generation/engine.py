"""Prefill and decoding of one model: token ids in, logits out, over a cache. It knows ids and never text.

B rows (prompts) of unequal lengths run together, padded on the right. The functions are compiled once per model:
one trace per shape of the prefill and one per size of the cache, however many tokens are decoded.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from transformer_lab.backends.plain.manual import identity
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.decoder import forward


@dataclass
class Look:
    """A tap that may be exchanged where passes are not compiled."""

    tap: Callable[[str, Any], Any] = identity


class Engine:
    """The compiled functions of a model: ops, its configuration, its parameters and its cache policy."""

    def __init__(self, ops: Any, config: ModelConfig, params: Any, policy: Any) -> None:
        self.ops, self.config, self.policy = ops, config, policy
        # What looks at every pass. A compiler keeps what its functions refer to, so that must not be the engine itself.
        self.look = look = Look()
        self._lock = threading.RLock()
        self.memory: Any = None
        self.take(params)

        def extend(params: Any, token_ids: Any, start: Any, last: Any, cache: Any) -> tuple[Any, Any]:
            """Feeds token_ids [B, T] from positions start [B]; -> (logits [B, V] after each row's `last`, cache)."""
            at = ops.xp.clip(last, 0, None)  # of a row that brings nothing, -1
            logits, cache = forward(
                ops, config, params, token_ids, start, cache, look.tap, logits_at=at, lengths=last + 1
            )
            return logits[:, 0, :], cache

        def greedy(params: Any, token: Any, start: Any, cache: Any, found: Any, scores: Any, count: Any) -> Any:
            """Feeds token [B] and then, `count` times in all, the likeliest next one; -> (cache, found, scores).

            found, scores: [B, steps_per_call] the ids that were chosen and their log-probabilities.
            """
            xp = ops.xp

            def step(i: Any, carry: Any) -> Any:
                cache, token, found, scores = carry
                logits, cache = forward(ops, config, params, token[:, None], start + i, cache, look.tap)
                logits = logits[:, 0, :]
                token = ops.cast(xp.argmax(logits, axis=-1), ops.index_dtype)
                score = -ops.cross_entropy(logits, token)
                here = xp.arange(found.shape[1], device=ops.array_device)[None, :] == i
                found = xp.where(here, token[:, None], found)
                scores = xp.where(here, score[:, None], scores)
                return cache, token, found, scores

            cache, _, found, scores = ops.repeat(step, count, (cache, token, found, scores))
            return cache, found, scores

        self.extend = ops.compile(extend, donate=(4,))
        self.greedy = ops.compile(greedy, donate=(3, 4, 5))

    def take(self, params: Any) -> None:
        """These parameters from now on; what was kept of texts belongs to those before."""
        with self._lock:
            if self.memory is not None:
                self.memory.close()
            self.params, self.memory = params, self.policy.memory(self.ops, self.config, params)

    @property
    def alone(self) -> AbstractContextManager[Any]:
        """Threads whose texts lie in one memory come one after the other; without a memory they need not."""
        return nullcontext() if self.memory is None else self._lock

    def run(self, function: Any, *arguments: Any) -> Any:
        """function(params, *arguments), one of the two. If it fails where arrays are consumed, what was kept of texts
        may have gone with them."""
        try:
            return function(self.params, *arguments)
        except BaseException:
            if not self.ops.in_place:
                self.take(self.params)
            raise

    def begin(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> "Sequences":
        """Runs the prompts and makes room for new_tokens more of each."""
        return Sequences(self, prompts, new_tokens)


class Sequences:
    """Rows under way. `logits` [B, V] (NumPy) are those of each row's next token, after the prompt and each `feed`."""

    logits: np.ndarray

    def __init__(self, engine: Engine, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
        ops, config = engine.ops, engine.config
        self.engine = engine
        self.rows = [list(prompt) for prompt in prompts]
        self.written: list[int] = []  # how many tokens of each row the cache holds
        longest = max(len(row) for row in self.rows)
        self.capacity = ops.bucket(min(longest + new_tokens, config.context_length), config.context_length)
        with engine.alone:
            self.memory = engine.memory
            self.cache, known = engine.policy.begin(self.memory, ops, config, self.rows, self.capacity)
            try:
                self._run_prompts(known)
            except BaseException:
                self.end()
                raise

    def feed(self, tokens: Sequence[int]) -> None:
        """Appends one token to each row."""
        starts = [len(row) for row in self.rows]
        for row, token in zip(self.rows, tokens, strict=True):
            row.append(token)
        if self.cache is None:
            self._run(self.rows, [0] * len(self.rows))
        else:
            self._run([[token] for token in tokens], starts)

    def end(self) -> None:
        """Gives back what the cache holds; nothing can be fed any more."""
        if self.cache is not None:
            with self.engine.alone:
                # Where the engine has gone on to another memory, this text is of other weights, or its arrays are gone.
                known = self.written if self.engine.memory is self.memory else [0] * len(self.rows)
                cache, held = self.cache, [row[:count] for row, count in zip(self.rows, known, strict=True)]
                self.cache, self.rows = None, []
                self.engine.policy.end(cache, held)

    def _run_prompts(self, known: Sequence[int]) -> None:
        """known: how many tokens of each row are in the cache already. A row that has come to its end waits."""
        done, self.written, chunk = list(known), list(known), self.engine.policy.chunk or self.capacity
        found: dict[int, np.ndarray] = {}
        while len(found) < len(self.rows):
            ends = [min(len(row), (first // chunk + 1) * chunk) for row, first in zip(self.rows, done, strict=True)]
            pieces = [row[first:end] for row, first, end in zip(self.rows, done, ends, strict=True)]
            self._run(pieces, [first if piece else 0 for piece, first in zip(pieces, done, strict=True)])
            for row, piece in enumerate(pieces):
                if piece and ends[row] == len(self.rows[row]):
                    found[row] = self.logits[row]
            done = ends
        self.logits = np.stack([found[row] for row in range(len(self.rows))])

    def _run(self, pieces: Sequence[Sequence[int]], starts: Sequence[int]) -> None:
        ops, limit = self.engine.ops, self.engine.config.context_length
        longest = max(len(piece) for piece in pieces)
        width = 1 if longest == 1 else ops.bucket(longest, limit)
        padded = np.zeros((len(pieces), width), np.int64)
        for row, piece in enumerate(pieces):
            padded[row, : len(piece)] = piece
        arguments = [ops.asarray(x) for x in (padded, np.array(starts), np.array([len(p) - 1 for p in pieces]))]
        # A row that brings nothing stays as long as it is.
        lengths = [
            max(start + len(piece), before) for start, piece, before in zip(starts, pieces, self.written, strict=True)
        ]
        with self.engine.alone:
            ready = self._ready(lengths, max(starts) + width)
            logits, written = self.engine.run(self.engine.extend, *arguments, ready)
            self._keep(written, lengths)
        self.logits = ops.to_numpy(logits)

    def _ready(self, lengths: Sequence[int], reach: int) -> Any:
        """What a pass is given that writes so many tokens of each row, and padding up to the position `reach`."""
        if self.cache is None:
            return None
        return self.engine.policy.ready(self.engine.ops, self.cache, lengths, reach, self.capacity)

    def _keep(self, written: Any, lengths: Sequence[int]) -> None:
        if self.cache is not None:
            self.cache, self.written = self.engine.policy.keep(self.cache, written), list(lengths)

    def greedy(self, tokens: Sequence[int], count: int) -> tuple[np.ndarray, np.ndarray]:
        """Appends a token to each row, and then `count` times the likeliest, in one call of the backend.

        -> ids [B, count] and their log-probabilities [B, count]. The last of them is chosen and not yet fed.
        count is at most ops.steps_per_call, and the cache must be one that is written in one piece (not None).
        """
        ops, engine = self.engine.ops, self.engine
        starts = ops.asarray(np.array([len(row) for row in self.rows]))
        lengths = [len(row) + count for row in self.rows]
        blank = np.zeros((len(tokens), ops.steps_per_call))
        with engine.alone:
            written, found, scores = engine.run(
                engine.greedy,
                ops.asarray(np.array(tokens)),
                starts,
                self._ready(lengths, max(lengths)),
                ops.asarray(blank, ops.index_dtype),
                ops.asarray(blank),
                ops.asarray(np.array(count)),
            )
            self._keep(written, lengths)
        ids, log_probabilities = ops.to_numpy(found)[:, :count], ops.to_numpy(scores)[:, :count]
        for row, token, chosen in zip(self.rows, tokens, ids.tolist(), strict=True):
            row.extend([token, *chosen[:-1]])
        return ids, log_probabilities
