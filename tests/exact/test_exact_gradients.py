"""Gradients with precision=exact: each the correctly rounded float32 of its formula, so the same bits on every backend.

Operations are held against mpmath, bit for bit; whole models against each other, and against float64.
"""

import mpmath
import numpy as np
import pytest
from operation_cases import CASES, Case
from small_models import small_model
from test_exact_operations import CASE_LIST, INSTALLED, float32_inputs, on_backends, rounded, truth
from tolerances import GRADIENT

import transformer_lab as lab
from transformer_lab.backends.base import OPERATIONS
from transformer_lab.backends.readings.exact import algebra
from transformer_lab.backends.readings.exact import gradients as exact_gradients
from transformer_lab.backends.readings.exact import operations as exact
from transformer_lab.comparison.judging.training_loss import parameter_gradients
from transformer_lab.config import component
from transformer_lab.ffn.dense import Dense
from transformer_lab.language_model import assemble
from transformer_lab.model.parameters import shapes

exactly = np.vectorize(lambda v: mpmath.mpf(float(v)), otypes=[object])
once = np.vectorize(rounded, otypes=[np.float32])


def cotangent(operation, case, inputs):
    """Random float32, shaped like the operation's result."""
    plain = component("backend", "numpy", precision="float64", ops="manual")
    shape = getattr(plain, operation)(*inputs.values(), *case.options).shape
    return np.random.default_rng(12).standard_normal(shape).astype(np.float32)


def gradients(ops, operation, case, inputs, g):
    """{input: dL/dx} of L = sum(y g), by the backend."""
    learned = {name: ops.asarray(x) for name, x in inputs.items() if x.dtype.kind == "f"}
    fixed = {name: ops.asarray(x) for name, x in inputs.items() if x.dtype.kind != "f"}

    def loss(learned, fixed, g):
        given = learned | fixed
        return ops.xp.sum(getattr(ops, operation)(*(given[name] for name in inputs), *case.options) * g)

    _, found = ops.compile(ops.value_and_grad(loss))(learned, fixed, ops.asarray(g))
    return {name: ops.to_numpy(found[name]) for name in learned}  # JAX sorts dictionaries


def mean(x):
    return x.sum(-1, keepdims=True) / x.shape[-1]


def true_gradients(operation, inputs, options, g):
    """By mpmath with 80 digits, from the formulas of exact_gradients.py, each rounded once: in the order of inputs."""
    arrays = list(inputs.values())
    given = [exactly(x) if x.dtype.kind == "f" else x for x in arrays]
    g = exactly(g)
    x = given[0]
    rows = lambda array: array.reshape(-1, array.shape[-1])  # noqa: E731
    if operation == "linear":
        found = [(g @ given[1].T), rows(x).T @ rows(g), rows(g).sum(0)][: len(given)]
    elif operation == "embed":
        found = [np.full(x.shape, mpmath.mpf(0))]
        np.add.at(found[0], given[1], g)
    elif operation in ("layer_norm", "rms_norm"):
        centred = x - mean(x) if operation == "layer_norm" else x
        r = 1 / np.vectorize(mpmath.sqrt, otypes=[object])(mean(centred * centred) + mpmath.mpf(options[0]))
        n, h = centred * r, g * given[1]
        to_x = r * (h - (mean(h) if operation == "layer_norm" else 0) - n * mean(h * n))
        found = [to_x, rows(g * exactly(once(n))).sum(0), rows(g).sum(0)][: len(given)]
    elif operation == "softmax":
        p = exactly(truth("softmax", {"x": arrays[0]}, ()))
        found = [p * (g - (p * g).sum(-1, keepdims=True))]
    elif operation == "logsumexp":
        found = [g[..., None] * exactly(truth("softmax", {"x": arrays[0]}, ()))]
    elif operation == "cross_entropy":
        powers = np.vectorize(mpmath.exp, otypes=[object])(x)
        onehot = np.arange(x.shape[-1]) == given[1][..., None]
        found = [g[..., None] * (powers / powers.sum(-1, keepdims=True) - onehot.astype(int))]
    elif operation == "rotary":
        half, cos, sin = x.shape[-1] // 2, given[1][:, None], given[2][:, None]
        x1, x2, g1, g2 = x[..., :half], x[..., half:], g[..., :half], g[..., half:]
        to_x = np.concatenate([g1 * cos + g2 * sin, g2 * cos - g1 * sin], axis=-1)
        found = [to_x, (g1 * x1 + g2 * x2).sum(1), (g2 * x1 - g1 * x2).sum(1)]
    elif operation == "attention":
        found = true_attention(*arrays, g, *options)
    else:
        scalar = {
            "relu": lambda v: mpmath.mpf(v > 0),
            "silu": lambda v: mpmath.diff(lambda x: x / (1 + mpmath.exp(-x)), v),
            "sigmoid": lambda v: mpmath.exp(-abs(v)) / (1 + mpmath.exp(-abs(v))) ** 2,
            "gelu_tanh": lambda v: mpmath.diff(gelu_tanh, v),
            "gelu_erf": lambda v: mpmath.diff(lambda x: x * mpmath.ncdf(x), v),
        }[operation]
        found = [g * np.vectorize(scalar, otypes=[object])(x)]
    return [once(array) for array in found]


def gelu_tanh(x):
    return x / (1 + mpmath.exp(-2 * mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf("0.044715") * x**3)))


def true_attention(query, key, value, start, g, scale, window=None):
    batch, heads, queries, _ = query.shape
    group, scale = heads // key.shape[1], mpmath.mpf(scale)
    to_query, to_key, to_value = (np.full(array.shape, mpmath.mpf(0)) for array in (query, key, value))
    for b, h, t in np.ndindex(batch, heads, queries):
        last = int(start[b]) + t + 1
        seen = (b, h // group, slice(0 if window is None else max(0, last - window), last))
        q, k, v, here = exactly(query[b, h, t]), exactly(key[seen]), exactly(value[seen]), g[b, h, t]
        scores = once(scale * (k @ q)).astype(np.float64)
        p = exactly(truth("softmax", {"x": scores[None]}, ())[0])
        to_p = exactly(once(v @ here))
        to_scores = exactly(once(p * (to_p - (p * to_p).sum())))
        to_query[b, h, t] = scale * (to_scores @ k)
        to_key[seen] += scale * np.outer(to_scores, q)
        to_value[seen] += np.outer(p, here)
    return [to_query, to_key, to_value]


def equal_bits(found, expected):
    assert found.shape == expected.shape and found.dtype == expected.dtype == np.float32
    expected = expected + np.float32(0)  # -0 is +0
    assert found.reshape(-1).view(np.uint32).tolist() == expected.reshape(-1).view(np.uint32).tolist()


# The long prompt has 180,000 elements of a softmax: minutes in decimal arithmetic, for nothing that others lack.
LONG = [("attention", "long prompt in pieces"), ("attention", "window, long prompt in pieces")]


@pytest.mark.parametrize(("name", "operation", "title"), on_backends([pair for pair in CASE_LIST if pair not in LONG]))
def test_correctly_rounded(name, operation, title):
    case = CASES[operation][title]
    inputs = float32_inputs(case)
    g = cotangent(operation, case, inputs)
    found = gradients(component("backend", name, precision="exact"), operation, case, inputs, g)
    with mpmath.workdps(80):
        expected = true_gradients(operation, inputs, case.options, g)
    for array, right in zip(found.values(), expected, strict=True):
        equal_bits(array, right)


# --- hard inputs ------------------------------------------------------------------------------------------------------


def draw(*shape, seed=21):
    return np.random.default_rng(seed).standard_normal(shape)


def confident(size):
    """Logits whose target has a probability of 1 - 1e-3 ... 1 - 1e-30."""
    logits = draw(6, size)
    logits[np.arange(6), np.arange(6)] += np.array([7.0, 12.0, 18.0, 30.0, 50.0, 70.0])
    return {"logits": logits, "targets": np.arange(6)}


ONES = np.ones(40)
# A norm of these forgets nearly all: rows far from zero, nearly equal, equal, tiny; and a gradient along the row.
FLAT = np.stack([300.0 + draw(40), 7.0 + 1e-5 * draw(40), np.full(40, 7.0), 1e-12 * draw(40), 1e4 * draw(40)])
SATURATED = np.array([[200.0, 0.0, -1.0], [20.0, 3.0, -np.inf], [5.0, -np.inf, -np.inf], [60.0, 60.0, -40.0]])
HARD = {
    "confident": ("cross_entropy", confident(23), (), None),
    "two words": ("cross_entropy", {"logits": draw(3, 2) * 30, "targets": np.array([0, 1, 1])}, (), None),
    "flat rows": ("layer_norm", {"x": FLAT, "weight": draw(40), "bias": draw(40)}, (1e-5,), None),
    "flat rows, rms": ("rms_norm", {"x": FLAT, "weight": draw(40)}, (1e-5,), None),
    "a gradient along the row": ("layer_norm", {"x": FLAT, "weight": ONES, "bias": ONES}, (1e-5,), FLAT),
    "a gradient along the row, rms": ("rms_norm", {"x": FLAT, "weight": ONES}, (1e-5,), FLAT),
    "saturated": ("softmax", {"x": SATURATED}, (), None),
    "one large gradient": ("softmax", {"x": draw(4, 3)}, (), np.array([[1e20, 1.0, 1e-20]] * 4)),
    "near the zero of a slope": ("gelu_tanh", {"x": np.linspace(-0.7525, -0.7515, 50)}, (), None),
    "near its zero": ("gelu_erf", {"x": np.linspace(-0.7523, -0.7513, 50)}, (), None),
    "near the zero of silu's slope": ("silu", {"x": np.linspace(-1.279, -1.278, 50)}, (), None),
    "far out, large gradients": ("gelu_erf", {"x": np.linspace(-22, 22, 45)}, (), np.full(45, 1e34)),
    "far out, gelu_tanh": ("gelu_tanh", {"x": np.linspace(-22, 22, 45)}, (), np.full(45, 1e34)),
    "far out, silu": ("silu", {"x": np.linspace(-200, 200, 41)}, (), np.full(41, 1e34)),
    "rare words": (
        "embed",
        {"table": draw(9, 3), "ids": np.array([1, 2, 1, 5, 5, 5, 2])},
        (),
        draw(7, 3) * np.array([1.0, 1e-12, 1.0, 1e-25, 1e-25, 1e-30, 1e-12])[:, None],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ["numpy", "torch"])
@pytest.mark.parametrize("title", HARD)
def test_hard_inputs(name, title):
    operation, inputs, options, g = HARD[title]
    case = Case(lambda _: inputs, options)
    inputs = float32_inputs(case)
    g = cotangent(operation, case, inputs) if g is None else g.astype(np.float32)
    found = gradients(component("backend", name, precision="exact"), operation, case, inputs, g)
    with mpmath.workdps(120):
        expected = true_gradients(operation, inputs, options, g)
    for array, right in zip(found.values(), expected, strict=True):
        equal_bits(array, right)


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_sums_over_rows_get_a_second_look(name):
    """1 + 2^-24 + 2^-70 rounds up, 1 + 2^-24 - 2^-70 down, in whatever order it comes."""
    ops = component("backend", name, precision="exact")
    x = np.array([[1.0, 1.0], [2.0**-24, 2.0**-24], [2.0**-70, -(2.0**-70)]])
    case = Case(lambda _: {}, ())
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        inputs = {"x": x[order], "kernel": np.ones((2, 1)), "bias": np.zeros(1)}
        found = gradients(ops, "linear", case, inputs, np.ones((3, 1), np.float32))
        assert found["kernel"].tolist() == [[1.0 + 2.0**-23], [1.0]]
        inputs = {"x": x, "kernel": np.ones((2, 2)), "bias": np.zeros(2)}
        assert gradients(ops, "linear", case, inputs, x[order].astype(np.float32))["bias"].tolist() == [1 + 2.0**-23, 1]


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_zeros_and_denormals(name):
    """What XLA takes for 0 is 0: in a gradient that comes in, and in one that goes out."""
    ops = component("backend", name, precision="exact")
    inputs = {"x": np.array([1.0, 1.0, -1.0, 1.0])}
    g = np.array([1e-42, -0.0, 3.0, 2.0**-126], np.float32)
    found = gradients(ops, "relu", Case(lambda _: {}, ()), inputs, g)["x"]
    equal_bits(found, np.array([0.0, 0.0, 0.0, 2.0**-126], np.float32))
    _, (found, _) = ops.value_and_grad(lambda pair: ops.xp.sum(pair[0] * pair[1]))(
        [ops.asarray(np.array([1.0, 1.0])), ops.asarray(np.array([1e-42, -0.0]))]
    )
    equal_bits(ops.to_numpy(found), np.zeros(2, np.float32))


# On JAX the second look has its own machinery, the same for all: one operation of each kind of second look.
AGAIN = [pair for pair in CASE_LIST if pair[0] != "relu" and pair not in LONG]
ON_JAX = {("layer_norm", "large epsilon"), ("cross_entropy", "rows"), ("silu", "ordinary")}


@pytest.mark.parametrize(("name", "operation", "title"), [
    pytest.param(name, *pair, marks=[pytest.mark.full] if name == "jax" and pair not in ON_JAX else [])
    for name in INSTALLED
    for pair in AGAIN
])  # fmt: skip
def test_what_is_computed_again_comes_out_the_same(name, operation, title, monkeypatch):
    """With a bound a thousand million times too large nearly all elements are doubtful, and the bits do not change."""
    case = CASES[operation][title]
    inputs = float32_inputs(case)
    g = cotangent(operation, case, inputs)
    expected = gradients(component("backend", "numpy", precision="exact"), operation, case, inputs, g)
    monkeypatch.setattr(exact, "U", 2.0**-23)
    monkeypatch.setattr(exact, "GAMMA", 2.0**-23)
    ops = component("backend", name, precision="exact")
    found = gradients(ops, operation, case, inputs, g)
    assert ops.certificate.doubtful > 0.3 * ops.certificate.roundings if title != "extreme" else True
    for array, right in zip(found.values(), expected.values(), strict=True):
        equal_bits(array, right)


# --- the order of sums ------------------------------------------------------------------------------------------------

# The inputs whose gradients are sums over rows.
OVER_ROWS = {
    "linear": ("kernel", "bias"),
    "embed": ("table",),
    "layer_norm": ("weight", "bias"),
    "rms_norm": ("weight",),
}


def order_changes_no_bit(name, operation):
    draw, rows = np.random.default_rng(8), 300
    arrays = {"x": draw.standard_normal((rows, 6)), "kernel": draw.standard_normal((6, 5)), "bias": np.zeros(5)}
    if operation == "embed":
        arrays = {"table": draw.standard_normal((4, 6)), "ids": draw.integers(0, 4, rows)}
    elif operation != "linear":
        arrays = {"x": arrays["x"], "weight": np.ones(6), **({"bias": np.ones(6)} if operation == "layer_norm" else {})}
    case = Case(lambda _: arrays, (1e-5,) if operation.endswith("norm") else ())
    inputs = float32_inputs(case)
    g = cotangent(operation, case, inputs)
    g = (g * np.exp(8 * draw.standard_normal((rows, 1)))).astype(np.float32)  # large terms cancel, small ones are left
    ops = component("backend", name, precision="exact")
    expected = gradients(ops, operation, case, inputs, g)
    by_row = "ids" if operation == "embed" else "x"
    for _ in range(5):
        order = draw.permutation(rows)
        found = gradients(ops, operation, case, {**inputs, by_row: inputs[by_row][order]}, g[order])
        for learned in OVER_ROWS[operation]:
            equal_bits(found[learned], expected[learned])


@pytest.mark.parametrize("name", ["numpy", "torch"])
@pytest.mark.parametrize("operation", OVER_ROWS)
def test_the_order_of_rows_changes_no_bit(name, operation):
    order_changes_no_bit(name, operation)


def test_a_sum_that_has_an_order_is_found(monkeypatch):
    def plain(ops, terms):
        return np.cumsum(terms.astype(np.float32), axis=-1)[..., -1]

    monkeypatch.setattr(algebra, "rounded_sum", plain)
    for operation in ("linear", "layer_norm", "rms_norm"):
        with pytest.raises(AssertionError):
            order_changes_no_bit("numpy", operation)


# --- what is asked for ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["numpy", "torch"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_input_learned_alone(name, operation):
    case = next(iter(CASES[operation].values()))
    inputs = float32_inputs(case)
    g = cotangent(operation, case, inputs)
    ops = component("backend", name, precision="exact")
    together = gradients(ops, operation, case, inputs, g)
    for learned, right in together.items():

        def loss(array, learned=learned):
            given = [array if other == learned else ops.asarray(x) for other, x in inputs.items()]
            return ops.xp.sum(getattr(ops, operation)(*given, *case.options) * ops.asarray(g))

        _, found = ops.value_and_grad(loss)(ops.asarray(inputs[learned]))
        equal_bits(ops.to_numpy(found), right)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.full] if n == "jax" else []) for n in INSTALLED])
def test_arguments_by_name_and_taps(name):
    """Both ways to call an operation have the same gradient; a tap inside is not called, as in fused versions."""
    ops = component("backend", name, precision="exact")
    case = CASES["attention"]["one token"]
    inputs = {title: ops.asarray(x) for title, x in float32_inputs(case).items()}

    def loss(query, named):
        others = {title: x for title, x in inputs.items() if title != "query"}
        if named:
            return ops.xp.sum(ops.attention(scale=0.35, tap=pytest.fail, query=query, **others))
        return ops.xp.sum(ops.attention(query, *others.values(), 0.35))

    run = ops.value_and_grad(loss)
    (value, found), (expected_value, expected) = (run(inputs["query"], named) for named in (True, False))
    equal_bits(ops.to_numpy(value), ops.to_numpy(expected_value))
    equal_bits(ops.to_numpy(found), ops.to_numpy(expected))


# --- whole models -----------------------------------------------------------------------------------------------------

SIZES = {"vocab_size": 31, "context_length": 12, "hidden_size": 16, "num_heads": 4}
GPT2 = {**SIZES, "ffn": Dense(24)}
LLAMA = {
    **SIZES, "ffn": Dense(24, "silu", gated=True, bias=False), "position": "rotary", "norm": "rms_norm",
    "attention_bias": False, "tied_head": False, "num_kv_heads": 2,
}  # fmt: skip
MODELS = {
    "gpt2-like": small_model(**GPT2, num_layers=1),
    "llama-like": small_model(**LLAMA, num_layers=1),
    "gpt2-like, two layers": small_model(**GPT2, num_layers=2, attention_scale_by_layer=True),
    "llama-like, two layers": small_model(**LLAMA, num_layers=2),
    "gelu_erf": small_model(**{**GPT2, "ffn": Dense(24, "gelu_erf")}, num_layers=1),
    "relu, gated, tied": small_model(
        **{**LLAMA, "ffn": Dense(24, "relu", gated=True), "tied_head": True}, num_layers=1
    ),
}
QUICK_ON_JAX = ("gpt2-like", "llama-like")  # it compiles each for many seconds
IDS = np.random.default_rng(3).integers(0, 31, (3, 12))


def model_gradients(title, name, ids=IDS, precision="exact"):
    """(the gradients of the mean next-token loss, the backend)."""
    draw, config = np.random.default_rng(5), MODELS[title]
    weights = {
        place: (draw.standard_normal(shape) * 0.3 + (1.0 if place.endswith(".weight") else 0.0)).astype(np.float32)
        for place, shape in shapes(config).items()
    }
    ops = component("backend", name, precision=precision, ops="fused" if precision == "exact" else "manual")
    return parameter_gradients(assemble(config, weights, ops), ids), ops


@pytest.mark.parametrize(("title", "name"), [
    pytest.param(title, name, marks=[pytest.mark.full] if name == "jax" and title not in QUICK_ON_JAX else [])
    for title in MODELS
    for name in INSTALLED
    if name != "numpy"
])  # fmt: skip
def test_the_same_bits_on_every_backend(title, name):
    (expected, numpy), (found, ops) = model_gradients(title, "numpy"), model_gradients(title, name)
    assert list(expected) == list(shapes(MODELS[title])) and found.keys() == expected.keys()
    for place, array in expected.items():
        equal_bits(found[place], array)
        assert np.count_nonzero(array)
    # The certificate counts the forward and the backward pass, each step once on every backend.
    assert ops.certificate.roundings == numpy.certificate.roundings
    assert 0 < ops.certificate.doubtful < 0.02 * ops.certificate.roundings


@pytest.mark.parametrize("title", MODELS)
def test_near_the_gradients_in_float64(title):
    found, expected = model_gradients(title, "numpy")[0], model_gradients(title, "numpy", precision="float64")[0]
    for place, array in expected.items():
        assert np.linalg.norm(found[place] - array) <= GRADIENT["float32"] * np.linalg.norm(array), place


@pytest.mark.parametrize("name", ["numpy", "torch"])
@pytest.mark.parametrize("title", ["gpt2-like, two layers", "llama-like, two layers"])
def test_the_order_of_a_batch_changes_no_bit(title, name):
    expected, _ = model_gradients(title, name)
    for order in ([1, 2, 0], [2, 1, 0]):
        found, _ = model_gradients(title, name, IDS[order])
        for place, array in expected.items():
            equal_bits(found[place], array)


@pytest.mark.full
def test_gpt2_of_124_million_with_32_tokens():
    ids = np.random.default_rng(0).integers(0, 50257, (1, 33))
    expected = {}
    for name in INSTALLED:
        model = lab.load_model("gpt2", backend=name, precision="exact", weights="random", seed=0)
        found = parameter_gradients(model, ids)
        expected = expected or found
        for place, array in expected.items():
            assert found[place].tobytes() == array.tobytes(), place


def test_a_wrong_gradient_is_found(monkeypatch):
    """One backend is off by a bit at a named point, the gradient of the pattern."""
    right = exact_gradients.product

    def one_bit_off(ops, left, other, scale=1.0):
        y = right(ops, left, other, scale)
        return y * (1 + 2.0**-23) if ops.name == "torch" and left.shape[-1] == 4 and scale == 1.0 else y

    monkeypatch.setattr(exact_gradients, "product", one_bit_off)
    with pytest.raises(AssertionError):
        test_the_same_bits_on_every_backend("gpt2-like", "torch")
