"""Every version of every operation, on every backend, against the plain version in float64; values and gradients.

The plain version itself is judged by float64 code that is not ours, and gradients by central differences.
"""

import importlib.util

import numpy as np
import pytest
import scipy.special
from operation_cases import CASES, Case, call
from tolerances import FINITE_DIFFERENCE, GRADIENT, OPERATION
from watchful_backends import PoisoningNumpy, ReadOnlyNumpy, StrictBackend

from transformer_lab.backends.base import OPERATIONS
from transformer_lab.config import component, names

INSTALLED = [name for name in names("backend") if importlib.util.find_spec(name)]
WATCHFUL = {"read_only": ReadOnlyNumpy, "poisoning": PoisoningNumpy, "strict": StrictBackend}


def backend(name: str, precision: str = "float32", ops: object = "manual"):
    return WATCHFUL[name](precision) if name in WATCHFUL else component("backend", name, precision=precision, ops=ops)


def versions() -> list[tuple[str, str, str]]:
    """(backend, operation, version) for all that is listed and runs here."""
    found = [(name, operation, "manual") for name in (*INSTALLED, *WATCHFUL) for operation in OPERATIONS]
    for name in INSTALLED:
        ops = backend(name)
        for operation, listed in ops.implementations.items():
            found += [(name, operation, key) for key, version in listed.items() if version.unavailable(ops) is None]
    return found


def trainable(name: str) -> bool:
    return backend(name).can_train


CASE_LIST = [(operation, title) for operation in OPERATIONS for title in CASES[operation]]


def draw_inputs(case: Case) -> dict[str, np.ndarray]:
    return case.inputs(np.random.default_rng(7))


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, in units of the largest magnitude of the expected result."""
    assert found.shape == expected.shape
    finite = np.isfinite(expected)
    assert np.array_equal(found[~finite], expected[~finite])
    difference = np.abs(found[finite].astype(np.float64) - expected[finite])
    return float(difference.max() / np.abs(expected[finite]).max())


@pytest.mark.parametrize(("name", "operation", "version"), versions())
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_values(name, operation, version, precision):
    try:
        ops = backend(name, precision, {operation: version})
    except ValueError:
        assert precision == "float64"  # a version may serve float32 alone; the list was made in float32
        return
    judge = backend("numpy", "float64")
    for title, case in CASES[operation].items():
        inputs = draw_inputs(case)
        # The judge is given what the version is given: the values rounded to the precision.
        rounded = {k: v.astype(precision).astype(v.dtype) if v.dtype.kind == "f" else v for k, v in inputs.items()}
        found = call(ops, operation, case, inputs)
        assert found.dtype == np.dtype(precision), title
        assert distance(found, call(judge, operation, case, rounded)) <= OPERATION[precision], title


def outside(operation: str, arrays: list[np.ndarray], options: tuple) -> np.ndarray:
    """The operation in float64 by scipy, or by definitions that share nothing with ours."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    tensors = [torch.from_numpy(np.asarray(a)) for a in arrays]
    if operation == "attention":
        query, key, value, start = arrays
        group = query.shape[1] // key.shape[1]
        result = np.empty_like(query)
        for b, h, t in np.ndindex(query.shape[:3]):
            last = int(start[b]) + t + 1
            keys = slice(max(0, last - options[1]) if len(options) > 1 else 0, last)
            weights = scipy.special.softmax(key[b, h // group, keys] @ query[b, h, t] * options[0])
            result[b, h, t] = weights @ value[b, h // group, keys]
        return result
    if operation == "rotary":
        x, cos, sin = arrays
        turned = (x[..., :4] + 1j * x[..., 4:]) * (cos + 1j * sin)[:, None]
        return np.concatenate([turned.real, turned.imag], axis=-1)
    x = tensors[0]
    size = (x.shape[-1],)
    return {
        "linear": lambda: x @ tensors[1] + (tensors[2] if len(tensors) > 2 else 0.0),
        "embed": lambda: x[tensors[1]],
        "layer_norm": lambda: functional.layer_norm(x, size, *tensors[1:], *options),
        "rms_norm": lambda: functional.rms_norm(x, size, *tensors[1:], *options),
        "gelu_tanh": lambda: functional.gelu(x, approximate="tanh"),
        "gelu_erf": lambda: functional.gelu(x),
        "relu": lambda: functional.relu(x),
        "silu": lambda: functional.silu(x),
        "sigmoid": lambda: torch.sigmoid(x),
        "logsumexp": lambda: torch.logsumexp(x, dim=-1),
        "softmax": lambda: functional.softmax(x, dim=-1),
        "cross_entropy": lambda: functional.cross_entropy(
            x.reshape(-1, x.shape[-1]), tensors[1].reshape(-1), reduction="none"
        ).reshape(tensors[1].shape),
    }[operation]().numpy()


@pytest.mark.parametrize(("operation", "title"), CASE_LIST)
def test_plain_version_against_outside_code(operation, title):
    case = CASES[operation][title]
    inputs = draw_inputs(case)
    arrays = list(inputs.values())
    expected = outside(operation, arrays, case.options)
    assert distance(call(backend("numpy", "float64"), operation, case, inputs), expected) <= OPERATION["float64"]


def gradients(ops, operation: str, case: Case, inputs: dict[str, np.ndarray]) -> tuple[float, dict[str, np.ndarray]]:
    """Of a weighted sum of the result, with respect to every float input that is finite."""
    learned = {k: v for k, v in inputs.items() if v.dtype.kind == "f"}
    fixed = {k: ops.asarray(v) for k, v in inputs.items() if k not in learned}

    def weighted(learned, weights):
        result = getattr(ops, operation)(*[(learned | fixed)[name] for name in inputs], *case.options)
        return ops.xp.sum(ops.xp.reshape(result, (-1,)) * weights)

    size = call(backend("numpy", "float64"), operation, case, inputs).size
    weights = ops.asarray(np.random.default_rng(1).standard_normal(size))
    value, found = ops.value_and_grad(weighted)({k: ops.asarray(v) for k, v in learned.items()}, weights)
    return float(value), {k: ops.to_numpy(v) for k, v in found.items()}


def differences(operation: str, case: Case, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Central differences in float64 of the same weighted sum, on NumPy, at up to 12 places of each input."""
    ops, step = backend("numpy", "float64"), 1e-6

    def weighted(inputs):
        result = call(ops, operation, case, inputs).reshape(-1)
        return result @ np.random.default_rng(1).standard_normal(result.size)

    found = {}
    for name, array in inputs.items():
        if array.dtype.kind != "f":
            continue
        found[name] = np.full(array.shape, np.nan)
        for place in np.random.default_rng(2).permutation(array.size)[:12]:
            moved = [array.copy(), array.copy()]
            for sign, copy in zip((1, -1), moved, strict=True):
                copy.reshape(-1)[place] += sign * step
            high, low = (weighted({**inputs, name: copy}) for copy in moved)
            found[name].reshape(-1)[place] = (high - low) / (2 * step)
    return found


GRADIENT_CASES = {operation: next(iter(CASES[operation].values())) for operation in OPERATIONS}


@pytest.mark.parametrize(("name", "operation", "version"), [v for v in versions() if trainable(v[0])])
def test_gradients(name, operation, version):
    case = GRADIENT_CASES[operation]
    inputs = draw_inputs(case)
    _, expected = gradients(backend("jax", "float64"), operation, case, inputs)
    _, found = gradients(backend(name, "float32", {operation: version}), operation, case, inputs)
    for argument, gradient in found.items():
        assert distance(gradient, expected[argument]) <= GRADIENT["float32"], argument


@pytest.mark.parametrize("name", [name for name in (*INSTALLED, *WATCHFUL) if trainable(name)])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_gradients_in_float64_against_differences(name, operation):
    case = GRADIENT_CASES[operation]
    inputs = draw_inputs(case)
    _, found = gradients(backend(name, "float64"), operation, case, inputs)
    for argument, expected in differences(operation, case, inputs).items():
        places = np.isfinite(expected)
        largest = max(1.0, np.abs(expected[places]).max())
        assert np.abs(found[argument][places] - expected[places]).max() <= FINITE_DIFFERENCE * largest, argument


# --- the checks can fail ---------------------------------------------------------------------------------------------

WRONG = {
    "linear": lambda ops, x, kernel, bias=None: x @ kernel,
    "embed": lambda ops, table, ids: table[np.maximum(ids - 1, 0)],
    "layer_norm": lambda ops, x, w, b, e: (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + e) * w + b,
    "rms_norm": lambda ops, x, w, e: x / np.sqrt((x * x).mean(-1, keepdims=True)) * w,
    "gelu_tanh": lambda ops, x: x * scipy.special.ndtr(x),
    "gelu_erf": lambda ops, x: 0.5 * x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x**3))),
    "relu": lambda ops, x: np.abs(x),
    "silu": lambda ops, x: x * scipy.special.expit(1.01 * x),
    "sigmoid": lambda ops, x: 1.0 / (1.0 + np.exp2(-1.44 * x)),
    "logsumexp": lambda ops, x: x.max(axis=-1),
    "softmax": lambda ops, x: np.exp(x - x.max()) / np.exp(x - x.max()).sum(axis=-2, keepdims=True),
    "rotary": lambda ops, x, cos, sin: x,
    "attention": lambda ops, q, k, v, start, scale, window=None: ops_without_mask(q, k, v, scale),
    "cross_entropy": lambda ops, logits, targets: -logits.max(-1),
}


def ops_without_mask(query, key, value, scale):
    key, value = (np.repeat(x, query.shape[1] // key.shape[1], axis=1) for x in (key, value))
    return scipy.special.softmax(query @ np.matrix_transpose(key) * scale, axis=-1) @ value


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_wrong_version_is_found(operation):
    judge, wrong = backend("numpy", "float64"), backend("numpy", "float64")
    setattr(wrong, operation, lambda *arguments: WRONG[operation](wrong, *arguments))
    with np.errstate(all="ignore"):
        distances = [
            distance(np.nan_to_num(call(wrong, operation, case, inputs)), call(judge, operation, case, inputs))
            for case in CASES[operation].values()
            for inputs in [draw_inputs(case)]
        ]
    assert max(distances) > OPERATION["float32"]
