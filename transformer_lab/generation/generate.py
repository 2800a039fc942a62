"""The decoding loop: prefill, choose, feed, until every row has ended. Rows that end early wait for the others."""

import math
import time
from collections.abc import Iterator, Sequence

from transformer_lab.errors import InputFileError
from transformer_lab.generation.continuation import Continuation, Timing
from transformer_lab.generation.engine import Engine, Sequences
from transformer_lab.generation.sampling import Sampling, choose, log_probability


class Decoding:
    """A generation under way: iterate over it for the pieces of text that each step adds, one string per row."""

    def __init__(self, engine: Engine, rows: Sequence[Continuation], sampling: Sampling) -> None:
        self.engine, self.rows, self.sampling = engine, rows, sampling
        self._marks: list[tuple[float, float, int]] = []  # (time, compile time so far, tokens fed since the last mark)

    def __iter__(self) -> Iterator[list[str]]:
        limit = max(row.limit for row in self.rows)
        self._mark(0)
        sequences = self.engine.begin([row.prompt for row in self.rows], limit)
        try:
            yield from self._continue(sequences, limit)
        finally:  # also if nobody wants the rest
            sequences.end()

    def _continue(self, sequences: Sequences, limit: int) -> Iterator[list[str]]:
        tokens, pieces = self._choose(sequences)
        self._mark(sum(len(row.prompt) for row in self.rows))
        yield pieces
        # Rows that want no more than the likeliest tokens, and no logits, can be decoded many steps at a time.
        alone = self.sampling.greedy and sequences.cache is not None and all(row.hash is None for row in self.rows)
        many = self.engine.ops.steps_per_call if alone else 1
        while any(row.finish_reason is None for row in self.rows):
            if many > 1:
                # Never past the limit: the cache has room for no more.
                count = min(many, limit - (len(sequences.rows[0]) - len(self.rows[0].prompt)) - 1)
                ids, logprobs = sequences.greedy(tokens, count)
                self._mark(count * len(self.rows))
                for step in range(count):
                    tokens = ids[:, step].tolist()
                    _require_finite(float(logprobs[:, step].sum()))
                    yield [
                        "" if row.finish_reason else row.accept(token, float(logprob), None)
                        for row, token, logprob in zip(self.rows, tokens, logprobs[:, step], strict=True)
                    ]
            else:
                sequences.feed(tokens)
                tokens, pieces = self._choose(sequences)
                self._mark(len(self.rows))
                yield pieces

    def _choose(self, sequences: Sequences) -> tuple[list[int], list[str]]:
        """The next token of each row (0 for one that has ended), and the text it adds."""
        tokens, pieces = [], []
        for row, logits in zip(self.rows, sequences.logits, strict=True):
            token, piece = 0, ""
            if row.finish_reason is None:
                _require_finite(float(logits.max()))
                token = choose(logits, self.sampling, row.history, row.noise)
                piece = row.accept(token, log_probability(logits, token), logits)
            tokens.append(token)
            pieces.append(piece)
        return tokens, pieces

    def _mark(self, fed: int) -> None:
        self._marks.append((time.perf_counter(), self.engine.ops.compile_seconds, fed))

    def timing(self) -> Timing:
        """The speed so far. Time between two steps that the caller spent is counted in."""
        if len(self._marks) < 2:  # nothing was asked for yet
            return Timing(compile_s=0.0, first_token_s=0.0, prefill_tokens_per_s=0.0, decode_tokens_per_s=None)
        (begin, begin_compile, _), (first, first_compile, prompt) = self._marks[:2]
        end, end_compile, _ = self._marks[-1]
        decoded = sum(fed for _, _, fed in self._marks[2:])
        decoding = (end - first) - (end_compile - first_compile)
        prefill = (first - begin) - (first_compile - begin_compile)
        return Timing(
            compile_s=end_compile - begin_compile,
            first_token_s=first - begin,
            prefill_tokens_per_s=prompt / max(prefill, 1e-9),
            decode_tokens_per_s=decoded / max(decoding, 1e-9) if decoded else None,
        )


def _require_finite(number: float) -> None:
    """The largest logit, or a sum of log-probabilities: NaN or infinity in the weights always arrives there."""
    if not math.isfinite(number):
        message = (
            "The model's logits are not finite numbers, so no token can be chosen: its weights are damaged, or too "
            "large for this precision."
        )
        raise InputFileError(message)
