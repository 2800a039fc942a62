"""What different logits do: the divergence of the distributions, and which tokens would be chosen instead.

V can be large and positions many, so rows are taken in pieces.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from transformer_lab.generation.sampling import largest

PIECE = 2**20  # logits at a time; about ten arrays of so many float64 are alive, 80 MB
BEST = 5


@dataclass(frozen=True)
class Flip:
    """A position whose likeliest token is another one than the truth's.

    prompt, position: from 0. margin: the truth's logit of its own token minus the truth's logit of the other; small
    margins flip by rounding.
    """

    prompt: int
    position: int
    truth_token: int
    token: int
    margin: float


@dataclass(frozen=True)
class LogitAgreement:
    """Sums over the positions of one prompt or several; the properties are means over them (NaN where there are none).

    divergence_from_truth, divergence_to_truth: in nats. best_in_common: of the truth's five likeliest tokens at each
    position (all, if the vocabulary is smaller), the share that is among the other five. rank_shifts: by how many ranks
    the truth's likeliest token has come down. Ties go to the lower id; a NaN is the least likely.
    """

    positions: int = 0
    divergence_from_truth: float = 0.0
    divergence_to_truth: float = 0.0
    best_in_common: float = 0.0
    rank_shifts: int = 0
    rank_shift_max: int = 0
    flips: tuple[Flip, ...] = field(default=())

    @property
    def kl_from_truth(self) -> float:
        """The mean KL(truth || participant) in nats (Kullback and Leibler 1951): lost by trusting the participant."""
        return self._mean(self.divergence_from_truth)

    @property
    def kl_to_truth(self) -> float:
        """The mean KL(participant || truth) in nats."""
        return self._mean(self.divergence_to_truth)

    @property
    def top_1(self) -> float:
        """The share of positions at which both have the same likeliest token."""
        return self._mean(self.positions - len(self.flips))

    @property
    def top_5(self) -> float:
        return self._mean(self.best_in_common)

    @property
    def rank_shift_mean(self) -> float:
        return self._mean(self.rank_shifts)

    def _mean(self, total: float) -> float:
        return total / self.positions if self.positions else math.nan


def agreement_of(logits: np.ndarray, truth: np.ndarray, prompt: int = 0) -> LogitAgreement:
    """logits (the participant's), truth: [T, V], of any float type. prompt: its number, for the flips."""
    if logits.shape != truth.shape or logits.ndim != 2:
        reason = f"logits have the shape {logits.shape}, the truth {truth.shape}; both must be the same [T, V]"
        raise ValueError(reason)
    rows = max(1, PIECE // truth.shape[1])
    starts = range(0, len(truth), rows)
    return merge([_agreement(logits[at : at + rows], truth[at : at + rows], prompt, at) for at in starts])


def merge(several: Sequence[LogitAgreement]) -> LogitAgreement:
    """The agreement over the positions of all."""
    sums = ("positions", "divergence_from_truth", "divergence_to_truth", "best_in_common", "rank_shifts")
    return LogitAgreement(
        **{name: sum(getattr(one, name) for one in several) for name in sums},
        rank_shift_max=max((one.rank_shift_max for one in several), default=0),
        flips=tuple(flip for one in several for flip in one.flips),
    )


def _agreement(logits: np.ndarray, truth: np.ndarray, prompt: int, start: int) -> LogitAgreement:
    """Of a piece of rows, the first of them at position `start`."""
    logits, truth = logits.astype(np.float64), truth.astype(np.float64)
    ours, other = log_softmax(truth), log_softmax(logits)
    from_truth, to_truth = divergence(ours, other), divergence(other, ours)
    logits, truth = (np.where(np.isnan(array), -np.inf, array) for array in (logits, truth))
    best, token = truth.argmax(axis=1), logits.argmax(axis=1)
    here = np.arange(len(truth))
    reached = logits[here, best][:, None]
    lower = np.arange(truth.shape[1]) < best[:, None]
    ranks = (logits > reached).sum(axis=1) + ((logits == reached) & lower).sum(axis=1)
    count = min(BEST, truth.shape[1])
    common = sum(
        len(np.intersect1d(largest(true, count), largest(row, count))) for true, row in zip(truth, logits, strict=True)
    )
    flips = [
        Flip(prompt, start + i, int(best[i]), int(token[i]), float(truth[i, best[i]]) - float(truth[i, token[i]]))
        for i in np.flatnonzero(best != token).tolist()
    ]
    return LogitAgreement(
        positions=len(truth),
        divergence_from_truth=float(from_truth.sum()),
        divergence_to_truth=float(to_truth.sum()),
        best_in_common=common / count,
        rank_shifts=int(ranks.sum()),
        rank_shift_max=int(ranks.max(initial=0)),
        flips=tuple(flips),
    )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """[T, V]; a row with a NaN or +inf becomes NaN."""
    with np.errstate(invalid="ignore"):
        shifted = logits - logits.max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def divergence(log_p: np.ndarray, log_q: np.ndarray) -> np.ndarray:
    """KL(p || q) in nats of each row -> [T].

    Summed as q - p - p log(q / p), which adds nothing, because q and p have the same sum, and makes every term at least
    0: p (exp(d) - 1 - d) with d = log(q / p). Without it, terms of both signs would leave rounding where the divergence
    is far below it, as between two float32 runs (some 1e-13).
    """
    p = np.exp(log_p)
    with np.errstate(invalid="ignore", over="ignore"):
        log_ratio = np.where(log_p == log_q, 0.0, log_q - log_p)  # equal: also where both are -inf
        near = np.where(p > 0.0, p * (np.expm1(log_ratio) - log_ratio), 0.0)
        far = np.exp(log_q) - p - np.where(p > 0.0, p * log_ratio, 0.0)  # here exp(d) may overflow
        return np.where(log_ratio < 1.0, near, far).sum(axis=1)
