"""Choosing the next token from a row of logits. Noise is drawn on the host, so every backend draws the same.

The order is that of transformers: repetition penalty, temperature, top-k, top-p, min-p, and then one draw.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from transformer_lab.errors import ConfigurationError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; what `sampling=...` builds.

    temperature: logits are divided by it; 0 takes the likeliest token, the lowest id among equals.
    top_k: only the k likeliest tokens (ties to the lower id). top_p: only the fewest likeliest tokens whose
    probabilities reach p together (nucleus sampling, Holtzman et al. 2019, arXiv 1904.09751). min_p: only tokens at
    least min_p times as likely as the likeliest (Nguyen et al. 2024, arXiv 2407.01082). repetition_penalty: logits of
    tokens that have occurred are divided by it if positive and multiplied if negative (CTRL, Keskar et al. 2019,
    arXiv 1909.05858). None switches a rule off. Raises ConfigurationError for values out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        rules = (
            ("temperature", 0.0, math.inf, "a number of at least 0"),
            ("top_p", 0.0, 1.0, "a number above 0 and at most 1, or null"),
            ("min_p", 0.0, 1.0, "a number from 0 to 1, or null"),
            ("repetition_penalty", 0.0, math.inf, "a number above 0 (1 changes nothing), or null"),
        )
        for name, low, high, expected in rules:
            value = getattr(self, name)
            if value is None and name != "temperature":
                continue
            number = isinstance(value, (int, float, np.floating, np.integer)) and not isinstance(value, bool)
            above = name in ("top_p", "repetition_penalty")
            if not number or not low <= value <= high or (above and value == low) or math.isinf(value):
                message = f"{name} is {value!r}; it must be {expected}."
                raise ConfigurationError(message)
        k = self.top_k
        if k is not None and (isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1):
            message = f"top_k is {k!r}; it must be a whole number of at least 1, or null."
            raise ConfigurationError(message)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token of the raw logits is always taken, so that a backend may decode alone."""
        return self.temperature == 0.0 and self.repetition_penalty in (None, 1.0)


def penalise(logits: np.ndarray, history: Sequence[int], penalty: float) -> np.ndarray:
    """logits [V] in float64, the tokens of `history` made less likely (penalty > 1) or more (< 1)."""
    result = logits.astype(np.float64)
    seen = np.unique(np.asarray(history, np.int64))
    values = result[seen]
    result[seen] = np.where(values > 0, values / penalty, values * penalty)
    return result


def choose(logits: np.ndarray, sampling: Sampling, history: Sequence[int], generator: np.random.Generator) -> int:
    """The next token id from logits [V]; history: the prompt and what was generated. Draws one uniform number."""
    if sampling.repetition_penalty not in (None, 1.0):
        logits = penalise(logits, history, float(sampling.repetition_penalty or 1.0))
    if sampling.temperature == 0.0:
        return int(np.argmax(logits))
    ids, probabilities = candidates(logits, sampling)
    reached = np.cumsum(probabilities)
    drawn = generator.random() * reached[-1]
    # The last candidate with a probability above 0 takes what rounding leaves over.
    return int(ids[min(int(np.searchsorted(reached, drawn, side="right")), int(np.flatnonzero(probabilities)[-1]))])


def candidates(logits: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """The ids that the rules leave, likeliest first if a rule needs that, and weights in proportion to how likely."""
    wide = logits.astype(np.float64)
    wide -= wide.max()
    with np.errstate(over="ignore"):  # a tiny temperature leaves the likeliest at 0 and puts the others at -inf
        wide /= sampling.temperature
    ids = np.arange(len(wide))
    if sampling.top_k is not None and sampling.top_k < len(ids):
        ids = largest(wide, sampling.top_k)
    probabilities = np.exp(wide[ids])
    probabilities /= probabilities.sum()
    if sampling.top_p is not None and sampling.top_p < 1.0:
        # All tokens rarer than this have less than 1 - top_p together, so they need no sorting: the nucleus is full
        # before the first of them.
        likely = np.flatnonzero(probabilities > 0.5 * (1.0 - sampling.top_p) / len(ids))
        order = likely[np.argsort(-probabilities[likely], kind="stable")]
        ids, probabilities = ids[order], probabilities[order]
        before = np.cumsum(probabilities) - probabilities  # what is reached without this token
        keep = before < sampling.top_p
        keep[0] = True
        ids, probabilities = ids[keep], probabilities[keep]
    if sampling.min_p is not None:
        keep = probabilities >= sampling.min_p * probabilities.max()
        ids, probabilities = ids[keep], probabilities[keep]
    return ids, probabilities


def largest(values: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k largest, largest first, ties to the lower index. values [V]."""
    threshold = np.partition(values, len(values) - k)[len(values) - k]
    above = np.flatnonzero(values > threshold)
    equal = np.flatnonzero(values == threshold)[: k - len(above)]
    found = np.concatenate([above, equal])
    found.sort()
    return found[np.argsort(-values[found], kind="stable")]


def log_probability(logits: np.ndarray, token: int) -> float:
    """log softmax(logits)[token] in nats; the sum is taken in float64."""
    peak = logits.max()
    total = float(np.exp(logits - peak).sum(dtype=np.float64))
    return float(logits[token]) - float(peak) - math.log(total)
