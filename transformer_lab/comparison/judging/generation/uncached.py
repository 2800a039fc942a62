"""What a model's own logits, of one pass without a cache, say of a generation: its tokens, its end, its numbers.

Cached decoding rounds otherwise than one pass does, so a generation may differ from it by a few times the error that
this pass itself has against the truth. In exact mode there is no such noise, and nothing may differ.
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from transformer_lab.comparison.judging.beside_bounds import difference
from transformer_lab.comparison.judging.generation.second_sampler import first_wrong, resampled
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


class Uncached:
    """Judges the generations of one model. It remembers its passes, since many generations begin alike.

    decided, open: how many tokens had to be what they are, and how many rounding left open.
    """

    def __init__(self, model: LanguageModel, truth: LanguageModel) -> None:
        self.model, self.truth = model, truth
        self.exact = model.backend.precision == "exact"
        self.decided = self.open = 0
        # prompt -> the continuations of it that were passed through, each with its rows (see `_pass`)
        self._passes: dict[tuple[int, ...], list[tuple[list[int], np.ndarray]]] = {}
        self._noise_of: dict[tuple[int, ...], float] = {}

    def unexplained(self, generation: Generation, sampling: Sampling = GREEDY, seed: int = 0) -> tuple[int, str] | None:
        """The first token that does not follow from the logits, the rules and the model's end tokens: (its place, how
        so), or None."""
        prompt, chosen = generation.prompt_token_ids, generation.token_ids
        ends = self.model.end_of_text_ids if generation.finish_reason == "end_of_text" else ()
        rows = self._pass(prompt, chosen)[1]
        found: tuple[int, str] | None = None
        for noise in self._noises(prompt, chosen):
            if sampling.greedy:
                found, undecided = _not_the_likeliest(rows, chosen, ends, noise), 0
            else:
                expected = resampled(rows[: len(chosen)], chosen, sampling, seed, prompt, noise)
                wrong, undecided = first_wrong(chosen, expected), expected.count(None)
                found = None if wrong is None else (wrong, f"in place of {expected[wrong]}")
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
        rows = self._pass(prompt, chosen)[1][: len(chosen)].astype(np.float64)
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
        rows = self._pass(generation.prompt_token_ids, generation.token_ids)[1][:count]
        return generation.logits_sha256 == hashlib.sha256(rows.astype("<f4").tobytes()).hexdigest()

    def _pass(self, prompt: Sequence[int], tokens: Sequence[int]) -> tuple[list[int], np.ndarray]:
        """(the tokens of a pass that begins with these, the logits from which each of them should have come, and one
        row more where the context holds it: [N + 1, V] or [N, V])."""
        kept = self._passes.setdefault(tuple(prompt), [])
        for passed, rows in kept:
            if passed[: len(tokens)] == tokens:
                return passed, rows
        rows = self.model.logits([*prompt, *tokens][: self.model.config.context_length])[0, len(prompt) - 1 :].copy()
        kept.append((list(tokens), rows))
        return kept[-1]

    def _noises(self, prompt: Sequence[int], tokens: Sequence[int]) -> Iterator[float]:
        """How far cached logits may be off: as far as in the first pass of all, and if that is not enough, in this."""
        if self.exact:
            yield 0.0
            return
        usual = next(iter(self._noise_of.values()), None)
        yield self._noise(prompt, tokens) if usual is None else usual
        yield max(usual or 0.0, self._noise(prompt, self._pass(prompt, tokens)[0]))

    def _noise(self, prompt: Sequence[int], tokens: Sequence[int]) -> float:
        ids = (*prompt, *tokens)[: self.model.config.context_length]
        if ids not in self._noise_of:
            own, true = self.model.logits(ids), self.truth.logits(ids)
            least = ROUNDING["float64"] * float(np.abs(true).max())  # what float64 itself may lose on the way
            self._noise_of[ids] = max(CACHED_SLACK * float(np.abs(difference(own, true)).max()), least)
        return self._noise_of[ids]


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
