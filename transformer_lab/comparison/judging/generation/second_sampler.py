"""A second sampler, written to be read, that judges the first. It knows only logits and ids.

`resampled` chooses again from the logits from which a participant chose, or from logits that are near them. So a wrong
rule of sampling is found apart from differences of the logits. It ranks everything and adds everything up, and shares
no code with `generation/sampling.py`.
"""

import math
from collections.abc import Sequence

import numpy as np

from transformer_lab.generation.sampling import Sampling


def sampler_agrees(
    token_ids: Sequence[int], logits: np.ndarray, sampling: Sampling, seed: int, prompt_ids: Sequence[int] = ()
) -> tuple[bool | None, int | None]:
    """Whether a participant's tokens are those that the rules give, None if no token could be decided; and the place of
    the first that is not.

    token_ids: N, an end token included. The others as for `resampled`.
    """
    expected = resampled(logits, token_ids, sampling, seed, prompt_ids)
    wrong = first_wrong(token_ids, expected)
    return (wrong is None if expected.count(None) < len(expected) else None), wrong


def first_wrong(token_ids: Sequence[int], expected: Sequence[int | None]) -> int | None:
    """The place of the first token that is not the one expected; None expects nothing."""
    pairs = enumerate(zip(token_ids, expected, strict=True))
    return next((place for place, (token, right) in pairs if right not in (None, token)), None)


def resampled(
    logits: np.ndarray,
    token_ids: Sequence[int],
    sampling: Sampling,
    seed: int,
    prompt_ids: Sequence[int] = (),
    noise: float = 0.0,
) -> list[int | None]:
    """The token that `sampling` chooses from each row -> N ids.

    logits [N, V]: the raw rows from which a participant chose token_ids (N), in order. seed: of the generation; each of
    its prompts draws from a generator of its own with this seed, one uniform number per token. prompt_ids: the prompt;
    together with the tokens chosen before a row they are what a repetition penalty looks at. noise: how far each of
    the logits may be from the one that the participant had.

    None stands where noise, or float64, leaves the choice open: a sum or a ratio is as near to a threshold as the
    roundings of another order of summation, or two logits that differ are equally likely in float64.
    """
    generator = np.random.default_rng(seed)
    history = [*prompt_ids]
    chosen: list[int | None] = []
    for row, token in zip(logits, token_ids, strict=True):
        chosen.append(_choice(row, sampling, history, generator, noise))
        history.append(token)
    return chosen


def _choice(
    row: np.ndarray, sampling: Sampling, history: Sequence[int], generator: np.random.Generator, noise: float
) -> int | None:
    logits = np.array(row, np.float64)
    if sampling.repetition_penalty is not None:
        penalty = float(sampling.repetition_penalty)
        for token in {*history}:
            if logits[token] > 0:
                logits[token] /= penalty
            else:
                logits[token] *= penalty
        noise *= max(penalty, 1.0 / penalty)
    drawn = 0.0 if sampling.temperature == 0.0 else generator.random()
    best = logits.max()
    if math.isnan(best):
        return None
    if sampling.temperature == 0.0:
        nearest = np.flatnonzero(logits >= best - 2.0 * noise)
        return int(nearest[0]) if noise == 0.0 or len(nearest) == 1 else None
    if math.isinf(best):
        return None
    with np.errstate(over="ignore"):
        scaled = (logits - best) / float(sampling.temperature)
    most = _drawn(scaled, sampling, drawn, noise, 1)
    if sampling.top_p is None and sampling.min_p is None:  # no threshold
        return most
    return most if most == _drawn(scaled, sampling, drawn, noise, -1) else None


def _likeliest_first(tokens: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Among equals the lower id first. values [V]."""
    return tokens[np.lexsort((tokens, -values[tokens]))]


def _drawn(scaled: np.ndarray, sampling: Sampling, drawn: float, noise: float, sign: int) -> int | None:
    """The token at the place `drawn`, from 0 to 1. sign: with 1, candidates at a threshold stay, with -1 they go.

    scaled [V]: logits over the temperature, 0 for the likeliest. Candidates stand in the order of their ids until a
    rule ranks them.
    """
    weights = np.exp(scaled)
    # Each weight has the rounding of an argument of up to 745 and of an exponential, each sum one for every term.
    # Noise moves a weight by twice its size beside the likeliest, and as much again which of two are candidates.
    slack = (len(scaled) + 2000) * 2.0**-52 + math.expm1(min(4.0 * noise / float(sampling.temperature), 40.0))
    equals = int(np.count_nonzero(weights == 1.0))
    # Halves, quarters and so on have no roundings: there a threshold that is met exactly leaves nothing open.
    certain = noise == 0.0 and np.all((scaled == 0.0) | (weights == 0.0)) and equals & (equals - 1) == 0
    edge = 0.0 if certain else sign * slack
    candidates, ranked = np.arange(len(scaled)), False
    if sampling.top_k is not None and sampling.top_k < len(scaled):
        candidates, ranked = _likeliest_first(candidates, scaled)[: sampling.top_k], True
    if sampling.top_p is not None and sampling.top_p < 1.0:
        candidates, ranked = _likeliest_first(candidates, scaled), True
        reached = np.cumsum(weights[candidates]) / weights[candidates].sum()
        # the fewest that reach p together: one more as long as those before it do not
        short = np.flatnonzero(reached < float(sampling.top_p) + edge)
        candidates = candidates[: len(short) + 1]
    if sampling.min_p is not None:
        # the likeliest has the weight 1, so a weight is the ratio to it; without noise, its equals are never in doubt
        likely = weights[candidates] >= float(sampling.min_p) * (1.0 - sign * slack)
        candidates = candidates[likely | (weights[candidates] == 1.0) if noise == 0.0 else likely]
    possible = candidates[weights[candidates] > 0.0]
    if not len(possible):  # only where noise leaves everything open
        return None
    edges = np.cumsum(weights[possible])
    total = edges[-1]
    place = min(int(np.count_nonzero(edges <= drawn * total)), len(possible) - 1)
    before = edges[place - 1] if place else -math.inf
    behind = edges[place] if place < len(possible) - 1 else math.inf
    inside = drawn * total >= before + slack * total and drawn * total < behind - slack * total
    token = int(possible[place])
    # which of two is likelier, where only rounding tells, is open, and so is their order
    apart = np.abs(scaled - scaled[token])
    rivals = np.count_nonzero(apart < slack) - (1 if noise else np.count_nonzero(apart == 0.0))
    return token if inside and not (ranked and rivals) else None
