"""A block: arrays by name, and the tokens they were computed from. Its arrays are its own and cannot be written to."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transformer_lab.errors import ConfigurationError
from transformer_lab.tiers.key import of_numbers
from transformer_lab.tiers.number_types import NAMES, name_of

Arrays = Mapping[str, NDArray]


@dataclass(frozen=True)
class Block:
    """`token_ids` are compared at each lookup: a hash alone is not believed. They may be none, as for an expert."""

    token_ids: tuple[int, ...]
    arrays: Arrays

    @property
    def bytes(self) -> int:
        """Of the arrays alone."""
        return sum(array.nbytes for array in self.arrays.values())


def owned(token_ids: Sequence[int], arrays: Arrays) -> Block:
    """A block with copies of the arrays: whatever the caller does to his own afterwards does not reach it.

    Raises ConfigurationError for what could not be read back from a file, and OverflowError for a token id that takes
    more than eight bytes.
    """
    tokens = as_tokens(token_ids)
    of_numbers(tokens)
    copies = {name: np.array(array, order="C", copy=True) for name, array in arrays.items()}
    for name, copy in copies.items():
        if name_of(copy.dtype) is None:
            message = f"The array {name} of a block is of the type {copy.dtype}; tiers keep {', '.join(NAMES)}."
            raise ConfigurationError(message)
        copy.flags.writeable = False
    block = Block(tokens, copies)
    if not block.bytes:
        message = "A block without a byte was to be kept. Give it arrays that hold something."
        raise ConfigurationError(message)
    return block


def as_tokens(token_ids: Sequence[int]) -> tuple[int, ...]:
    """Python's own whole numbers, whatever kind they came as. Raises TypeError for what is no whole number."""
    return tuple(operator.index(token) for token in token_ids)
