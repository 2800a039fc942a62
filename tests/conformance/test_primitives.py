"""The primitives that are not in the array API standard, on every backend, against NumPy written out."""

import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from watchful_backends import PoisoningNumpy, ReadOnlyNumpy, StrictBackend

from transformer_lab.config import component, names

WATCHFUL = {"read_only": ReadOnlyNumpy, "poisoning": PoisoningNumpy, "strict": StrictBackend}
BACKENDS = [*(name for name in names("backend") if importlib.util.find_spec(name)), *WATCHFUL]


@pytest.fixture(scope="module", params=BACKENDS)
def ops(request):
    return WATCHFUL[request.param]() if request.param in WATCHFUL else component("backend", request.param)


@pytest.mark.parametrize("start", [[2], [0, 4, 1]])
def test_slice_update(ops, start):
    draw = np.random.default_rng(0)
    target, update = draw.standard_normal((len(start), 2, 7, 3)), draw.standard_normal((len(start), 2, 3, 3))
    expected = target.astype(np.float32)
    for row, first in enumerate(start):
        expected[row, :, first : first + 3] = update[row]
    run = ops.compile(lambda target, update, start: ops.slice_update(target, update, start, 2), donate=(0,))
    found = run(*(ops.asarray(x) for x in (target, update, np.array(start))))
    np.testing.assert_array_equal(ops.to_numpy(found), expected)


def test_scatter_add_sums_what_repeats(ops):
    index, update = np.array([3, 0, 3, 3]), np.arange(8.0).reshape(4, 2)
    expected = np.ones((5, 2), np.float32)
    for n, row in enumerate(index):
        expected[row] += update[n].astype(np.float32)
    target = ops.asarray(np.ones((5, 2)))
    if isinstance(ops, ReadOnlyNumpy):
        target = target.copy()  # it is the operation's to consume
    found = ops.scatter_add(target, ops.asarray(index), ops.asarray(update))
    np.testing.assert_array_equal(ops.to_numpy(found), expected)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=8, max_size=8), st.sampled_from([1, 3, 8]))
def test_top_k_gives_ties_to_the_lower_index(ops, values, k):
    values_found, indices = ops.top_k(ops.asarray(np.array([values], np.float64)), k)
    expected = sorted(range(8), key=lambda i: (-values[i], i))[:k]
    assert ops.to_numpy(indices).tolist() == [expected]
    assert ops.to_numpy(values_found).tolist() == [[values[i] for i in expected]]


def test_repeat_and_round_trips(ops):
    total = ops.repeat(lambda i, carry: carry + i, 5, ops.asarray(np.array([0])))
    assert ops.to_numpy(total).tolist() == [10]
    array = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    np.testing.assert_array_equal(ops.to_numpy(ops.asarray(array)), array)
    np.testing.assert_array_equal(ops.recover("a.kernel", ops.place("a.kernel", array)), array)
    np.testing.assert_array_equal(ops.recover("a.bias", ops.place("a.bias", array[0])), array[0])


def test_consumed_arrays_are_poisoned():
    """The watchful backends can fail: reading what was consumed shows, and so does writing in place."""
    poisoning = PoisoningNumpy()
    old = poisoning.asarray(np.zeros((1, 2)))
    poisoning.slice_update(old, poisoning.asarray(np.ones((1, 1))), poisoning.asarray(np.array([0])), 1)
    assert np.isnan(old).all()
    locked = ReadOnlyNumpy().silu(np.ones(3, np.float32))
    with pytest.raises(ValueError, match="read-only"):
        locked += 1


def test_the_strict_backend_refuses_what_is_not_in_the_standard():
    strict = StrictBackend()
    with pytest.raises(AttributeError):
        _ = strict.xp.einsum


@pytest.mark.parametrize("precision", ["float64", "exact"])
@pytest.mark.parametrize("name", [name for name in BACKENDS if name not in WATCHFUL])
def test_placed_kernels_come_back(name, precision):
    ops = component("backend", name, precision=precision)
    array = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    np.testing.assert_array_equal(ops.recover("a.kernel", ops.place("a.kernel", array)), array)
