"""Every operation in exact mode is the correctly rounded float32 of its float32 inputs: against mpmath, bit for bit."""

import importlib.util

import mpmath
import numpy as np
import pytest
from operation_cases import CASES, Case, attention_inputs, call

from transformer_lab.backends.base import OPERATIONS
from transformer_lab.backends.readings.exact import operations as exact
from transformer_lab.config import component, names

INSTALLED = [name for name in names("backend") if importlib.util.find_spec(name)]
CASE_LIST = [(operation, title) for operation in OPERATIONS for title in CASES[operation]]


def float32_inputs(case: Case) -> dict[str, np.ndarray]:
    inputs = case.inputs(np.random.default_rng(11))
    return {k: v.astype(np.float32).astype(np.float64) if v.dtype.kind == "f" else v for k, v in inputs.items()}


def rounded(value: mpmath.mpf) -> np.float32:
    """Correctly rounded by mpmath's own rounding to 24 bits; what is below 2^-126 counts as 0."""
    with mpmath.workprec(24):
        number = float(+value)
    return np.float32(number) if abs(value) >= mpmath.mpf(2) ** -126 else np.float32(0.0)


def truth(operation: str, inputs: dict[str, np.ndarray], options: tuple) -> np.ndarray:
    """The operation by mpmath with 60 digits, from its definition, rounded once."""
    arrays = list(inputs.values())
    exactly = np.vectorize(lambda v: mpmath.mpf(float(v)), otypes=[object])
    once = np.vectorize(rounded, otypes=[np.float32])
    x = exactly(arrays[0])
    with mpmath.workdps(60):
        if operation == "linear":
            result = x @ exactly(arrays[1]) + (exactly(arrays[2]) if len(arrays) > 2 else 0)
        elif operation == "embed":
            result = x[arrays[1]]
        elif operation in ("layer_norm", "rms_norm"):
            size, weight = x.shape[-1], exactly(arrays[1])
            centred = x - (x.sum(-1, keepdims=True) / size if operation == "layer_norm" else 0)
            square = (centred * centred).sum(-1, keepdims=True) / size + mpmath.mpf(options[0])
            result = centred / np.vectorize(mpmath.sqrt, otypes=[object])(square) * weight
            result = result + exactly(arrays[2]) if operation == "layer_norm" else result
        elif operation == "softmax":
            powers = np.vectorize(mpmath.exp, otypes=[object])(x - np.max(x, axis=-1, keepdims=True))
            result = powers / powers.sum(-1, keepdims=True)
        elif operation == "cross_entropy":
            sums = np.vectorize(mpmath.exp, otypes=[object])(x).sum(-1)
            result = np.vectorize(mpmath.log, otypes=[object])(sums)
            result = result - np.take_along_axis(x, arrays[1][..., None], axis=-1)[..., 0]
        elif operation == "logsumexp":
            result = np.vectorize(mpmath.log, otypes=[object])(np.vectorize(mpmath.exp, otypes=[object])(x).sum(-1))
        elif operation == "rotary":
            half, cos, sin = x.shape[-1] // 2, exactly(arrays[1])[:, None], exactly(arrays[2])[:, None]
            first, second = x[..., :half], x[..., half:]
            result = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
        else:
            slope = mpmath.sqrt(2 / mpmath.pi)
            scalar = {
                "relu": lambda v: max(v, mpmath.mpf(0)),
                "silu": lambda v: v / (1 + mpmath.exp(-v)),
                "sigmoid": lambda v: 1 / (1 + mpmath.exp(-v)),
                "gelu_tanh": lambda v: v / (1 + mpmath.exp(-2 * slope * (v + mpmath.mpf("0.044715") * v**3))),
                "gelu_erf": lambda v: v * mpmath.erfc(-v / mpmath.sqrt(2)) / 2,
            }[operation]
            result = np.vectorize(scalar, otypes=[object])(x)
        return once(result)


# JAX compiles each case for a second or two: the quick suite runs the first case of each operation there.
FIRST = {(operation, next(iter(CASES[operation]))) for operation in OPERATIONS}


def on_backends(pairs: list[tuple[str, str]]) -> list[object]:
    return [
        pytest.param(name, *pair, marks=[pytest.mark.full] if name == "jax" and pair not in FIRST else [])
        for name in INSTALLED
        for pair in pairs
    ]


@pytest.mark.parametrize(
    ("name", "operation", "title"), on_backends([pair for pair in CASE_LIST if pair[0] != "attention"])
)
def test_correctly_rounded(name, operation, title):
    case = CASES[operation][title]
    inputs = float32_inputs(case)
    found = call(component("backend", name, precision="exact"), operation, case, inputs)
    assert found.dtype == np.float32
    expected = truth(operation, inputs, case.options)
    assert found.reshape(-1).view(np.uint32).tolist() == (expected.reshape(-1) + np.float32(0)).view(np.uint32).tolist()


@pytest.mark.parametrize(("name", "operation", "title"), on_backends([("attention", t) for t in CASES["attention"]]))
def test_attention_is_the_same_on_every_backend(name, operation, title):
    case = CASES["attention"][title]
    inputs = float32_inputs(case)
    found, expected = (
        call(component("backend", which, precision="exact"), "attention", case, inputs) for which in (name, "numpy")
    )
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("title", ["grouped", "window"])
def test_attention_is_made_of_rounded_scores_pattern_and_mixture(title):
    case = CASES["attention"][title]
    inputs = float32_inputs(case)
    query, key, value, start = inputs.values()
    group = query.shape[1] // key.shape[1]
    key, value = (np.repeat(array, group, axis=1) for array in (key, value))
    found = call(component("backend", "numpy", precision="exact"), "attention", case, inputs)
    with mpmath.workdps(60):
        for b, h, t in np.ndindex(*query.shape[:3]):
            last = int(start[b]) + t + 1
            seen = slice(max(0, last - case.options[1]) if title == "window" else 0, last)
            scale = mpmath.mpf(case.options[0])
            scores = [rounded(scale * mpmath.fdot(query[b, h, t].tolist(), k.tolist())) for k in key[b, h, seen]]
            pattern = truth("softmax", {"x": np.array([scores], np.float64)}, ())[0]
            mixed = [rounded(mpmath.fdot(pattern.tolist(), column.tolist())) for column in value[b, h, seen].T]
            assert found[b, h, t].tolist() == [float(x) for x in mixed]


# The long prompt has 180,000 elements of a softmax: minutes in decimal arithmetic, for nothing that others lack.
AGAIN = [p for p in CASE_LIST if p[0] not in ("embed", "relu", "rotary") and "long prompt in pieces" not in p[1]]


@pytest.mark.parametrize(("name", "operation", "title"), on_backends(AGAIN))
def test_what_is_computed_again_comes_out_the_same(name, operation, title, monkeypatch):
    """With a bound a thousand million times too large nearly all elements are doubtful, and the bits do not change."""
    case = CASES[operation][title]
    inputs = float32_inputs(case)
    expected = call(component("backend", "numpy", precision="exact"), operation, case, inputs)
    monkeypatch.setattr(exact, "U", 2.0**-23)
    monkeypatch.setattr(exact, "GAMMA", 2.0**-23)
    ops = component("backend", name, precision="exact")
    found = call(ops, operation, case, inputs)
    assert ops.certificate.doubtful > 0.3 * found.size if title not in ("extreme", "one column") else True
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", INSTALLED)
@pytest.mark.parametrize(("operation", "title"), [pair for pair in CASE_LIST if pair in FIRST])
def test_pieces_change_no_bit(name, operation, title, monkeypatch):
    """A few elements at a time, so that rows, matrices and the sums of products are cut wherever they can be."""
    case = CASES[operation][title]
    inputs = float32_inputs(case)
    ops = component("backend", name, precision="exact")
    expected = call(ops, operation, case, inputs)
    monkeypatch.setattr(type(ops.inner), "piece", 7)
    monkeypatch.setattr(exact, "PART", 5)
    ops = component("backend", name, precision="exact")  # a new one: steps that are compiled stay as they are
    assert call(ops, operation, case, inputs).tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", INSTALLED)
def test_blocks_of_queries_change_no_bit(name, monkeypatch):
    """A prompt over a cache in several blocks, each over the keys it may see, and whole, when somebody looks on."""
    case = Case(attention_inputs(4, 2, 11, 17, [6, 2]), (0.3,))
    inputs = float32_inputs(case)
    ops = component("backend", name, precision="exact")
    monkeypatch.setattr(exact, "QUERY_BLOCK", 3)
    seen = {}
    arrays = [ops.asarray(x, ops.index_dtype if x.dtype.kind == "i" else None) for x in inputs.values()]
    blocks = ops.to_numpy(ops.compile(lambda *a: ops.attention(*a, *case.options))(*arrays))

    def look_on(name, x):
        seen[name] = x
        return x

    whole, taps = ops.compile(lambda *a: (ops.attention(*a, *case.options, tap=look_on), dict(seen)))(*arrays)
    assert ops.to_numpy(whole).tobytes() == blocks.tobytes()
    assert taps["pattern"].shape == (2, 4, 11, 17)


@pytest.mark.parametrize("name", INSTALLED)
def test_zeros_and_denormals(name):
    ops = component("backend", name, precision="exact")
    kernel = np.array([[1.0, -1e-30, 1e-42, 2.0**-126], [-1.0, 0.0, 0.0, 0.0]])
    x = np.array([[1.0, 1.0], [1e-20, 0.0], [-0.0, 0.0], [1.0, 0.0], [1 - 2.0**-24, 0.0], [1 - 2.0**-23, 0.0]])
    inputs = {"x": x, "kernel": kernel}
    found = call(ops, "linear", CASES["linear"]["square, no bias"], inputs)
    tiny = np.float32(2.0**-126)
    expected = [[0, -1e-30, 0, tiny], [1e-20, 0, 0, 0], [0, 0, 0, 0], [1, -1e-30, 0, tiny]]
    # Half a step below the smallest normal number is rounded to it; a whole step below is a denormal.
    expected += [[1 - 2.0**-24, -1e-30 * (1 - 2.0**-24), 0, tiny], [1 - 2.0**-23, -1e-30 * (1 - 2.0**-23), 0, 0]]
    assert found.tobytes() == np.array(expected, np.float32).tobytes()


@pytest.mark.parametrize("name", INSTALLED)
def test_a_product_outside_of_the_operations_that_is_denormal(name):
    """1e-42 is 0 to XLA, so it is to all; times 1e10 it would be seen."""
    ops = component("backend", name, precision="exact")
    gated = ops.compile(lambda act, up, kernel: ops.linear(act * up, kernel))
    found = gated(*(ops.asarray(np.array([[number]])) for number in (1e-20, 1e-22, 1e10)))
    assert ops.to_numpy(found).tolist() == [[0.0]]


def test_a_hard_case_is_doubtful_and_right():
    """1 + 2^-24 + 2^-70 rounds up, 1 + 2^-24 - 2^-70 down: float64 alone cannot tell."""
    kernel = np.array([[1.0, 1.0], [2.0**-24, 2.0**-24], [2.0**-70, -(2.0**-70)]])
    case = CASES["linear"]["square, no bias"]
    for name in INSTALLED:
        ops = component("backend", name, precision="exact")
        found = call(ops, "linear", case, {"x": np.ones((1, 3)), "kernel": kernel})
        assert found.tolist() == [[1.0 + 2.0**-23, 1.0]]
        assert ops.certificate.doubtful == 2
