"""The sum over the pieces of a step, as a balanced binary tree: the same bits however the pieces are shared out.

Of 2^n processes each can sum a part of the tree, and n more additions give the whole. Written as loops, so that a
compiler sees a piece once, however many there are.
"""

from collections.abc import Callable
from typing import Any

from transformer_lab.backends.readings.recorded import mapped

Tree = Any


def summed(ops: Any, piece: Callable[[Any], Tree], count: int) -> Tree:
    """piece(0) + ... + piece(count - 1), each a tree of arrays: (0 + 1) + (2 + 3), of five and then + 4."""
    if count == 1:
        return piece(0)
    # A compiled loop has to know beforehand what it adds up; what is computed for that is not used and left out.
    nothing = mapped(ops.xp.zeros_like, piece(0)) if ops.compiles else None
    total, first = nothing, 0
    for level in reversed(range(count.bit_length())):
        if count >> level & 1:
            total = _added(total, _branch(ops, piece, first, level, nothing))
            first += 1 << level
    return total


def _branch(ops: Any, piece: Callable[[Any], Tree], first: Any, level: int, nothing: Tree) -> Tree:
    """The sum of the 2^level pieces from `first` on."""
    if level == 0:
        return piece(first)
    half = 1 << (level - 1)

    def add(index: Any, total: Tree) -> Tree:
        return _added(total, _branch(ops, piece, first + index * half, level - 1, nothing))

    return ops.repeat(add, 2, nothing)


def _added(one: Tree, other: Tree) -> Tree:
    if one is None:
        return other
    if isinstance(one, dict):
        return {name: _added(part, other[name]) for name, part in one.items()}
    return one + other
