"""Every function that has a rule on the tape, against central differences; and that what has none raises."""

import math

import numpy as np
import pytest
from derivatives import apart, central_differences
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from tolerances import FINITE_DIFFERENCE

from transformer_lab.backends.readings import gradient_rules, recorded
from transformer_lab.backends.readings.recorded import Part, Recorded, Tape, record
from transformer_lab.config import component
from transformer_lab.errors import ConfigurationError

OPS = component("backend", "numpy", precision="float64")
XP = OPS.xp
value_and_grad = OPS.value_and_grad
IDS = np.array([[0, 2], [2, 1]])
MASK = np.array([[True, False, True, False]] * 3)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


X, Y, ROW = normal(3, 4), normal(3, 4, seed=1), normal(4, seed=2)
POSITIVE = np.abs(X) + 0.5
CUBE = normal(2, 3, 4)

# By rule: functions of arrays, and the arrays. Every rule needs an entry; a second entry takes another path through it.
RULES = {
    "add": [(lambda x, y: x + y, X, ROW), (lambda x: 2.0 + x, X), (lambda x: x + x, X)],
    "subtract": [(lambda x, y: x - y, X, ROW), (lambda x: 1.0 - x, X), (lambda x, y: y - x, X, ROW)],
    "multiply": [(lambda x, y: x * y, X, ROW), (lambda x: np.float64(3.0) * x, X), (lambda x: Y * x, ROW)],
    "divide": [(lambda x, y: x / y, X, POSITIVE), (lambda x: 1.0 / x, POSITIVE), (lambda x: x / Y, ROW)],
    "pow": [(lambda x: x**3, X), (lambda x, y: x**y, POSITIVE, X), (lambda x: 2.0**x, X)],
    "remainder": [(lambda x: x % 0.7, X), (lambda x, y: x % y, X, POSITIVE), (lambda x: 2.0 % x, POSITIVE)],
    "maximum": [(lambda x, y: np.maximum(x, y), X, Y), (lambda x: XP.maximum(x, 0.0), X)],
    "minimum": [(lambda x, y: np.minimum(x, y), X, Y), (lambda x: XP.minimum(0.1, x), X)],
    "negative": [(lambda x: -x, X)],
    "positive": [(lambda x: +x, X)],
    "abs": [(lambda x: abs(x), X)],
    "square": [(XP.square, X)],
    "reciprocal": [(XP.reciprocal, POSITIVE)],
    "sqrt": [(XP.sqrt, POSITIVE)],
    "exp": [(XP.exp, X)],
    "expm1": [(XP.expm1, X)],
    "log": [(XP.log, POSITIVE)],
    "log2": [(XP.log2, POSITIVE)],
    "log10": [(XP.log10, POSITIVE)],
    "log1p": [(XP.log1p, POSITIVE)],
    "logaddexp": [(XP.logaddexp, X, Y), (lambda x: XP.logaddexp(x, Y), ROW), (lambda x: np.logaddexp(Y, x), X)],
    "tanh": [(XP.tanh, X)],
    "sin": [(XP.sin, X)],
    "cos": [(XP.cos, X)],
    "clip": [(lambda x: XP.clip(x, -0.3, 0.4), X), (lambda x: XP.clip(x, None, ROW), X), (lambda x: XP.clip(x, 0), X)],
    "where": [
        (lambda x, y: XP.where(MASK, x, y), X, ROW),
        (lambda x: XP.where(x > 0.0, x * x, 0.0), X),
        (lambda x: XP.where(MASK, 1.0, x), X),
    ],
    "matmul": [
        (lambda x, y: x @ y, X, normal(4, 2)),
        (lambda x, y: XP.matmul(x, y), CUBE, normal(4, 5)),
        (lambda x, y: XP.matmul(x, y), X, normal(2, 4, 3)),
        (lambda x, y: x @ y, X, ROW),
        (lambda x, y: x @ y, ROW, normal(4, 2)),
        (lambda x, y: x @ y, ROW, normal(4)),
        (lambda x: Y @ x, normal(4, 2)),
    ],
    "sum": [(XP.sum, X), (lambda x: XP.sum(x, axis=0), X), (lambda x: x.sum(axis=(0, -1), keepdims=True), CUBE)],
    "mean": [(XP.mean, X), (lambda x: XP.mean(x, axis=-1), X), (lambda x: x.mean(axis=(0, 1), keepdims=True), CUBE)],
    "max": [(XP.max, X), (np.amax, X), (lambda x: XP.max(x, axis=-1), X), (lambda x: x.max(axis=0, keepdims=True), X)],
    "min": [(XP.min, X), (np.amin, X), (lambda x: XP.min(x, axis=1, keepdims=True), X)],
    "var": [
        (XP.var, X),
        (lambda x: XP.var(x, axis=-1, correction=1), X),
        (lambda x: XP.var(x, axis=(0, 1), keepdims=True), CUBE),
    ],
    "std": [(XP.std, X), (lambda x: XP.std(x, axis=0, correction=1.0, keepdims=True), X)],
    "prod": [
        (XP.prod, X),
        (lambda x: XP.prod(x, axis=-1), X),
        (lambda x: np.prod(x, axis=0, keepdims=True), X),
        (lambda x: XP.prod(x, axis=-1), np.array([[0.0, 2.0, -3.0], [0.0, 2.0, 0.0], [1.0, 2.0, 3.0]])),
    ],
    "cumulative_sum": [(lambda x: XP.cumulative_sum(x, axis=1), X), (np.cumsum, X)],
    "sort": [(lambda x: XP.sort(x, axis=-1), X), (lambda x: XP.sort(x, axis=0, descending=True), X)],
    "take": [
        (lambda x: XP.take(x, IDS[0], axis=1), X),
        (lambda x: np.take(x, IDS, 0), X),
        (lambda x: np.take(x, [5, -1, 5]), X),
    ],
    "take_along_axis": [
        (lambda x: XP.take_along_axis(x, np.array([[0, 0, 3], [1, 1, 1], [2, 0, 2]]), axis=-1), X),
        (lambda x: XP.take_along_axis(x, np.array([[1, 0, 1, 2]]), axis=0), X),
    ],
    "getitem": [
        (lambda x: x[1:, ..., ::-2], CUBE),
        (lambda x: x[1, 2] * x[0, 0], X),
        (lambda x: x[1:] * x[:-1], X),
        (lambda x: x[IDS], X),
        (lambda x: x[np.array([-1, 2, 0, -1])], X),
        (lambda x: x[IDS[0], IDS[1]], X),
        (lambda x: x[MASK], X),
    ],
    "astype": [
        (lambda x: x.astype(np.float64) * 2.0, X),
        (lambda x: OPS.cast(x, np.float64), X),
        (lambda x: XP.astype(x, np.float64), X),
    ],
    "reshape": [
        (lambda x: XP.reshape(x, (-1, 2)), X),
        (lambda x: x.reshape(2, 6), X),
        (lambda x: x.reshape((12,)), X),
    ],
    "permute_dims": [
        (lambda x: XP.permute_dims(x, (2, 0, 1)), CUBE),
        (lambda x: x.T, X),
        (lambda x: x.transpose(), CUBE),
    ],
    "matrix_transpose": [(np.matrix_transpose, CUBE), (XP.matrix_transpose, CUBE)],
    "swapaxes": [(lambda x: x.mT, CUBE)],
    "moveaxis": [(lambda x: XP.moveaxis(x, 0, -1), CUBE)],
    "flip": [(lambda x: XP.flip(x, axis=1), X), (XP.flip, X)],
    "roll": [(lambda x: XP.roll(x, 1, axis=1), X), (lambda x: XP.roll(x, (1, 2), axis=(0, 1)), X)],
    "squeeze": [(lambda x: XP.squeeze(x, axis=1), normal(3, 1, 2))],
    "expand_dims": [(lambda x: XP.expand_dims(x, axis=1), X), (lambda x: x[:, None, ..., None], X)],
    "broadcast_to": [(lambda x: XP.broadcast_to(x, (2, 3, 4)), normal(3, 1))],
    "repeat": [(lambda x: XP.repeat(x, 3, axis=1), CUBE), (lambda x: XP.repeat(x, 2), X)],
    "tril": [(lambda x: XP.tril(x, k=-1), CUBE)],
    "triu": [(XP.triu, X)],
    "concat": [
        (lambda x, y: XP.concat([x, y, x], axis=0), X, Y),
        (lambda x: XP.concat([Y, x], axis=-1), normal(3, 2)),
        (lambda x, y: XP.concat((x, y), axis=None), X, ROW),
    ],
    "stack": [(lambda x, y: XP.stack([x, Y, y], axis=1), X, Y)],
    "unstack": [(lambda x: XP.unstack(x, axis=1)[2] * XP.unstack(x)[1][0], X)],
}


def added(x, y):
    x += y
    return x * x


# What has no rule of its own: primitives of the backend, and compositions.
OTHERS = {
    "iteration": (lambda x: sum(row * n for n, row in enumerate(x)), X),
    "+=": (lambda x: added(x * 1.0, Y), X),
    "erfc": (lambda x: OPS.erfc(x), X),
    "top_k": (lambda x: OPS.top_k(x, 2)[0], X),
    "scatter_add": (lambda x, y: OPS.scatter_add(x * 1.0, np.array([0, 2, 0]), y), X, Y),
    "scatter_add to zeros": (lambda y: OPS.scatter_add(OPS.zeros((3, 4)), np.array([0, 2, 0]), y), Y),
    "a value used in three ways": (lambda x: x * x[0] + XP.exp(x) @ x.T @ x, X),
    "an argument of a function of shapes": (lambda x: x * XP.ones_like(x) + XP.zeros_like(x), X),
    "a number times the mean": (lambda x: XP.mean(x) * x.size + x.ndim + len(x), X),
    "standardised": (lambda x: (x - XP.mean(x, axis=-1, keepdims=True)) / XP.sqrt(XP.mean(x * x)), X),
}
CASES = {
    **{f"{name} {n}": case for name, cases in RULES.items() for n, case in enumerate(cases)},
    **OTHERS,
}


def weighted(function):
    """Of the result a weighted sum, so that no element's gradient is like another's."""

    def loss(arrays):
        result = function(*arrays.values())
        weights = np.random.default_rng(9).standard_normal(math.prod(result.shape))
        return XP.sum(XP.reshape(result, (-1,)) * weights)

    return loss


@pytest.mark.parametrize("title", CASES)
def test_against_central_differences(title):
    function, *arrays = CASES[title]
    arrays = {str(number): array for number, array in enumerate(arrays)}
    for array in arrays.values():
        array.flags.writeable = False
    value, found = value_and_grad(weighted(function))(arrays)
    assert not isinstance(value, Recorded)
    assert value == weighted(function)(arrays)
    assert apart(found, central_differences(weighted(function), arrays, places=24)) <= FINITE_DIFFERENCE


def test_every_rule_has_a_case():
    assert gradient_rules.RULES.keys() == RULES.keys()


def test_a_wrong_rule_is_found(monkeypatch):
    monkeypatch.setitem(gradient_rules.RULES, "tanh", lambda tape, x: record(np.tanh(x.value), (x, lambda g: g)))
    with pytest.raises(AssertionError):
        test_against_central_differences("tanh 0")


def test_equal_values_share_the_gradient():
    _, found = value_and_grad(lambda x: XP.sum(XP.max(x, axis=-1)))(np.array([[1.0, 3.0, 3.0], [2.0, 1.0, 0.0]]))
    np.testing.assert_array_equal(found, [[0, 0.5, 0.5], [1, 0, 0]])
    _, found = value_and_grad(lambda x: XP.sum(np.maximum(x, 0.0)))(np.array([-1.0, 0.0, 2.0]))
    np.testing.assert_array_equal(found, [0, 0.5, 1])


BROADCAST = arrays_of.mutually_broadcastable_shapes(num_shapes=3, max_dims=4, max_side=3)


@settings(max_examples=60, deadline=None)
@given(BROADCAST, st.sampled_from([lambda a, b, c: a * b + c, lambda a, b, c: XP.where(a > 0.0, b, c) / (a * a + 1.0)]))
def test_gradients_are_summed_over_broadcast_axes(drawn, function):
    arrays = {str(number): normal(*shape, seed=number) for number, shape in enumerate(drawn.input_shapes)}
    _, found = value_and_grad(weighted(function))(arrays)
    assert apart(found, central_differences(weighted(function), arrays, places=4)) <= 10 * FINITE_DIFFERENCE


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_gradients_of_indexing(data):
    x = normal(*data.draw(arrays_of.array_shapes(max_dims=3, max_side=4)))
    index = data.draw(
        st.one_of(
            arrays_of.basic_indices(x.shape, allow_newaxis=True),
            arrays_of.integer_array_indices(x.shape),
        )
    )
    expected = np.zeros(x.shape)
    weights = np.random.default_rng(9).standard_normal(x[index].size).reshape(x[index].shape)
    np.add.at(expected, index, weights)
    _, found = value_and_grad(lambda x: XP.sum(x[index] * weights))(x)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


# --- what is refused --------------------------------------------------------------------------------------------------

REFUSED = [
    ("einsum", lambda x: np.einsum("ij->", x)),
    ("floor", XP.floor),
    ("sign", XP.sign),
    ("cumulative_prod", XP.cumulative_prod),
    ("floor_divide", lambda x: x // 2.0),
    ("prod in another dtype", lambda x: XP.prod(x, dtype=np.float32)),
    ("plain one", np.asarray),
    ("asarray", lambda x: XP.asarray([x, x])),
    ("taken out", float),
    ("taken out", lambda x: 1 if x[0, 0] else 0),
    ("multiply with out", lambda x: np.multiply(x, 2.0, out=np.zeros((3, 4)))),
    ("add with out", lambda x: np.zeros((3, 4)).__iadd__(x)),
    ("add with reduce", np.add.reduce),
    ("writing into", lambda x: x.__setitem__(0, 1.0)),
    ("plain one", lambda x: np.zeros((3, 4)).__setitem__(0, x[0])),
    ("plain one", lambda x: Y[x]),
    ("an index", lambda x: x[x]),
    ("condition", lambda x: XP.where(x, 1.0, 0.0)),
    ("bounds", lambda x: XP.clip(Y, x, None)),
    ("cumulative_sum with include_initial", lambda x: XP.cumulative_sum(x, axis=0, include_initial=True)),
    ("slice_update", lambda x: OPS.slice_update(np.zeros((3, 5)), x, np.zeros(3, np.int64), 1)),
]


@pytest.mark.parametrize(("named", "function"), REFUSED)
def test_what_has_no_rule_raises_and_is_named(named, function):
    def loss(x):
        function(x)
        return XP.sum(x)

    with pytest.raises(ConfigurationError, match=f"has no gradient of .*{named}"):
        value_and_grad(loss)(X)


@pytest.mark.parametrize("leaf", [np.arange(3), 1.0, "text"])
def test_only_arrays_of_floats_are_learned(leaf):
    with pytest.raises(ConfigurationError, match="with respect to NumPy arrays of floats"):
        value_and_grad(lambda params: 0.0)({"a": leaf})


def test_arrays_of_two_computations_do_not_mix():
    """A value that was kept from an earlier call would be a constant in silence; so would a gradient's gradient."""
    kept = []
    value_and_grad(lambda x: XP.sum(kept.append(x) or x))(X)
    for loss in (lambda x: XP.sum(x * kept[0]), lambda x: XP.sum(kept[0])):
        with pytest.raises(ConfigurationError, match="an array of another computation"):
            value_and_grad(loss)(X)
    with pytest.raises(ConfigurationError, match="an array of another computation"):
        value_and_grad(lambda x: value_and_grad(lambda y: XP.sum(x * y))(Y)[0])(X)


def test_a_gradient_of_many_numbers_is_refused():
    with pytest.raises(ConfigurationError, match=r"of one number, not of an array of shape \(3, 4\)"):
        value_and_grad(lambda x: x * 2.0)(X)


# --- the result -------------------------------------------------------------------------------------------------------


def test_the_tree_and_what_is_unused():
    tree = {"a": X, "b": [Y, {"c": ROW, "d": np.ones(2, np.float32)}]}
    value, found = value_and_grad(lambda p: XP.sum(p["a"] + p["b"][0]))(tree)
    assert value == (X + Y).sum()
    np.testing.assert_array_equal(found["a"], 1.0)
    np.testing.assert_array_equal(found["b"][1]["c"], np.zeros(4))
    assert found["b"][1]["d"].dtype == np.float32 and not found["b"][1]["d"].any()
    found["a"][...] = 7.0  # each gradient is an array of its own
    np.testing.assert_array_equal(found["b"][0], 1.0)
    assert value_and_grad(lambda p: 3.0)(tree)[0] == 3.0


def test_float32_stays_float32():
    def loss(x):
        y = XP.mean(XP.exp(x / 3.0) * 2.0, axis=-1) ** 2
        assert y.dtype == np.float32
        return XP.sum(y)

    value, found = value_and_grad(loss)(X.astype(np.float32))
    assert value.dtype == found.dtype == np.float32
    _, wide = value_and_grad(lambda x: XP.sum(OPS.cast(x, np.float64) * X))(Y.astype(np.float32))
    assert wide.dtype == np.float32


def test_booleans_and_integers_are_constants():
    def loss(x):
        for constant in (x > 0.0, x == x, XP.argmax(x, axis=-1), XP.isfinite(x), OPS.cast(x, np.int64)):
            assert isinstance(constant, (np.ndarray, np.generic)) and constant.dtype.kind in "bi"
        return XP.sum(x)

    value_and_grad(loss)(X)


def test_values_are_forgotten_as_the_tape_is_read():
    """Behind the last step nothing is held, and while the tape is read each step frees its own values."""
    import weakref

    held = []

    def watched(x):
        y = np.exp(x.value)
        held.append(weakref.ref(y))
        return record(y, (x, lambda g: (alive.append(sum(r() is not None for r in held)), g * y)[1]))

    alive = []

    def loss(x):
        for _ in range(6):
            x = watched(x * 0.1)
        return XP.sum(x)

    value_and_grad(loss)(X)
    assert alive == [6, 5, 4, 3, 2, 1]
    assert not any(reference() is not None for reference in held)


def test_an_error_in_the_function_leaves_nothing_behind():
    import gc
    import weakref

    leaves = []

    def loss(x):
        y = XP.exp(x)
        leaves.append(weakref.ref(y.value))
        raise ZeroDivisionError

    gc.disable()
    try:
        with pytest.raises(ZeroDivisionError):
            value_and_grad(loss)(X)
        assert leaves[0]() is None
    finally:
        gc.enable()


def new_tape():
    return Tape(XP, gradient_rules.RULES, gradient_rules.CONSTANT, "A test")


def test_a_part_of_a_gradient_sums_what_repeats():
    value = record(X[[0, 0]], (Recorded(X, new_tape()), lambda g: Part((np.array([0, 0]),), g)))
    assert value.shape == (2, 4)
    target = np.zeros((5, 2))
    recorded.add_rows(target, np.array([[3, 0], [3, -1]]), np.arange(8.0).reshape(2, 2, 2))
    np.testing.assert_array_equal(target, [[2, 3], [0, 0], [0, 0], [4, 6], [6, 7]])
