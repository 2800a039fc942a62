"""Quantiles of numbers that come in pieces: how many lie below each of a few edges, added up, read off in between.

The edges lie close together near a middle that is known beforehand, and ever wider apart: from 2^-12 to 2.
"""

from typing import Any

import numpy as np

from transformer_lab.ffn.losses import counted

_SIDE = 2.0 ** np.arange(-12, 2)
EDGES = np.concatenate([-_SIDE[::-1], [0.0], _SIDE])  # of 29, around the middle


def below(ops: Any, values: Any, middle: Any, share: Any) -> Any:
    """values [B, T, E], middle [E], share [B, T], 0 for padding -> [E, 29], how many values lie below each edge."""
    offset = values - middle
    return ops.xp.sum(ops.xp.stack([counted(ops, offset < edge, share) for edge in EDGES.tolist()], axis=-1), axis=0)


def quantile(ops: Any, counts: Any, middle: Any, amount: Any) -> Any:
    """Where `amount` values lie below: counts [E, 29], middle [E], amount [] -> [E].

    Between two edges it is read off a straight line; beyond the last of them it is that edge.
    """
    xp, last = ops.xp, len(EDGES) - 1
    edges = ops.asarray(EDGES)
    upper = xp.clip(xp.sum(ops.cast(counts < amount, ops.index_dtype), axis=-1), 1, last)  # [E], the edge above
    lower = upper - 1
    low, high = (xp.take_along_axis(counts, index[:, None], axis=-1)[:, 0] for index in (lower, upper))
    width = xp.where(high > low, high - low, 1.0)
    along = xp.clip((amount - low) / width, 0.0, 1.0)
    first, second = xp.take(edges, lower, axis=0), xp.take(edges, upper, axis=0)
    return middle + first + along * (second - first)
