"""A layer's cache by itself, without a model: what attention reads of keys and values that it is fed."""

from typing import Any

import numpy as np

from transformer_lab.cache.layer import Fresh, Seen
from transformer_lab.model.tokens import tokens_of


def fed_by_itself(
    ops: Any, layer: Any, heads: int, key: np.ndarray, value: np.ndarray, first: int
) -> tuple[Any, list[np.ndarray]]:
    """(the layer after a pass, keys and values of all positions so far as they are read, float64 [B, K, S, N]).

    key, value [B, K, T, N]: of positions `first` onward, of all rows. heads: of queries, which are zeros. The layer is
    consumed.
    """
    batch, _, tokens, size = key.shape
    with ops.scope():
        here = tokens_of(ops, ops.asarray(np.zeros((batch, tokens), np.int64)), ops.asarray(np.full(batch, first)))
        new = [ops.asarray(np.ascontiguousarray(x)) for x in (key, value)]
        layer, seen = layer.update(ops, Fresh(ops.zeros((batch, heads, tokens, size)), *new), here)
        return layer, _read(ops, seen, first + tokens)


def _read(ops: Any, seen: Seen, length: int) -> list[np.ndarray]:
    """By position; NaN for what is nowhere."""
    places, found = None if seen.places is None else np.asarray(ops.to_numpy(seen.places)), []
    for part, scales in zip((seen.keys, seen.values), seen.scales or (None, None), strict=True):
        numbers = np.asarray(ops.to_numpy(part), np.float64)
        numbers = numbers if scales is None else numbers * np.asarray(ops.to_numpy(scales), np.float64)
        if places is None:
            found.append(numbers[:, :, :length])
            continue
        ordered = np.full((*numbers.shape[:2], length, numbers.shape[3]), np.nan)
        for row, place in enumerate(places):
            ordered[row][:, place[place < length]] = numbers[row][:, place < length]
        found.append(ordered)
    return found
