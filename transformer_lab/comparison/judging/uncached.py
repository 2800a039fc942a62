"""What a model's own logits, of one pass without a cache, say of a generation: its tokens, its end, its numbers.

Cached decoding rounds otherwise than one pass does, so a generation may differ from it by a few times the error that
this pass itself has against the truth. In exact mode there is no such noise, and nothing may differ.
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from transformer_lab.comparison.judging.examination import difference
from transformer_lab.comparison.judging.resampling import resampled
from transformer_lab.generation.continuation import Generation
from transformer_lab.generation.sampling import Sampling
from transformer_lab.language_model import LanguageModel

# How far the logits of cached decoding may be from those of one pass over the same tokens, in units of the largest
# error that this pass itself has against the truth.
CACHED_SLACK = 8.0
# A log-probability is computed from float32 logits in float32, save its sum: relative to their range.
ROUNDING = {"float64": 2.0**-40}
ROUNDING_OF_FLOAT32 = 2.0**-22
GREEDY = Sampling()


@dataclass
class _Pass:
    """rows: the logits from which each token was chosen, and one more where the context holds it, [N or N + 1, V]."""

    tokens: list[int]
    rows: np.ndarray
    noise: float | None = None


class Uncached:
    """Judges the generations of one model. It remembers its passes, since many generations begin alike.

    decided, open: how many tokens had to be what they are, and how many rounding left open.
    """

    def __init__(self, model: LanguageModel, truth: LanguageModel) -> None:
        self.model, self.truth = model, truth
        self.exact = model.backend.precision == "exact"
        self.decided = self.open = 0
        self._passes: dict[tuple[int, ...], list[_Pass]] = {}
        self._usual: float | None = None

    def unexplained(
        self,
        generation: Generation,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        ends: Collection[int] = (),
        tokens: int | None = None,
    ) -> tuple[int, str] | None:
        """The first token that does not follow from the logits and the rules: (its place, how so), or None.

        ends: the end tokens of the model. tokens: how many to look at, if not all.
        """
        prompt, chosen = generation.prompt_token_ids, generation.token_ids[:tokens]
        ended = generation.finish_reason == "end_of_text" and chosen == generation.token_ids
        rows = self.rows(prompt, chosen)
        found = None
        for noise in self._noises(prompt, chosen):
            if sampling.greedy:
                found = _not_the_likeliest(rows, chosen, ends if ended else (), noise)
                undecided = 0
            else:
                expected = resampled(rows[: len(chosen)], chosen, sampling, seed, prompt, noise)
                pairs = enumerate(zip(chosen, expected, strict=True))
                found = next(
                    ((place, f"in place of {right}") for place, (got, right) in pairs if right not in (None, got)), None
                )
                undecided = expected.count(None)
            if found is None:
                self.decided, self.open = self.decided + len(chosen) - undecided, self.open + undecided
                break
        return found

    def wrong_logprob(self, generation: Generation) -> tuple[int, float] | None:
        """The first log-probability that is not log softmax of the raw logits: (its place, by how much), or None."""
        prompt, chosen = generation.prompt_token_ids, generation.token_ids
        if len(generation.logprobs) != len(chosen):
            return min(len(generation.logprobs), len(chosen)), float("nan")
        if not chosen:
            return None
        rows = self.rows(prompt, chosen)[: len(chosen)].astype(np.float64)
        peak = rows.max(axis=1, keepdims=True)
        total = np.log(np.exp(rows - peak).sum(axis=1))
        expected = rows[np.arange(len(chosen)), chosen] - peak[:, 0] - total
        apart = np.abs(np.asarray(generation.logprobs, np.float64) - expected)
        rounding = ROUNDING.get(self.model.backend.precision, ROUNDING_OF_FLOAT32) * (1.0 + np.abs(rows).max(axis=1))
        found = None
        for noise in self._noises(prompt, chosen):
            beyond = np.flatnonzero(~(apart <= 2.0 * noise + rounding))
            if not len(beyond):
                return None
            found = int(beyond[0]), float(apart[beyond[0]])
        return found

    def has_hash(self, generation: Generation) -> bool:
        """Whether logits_sha256 is that of the rows; only in exact mode, where cached decoding has the same bits."""
        count = len(generation.token_ids) + (generation.finish_reason == "end_of_text")
        rows = self.rows(generation.prompt_token_ids, generation.token_ids)[:count]
        return generation.logits_sha256 == hashlib.sha256(rows.astype("<f4").tobytes()).hexdigest()

    def rows(self, prompt: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        """The logits from which each of the tokens should have come, and one row more: [N + 1, V], or [N, V]."""
        return self._pass(prompt, tokens).rows[: len(tokens) + 1]

    def _pass(self, prompt: Sequence[int], tokens: Sequence[int]) -> _Pass:
        kept = self._passes.setdefault(tuple(prompt), [])
        for one in kept:
            if one.tokens[: len(tokens)] == list(tokens):
                return one
        own = self.model.logits(self._ids(prompt, tokens))[0]
        kept.append(_Pass(list(tokens), own[len(prompt) - 1 :].copy()))
        return kept[-1]

    def _ids(self, prompt: Sequence[int], tokens: Sequence[int]) -> list[int]:
        return [*prompt, *tokens][: self.model.config.context_length]

    def _noises(self, prompt: Sequence[int], tokens: Sequence[int]) -> Iterator[float]:
        """How far cached logits may be off: as far as in the first pass of all, and if that is not enough, in this."""
        if self.exact:
            yield 0.0
            return
        if self._usual is None:
            self._usual = self._noise(prompt, tokens)
        yield self._usual
        one = self._pass(prompt, tokens)
        if one.noise is None:
            one.noise = self._noise(prompt, one.tokens)
        if one.noise > self._usual:
            yield one.noise

    def _noise(self, prompt: Sequence[int], tokens: Sequence[int]) -> float:
        ids = self._ids(prompt, tokens)
        own, true = self.model.logits(ids), self.truth.logits(ids)
        least = ROUNDING["float64"] * float(np.abs(true).max())  # what float64 itself may lose on the way
        return max(CACHED_SLACK * float(np.abs(difference(own, true)).max()), least)


def _not_the_likeliest(
    rows: np.ndarray, tokens: Sequence[int], ends: Collection[int], noise: float
) -> tuple[int, str] | None:
    """The first token that is less likely than another by more than noise. ends: of a continuation that one ended."""
    for place, row in enumerate(rows[: len(tokens) + bool(ends)].astype(np.float64)):
        allowed = [tokens[place]] if place < len(tokens) else [*ends]
        gap = float(row.max() - row[allowed].max())
        if not gap <= noise or (noise == 0.0 and int(row.argmax()) not in allowed):
            return place, f"by {gap:.3g}"
    return None
