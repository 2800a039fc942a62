"""The gradient by hand of every operation, in float64: against central differences, torch and JAX."""

import tracemalloc

import numpy as np
import pytest
from derivatives import apart, central_differences
from operation_cases import CASES
from tolerances import FINITE_DIFFERENCE, GRADIENT, GRADIENT_BY_HAND

from transformer_lab.backends.base import OPERATIONS
from transformer_lab.backends.plain import gradients
from transformer_lab.backends.readings.gradient_rules import CONSTANT, RULES
from transformer_lab.backends.readings.recorded import Recorded, Tape, record
from transformer_lab.config import component

ALL = [(operation, title) for operation in OPERATIONS for title in CASES[operation]]
# At 0 every framework takes another slope of relu, and -inf has no neighbours.
SMOOTH = [case for case in ALL if case not in {("relu", "extreme"), ("softmax", "masked")}]


def numpy_backend(ops="fused", precision="float64"):
    return component("backend", "numpy", precision=precision, ops=ops)


def weighted(ops, operation, case, fixed):
    """(arrays that are learned) -> a weighted sum of the operation's result, on a backend."""

    def loss(learned):
        arrays = [{**learned, **fixed}[name] for name in order]
        result = getattr(ops, operation)(*arrays, *case.options)
        weights = np.random.default_rng(1).standard_normal(tuple(result.shape))
        return ops.xp.sum(result * ops.asarray(weights))

    order = list(case.inputs(np.random.default_rng(7)))
    return loss


def found_gradients(ops, operation, title, rounded="float64"):
    case = CASES[operation][title]
    inputs = case.inputs(np.random.default_rng(7))
    inputs = {name: x.astype(rounded).astype(x.dtype) if x.dtype.kind == "f" else x for name, x in inputs.items()}
    fixed = {name: ops.asarray(x) for name, x in inputs.items() if x.dtype.kind != "f"}
    learned = {name: ops.asarray(x.copy()) for name, x in inputs.items() if x.dtype.kind == "f"}
    if ops.name == "numpy":
        for array in learned.values():
            array.flags.writeable = False  # nothing writes into what it was given
    _, found = ops.value_and_grad(weighted(ops, operation, case, fixed))(learned)
    return {name: ops.to_numpy(x) for name, x in found.items()}


@pytest.mark.parametrize("kind", ["fused", "manual"])
@pytest.mark.parametrize(("operation", "title"), ALL)
def test_against_other_frameworks(operation, title, kind):
    found = found_gradients(numpy_backend(kind), operation, title)
    for name in ("torch", "jax"):
        pytest.importorskip(name)
        if (operation, title, name) == ("relu", "extreme", "jax"):
            continue  # JAX gives relu the slope 1/2 at 0, torch and we 0
        ops = component("backend", name, precision="float64", ops="fused" if name == "torch" else "manual")
        assert apart(found, found_gradients(ops, operation, title)) <= GRADIENT_BY_HAND, name


@pytest.mark.parametrize("kind", ["fused", "manual"])
@pytest.mark.parametrize(("operation", "title"), SMOOTH)
def test_against_central_differences(operation, title, kind):
    ops, case = numpy_backend(kind), CASES[operation][title]
    inputs = case.inputs(np.random.default_rng(7))
    fixed = {name: x for name, x in inputs.items() if x.dtype.kind != "f"}
    learned = {name: x for name, x in inputs.items() if x.dtype.kind == "f"}
    expected = central_differences(weighted(ops, operation, case, fixed), learned)
    assert apart(found_gradients(ops, operation, title), expected) <= FINITE_DIFFERENCE


@pytest.mark.parametrize(("operation", "title"), ALL)
def test_float32_stays_float32(operation, title):
    expected = found_gradients(numpy_backend(), operation, title, rounded="float32")
    found = found_gradients(numpy_backend(precision="float32"), operation, title)
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
    assert apart(found, expected) <= GRADIENT["float32"]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_value_is_that_of_the_forward_computation(operation):
    """Recorded or not, an operation gives the same, but for the order of sums."""
    for ops in (numpy_backend(), numpy_backend("manual")):
        for title, case in CASES[operation].items():
            inputs = case.inputs(np.random.default_rng(7))
            tape = Tape(ops.xp, RULES, CONSTANT, "A test")
            recorded = [Recorded(x, tape) if x.dtype.kind == "f" else x for x in inputs.values()]
            found = getattr(ops, operation)(*recorded, *case.options).value
            plain = getattr(ops, operation)(*inputs.values(), *case.options)
            np.testing.assert_allclose(found, plain, rtol=1e-12, atol=1e-14, err_msg=title)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_constants_among_the_inputs(operation):
    """Each float input learned alone gets the gradient that it gets beside the others."""
    title, case = next(iter(CASES[operation].items()))
    ops = numpy_backend()
    together = found_gradients(ops, operation, title)
    inputs = case.inputs(np.random.default_rng(7))
    for name, expected in together.items():
        fixed = {other: x for other, x in inputs.items() if other != name}
        _, found = ops.value_and_grad(weighted(ops, operation, case, fixed))({name: inputs[name]})
        np.testing.assert_array_equal(found[name], expected)


# --- the checks can fail ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_wrong_gradient_is_found(operation, monkeypatch):
    """The gradient of the first input is made larger by a millionth."""
    title = next(iter(CASES[operation]))
    right = getattr(gradients, operation)

    def wrong(ops, x, *others):
        return right(ops, record(x.value, (x, lambda g: g * (1.0 + 1e-6))), *others)

    expected = found_gradients(numpy_backend(), operation, title)
    monkeypatch.setattr(gradients, operation, wrong)
    found = found_gradients(numpy_backend(), operation, title)
    assert apart(found, expected) > GRADIENT_BY_HAND
    with pytest.raises(AssertionError):
        test_against_other_frameworks(operation, title, "fused")


# --- which version runs -----------------------------------------------------------------------------------------------


def test_manual_records_the_plain_version_and_fused_takes_ours(monkeypatch):
    called = []
    for operation in OPERATIONS:
        right = getattr(gradients, operation)
        spy = lambda *arguments, right=right, operation=operation: called.append(operation) or right(*arguments)  # noqa: E731
        monkeypatch.setattr(gradients, operation, spy)
    for operation in OPERATIONS:
        title = next(iter(CASES[operation]))
        found_gradients(numpy_backend("manual"), operation, title)
        assert called == []
        found_gradients(numpy_backend({operation: "manual"}), operation, title)
        assert operation not in called  # the plain attention asks for softmax, and gets ours
        called.clear()
        found_gradients(numpy_backend(), operation, title)
        assert set(called) == {operation}
        called.clear()


def test_plain_arrays_go_the_way_they_always_went(monkeypatch):
    for operation in OPERATIONS:
        monkeypatch.setattr(gradients, operation, lambda *arguments: pytest.fail("nothing is recorded"))
    ops = component("backend", "numpy")
    result = ops.linear(np.ones((1, 2), np.float32), np.ones((2, 3), np.float32))
    assert type(result) is np.ndarray


def test_taps_of_the_plain_attention_are_seen_and_can_be_changed():
    ops = numpy_backend({"attention": "manual"})
    case = CASES["attention"]["grouped"]
    inputs = case.inputs(np.random.default_rng(7))
    seen = {}

    def loss(query, halve):
        def tap(name, x):
            seen[name] = x
            return x * 0.5 if halve and name == "pattern" else x

        return ops.xp.sum(ops.attention(query, inputs["key"], inputs["value"], inputs["start"], 0.35, tap=tap) ** 2)

    whole, half = (ops.value_and_grad(lambda q, h=h: loss(q, h))(inputs["query"])[1] for h in (False, True))
    assert seen["scores"].shape == seen["pattern"].shape == (2, 6, 5, 5)
    np.testing.assert_allclose(half, whole / 4, rtol=1e-12, atol=1e-15)


def test_attention_never_holds_all_scores():
    """4 heads of 1024 queries and keys have 4 x 1024 x 1024 scores: 16 MB, of which a few blocks of 2 MB are held."""
    ops = numpy_backend(precision="float32")
    query, key, value = np.random.default_rng(0).standard_normal((3, 1, 4, 1024, 8)).astype(np.float32)
    start = np.zeros(1, np.int64)

    def loss(arrays):
        return ops.xp.sum(ops.attention(*arrays, start, 0.35))

    tracemalloc.start()
    try:
        ops.value_and_grad(loss)([query, key, value])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12e6
