"""What belongs to the tokens of one pass, handed down to every part of the decoder as one value."""

from typing import Any, NamedTuple


class Tokens(NamedTuple):
    """ids [B, T] as they came. start [B]: the position of each row's first token; positions [B, T]: of every token.

    real: bool [B, T], what is no padding; None if all are. angles: (cos, sin), each [B, T, N / 2], of the rotary
    positions of the block that is given it, or None. noise [B, T, N]: what was drawn for the router of that block, in
    training; else None.
    """

    ids: Any
    start: Any
    positions: Any
    real: Any = None
    angles: Any = None
    noise: Any = None


def tokens_of(ops: Any, ids: Any, start: Any, lengths: Any = None, most: int | None = None) -> Tokens:
    """ids [B, T] at positions start [B] onward. lengths [B]: how many of each row are no padding. most: positions that
    there are; padding that would be behind the last stays on it."""
    places = ops.xp.arange(ids.shape[1], dtype=start.dtype, device=ops.array_device)
    real = None if lengths is None else places[None, :] < lengths[:, None]
    positions = start[:, None] + places
    if real is not None and most is not None:
        positions = ops.xp.clip(positions, None, most - 1)
    return Tokens(ids, start, positions, real)
