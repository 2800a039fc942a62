"""A shuffled order of the numbers 0 to size - 1 that takes no memory: the place of each number is computed when asked.

An array of the order would take 18 MB for 2.3 million windows, and much more for a large corpus. A Feistel network
(Luby and Rackoff 1988) is a bijection of the pairs (left, right) of half words, whatever its round function is:
left, right = right, left XOR f(right). Where a result lies outside 0 to size - 1, it is put through again, until it
lies inside (cycle walking, Black and Rogaway 2002): still a bijection, and less than four rounds of it on average.
It is shuffled as far as training cares; it is no cryptography. Knows nothing of windows and documents.
"""

from dataclasses import dataclass

import numpy as np

_ROUNDS = 6
# So few are sorted by random numbers instead: the network has too few different orders for them.
_FEW = 2**12


def mixed(numbers: np.ndarray) -> np.ndarray:
    """uint64 -> uint64, a bijection that looks random (the finalizer of SplitMix64, Steele and others 2014)."""
    numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def random_number(*key: int) -> int:
    """A number from 0 to 2^64 - 1 that only the key decides."""
    value = np.zeros(1, np.uint64)
    for part in key:
        value = mixed(value ^ np.array([part % 2**64], np.uint64))
    return int(value[0])


@dataclass(frozen=True)
class Permutation:
    """`Permutation(size, key)(i)`: which number stands at place i of the shuffled order."""

    size: int
    key: int

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """int64 [n] -> int64 [n], all of them from 0 to size - 1."""
        key = np.array([self.key % 2**64], np.uint64)
        if self.size <= _FEW:
            return np.argsort(mixed(key ^ mixed(np.arange(self.size, dtype=np.uint64))))[places].astype(np.int64)
        half_bits = ((self.size - 1).bit_length() + 1) // 2
        shift, mask = np.uint64(half_bits), np.uint64(2**half_bits - 1)
        round_keys = mixed(key ^ np.arange(_ROUNDS, dtype=np.uint64))
        numbers = np.asarray(places).astype(np.uint64)
        outside = np.ones(len(numbers), bool)
        while outside.any():
            walking = numbers[outside]
            left, right = walking >> shift, walking & mask
            for round_key in round_keys:
                left, right = right, left ^ (mixed(right ^ round_key) & mask)
            numbers[outside] = (left << shift) | right
            outside = numbers >= np.uint64(self.size)
        return numbers.astype(np.int64)
