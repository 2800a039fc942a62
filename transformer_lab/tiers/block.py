"""A block: arrays by name, and the tokens they were computed from. Its arrays are its own and cannot be written to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray]


@dataclass(frozen=True)
class Block:
    """`token_ids` are compared at each lookup: a hash alone is not believed."""

    token_ids: tuple[int, ...]
    arrays: Arrays

    @property
    def bytes(self) -> int:
        """Of the arrays alone."""
        return sum(array.nbytes for array in self.arrays.values())


def owned(token_ids: Sequence[int], arrays: Arrays) -> Block:
    """A block with copies of the arrays: whatever the caller does to his own afterwards does not reach it."""
    copies = {name: np.array(array, order="C", copy=True) for name, array in arrays.items()}
    for copy in copies.values():
        copy.flags.writeable = False
    return Block(tuple(int(token) for token in token_ids), copies)
