"""The bounded reading, function by function: its values are NumPy's in float64, what computes in float32 stays within
its bounds wherever the inputs are within theirs, the bounds are no larger than they must be, and a choice is held
against what rounding may choose. The operations are in `test_bounds.py`.

Each case is written once, on an `ops`, and run on the reading and on backends.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from transformer_lab.backends.plain.manual import OPERATIONS
from transformer_lab.backends.readings.bounded import operations
from transformer_lab.backends.readings.bounded.algebra import FUNCTIONS
from transformer_lab.backends.readings.bounded.pairs import EXACTLY, Bounded, Decided
from transformer_lab.backends.readings.bounded.reading import BoundedReading
from transformer_lab.backends.readings.bounded.units import LARGEST, UNITS
from transformer_lab.config import component
from transformer_lab.errors import ConfigurationError

SHAPE = (3, 8)
READING = BoundedReading(UNITS["float32"], "float32")
BACKENDS = {
    (name, precision): component("backend", name, precision=precision, ops="manual")
    for name, precision in (("numpy", "float64"), ("numpy", "float32"), ("torch", "float32"))
}


@dataclass(frozen=True)
class Case:
    """run: on an ops, of float arrays. draws: how each of these is drawn. used: how much of the bound float32 uses at
    least, of exact inputs; 0 where nothing is rounded. carried: the same of inputs with errors."""

    run: Callable[..., Any]
    draws: tuple[str, ...] = ("any",)
    used: float = 0.02
    carried: float = 0.1


def on_xp(name: str, *draws: str, used: float = 0.02, carried: float = 0.1, **options: Any) -> Case:
    return Case(lambda ops, *x: getattr(ops.xp, name)(*x, **options), draws or ("any",), used, carried)


def moves(name: str, *arguments: Any, **options: Any) -> Case:
    return Case(lambda ops, x: getattr(ops.xp, name)(x, *arguments, **options), used=0.0, carried=0.9)


def indices(ops: Any, x: Any) -> Any:
    return ops.asarray(x, ops.index_dtype) if ops is not READING else x


CASES: dict[str, Case] = {
    "add": on_xp("add", "any", "any", used=0.2),
    "subtract": on_xp("subtract", "any", "any", used=0.2),
    "multiply": on_xp("multiply", "any", "any", used=0.2),
    "divide": on_xp("divide", "any", "away from 0"),
    "negative": on_xp("negative", used=0.0),
    "positive": on_xp("positive", used=0.0),
    "square": on_xp("square", used=0.2),
    "reciprocal": Case(lambda ops, x: 1.0 / x, ("away from 0",)),
    "pow": on_xp("pow", "positive", "any", used=0.005),
    "pow 2": Case(lambda ops, x: x**2, used=0.2),
    "pow 3": Case(lambda ops, x: x**3, used=0.002),
    "pow 0.5": Case(lambda ops, x: x**0.5, ("positive",), used=0.002),
    "a float beside it": Case(lambda ops, x: 0.1 * x + 0.3),
    "exp": on_xp("exp"),
    "expm1": on_xp("expm1"),
    "log": on_xp("log", "positive"),
    "log2": on_xp("log2", "positive"),
    "log1p": on_xp("log1p", "positive"),
    "tanh": on_xp("tanh"),
    "sqrt": on_xp("sqrt", "positive"),
    "sigmoid": Case(lambda ops, x: ops.sigmoid(x)),
    "sin": on_xp("sin"),
    "cos": on_xp("cos"),
    "erfc": Case(lambda ops, x: ops.erfc(x)),
    "logaddexp": on_xp("logaddexp", "any", "any", used=0.005),
    "logsumexp": Case(lambda ops, x: ops.logsumexp(x), used=0.005, carried=0.05),
    "abs": on_xp("abs", used=0.0),
    "maximum": on_xp("maximum", "any", "any", used=0.0),
    "minimum": on_xp("minimum", "any", "any", used=0.0),
    "clip": on_xp("clip", used=0.0, min=-0.5, max=0.75),
    "where": Case(lambda ops, x, y: ops.xp.where(x > 0.0, x, y), ("any", "any"), used=0.0),
    "where of shapes": Case(lambda ops, x: ops.xp.where(x > 0.25, x * 3.0, 0.0)),
    "max": on_xp("max", used=0.0, axis=-1, keepdims=True),
    "min": on_xp("min", used=0.0, axis=0),
    "sort": on_xp("sort", used=0.0, axis=-1),
    "sort, descending": on_xp("sort", used=0.0, axis=0, descending=True),
    "top_k": Case(lambda ops, x: ops.top_k(x, 3)[0], used=0.0),
    "sum": on_xp("sum", axis=-1),
    "sum of all": Case(lambda ops, x: ops.xp.sum(x), used=0.005),
    "mean": on_xp("mean", axis=0, keepdims=True),
    "var": on_xp("var", axis=-1, used=0.005),
    "var, of a sample": on_xp("var", axis=-1, correction=1.0, used=0.005),
    "std": on_xp("std", axis=-1, used=0.005),
    "prod": on_xp("prod", axis=-1, used=0.005),
    "cumulative_sum": on_xp("cumulative_sum", axis=-1),
    "matmul": Case(lambda ops, x, y: x @ ops.xp.matrix_transpose(y), ("any", "any")),
    "scatter_add": Case(
        lambda ops, x, y: ops.scatter_add(x, indices(ops, np.array([2, 0, 2])), y), ("any", "any"), used=0.02
    ),
    "reshape": moves("reshape", (4, 6)),
    "permute_dims": moves("permute_dims", (1, 0)),
    "matrix_transpose": moves("matrix_transpose"),
    "moveaxis": moves("moveaxis", 0, 1),
    "flip": moves("flip", axis=0),
    "roll": moves("roll", 3, axis=1),
    "squeeze": Case(lambda ops, x: ops.xp.squeeze(x[:, None], axis=1), used=0.0, carried=0.9),
    "expand_dims": moves("expand_dims", axis=1),
    "broadcast_to": moves("broadcast_to", (2, *SHAPE)),
    "repeat": moves("repeat", 2, axis=0),
    "tile": moves("tile", (2, 1)),
    "tril": moves("tril"),
    "triu": moves("triu"),
    "concat": Case(lambda ops, x, y: ops.xp.concat([x, y], axis=1), ("any", "any"), used=0.0, carried=0.9),
    "stack": Case(lambda ops, x, y: ops.xp.stack([x, y], axis=1), ("any", "any"), used=0.0, carried=0.9),
    "unstack": Case(lambda ops, x: ops.xp.unstack(x, axis=1)[2], used=0.0, carried=0.9),
    "getitem": Case(lambda ops, x: x[1:, ::2], used=0.0, carried=0.9),
    "getitem of one": Case(lambda ops, x: x[:, 3], used=0.0, carried=0.9),
    "take": Case(lambda ops, x: ops.xp.take(x, indices(ops, np.array([2, 0, 2])), axis=0), used=0.0, carried=0.9),
    "take_along_axis": Case(
        lambda ops, x: ops.xp.take_along_axis(x, indices(ops, np.array([[2], [0], [7]])), axis=-1),
        used=0.0,
        carried=0.9,
    ),
    "zeros_like": on_xp("zeros_like", used=0.0, carried=0.0),
    "ones_like": on_xp("ones_like", used=0.0, carried=0.0),
    "full_like": Case(lambda ops, x: ops.xp.full_like(x, 0.25), used=0.0, carried=0.0),
    "sign": on_xp("sign", used=0.0, carried=0.0),
    "floor": on_xp("floor", used=0.0, carried=0.0),
    "ceil": on_xp("ceil", used=0.0, carried=0.0),
    "trunc": on_xp("trunc", used=0.0, carried=0.0),
    "round": on_xp("round", used=0.0, carried=0.0),
    "an expression": Case(
        lambda ops, x, y: ops.xp.tanh(x * y + 0.5) / (1.0 + ops.xp.exp(-ops.xp.abs(y))) - x, ("any", "any")
    ),
}
# Rules that are known to be wrong, and open.
OPEN: set[str] = set()
COMPARISONS = ("less", "less_equal", "greater", "greater_equal", "equal", "not_equal")
OTHERS = {
    *COMPARISONS,
    *("logical_and", "logical_or", "logical_xor", "logical_not", "isfinite", "isinf", "isnan"),
    *("argmax", "argmin", "argsort"),
}


def test_nothing_is_left_out():
    assert set(FUNCTIONS) <= set(CASES) | OTHERS
    own = {"linear", "embed", "layer_norm", "rms_norm", "gelu_tanh", "gelu_erf", "silu", "relu", "softmax", "rotary"}
    assert own | {"attention", "cross_entropy", "sigmoid", "logsumexp"} == set(OPERATIONS)
    assert all(hasattr(operations, name) or name in FUNCTIONS for name in OPERATIONS)


DRAWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "any": lambda x: x,
    "positive": lambda x: np.abs(x) + 1e-3,
    "away from 0": lambda x: x + np.copysign(0.2, x),
}


def drawn(case: Case, seed: int, scale: float = 1.0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [DRAWS[how](scale * generator.standard_normal(SHAPE)).astype(np.float32) for how in case.draws]


def on_backend(case: Case, arrays: list[np.ndarray], name: str = "numpy", precision: str = "float32") -> np.ndarray:
    ops = BACKENDS[name, precision]
    with np.errstate(all="ignore"):
        return ops.to_numpy(case.run(ops, *(ops.asarray(x.astype(ops.xp.float64 and precision)) for x in arrays)))


def bounded(case: Case, arrays: list[np.ndarray], errors: list[np.ndarray] | None = None) -> Bounded:
    given = [READING.exactly(x) for x in arrays]
    if errors is not None:
        given = [Bounded(x, (off, off), READING) for x, off in zip(arrays, errors, strict=True)]
    found = case.run(READING, *given)
    assert found.value.dtype == np.float64 and found.unjudged is None
    assert found.error.shape == found.likely.shape == found.value.shape
    assert (found.error >= 0.0).all() and (found.likely <= found.error * (1.0 + 1e-12)).all()
    return found


def ratio(found: np.ndarray, expected: Bounded, unit: np.ndarray | None = None) -> float:
    off, unit = np.abs(np.asarray(found, np.float64) - expected.value), expected.error if unit is None else unit
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.where((found == expected.value) | np.isinf(unit), 0.0, off / unit)
    return float(np.where(np.isnan(each), np.inf, each).max(initial=0.0))


# --- values, soundness, sharpness -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_the_value_is_that_of_numpy_in_float64(name):
    for seed in range(4):
        arrays = drawn(CASES[name], seed)
        expected = on_backend(CASES[name], arrays, precision="float64")
        found = bounded(CASES[name], arrays).value
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", CASES)
def test_float32_of_exact_inputs_is_within_the_bounds(name):
    """The worst case, and what is likely too."""
    case, largest = CASES[name], 0.0
    for seed in range(40):
        arrays = drawn(case, seed, 10.0 ** (seed % 4 - 2))
        expected = bounded(case, arrays)
        for backend in ("numpy", "torch"):
            found = on_backend(case, arrays, backend)
            assert ratio(found, expected) <= 1.0, (backend, seed)
            largest = max(largest, ratio(found, expected))
            if case.used:
                assert ratio(found, expected, expected.likely) <= LARGEST, (backend, seed)
    assert largest >= case.used  # and the bound is no larger than it must be


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([1e-2, 1.0, 10.0]),
    size=st.sampled_from([1e-7, 1e-5, 1e-3, 0.1, 3.0]),
    relative=st.booleans(),
)
@example(seed=115, scale=10.0, size=3.0, relative=False)
def test_inputs_may_be_anywhere_within_their_errors(name, seed, scale, size, relative):
    if name in OPEN:
        pytest.xfail("a known fault of the bounded reading")
    case, generator = CASES[name], np.random.default_rng(seed)
    arrays = drawn(case, seed, scale)
    moved, errors = [], []
    for x, how in zip(arrays, case.draws, strict=True):
        step = size * generator.choice([-1.0, 1.0, 0.3, 0.0], x.shape) * (np.abs(x) if relative else scale)
        there = (x + step).astype(np.float32)
        if how != "any":  # stays where the function is defined
            there = np.where(there * np.sign(x) > 0.0, there, x)
        moved.append(there)
        errors.append(np.abs(there.astype(np.float64) - x))
    with np.errstate(all="ignore"):
        expected = bounded(case, arrays, errors)
    for backend in ("numpy", "torch"):
        found = on_backend(case, moved, backend)
        assert ratio(found, expected) <= 1.0, backend


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.carried])
def test_errors_are_carried_on_and_not_blown_up(name):
    """An error of 1e-4 of each input comes out as what the function can make of it."""
    case, largest = CASES[name], 0.0
    for seed in range(20):
        arrays = drawn(case, seed)
        errors = [1e-4 * np.abs(x).astype(np.float64) for x in arrays]
        expected = bounded(case, arrays, errors)
        for sign in (1.0, -1.0):
            moved = [(x + sign * off).astype(np.float64) for x, off in zip(arrays, errors, strict=True)]
            largest = max(largest, ratio(on_backend(case, moved, precision="float64"), expected))
    assert case.carried <= largest <= 1.0 + 1e-9  # moved in float64, which rounds too


@pytest.mark.full
@pytest.mark.parametrize("name", CASES)
def test_jax_is_within_the_bounds(name):
    ops = component("backend", "jax", precision="float32", ops="manual")
    case = CASES[name]
    run = ops.compile(lambda *x: case.run(ops, *x))
    for seed in range(8):
        arrays = drawn(case, seed, 10.0 ** (seed % 4 - 2))
        assert ratio(ops.to_numpy(run(*map(ops.asarray, arrays))), bounded(case, arrays)) <= 1.0


def test_where_float32_may_overflow_nothing_is_known():
    """exp(88.7) is a number in float32, exp(88.72284) may be one or not; exp(800) is infinite here too."""
    x = READING.xp.exp(Bounded(np.array([88.7, 88.72284, 89.0, 800.0]), EXACTLY, READING))
    assert np.isfinite(x.error[0]) and np.isinf(x.error[1:3]).all() and x.error[3] == 0.0
    wider = BoundedReading(UNITS["float64"], "float64")
    double = wider.xp.exp(Bounded(np.array([89.0, 700.0]), EXACTLY, wider))
    assert np.isfinite(double.error).all()


# --- decisions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [bool, np.int64])
@pytest.mark.parametrize("name", CASES)
def test_what_was_decided_goes_on_into_every_function(name, dtype):
    """Whatever is not sure stays unknown; what is sure is as of plain numbers."""
    if name.startswith("cumulative_sum"):
        whole = np.array([[1, 0, 1, 1], [0, 1, 0, 1]])
        unsure = np.array([[False, False, True, False], [False] * 4])
        found = CASES[name].run(READING, Decided(whole.astype(dtype), unsure, READING))
        np.testing.assert_array_equal(found.value, np.cumsum(whole, axis=-1))
        np.testing.assert_array_equal(found.unsure, [[False, False, True, True], [False] * 4])
        return
    value = np.arange(24).reshape(SHAPE) % 5 + 1
    sure, unsure = (Decided(value.astype(dtype), off, READING) for off in (value < 0, value == 2))
    plain = READING.exactly(value.astype(dtype).astype(np.float64))
    with np.errstate(all="ignore"):
        expected, found, open_ = (
            CASES[name].run(READING, *(x for _ in CASES[name].draws)) for x in (plain, sure, unsure)
        )
    np.testing.assert_array_equal(np.asarray(found.value, np.float64), expected.value)
    assert open_.value.shape == expected.value.shape


def doubtful(values: list[float], off: float) -> Bounded:
    x = np.array(values)
    return Bounded(x, (np.full(x.shape, off),) * 2, READING)


@pytest.mark.parametrize("name", COMPARISONS)
def test_a_comparison_is_sure_where_no_rounding_turns_it(name):
    x, y = doubtful([1.0, 1.0, 1.0, 3.0], 0.01), doubtful([2.0, 1.0, 1.019, 1.0], 0.01)
    found = getattr(READING.xp, name)(x, y)
    np.testing.assert_array_equal(found.value, getattr(np, name)(x.value, y.value))
    np.testing.assert_array_equal(found.unsure, [False, True, True, False])
    assert found.margin == 0.0 and getattr(READING.xp, name)(x[3:], y[3:]).margin == pytest.approx(100.0)
    exact = getattr(READING.xp, name)(READING.exactly(x.value), 1.0)
    assert not exact.unsure.any() and exact.margin == np.inf  # of what was looked at there is no doubt


@pytest.mark.parametrize("name", ["logical_and", "logical_or", "logical_xor"])
def test_what_is_joined_is_as_doubtful_as_its_parts(name):
    sure, unsure = doubtful([1.0, 2.0], 0.01) > 0.0, doubtful([1.0, 0.001], 0.01) > 0.0
    found = getattr(READING.xp, name)(sure, unsure)
    np.testing.assert_array_equal(found.value, getattr(np, name)([True, True], [True, True]))
    np.testing.assert_array_equal(found.unsure, [False, True])
    np.testing.assert_array_equal(READING.xp.logical_not(found).value, ~found.value)
    np.testing.assert_array_equal(READING.xp.logical_not(found).unsure, [False, True])
    np.testing.assert_array_equal((sure & unsure).unsure, [False, True])


def test_finite_or_not():
    x = READING.exactly(np.array([1.0, np.inf, np.nan]))
    for name in ("isfinite", "isinf", "isnan"):
        np.testing.assert_array_equal(getattr(READING.xp, name)(x), getattr(np, name)(x.value))


def test_where_rounding_decides_either_may_come():
    x = doubtful([1.0, 0.001], 0.01)
    found = READING.xp.where(x > 0.0, READING.exactly(np.array([5.0, 5.0])), READING.exactly(np.array([7.0, 7.5])))
    np.testing.assert_array_equal(found.value, [5.0, 5.0])
    assert found.error[0] == 0.0 and found.error[1] >= 2.5


RANKED = [3.0, 1.0, 2.0, 2.001, 0.0]


def test_top_k_among_near_ties():
    values, chosen = READING.top_k(doubtful(RANKED, 0.01), 2)
    np.testing.assert_array_equal(chosen.value, [0, 3])
    assert chosen.allowed(np.array([0, 3])) and chosen.allowed(np.array([0, 2]))  # 2 is as good within the bounds
    for wrong in ([0, 1], [2, 3], [3, 0], [0, 0], [0, 4], [0, 5], [-1, 0], [0]):
        assert not chosen.allowed(np.array(wrong)), wrong
    assert chosen.margin == pytest.approx(0.05)
    np.testing.assert_allclose(values.value, [3.0, 2.001])
    assert (values.error >= 0.01).all()
    sure = READING.top_k(READING.exactly(np.array(RANKED)), 2)[1]
    assert sure.allowed(np.array([0, 3])) and not sure.allowed(np.array([0, 2]))


def test_argmax_and_argmin_among_near_ties():
    for name, values in (("argmax", [0.0, 2.0, 2.001]), ("argmin", [0.0, -2.0, -2.001])):
        for keepdims in (False, True):
            found = getattr(READING.xp, name)(doubtful(values, 0.01), axis=-1, keepdims=keepdims)
            shaped = (lambda i: np.array([i])) if keepdims else np.array
            assert int(np.ravel(found.value)[0]) == 2
            assert found.allowed(shaped(2)) and found.allowed(shaped(1)) and not found.allowed(shaped(0))
            sure = getattr(READING.xp, name)(READING.exactly(np.array(values)), axis=-1, keepdims=keepdims)
            assert sure.allowed(shaped(2)) and not sure.allowed(shaped(1))
    grid = READING.exactly(np.array([[1.0, 5.0], [7.0, 2.0]]))
    assert int(READING.xp.argmax(grid).value) == 2
    np.testing.assert_array_equal(READING.xp.argmax(grid, axis=0).value, [1, 0])


def test_argsort_among_near_ties():
    found = READING.xp.argsort(doubtful(RANKED, 0.01), axis=-1)
    np.testing.assert_array_equal(found.value, [4, 1, 2, 3, 0])
    assert found.allowed(np.array([4, 1, 3, 2, 0]))
    for wrong in ([4, 2, 1, 3, 0], [0, 1, 2, 3, 4], [4, 1, 2, 2, 0]):
        assert not found.allowed(np.array(wrong)), wrong
    down = READING.xp.argsort(READING.exactly(np.array(RANKED)), axis=-1, descending=True)
    np.testing.assert_array_equal(down.value, [0, 3, 2, 1, 4])
    assert not down.allowed(np.array([0, 2, 3, 1, 4]))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([0.0, 1e-3, 0.1, 1.0]), rows=st.integers(1, 3))
def test_whatever_is_chosen_within_the_errors_is_allowed(seed, size, rows):
    generator = np.random.default_rng(seed)
    x = np.round(generator.standard_normal((rows, 6)), 1)  # ties among them
    off = size * generator.random(x.shape)
    given_ = Bounded(x, (off, off), READING)
    there = x + off * generator.uniform(-1.0, 1.0, x.shape)
    order = np.argsort(there, axis=-1, kind="stable")
    down = np.argsort(-there, axis=-1, kind="stable")
    assert READING.xp.argsort(given_, axis=-1).allowed(order)
    assert READING.top_k(given_, 3)[1].allowed(down[:, :3])
    assert READING.xp.argmax(given_, axis=-1).allowed(down[:, 0])
    assert READING.xp.argmin(given_, axis=-1).allowed(order[:, 0])


def test_what_an_open_choice_takes_is_not_judged():
    x = doubtful(RANKED, 0.01)
    taken = READING.xp.take_along_axis(x, READING.top_k(x, 2)[1], axis=-1)
    assert taken.unjudged == "a choice within rounding that was not shown" and np.isinf(taken.error).all()
    sure = READING.xp.take_along_axis(x, READING.top_k(x, 1)[1], axis=-1)
    assert sure.unjudged is None and (sure.error == 0.01).all()
    shown = READING.xp.take_along_axis(x, np.array([0, 2]), axis=-1)  # a choice that was shown is an index
    assert shown.unjudged is None and (shown.error == 0.01).all()


def test_numbers_that_are_cut_off():
    x = doubtful([2.4, 2.999], 0.01)
    found = READING.cast(x, np.int64)
    assert isinstance(found, Decided)
    np.testing.assert_array_equal(found.value, [2, 2])
    np.testing.assert_array_equal(found.unsure, [False, True])


# --- what has no rule -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["asinh", "atan", "log10", "floor_divide", "remainder"])
def test_a_function_without_a_rule_is_not_judged_by_its_name(name):
    reading = BoundedReading(UNITS["float32"], "float32")
    x = reading.exactly(np.array([0.5, 2.0]))
    arguments = (x, x) if name in ("floor_divide", "remainder") else (x,)
    found = getattr(reading.xp, name)(*arguments)
    assert found.unjudged == f"xp.{name}, which has no bound" and np.isinf(found.error).all()
    assert list(reading.unjudged) == [name]
    for after in (reading.xp.exp(found), found + 1.0, reading.xp.where(x > 1.0, x, found), reading.relu(found)):
        assert after.unjudged == found.unjudged  # and so is what comes of it
    assert reading.shown(found.value, fused=False).unjudged is None  # until it is shown


def test_a_decision_without_a_rule_is_not_sure():
    reading = BoundedReading(UNITS["float32"], "float32")
    found = reading.xp.count_nonzero(reading.exactly(np.array([0.5, 2.0])))
    assert isinstance(found, Decided) and found.unsure.all() and list(reading.unjudged) == ["count_nonzero"]


def test_what_leaves_the_reading_is_refused_in_words():
    x = READING.exactly(np.ones(3))
    for run in (lambda: float(x[0]), lambda: np.asarray(x), lambda: bool(x[0] > 0.0), lambda: x.__setitem__(0, 1.0)):
        with pytest.raises(ConfigurationError, match="A comparison cannot follow"):
            run()


# --- what was shown ---------------------------------------------------------------------------------------------------


def test_denormal_numbers_may_be_read_as_0():
    x = READING.exactly(np.array([1e-39, 1.0, 0.0], np.float32))
    assert x.error[0] == x.value[0] > 0.0 and x.error[1] == x.error[2] == 0.0


def test_a_product_may_be_joined_to_what_follows():
    """multiply, then add: a compiler need not round in between."""
    x, y, z = (READING.exactly(np.array([a], np.float32)) for a in (1.0 + 2.0**-23, 1.0 + 2.0**-23, -1.0))
    found = x * y + z
    assert found.error[0] >= 2.0**-24
    fused = READING.shown((x * y).value, fused=True)
    assert fused.error[0] > 0.0 and READING.shown((x * y).value, fused=False).error[0] == 0.0


def test_exact_zeros_of_a_table_stay_exact():
    assert READING.zeros((2, 3)).errors == EXACTLY
