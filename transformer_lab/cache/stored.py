"""Rows of numbers as a cache stores them: whole here, in fewer bits in the files of the policies that do so.

What is stored is a NamedTuple of arrays [B, K, S, ...], all by slot along their third axis. Its class knows how numbers
become these arrays (`encode`) and numbers again (`decode`), and what attention is shown of them to read `tokens` tokens
(`seen`).
"""

from typing import Any, NamedTuple

from transformer_lab.cache.layer import Seen


class Whole(NamedTuple):
    """values [B, K, S, N], as they came."""

    values: Any

    @classmethod
    def empty(cls, ops: Any, shape: tuple[int, ...]) -> "Whole":
        return cls(ops.zeros(shape))

    @classmethod
    def encode(cls, ops: Any, x: Any) -> "Whole":
        return cls(x)

    def decode(self, ops: Any) -> Any:
        return self.values

    @classmethod
    def seen(cls, ops: Any, keys: "Whole", values: "Whole", tokens: int) -> Seen:
        return Seen(keys.values, values.values)


def written(ops: Any, stored: Any, x: Any, start: Any) -> Any:
    """x [B, K, T, N] encoded into the slots start [B] onward of `stored`, which is consumed."""
    pairs = zip(stored, type(stored).encode(ops, x), strict=True)
    return type(stored)(*(ops.slice_update(array, part, start, axis=2) for array, part in pairs))


def first(stored: Any, length: int) -> Any:
    """The first `length` slots."""
    return stored if length == stored[0].shape[2] else type(stored)(*(array[:, :, :length, ...] for array in stored))
