"""A rotation that spreads one large number of a vector over all of its places. It knows no cache."""

from functools import lru_cache

import numpy as np


def spread(size: int) -> int:
    """The largest power of two that divides `size`: over so many places a number is spread."""
    return size & -size


@lru_cache(maxsize=16)
def hadamard(size: int) -> np.ndarray:
    """float64 [size, size], +- 1 / sqrt(n) in blocks of n = spread(size) along the diagonal (Sylvester 1867).

    It is symmetric and its own inverse, so scores do not change when keys and queries are both multiplied by it, and
    values come back when what they are mixed to is (Ashkboos et al. 2024, arXiv 2404.00456).
    """
    block = np.ones((1, 1))
    while len(block) < spread(size):
        block = np.block([[block, block], [block, -block]])
    return np.kron(np.eye(size // len(block)), block / np.sqrt(len(block)))
