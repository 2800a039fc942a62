"""The bounds of every operation, judged from outside: their values by torch in float64 and by NumPy's long double, what
they promise by sums in every bad order on every backend, and what they refuse by mistakes. The functions of `ops.xp`
are in `test_bounded_reading.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from transformer_lab.backends.frameworks import low_precision
from transformer_lab.backends.plain import manual
from transformer_lab.backends.readings.bounded import operations
from transformer_lab.backends.readings.bounded.pairs import Bounded
from transformer_lab.backends.readings.bounded.reading import BoundedReading
from transformer_lab.backends.readings.bounded.units import KEPT_IN_BFLOAT16, UNITS
from transformer_lab.comparison.judging.beside_bounds import Likelihood
from transformer_lab.config import component

EPSILON, SCALE, HEADS = 1e-5, 0.3, 4
TERMS = 32  # of every sum
SEEDS = 3


def of_torch(x: Any) -> Any:
    return torch.from_numpy(np.ascontiguousarray(x))


def turns(length: int, dtype: Any = np.float64) -> np.ndarray:
    """Angles [length, 4] of positions, computed in dtype."""
    frequencies = np.asarray(10000.0, dtype) ** (-np.arange(4).astype(dtype) / np.asarray(4, dtype))
    return np.arange(length)[:, None].astype(dtype) * frequencies


def visible(queries: int, keys: int) -> np.ndarray:
    return np.tri(queries, keys, dtype=bool)


# --- sums in orders that nobody would choose --------------------------------------------------------------------------


def pairwise(x: np.ndarray) -> np.ndarray:
    while x.shape[-1] > 1:
        x = np.concatenate([x, np.zeros((*x.shape[:-1], x.shape[-1] % 2), x.dtype)], axis=-1)
        x = x[..., 0::2] + x[..., 1::2]
    return x[..., 0]


def one_by_one(x: np.ndarray) -> np.ndarray:
    return np.cumsum(x, axis=-1, dtype=x.dtype)[..., -1]


def in_blocks(x: np.ndarray) -> np.ndarray:
    return one_by_one(one_by_one(x.reshape(*x.shape[:-1], -1, 8)))


def largest_first(x: np.ndarray) -> np.ndarray:
    return one_by_one(np.take_along_axis(x, np.argsort(-np.abs(x), axis=-1), axis=-1))


ORDERS = {
    "one by one": one_by_one,
    "backwards": lambda x: one_by_one(x[..., ::-1]),
    "pairwise": pairwise,
    "in blocks": in_blocks,
    "largest first": largest_first,
}


# --- the operations by hand: inputs of any precision, the sums in a given order ---------------------------------------
# Each repeats the textbook, in the precision of what it is given (numbers of Python take part without widening).


def linear_by_hand(total, x, kernel, bias):
    return total(x[..., None, :] * kernel.T) + bias


def layer_norm_by_hand(total, x, weight, bias):
    centred = x - (total(x) / x.shape[-1])[..., None]
    variance = (total(centred * centred) / x.shape[-1])[..., None]
    return centred / np.sqrt(variance + x.dtype.type(EPSILON)) * weight + bias


def rms_norm_by_hand(total, x, weight):
    return x / np.sqrt((total(x * x) / x.shape[-1])[..., None] + x.dtype.type(EPSILON)) * weight


def softmax_by_hand(total, x):
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / total(powers)[..., None]


def logsumexp_by_hand(total, x):
    largest = x.max(axis=-1)
    return largest + np.log(total(np.exp(x - largest[..., None])))


def cross_entropy_by_hand(total, x):
    below = x - x.max(axis=-1, keepdims=True)
    return np.log(total(np.exp(below))) - below[np.arange(len(x)), TARGETS]


def gelu_tanh_by_hand(total, x):
    root = np.sqrt(x.dtype.type(2.0) / x.dtype.type(np.pi))
    return x.dtype.type(0.5) * x * (1 + np.tanh(root * (x + x.dtype.type(0.044715) * x**3)))


def silu_by_hand(total, x):
    return x * (1 / (1 + np.exp(-x)))


def rotary_by_hand(total, x):
    angles = turns(x.shape[-2], x.dtype)
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def scores_by_hand(total, query, key):
    keys = np.repeat(key, HEADS // key.shape[1], axis=1)
    found = total(query[..., :, None, :] * keys[..., None, :, :]) * query.dtype.type(SCALE)
    return np.where(visible(*found.shape[-2:]), found, -np.inf)


def mix_by_hand(total, pattern, value):
    values = np.repeat(value, HEADS // value.shape[1], axis=1).swapaxes(-1, -2)
    return side_by_side(total(pattern[..., :, None, :] * values[..., None, :, :]))


def attention_by_hand(total, query, key, value):
    return mix_by_hand(total, softmax_by_hand(total, scores_by_hand(total, query, key)), value)


def side_by_side(heads):
    """[B, H, T, N] -> [B, T, H N], of NumPy, torch or the bounded reading."""
    turned = heads.transpose(0, 2, 1, 3) if isinstance(heads, (np.ndarray, Bounded)) else heads.swapaxes(1, 2)
    return turned.reshape((turned.shape[0], turned.shape[1], turned.shape[2] * turned.shape[3]))


# --- the operations by torch, which are the judge in float64 ----------------------------------------------------------


def scores_by_torch(query, key):
    found = torch.einsum("bhtn,bhsn->bhts", query, key.repeat_interleave(HEADS // key.shape[1], dim=1)) * SCALE
    return found.masked_fill(~of_torch(visible(*found.shape[-2:])), -torch.inf)


def mix_by_torch(pattern, value):
    values = value.repeat_interleave(HEADS // value.shape[1], dim=1)
    return side_by_side(torch.einsum("bhts,bhsn->bhtn", pattern, values))


def attention_by_torch(query, key, value):
    mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=SCALE, enable_gqa=True)
    return side_by_side(mixed)


def rotary_by_torch(x):
    """A turn is a product of complex numbers."""
    wide = x.double()
    half = x.shape[-1] // 2
    turned = torch.complex(wide[..., :half], wide[..., half:]) * torch.exp(1j * of_torch(turns(x.shape[-2])))
    return torch.cat([turned.real, turned.imag], dim=-1).to(x.dtype)


# --- the same on one of our backends ----------------------------------------------------------------------------------


def scores_on_backend(ops, query, key):
    kept = {}

    def tap(name, x):
        kept[name] = x
        return x

    start = ops.asarray(np.zeros(len(query), np.int64))
    manual.attention(ops, query, key, key, start, SCALE, tap=tap)
    return kept["scores"]


def attention_on_backend(ops, query, key, value):
    start = ops.asarray(np.zeros(query.shape[0], np.int64))
    mixed = ops.attention(query, key, value, start, SCALE)
    return ops.xp.reshape(ops.xp.permute_dims(mixed, (0, 2, 1, 3)), (mixed.shape[0], mixed.shape[2], -1))


def rotary_on_backend(ops, x):
    angles = turns(x.shape[2])[None]
    return ops.rotary(x, ops.asarray(np.cos(angles)), ops.asarray(np.sin(angles)))


# --- the same on the bounded reading ----------------------------------------------------------------------------------


def rotary_bounded(reading, x):
    angles = turns(x.shape[2])[None]
    table = reading.turn_table({"cos": np.cos(angles), "sin": np.sin(angles)}, angles)
    return reading.rotary(x, table["cos"], table["sin"])


def attention_bounded(reading, query, key, value):
    return side_by_side(reading.attention(query, key, value, np.zeros(1, np.int64), SCALE))


@dataclass(frozen=True)
class Operation:
    """shapes: of its inputs, by name. inexact: how many of them, from the first, may carry an error; the others are
    parameters. bounded: on a reading, of Bounded inputs. wrong: by hand, with a mistake."""

    shapes: dict[str, tuple[int, ...]]
    inexact: int
    bounded: Callable[..., Bounded]
    torch: Callable[..., Any]
    on_backend: Callable[..., Any] | None
    by_hand: Callable[..., Any] | None
    wrong: Callable[..., Any]
    used: float  # how much of its bound sound implementations use at least, of ordinary inputs


def one_short(x):
    """A sum that forgets its last term."""
    return np.sum(x[..., :-1], axis=-1)


def forgetful(by_hand):
    return lambda *inputs: by_hand(one_short, *inputs)


ROWS = {"x": (4, TERMS)}
TARGETS = np.array([3, 0, 31, 17])
HEADED = {"query": (1, HEADS, 8, TERMS), "key": (1, 2, 8, TERMS), "value": (1, 2, 8, TERMS)}
OPERATIONS = {
    "linear": Operation(
        {"x": (3, TERMS), "kernel": (TERMS, 5), "bias": (5,)},
        1,
        lambda reading, *inputs: reading.linear(*inputs),
        lambda x, kernel, bias: functional.linear(x, kernel.T, bias),
        lambda ops, x, kernel, bias: ops.linear(x, kernel, bias),
        linear_by_hand,
        forgetful(linear_by_hand),
        0.05,
    ),
    "layer_norm": Operation(
        {**ROWS, "weight": (TERMS,), "bias": (TERMS,)},
        1,
        lambda reading, x, weight, bias: reading.layer_norm(x, weight, bias, EPSILON),
        lambda x, weight, bias: functional.layer_norm(x, weight.shape, weight, bias, EPSILON),
        lambda ops, x, weight, bias: ops.layer_norm(x, weight, bias, EPSILON),
        layer_norm_by_hand,
        forgetful(layer_norm_by_hand),
        0.02,
    ),
    "rms_norm": Operation(
        {**ROWS, "weight": (TERMS,)},
        1,
        lambda reading, x, weight: reading.rms_norm(x, weight, EPSILON),
        lambda x, weight: functional.rms_norm(x, weight.shape, weight, EPSILON),
        lambda ops, x, weight: ops.rms_norm(x, weight, EPSILON),
        rms_norm_by_hand,
        forgetful(rms_norm_by_hand),
        0.02,
    ),
    "gelu_tanh": Operation(
        ROWS,
        1,
        lambda reading, *inputs: reading.gelu_tanh(*inputs),
        lambda x: functional.gelu(x, approximate="tanh"),
        lambda ops, x: ops.gelu_tanh(x),
        gelu_tanh_by_hand,
        lambda x: functional.gelu(of_torch(x)).numpy(),
        0.02,
    ),
    "gelu_erf": Operation(
        ROWS,
        1,
        lambda reading, *inputs: reading.gelu_erf(*inputs),
        functional.gelu,
        lambda ops, x: ops.gelu_erf(x),
        None,
        lambda x: functional.gelu(of_torch(x), approximate="tanh").numpy(),
        0.02,
    ),
    "silu": Operation(
        ROWS,
        1,
        lambda reading, *inputs: reading.silu(*inputs),
        functional.silu,
        lambda ops, x: ops.silu(x),
        silu_by_hand,
        lambda x: functional.gelu(of_torch(x)).numpy(),
        0.02,
    ),
    "relu": Operation(
        ROWS,
        1,
        lambda reading, *inputs: reading.relu(*inputs),
        functional.relu,
        lambda ops, x: ops.relu(x),
        lambda total, x: np.maximum(x, 0),
        lambda x: functional.leaky_relu(of_torch(x), 1e-6).numpy(),
        0.0,
    ),
    "softmax": Operation(
        ROWS,
        1,
        lambda reading, *inputs: reading.softmax(*inputs),
        lambda x: functional.softmax(x, dim=-1),
        lambda ops, x: ops.softmax(x),
        softmax_by_hand,
        forgetful(softmax_by_hand),
        0.02,
    ),
    "rotary": Operation(
        {"x": (1, 2, TERMS, 8)},
        1,
        rotary_bounded,
        rotary_by_torch,
        rotary_on_backend,
        rotary_by_hand,
        lambda x: rotary_by_hand(None, np.roll(x, 4, axis=-1)),
        0.05,
    ),
    "scores": Operation(
        {name: HEADED[name] for name in ("query", "key")},
        2,
        lambda reading, query, key: operations.scores(reading, query, key, visible(8, 8), SCALE),
        scores_by_torch,
        scores_on_backend,
        scores_by_hand,
        forgetful(scores_by_hand),
        0.05,
    ),
    "mix": Operation(
        {"pattern": (1, HEADS, 8, TERMS), "value": (1, 2, TERMS, 6)},
        2,
        lambda reading, pattern, value: side_by_side(operations.mix(reading, pattern, value)),
        mix_by_torch,
        None,
        mix_by_hand,
        forgetful(mix_by_hand),
        0.05,
    ),
    "attention": Operation(  # of which nothing is shown on the way
        HEADED,
        3,
        attention_bounded,
        attention_by_torch,
        attention_on_backend,
        attention_by_hand,
        forgetful(attention_by_hand),
        0.005,  # every step has its own bound, and all of them are added up
    ),
    "cross_entropy": Operation(
        ROWS,
        1,
        lambda reading, x: reading.cross_entropy(x, TARGETS),
        lambda x: functional.cross_entropy(x, of_torch(TARGETS), reduction="none"),
        lambda ops, x: ops.cross_entropy(x, ops.asarray(TARGETS)),
        cross_entropy_by_hand,
        forgetful(cross_entropy_by_hand),
        0.01,
    ),
    "logsumexp": Operation(
        ROWS,
        1,
        lambda reading, x: reading.logsumexp(x),
        lambda x: torch.logsumexp(x, dim=-1),
        lambda ops, x: ops.logsumexp(x),
        logsumexp_by_hand,
        forgetful(logsumexp_by_hand),
        0.01,
    ),
    "sigmoid": Operation(
        ROWS,
        1,
        lambda reading, x: reading.sigmoid(x),
        torch.sigmoid,
        lambda ops, x: ops.sigmoid(x),
        lambda total, x: 1 / (1 + np.exp(-x)),
        lambda x: torch.nn.functional.hardsigmoid(of_torch(x)).numpy(),
        0.02,
    ),
    "add": Operation(
        {"a": (4, TERMS), "b": (4, TERMS)},
        2,
        lambda reading, a, b: a + b,
        torch.add,
        lambda ops, a, b: a + b,
        lambda total, a, b: a + b,
        lambda a, b: a + b - b,
        0.3,
    ),
    "multiply": Operation(
        {"a": (4, TERMS), "b": (4, TERMS)},
        2,
        lambda reading, a, b: a * b,
        torch.mul,
        lambda ops, a, b: a * b,
        lambda total, a, b: a * b,
        lambda a, b: a * b * np.float32(1.000001),
        0.3,
    ),
}

# What the first input is made of normal numbers by; "spread" has sizes from 1e-6 to 1e6.
KINDS: dict[str, Callable[[Any, np.ndarray], np.ndarray]] = {
    "ordinary": lambda draw, x: 2.0 * x,
    "small": lambda draw, x: 1e-3 * x,
    "large": lambda draw, x: 30.0 * x,
    "far from 0": lambda draw, x: 1000.0 + x,
    "farther from 0": lambda draw, x: 1e6 + 0.01 * x,
    "equal": lambda draw, x: 0.0 * x + 12345.678,
    "spread": lambda draw, x: x * 10.0 ** draw.uniform(-6.0, 6.0, x.shape),
    "huge": lambda draw, x: 1e15 * x,
    "tiny": lambda draw, x: 1e-20 * x,
    "denormal": lambda draw, x: 3e-39 * x,
    "zero": lambda draw, x: 0.0 * x,
}


# Faults of the bounded reading that are known and open: (operation, kind of inputs).
OPEN: set[tuple[str, str]] = set()


def not_open(name: str, kind: str) -> None:
    if (name, kind) in OPEN:
        pytest.xfail("a known fault of the bounded reading")


def inputs_of(name: str, kind: str, seed: int, dtype: Any = np.float32) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    arrays = [draw.standard_normal(shape) for shape in OPERATIONS[name].shapes.values()]
    arrays[0] = KINDS[kind](draw, arrays[0])
    if name == "mix":
        arrays[0] = np.exp(arrays[0] - arrays[0].max(axis=-1, keepdims=True))
    return [array.astype(dtype) for array in arrays]


def bounded(name: str, inputs: list[np.ndarray], units: Any, errors: list[np.ndarray] | None = None) -> Bounded:
    """errors: of the inputs that may have one; None says that they are known."""
    reading = reading_of(units)
    given = [reading.exactly(x) for x in inputs]
    for place, off in enumerate(errors or []):
        given[place] = Bounded(inputs[place], (off, off), reading)
    return OPERATIONS[name].bounded(reading, *given)


def reading_of(units: Any) -> BoundedReading:
    """Its precision decides about numbers in the code alone, which nobody here keeps in fewer bits than float32."""
    return BoundedReading(units, "float64" if units is UNITS["float64"] else "float32")


def largest_ratio(found: Any, expected: Bounded) -> float:
    """|found - value| / error at its largest; a bound of NaN, or too small to be one, gives infinity."""
    found = np.asarray(found, np.float64)
    assert found.shape == expected.value.shape == expected.error.shape
    assert (expected.error >= 0.0).all() and np.isfinite(expected.error).all()
    same = found == expected.value  # infinities among them
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(same, 0.0, np.abs(found - expected.value) / expected.error)
    return float(np.where(np.isnan(ratio), np.inf, ratio).max())


def run_on(ops: Any, name: str, inputs: list[np.ndarray]) -> np.ndarray:
    operation = OPERATIONS[name]
    placed = [
        ops.place(f"{argument}.kernel" if argument == "kernel" else argument, array)
        for argument, array in zip(operation.shapes, inputs, strict=True)
    ]
    return ops.to_numpy(ops.compile(lambda *arrays: operation.on_backend(ops, *arrays))(*placed))


def run_by_torch(name: str, inputs: list[np.ndarray], dtype: Any) -> np.ndarray:
    with torch.no_grad():
        return OPERATIONS[name].torch(*(of_torch(x).to(dtype) for x in inputs)).double().numpy()


@pytest.fixture(scope="module")
def backends():
    made = {}

    def get(backend, precision="float32", ops="fused"):
        key = backend, precision, ops
        made.setdefault(key, component("backend", backend, precision=precision, ops=ops))
        return made[key]

    return get


# --- the values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_values_are_those_of_torch_in_float64(name):
    for kind in ("ordinary", "small", "large", "far from 0", "huge", "zero"):
        inputs = inputs_of(name, kind, seed=1)
        expected = run_by_torch(name, inputs, torch.float64)
        found = bounded(name, inputs, UNITS["float64"]).value
        same = found == expected
        size = np.abs(expected[np.isfinite(expected)]).max(initial=1e-300)
        assert (same | (np.abs(np.where(same, 0.0, found) - np.where(same, 0.0, expected)) <= 1e-12 * size)).all(), kind


def test_gelu_is_right_where_it_is_next_to_nothing():
    """By mpmath: the left tails, where 1 + erf and 1 + tanh cancel."""
    mpmath = pytest.importorskip("mpmath")
    x = np.array([-12.0, -8.5, -5.0, -2.0, -1e-8, 1e-8, 3.0])
    with mpmath.workdps(60):
        normal = [mpmath.mpf(v) * mpmath.ncdf(v) for v in x]
        tanh = [mpmath.mpf(v) / (1 + mpmath.exp(-2 * mpmath.sqrt(2 / mpmath.pi) * (v + 0.044715 * v**3))) for v in x]
        silu = [mpmath.mpf(v) / (1 + mpmath.exp(-v)) for v in x]
    reading = reading_of(UNITS["float64"])
    for operation, expected in ((reading.gelu_erf, normal), (reading.gelu_tanh, tanh), (reading.silu, silu)):
        found = operation(reading.exactly(x)).value
        np.testing.assert_allclose(found, np.array(expected, np.float64), rtol=3e-13)


# --- no sound implementation is above them ----------------------------------------------------------------------------


def in_float32(name, inputs, backends):
    """(how, result) of everything that computes this operation in float32."""
    operation = OPERATIONS[name]
    with np.errstate(all="ignore"):
        if operation.by_hand is not None:
            for order, total in ORDERS.items():
                yield order, operation.by_hand(total, *inputs)
        if operation.on_backend is not None:
            for backend in ("numpy", "torch"):
                for ops in ("fused", "manual"):
                    yield f"{backend} {ops}", run_on(backends(backend, ops=ops), name, inputs)
        yield "torch itself", run_by_torch(name, inputs, torch.float32)


def test_the_orders_are_sums_and_not_all_alike():
    x = np.random.default_rng(0).standard_normal((50, TERMS)).astype(np.float32)
    sums = [order(x) for order in ORDERS.values()]
    for found in sums:
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, x.astype(np.float64).sum(axis=-1), atol=1e-5)
    assert all((sums[0] != found).any() for found in sums[1:])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_float32_stays_below_its_bound_in_every_order(name, kind, backends):
    not_open(name, kind)
    for seed in range(SEEDS):
        inputs = inputs_of(name, kind, seed)
        expected = bounded(name, inputs, UNITS["float32"])
        for how, found in in_float32(name, inputs, backends):
            assert largest_ratio(found, expected) <= 1.0, (how, seed)


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_is_likely_holds_too(name, backends):
    """Roundings are taken for independent: where a sum is ordinary they are, in whatever order."""
    ways: dict[str, Likelihood] = {}
    for seed in range(12):
        inputs = inputs_of(name, "ordinary", seed)
        expected = bounded(name, inputs, UNITS["float32"])
        for how, found in in_float32(name, inputs, backends):
            with np.errstate(invalid="ignore"):
                apart = np.where(found == expected.value, 0.0, found - expected.value)
            ways.setdefault(how, Likelihood()).take(apart, expected.likely)
        assert (expected.likely <= expected.error * (1.0 + 1e-12)).all()
    for how, seen in ways.items():
        assert not seen.implausible, (how, seen)


@pytest.mark.parametrize("ops", ["fused", "manual"])
@pytest.mark.parametrize("name", [name for name in OPERATIONS if OPERATIONS[name].on_backend is not None])
def test_float32_stays_below_its_bound_on_jax(name, ops, backends):
    jax = backends("jax", ops=ops)
    operation = OPERATIONS[name]
    compiled = jax.compile(lambda *arrays: operation.on_backend(jax, *arrays))
    for kind in KINDS:
        if (name, kind) in OPEN:
            continue
        if name == "attention" and kind == "huge":
            # XLA computes scores of 1e15 twice, a rounding of 1e8 apart: exp(score - largest score) is infinite.
            continue
        inputs = inputs_of(name, kind, seed=5)
        placed = [
            jax.place(f"{argument}.kernel" if argument == "kernel" else argument, array)
            for argument, array in zip(operation.shapes, inputs, strict=True)
        ]
        found = jax.to_numpy(compiled(*placed))
        assert largest_ratio(found, bounded(name, inputs, UNITS["float32"])) <= 1.0, kind


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_inputs_may_be_anywhere_within_their_errors(data):
    """The operation of moved inputs, in float32 and in float64, stays within the error that is carried on."""
    name = data.draw(st.sampled_from(sorted({*OPERATIONS} - {name for name, _ in OPEN})), label="operation")
    kind = data.draw(
        st.sampled_from(["ordinary", "small", "large", "far from 0", "spread", "tiny", "zero"]), label="kind"
    )
    seed = data.draw(st.integers(0, 2**32 - 1), label="seed")
    size = 10.0 ** data.draw(st.floats(-9.0, 1.0), label="size of the errors")
    relative = data.draw(st.booleans(), label="relative to the input")
    draw = np.random.default_rng(seed)
    inputs = inputs_of(name, kind, seed)
    moved, errors = [], []
    for place, x in enumerate(inputs):
        if place >= OPERATIONS[name].inexact:
            moved.append(x)
            continue
        step = size * draw.choice([-1.0, 1.0, 0.3], x.shape) * (np.abs(x) if relative else 1.0)
        moved.append((x + step).astype(np.float32))
        errors.append(np.abs(moved[-1].astype(np.float64) - x))  # no more than it was moved
    for precision, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        expected = bounded(name, inputs, UNITS[precision], errors)
        assert largest_ratio(run_by_torch(name, moved, dtype), expected) <= 1.0


@pytest.mark.parametrize("size", [1.0, 1e3, 1e8, 1e30, np.inf])
@pytest.mark.parametrize("name", OPERATIONS)
def test_whatever_is_not_known_of_the_inputs_the_bound_is_a_number(name, size):
    """A NaN among bounds would be a false alarm, and infinity times 0 is one. Where so much may overflow, the bound is
    infinite."""
    if size > 1.0:
        not_open(name, "not known")
    inputs = inputs_of(name, "ordinary", seed=2)
    inputs[-1].flat[::3] = 0.0
    errors = [np.full(x.shape, size) for x in inputs[: OPERATIONS[name].inexact]]
    expected = bounded(name, inputs, UNITS["float32"], errors)
    if size >= 1e30:
        known = np.isfinite(expected.error)
        assert (expected.error >= 0.0).all()  # and no NaN
        expected = Bounded(expected.value, (np.where(known, expected.error, 1e300),) * 2, expected.reading)
    assert largest_ratio(run_by_torch(name, inputs, torch.float32), expected) <= 1.0


def test_what_leaves_a_norm_or_a_softmax_is_of_limited_size():
    """However little is known of what goes in: so too little of what was shown never makes a bound without end."""
    x = np.random.default_rng(3).standard_normal((4, TERMS))
    reading = reading_of(UNITS["float32"])
    unknown = Bounded(x, (np.full(x.shape, 1e4),) * 2, reading)
    weight = reading.exactly(np.full(TERMS, 2.0))
    assert reading.softmax(unknown).error.max() <= 1.001
    assert reading.rms_norm(unknown, weight, EPSILON).error.max() <= 2.001 * 2.0 * TERMS**0.5
    normal = reading.layer_norm(unknown, weight, weight, EPSILON)
    assert normal.error.max() <= 2.5 * 2.0 * TERMS**0.5 + 2.0 * 1e4 * TERMS * 2.0**-23 / EPSILON**0.5


# --- they are no larger than they must be -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATIONS)
def test_sound_implementations_use_some_of_the_bound(name, backends):
    largest = 0.0
    for seed in range(8):
        inputs = inputs_of(name, "ordinary", seed)
        expected = bounded(name, inputs, UNITS["float32"])
        largest = max(largest, *(largest_ratio(found, expected) for _, found in in_float32(name, inputs, backends)))
    assert OPERATIONS[name].used <= largest <= 1.0


def to_bits(x: np.ndarray, bits: int) -> np.ndarray:
    """x rounded to a significand of that many bits, by NumPy's frexp."""
    fraction, exponent = np.frexp(np.asarray(x, np.float64))
    return np.ldexp(np.rint(fraction * 2.0**bits), exponent - bits)


@pytest.mark.parametrize("name", OPERATIONS)
def test_mistakes_are_above_the_bound_of_float32(name):
    for seed in range(3):
        inputs = inputs_of(name, "ordinary", seed)
        expected = bounded(name, inputs, UNITS["float32"])
        assert largest_ratio(OPERATIONS[name].wrong(*inputs), expected) > 1.0
        result = run_by_torch(name, inputs, torch.float64)
        finite = np.isfinite(result)
        kept = np.where(finite, to_bits(np.where(finite, result, 0.0), 8), result)
        assert largest_ratio(kept, expected) > 1.0  # the result kept in bfloat16
        inputs[0] = to_bits(inputs[0], 8)
        assert largest_ratio(run_by_torch(name, inputs, torch.float64), expected) > 1.0  # the input was


@pytest.mark.parametrize("name", ["layer_norm", "gelu_tanh", "linear", "scores", "rms_norm"])
def test_errors_of_inputs_are_carried_on_and_not_blown_up(name):
    """A known error of 1e-3 comes out as at most some 1e-3 times what the operation can make of it."""
    inputs = inputs_of(name, "ordinary", seed=4)
    errors = [1e-3 * np.abs(x).astype(np.float64) for x in inputs[: OPERATIONS[name].inexact]]
    expected = bounded(name, inputs, UNITS["float32"], errors)
    moved = [x * np.float32(1.001) if place < len(errors) else x for place, x in enumerate(inputs)]
    moved[0] = inputs[0] + (np.sign(np.random.default_rng(0).standard_normal(inputs[0].shape)) * errors[0])
    assert largest_ratio(run_by_torch(name, moved, torch.float64), expected) > 0.1


# --- the other precisions ---------------------------------------------------------------------------------------------

LONG_DOUBLE_IS_LONGER = np.finfo(np.longdouble).nmant > np.finfo(np.float64).nmant
BY_HAND = [name for name in OPERATIONS if OPERATIONS[name].by_hand is not None]


@pytest.mark.skipif(not LONG_DOUBLE_IS_LONGER, reason="long double is float64 on this machine")
@pytest.mark.parametrize("name", BY_HAND)
def test_float64_stays_below_its_bound_and_so_does_the_truth(name):
    for kind in ("ordinary", "large", "far from 0", "spread", "zero"):
        if (name, kind) in OPEN:
            continue
        inputs = inputs_of(name, kind, 6, np.float64)
        expected = bounded(name, inputs, UNITS["float64"])
        with np.errstate(all="ignore"):
            truth = OPERATIONS[name].by_hand(pairwise, *(x.astype(np.longdouble) for x in inputs))
            for total in ORDERS.values():
                assert largest_ratio(OPERATIONS[name].by_hand(total, *inputs), expected) <= 1.0, kind
        assert largest_ratio(truth, expected) <= 1.0, kind
        assert largest_ratio(run_by_torch(name, inputs, torch.float64), expected) <= 1.0, kind
        if kind == "ordinary" and name != "relu":
            assert largest_ratio(truth.astype(np.float32), expected) > 1.0


EXACT = [name for name in OPERATIONS if OPERATIONS[name].on_backend is not None and name not in ("scores", "attention")]


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("name", EXACT)
def test_exact_mode_stays_below_its_bound_and_two_units_more_do_not(name, backend, backends):
    ops = backends(backend, "exact")
    for kind in ("ordinary", "small", "large", "far from 0", "spread", "zero"):
        inputs = inputs_of(name, kind, 7)
        expected = bounded(name, inputs, UNITS["exact"])
        found = run_on(ops, name, inputs)
        assert found.dtype == np.float32
        assert largest_ratio(found, expected) <= 1.0, kind
        if kind == "ordinary":
            place = np.unravel_index(np.argmax(np.abs(found)), found.shape)
            found = found.copy()
            # In exact mode the tables of a rotation are rounded, too, and its bound is that of any table.
            found[place] += (16.0 if name == "rotary" else 2.0) * np.spacing(found[place])
            assert largest_ratio(found, expected) > 1.0


@pytest.mark.parametrize("name", ["linear", "layer_norm", "softmax", "rms_norm"])
def test_plain_float32_is_above_the_bound_of_exact_mode(name):
    inputs = inputs_of(name, "ordinary", 8)
    found = OPERATIONS[name].by_hand(one_by_one, *inputs)
    assert largest_ratio(found, bounded(name, inputs, UNITS["exact"])) > 1.0


@pytest.mark.parametrize("ops", ["fused", "manual"])
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_kernels_of_few_bits_stay_below_their_bound_and_fewer_do_not(precision, ops, backends):
    backend = backends("torch", precision, ops)
    ratios = []
    for seed in range(12):
        for kind in ("ordinary", "small", "large"):
            inputs = inputs_of("linear", kind, seed)
            ratios.append(largest_ratio(run_on(backend, "linear", inputs), bounded("linear", inputs, UNITS[precision])))
    assert 0.02 <= max(ratios) <= 1.0
    x, kernel, bias = inputs_of("linear", "ordinary", 0)
    expected = bounded("linear", [x, kernel, bias], UNITS[precision])
    step = np.abs(kernel).max(axis=0) / 15.0
    for fewer in (to_bits(kernel, 4), np.rint(kernel / step) * step):  # 4 bits of significand, and 15 levels
        if precision == "bfloat16":
            assert largest_ratio(x @ fewer + bias, expected) > 0.5
    assert largest_ratio(linear_by_hand(one_short, x, kernel, bias), expected) > 1.0


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "attention"])
def test_what_is_kept_in_bfloat16_everywhere_stays_below_its_bound(name):
    """torch's own operations on tensors of bfloat16: sums in float32, every result in 16 bits."""
    for kind in ("ordinary", "small", "large", "far from 0", "spread", "zero"):
        inputs = [to_bits(x, 8) for x in inputs_of(name, kind, 9)]
        expected = bounded(name, inputs, KEPT_IN_BFLOAT16)
        assert largest_ratio(run_by_torch(name, inputs, torch.bfloat16), expected) <= 1.0, kind
    inputs = [to_bits(x, 8) for x in inputs_of(name, "ordinary", 9)]
    if name not in ("multiply", "gelu_tanh", "gelu_erf", "relu"):  # whose mistakes are small ones
        assert largest_ratio(OPERATIONS[name].wrong(*inputs), bounded(name, inputs, KEPT_IN_BFLOAT16)) > 1.0


def test_int8_steps_are_what_the_bound_says():
    """A kernel as int8 is off by at most half a step: the 127th part of its column's largest, and 1 %."""
    kernel = np.random.default_rng(1).standard_normal((500, 40))
    stored = low_precision.dequantise(low_precision.quantise(kernel))
    assert (np.abs(stored - kernel) <= 0.505 * np.abs(kernel).max(axis=0) / 127 + 1e-6).all()
