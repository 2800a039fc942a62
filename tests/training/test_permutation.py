"""The shuffled order that takes no memory: it is an order, it looks shuffled, and its key decides it."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from transformer_lab.training.permutation import Permutation, mixed, random_number


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 100, 4095, 4096, 4097, 16_384, 16_385, 65_537, 100_003])
def test_it_is_a_bijection(size):
    for key in (0, 1, 2**64 - 1):
        order = Permutation(size, key)(np.arange(size))
        assert order.dtype == np.int64 and np.array_equal(np.sort(order), np.arange(size))


def test_single_places_agree_with_all_at_once():
    for size in (100, 5000):
        order = Permutation(size, 7)
        everything = order(np.arange(size))
        assert [int(order(np.array([place]))[0]) for place in range(0, size, 20)] == everything[::20].tolist()
        assert not np.array_equal(everything, Permutation(size, 8)(np.arange(size)))


def test_small_sizes_give_every_order_about_equally_often():
    found = Counter(tuple(Permutation(4, random_number(key))(np.arange(4)).tolist()) for key in range(4800))
    assert set(found) == set(permutations(range(4)))
    # 200 of each are expected; the sum of squares is chi-squared with 23 degrees of freedom, 49.7 at one in a thousand.
    assert sum((count - 200) ** 2 / 200 for count in found.values()) < 49.7


@pytest.mark.parametrize(("size", "key"), [(4000, 1), (50_000, 3), (65_536, 4), (70_000, 0)])
def test_it_looks_shuffled(size, key):
    order = Permutation(size, key)(np.arange(size))
    assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 3.5 / size**0.5
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 3.5 / size**0.5
    assert np.mean(np.abs(np.diff(order))) == pytest.approx(size / 3, rel=0.05)  # as for independent numbers
    assert np.sum(order == np.arange(size)) < 8  # one is expected
    # Every tenth of the places holds each tenth of the numbers equally often.
    counts, _, _ = np.histogram2d(np.arange(size), order, bins=10)
    assert (
        np.sum((counts - size / 100) ** 2 / (size / 100)) < 150
    )  # chi-squared, 81 degrees of freedom: 126 at one in a thousand


def test_the_measures_would_find_an_order_that_is_not_shuffled():
    size = 50_000
    for order in (np.arange(size), (np.arange(size) * 7919) % size):
        assert (
            abs(np.corrcoef(np.arange(size), order)[0, 1]) > 0.02
            or abs(np.corrcoef(order[:-1], order[1:])[0, 1]) > 0.02
        )


def test_large_sizes_take_no_memory():
    order = Permutation(2**40 + 3, 1)
    numbers = order(np.array([0, 1, 2**40]))
    assert len(set(numbers.tolist())) == 3 and numbers.min() >= 0 and numbers.max() < 2**40 + 3


def test_random_numbers_depend_on_every_part_of_the_key():
    numbers = {random_number(*key) for key in [(0,), (1,), (0, 0), (0, 1), (1, 0), (2**63, 0), (-1, 0)]}
    assert len(numbers) == 7
    assert len(np.unique(mixed(np.arange(10_000, dtype=np.uint64)))) == 10_000
