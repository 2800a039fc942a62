"""The rules of the sampler on rows of logits that are made for it: negative ones, ties, near ties, thresholds.

A model's own rows hardly ever show where a rule ends. Here the function that generate chooses with is given rows at
which the rules differ from what is often written for them, and a second sampler says what is right.
"""

import math
from collections.abc import Sequence
from functools import partial
from itertools import product

import numpy as np

from transformer_lab.comparison.judging.generation.check import Check, Wrong, asked, checked, require
from transformer_lab.comparison.judging.generation.second_sampler import first_wrong, resampled
from transformer_lab.generation import generate
from transformer_lab.generation.sampling import Sampling

RULES = (
    Sampling(),
    Sampling(repetition_penalty=1.7),
    Sampling(repetition_penalty=0.6),
    Sampling(1.0),
    Sampling(2.0**-22),
    Sampling(1e-300),
    Sampling(1e300),
    Sampling(1.0, top_k=1),
    Sampling(1.3, top_k=3),
    Sampling(2.0**-22, top_k=2),
    Sampling(1.0, top_p=0.5),
    Sampling(1.0, top_p=0.75),
    Sampling(1.6, top_p=0.9),
    Sampling(1.0, min_p=0.2),
    Sampling(1.0, min_p=1.0),
    Sampling(2.0, top_k=6, top_p=0.8, min_p=0.05, repetition_penalty=1.4),
    Sampling(0.7, top_k=9, min_p=0.1, repetition_penalty=0.8),
)
# The first number that these generators draw is less than 0.0003, or more than 0.9997.
EXTREMES = (6536, 1074)


def sampler_rules(participant: str, seed: int = 0) -> Check:
    """Every rule on every kind of rows."""

    def look() -> str:
        rows = made_rows(seed)
        expected: list[int | None] = []
        for (kind, logits), rule in product(rows.items(), RULES):
            # What has occurred: likely and unlikely tokens, some of them twice.
            prompt = [int(logits[0].argmax()), 1, 1, 4]
            for number in (seed, *EXTREMES) if rule.temperature else (seed,):
                chosen = _chosen(participant, kind, logits, rule, number, prompt)
                again = resampled(logits, chosen, rule, number, prompt)
                if (wrong := first_wrong(chosen, again)) is not None:
                    finding = (
                        f"the sampler on {participant} chose {chosen[wrong]} in place of {again[wrong]}, at token "
                        f"{wrong} of rows with {kind}, seed {number}, {_in_words(rule)}."
                    )
                    raise Wrong(finding)
                expected += again
        left_open = expected.count(None)
        return (
            f"{len(RULES)} combinations of rules on rows with {', '.join(rows)}: {len(expected) - left_open} tokens; "
            f"rounding left {left_open} more open."
        )

    return checked("rules of the sampler", look)


def made_rows(seed: int) -> dict[str, np.ndarray]:
    """Kind of rows -> float32 [N, V]."""
    generator = np.random.default_rng(seed)
    normal = generator.standard_normal((4, 16)).astype(np.float32)
    ulps = generator.permuted(np.tile(np.arange(12), (4, 1)), axis=1)
    near = np.float32(3.0) + ulps.astype(np.float32) * np.float32(2.0**-22)
    masked = np.where(generator.random((4, 10)) < 0.5, -math.inf, np.round(2.0 * normal[:, :10]))
    masked[:, 7] = 1.0
    return {
        "both signs": 3.0 * normal,
        "negative logits": -1.0 - 2.0 * np.abs(normal),
        "ties": np.round(normal),
        "near ties": near,
        "near ties below 0": -near,
        "equals": np.full((4, 8), 0.5, np.float32),
        "masked tokens": masked.astype(np.float32),
        "large logits": (1000.0 * normal).astype(np.float32),
    }


def _chosen(
    participant: str, kind: str, logits: np.ndarray, rule: Sampling, seed: int, prompt: Sequence[int]
) -> list[int]:
    """What a row of a generation does; the rows must stay as they are, since log-probabilities come from them."""
    noise, history = np.random.default_rng(seed), list(prompt)
    for place, row in enumerate(logits):
        given = row.copy()
        choose = partial(generate.choose, given, rule, history, noise)  # type: ignore[attr-defined]
        history.append(asked(f"the sampler on {participant}, given rows with {kind},", choose))
        finding = f"the sampler on {participant} changed the logits of token {place} in rows with {kind}."
        require(np.array_equal(given, row), finding)
    return history[len(prompt) :]


def _in_words(rule: Sampling) -> str:
    given = {name: value for name, value in vars(rule).items() if value is not None}
    return ", ".join(f"{name} {value:g}" for name, value in given.items())
