"""What cached logits say beside uncached ones, with intervals: tokens of a text hang together, so blocks are drawn."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from transformer_lab.comparison.judging.logits import divergence, log_softmax

BLOCK = 32  # tokens that are drawn together (moving blocks: Kunsch 1989, The Annals of Statistics 17(3))
DRAWS = 2000
SHARE = 0.95


def interval(values: np.ndarray) -> tuple[float, float] | None:
    """Of the mean of values [N], by a bootstrap of moving blocks with a fixed seed; None of less than two blocks."""
    if len(values) < 2 * BLOCK:
        return None
    draw = np.random.default_rng(0)
    sums = np.convolve(values, np.ones(BLOCK), "valid") / BLOCK
    count = -(-len(values) // BLOCK)
    means = sums[draw.integers(0, len(sums), (DRAWS, count))].mean(axis=1)
    low, high = np.quantile(means, [(1.0 - SHARE) / 2, (1.0 + SHARE) / 2])
    return float(low), float(high)


def statistics(cached: Sequence[np.ndarray], whole: Sequence[np.ndarray], targets: Sequence[Any]) -> dict[str, Any]:
    """cached, whole: of each window [T + 1, V]; targets: the ids behind all but the last of them [T]. Numbers are
    means over tokens; `kl` is KL(uncached || cached) in nats, `perplexity` a pair, uncached and cached."""
    logits, true = np.concatenate(cached).astype(np.float64), np.concatenate(whole).astype(np.float64)
    ours, other = log_softmax(true), log_softmax(logits)
    lost = divergence(ours, other)
    same = (true.argmax(axis=1) == logits.argmax(axis=1)).astype(np.float64)
    losses = [
        -np.concatenate([row[np.arange(len(ids)), ids] for row, ids in zip(_apart(rows, whole), targets, strict=True)])
        for rows in (ours, other)
    ]
    apart = np.abs(logits - true)
    return {
        "tokens": len(true),
        "differing": int(np.count_nonzero(apart)),
        "elements": apart.size,
        "max_abs": float(apart.max(initial=0.0)),
        "kl": float(lost.mean()),
        "kl_interval": interval(lost),
        "kl_max": float(lost.max()),
        "top_1": float(same.mean()),
        "top_1_interval": interval(same),
        "perplexity": [float(np.exp(loss.mean())) for loss in losses] if len(losses[0]) else None,
        "loss_increase": float((losses[1] - losses[0]).mean()) if len(losses[0]) else None,
        "loss_increase_interval": interval(losses[1] - losses[0]),
    }


def _apart(rows: np.ndarray, whole: Sequence[np.ndarray]) -> list[np.ndarray]:
    return np.split(rows, np.cumsum([len(one) for one in whole])[:-1])
