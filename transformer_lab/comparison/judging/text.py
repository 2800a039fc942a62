"""Continuations beside each other, and a second sampler, written to be read, that judges the first. It knows only ids.

`resampled` chooses again from the logits from which a participant chose. So a wrong rule of sampling is found apart
from differences of the logits. It takes one candidate after another, as in the papers that `Sampling` names, and
shares no code with `generation/sampling.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from transformer_lab.generation.sampling import Sampling


@dataclass(frozen=True)
class TextAgreement:
    """How far continuations are those of the truth, over all prompts.

    first_difference: the smallest index of a token, from 0, that differs in a continuation; the end of the shorter one
    counts as different. None if all are the same. agreement: how many tokens come before the first difference, summed
    over the prompts. tokens: how many the truth has, summed.
    """

    first_difference: int | None
    agreement: int
    tokens: int


def text_agreement(continuations: Sequence[Sequence[int]], truth: Sequence[Sequence[int]]) -> TextAgreement:
    """Of the token ids of one continuation per prompt, in the same order of prompts."""
    differences, agreement = [], 0
    for ids, true in zip(continuations, truth, strict=True):
        same = 0
        while same < min(len(ids), len(true)) and ids[same] == true[same]:
            same += 1
        agreement += same
        if len(ids) != len(true) or same < len(true):
            differences.append(same)
    return TextAgreement(min(differences, default=None), agreement, sum(map(len, truth)))


def distinct(runs: Sequence[Sequence[int]]) -> int:
    """How many different continuations are among those of several runs."""
    return len({tuple(ids) for ids in runs})


def sampler_agrees(
    token_ids: Sequence[int], logits: np.ndarray, sampling: Sampling, seed: int, prompt_ids: Sequence[int] = ()
) -> tuple[bool | None, int | None]:
    """Whether a participant's tokens are those that the rules give, None if no token could be decided; and the place of
    the first that is not.

    token_ids: N, an end token included. The others as for `resampled`.
    """
    expected = resampled(logits, token_ids, sampling, seed, prompt_ids)
    decided = [place for place, right in enumerate(expected) if right is not None]
    wrong = next((place for place in decided if token_ids[place] != expected[place]), None)
    return (wrong is None if decided else None), wrong


def resampled(
    logits: np.ndarray, token_ids: Sequence[int], sampling: Sampling, seed: int, prompt_ids: Sequence[int] = ()
) -> list[int | None]:
    """The token that `sampling` chooses from each row -> N ids.

    logits [N, V]: the raw rows from which a participant chose token_ids (N), in order. seed: of the generation; each of
    its prompts draws from a generator of its own with this seed, one uniform number per token. prompt_ids: the prompt;
    together with the tokens chosen before a row they are what a repetition penalty looks at.

    None stands where float64 leaves the choice open: a sum or a ratio is as near to a threshold as the roundings of
    another order of summation, or two logits that differ are equally likely in float64.
    """
    generator = np.random.default_rng(seed)
    history = [*prompt_ids]
    chosen: list[int | None] = []
    for row, token in zip(logits, token_ids, strict=True):
        chosen.append(_choice(row, sampling, history, generator))
        history.append(token)
    return chosen


def _choice(row: np.ndarray, sampling: Sampling, history: Sequence[int], generator: np.random.Generator) -> int | None:
    logits = [float(value) for value in row]
    if sampling.repetition_penalty is not None:
        penalty = float(sampling.repetition_penalty)
        for token in {*history}:
            if logits[token] > 0:
                logits[token] /= penalty
            else:
                logits[token] *= penalty
    drawn = 0.0 if sampling.temperature == 0.0 else generator.random()
    if any(map(math.isnan, logits)):
        return None
    if sampling.temperature == 0.0:
        return _likeliest_first(range(len(logits)), logits)[0]
    best = max(logits)
    if math.isinf(best):
        return None
    scaled = [(value - best) / float(sampling.temperature) for value in logits]
    # Each probability has the rounding of an argument of up to 745 and of an exponential, each sum one for every term.
    slack = (len(logits) + 2000) * 2.0**-52
    fewest, most = (_drawn(scaled, sampling, drawn, slack, sign) for sign in (-1, 1))
    return fewest if fewest == most else None


def _likeliest_first(tokens: Sequence[int], values: Sequence[float]) -> list[int]:
    """Among equals the lower id first."""
    return sorted(tokens, key=lambda token: (-values[token], token))


def _drawn(scaled: Sequence[float], sampling: Sampling, drawn: float, slack: float, sign: int) -> int | None:
    """The token at the place `drawn`, from 0 to 1. sign: with 1, candidates at a threshold stay, with -1 they go.

    scaled [V]: logits over the temperature, 0 for the likeliest. Candidates stand in the order of their ids until a
    rule ranks them.
    """
    weights = [math.exp(value) for value in scaled]
    candidates: Sequence[int] = range(len(scaled))
    ranked = False
    if sampling.top_k is not None and sampling.top_k < len(scaled):
        candidates, ranked = _likeliest_first(candidates, scaled)[: sampling.top_k], True
    if sampling.top_p is not None and sampling.top_p < 1.0:
        total = math.fsum(weights[token] for token in candidates)
        nucleus: list[int] = []
        reached = 0.0
        for token in _likeliest_first(candidates, scaled):
            # the fewest that reach p together: one more as long as those before it do not
            if nucleus and reached / total >= float(sampling.top_p) + sign * slack:
                break
            nucleus.append(token)
            reached += weights[token]
        candidates, ranked = nucleus, True
    if sampling.min_p is not None:
        # the likeliest has the weight 1, so a weight is the ratio to it; equals of the likeliest are never in doubt
        least = float(sampling.min_p) * (1.0 - sign * slack)
        candidates = [token for token in candidates if scaled[token] == 0.0 or weights[token] >= least]
    possible = [token for token in candidates if weights[token] > 0.0]
    total = math.fsum(weights[token] for token in possible)
    reached = 0.0
    for token in possible:
        before, reached = reached, reached + weights[token]
        first, last = token == possible[0], token == possible[-1]
        if drawn * total < reached or last:
            inside = (first or drawn * total >= before + slack * total) and (
                last or drawn * total < reached - slack * total
            )
            # which of two is likelier, where only rounding tells, is open, and so is their order
            rivals = ranked and any(0.0 < abs(value - scaled[token]) < slack for value in scaled)
            return token if inside and not rivals else None
    return None
