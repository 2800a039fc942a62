"""Gradients beside the truth: bounds that hold on sound backends, and wrong gradients that are found by name."""

from inspect import signature

import numpy as np
import pytest
import torch
from operation_cases import CASES
from small_models import small_model
from tolerances import GRADIENT, GRADIENT_BY_HAND
from torch.nn import functional

from transformer_lab.backends.base import OPERATIONS
from transformer_lab.backends.plain import gradients as gradients_by_hand
from transformer_lab.backends.plain import manual
from transformer_lab.backends.readings.bounded import gradients as gradient_bounds
from transformer_lab.backends.readings.bounded.gradients import Steps
from transformer_lab.backends.readings.bounded.units import UNITS
from transformer_lab.backends.readings.recorded import record
from transformer_lab.comparison.judging import training_loss
from transformer_lab.comparison.judging.gradient_calls import Call
from transformer_lab.comparison.judging.gradients import (
    Alone,
    GradientRow,
    TrueGradients,
    compare_gradients,
    first_gradient_divergence,
)
from transformer_lab.comparison.judging.gradients import _rows_of as rows_of
from transformer_lab.comparison.judging.training_loss import wrong_loss
from transformer_lab.config import component
from transformer_lab.ffn.dense import Dense
from transformer_lab.language_model import assemble
from transformer_lab.model.decoder import forward
from transformer_lab.model.parameters import shapes

SIZES = {"vocab_size": 31, "context_length": 12, "hidden_size": 16, "num_layers": 2, "num_heads": 4}
LLAMA = {"position": "rotary", "norm": "rms_norm", "attention_bias": False, "num_kv_heads": 2}
MODELS = {
    "gpt2-like": small_model(**SIZES, ffn=Dense(24)),
    "llama-like": small_model(**SIZES, ffn=Dense(24, "silu", gated=True, bias=False), tied_head=False, **LLAMA),
    "between": small_model(**SIZES, ffn=Dense(24, "gelu_erf"), attention_scale_by_layer=True, **LLAMA),
}
IDS = np.random.default_rng(3).integers(0, 31, 11)


def weights(config):
    """Numbers of float32, far enough from zeros and ones that no term of a gradient vanishes."""
    draw = np.random.default_rng(5)
    return {
        name: (draw.standard_normal(shape) * 0.3 + (1.0 if name.endswith(".weight") else 0.0)).astype(np.float32)
        for name, shape in shapes(config).items()
    }


def model_of(title, backend):
    return assemble(MODELS[title], weights(MODELS[title]), backend)


def rows_for(title, backend, ids=IDS):
    truth = model_of(title, component("backend", "numpy", precision="float64", ops="manual"))
    return compare_gradients(model_of(title, backend), TrueGradients(truth, ids), "someone")


def ratios(rows):
    return {row.parameter: row.ratio for row in rows if row.ratio is not None}


# --- operations alone -------------------------------------------------------------------------------------------------


def call_of(operation, title, seed=0):
    """A case of the conformance tests, with a random gradient at its result."""
    draw, case = np.random.default_rng(seed), CASES[operation][title]
    given = case.inputs(draw)
    names = [name for name in signature(getattr(manual, operation)).parameters if name != "ops"]
    inputs = dict(zip(names, [*given.values(), *case.options], strict=False))
    learned = [name for name, x in given.items() if x.dtype.kind == "f" and name not in ("cos", "sin")]
    plain = component("backend", "numpy", precision="float64", ops="manual")
    result = getattr(plain, operation)(*inputs.values())
    return Call(operation, inputs, learned, name=operation, cotangent=draw.standard_normal(result.shape))


BACKENDS = [
    *((name, precision, kind, 2) for name in ("numpy", "torch") for precision, kind in (
        ("float32", "fused"), ("float32", "manual"), ("float64", "fused"), ("exact", "fused"))),
    ("jax", "float32", "fused", 1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "precision", "kind", "seeds"), BACKENDS)
def test_no_sound_operation_is_above_its_bounds(name, precision, kind, seeds):
    alone = Alone(component("backend", name, precision=precision, ops=kind))
    worst = {}
    for operation in OPERATIONS:
        for title in CASES[operation]:
            for seed in range(seeds):
                for row in rows_of(alone, call_of(operation, title, seed), name):
                    worst[title, row.parameter] = max(row.ratio, worst.get((title, row.parameter), 0.0))
    assert {place: ratio for place, ratio in worst.items() if not ratio <= 1.0} == {}
    assert max(worst.values()) > 0.1  # and some come near


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_products_in_bfloat16_are_within_their_bounds_and_need_them(name):
    alone, float32 = (Alone(component("backend", name, precision=precision)) for precision in ("bfloat16", "float32"))
    call = call_of("linear", "rows")
    found = {row.parameter: row for row in rows_of(alone, call, name)}
    assert 0.1 < max(row.ratio for row in found.values()) <= 1.0
    exact = {row.parameter: row for row in rows_of(float32, call, name)}
    for parameter in ("linear: x", "linear: kernel"):
        assert found[parameter].errors.max_abs > 100 * exact[parameter].errors.max_abs
    assert found["linear: bias"].errors.max_abs <= 2 * exact["linear: bias"].errors.max_abs


def hard_calls(seed):
    """Inputs that lose digits: far from zero, nearly equal, equal, large, tiny."""
    draw = np.random.default_rng(seed)
    normal = draw.standard_normal
    rows, weight, bias, up = 300.0 + normal((3, 40)), normal(40), normal(40), normal((3, 40))
    flat = np.stack([np.full(40, 7.0), 7.0 + 1e-5 * normal(40), 1e-3 * normal(40)])
    for x in (rows, flat, 1e4 * normal((3, 40)), 1e-12 * normal((3, 40))):
        yield Call(
            "layer_norm",
            {"x": x, "weight": weight, "bias": bias, "epsilon": 1e-5},
            ["x", "weight", "bias"],
            cotangent=up,
        )
        yield Call("rms_norm", {"x": x, "weight": weight, "epsilon": 1e-6}, ["x", "weight"], cotangent=up)
    steps = np.concatenate([np.linspace(-12, 12, 2001), np.linspace(-1e-3, 1e-3, 101)])
    for operation in ("gelu_tanh", "gelu_erf", "silu", "sigmoid"):
        yield Call(operation, {"x": steps}, ["x"], cotangent=normal(steps.shape))
    logits = -100.0 + 20.0 * normal((2, 5, 301))
    logits[0, :, :2] = -20.0  # two that are the largest
    targets = draw.integers(0, 3, (2, 5))
    yield Call("cross_entropy", {"logits": logits, "targets": targets}, ["logits"], cotangent=normal((2, 5)))
    yield Call("softmax", {"x": logits}, ["x"], cotangent=normal(logits.shape))
    yield Call("logsumexp", {"x": logits}, ["x"], cotangent=normal(logits.shape[:-1]))
    query, key, value, up = normal((4, 1, 2, 40, 8))
    key[:, :, 3] = key[:, :, 4]
    for size in (1e-6, 1.0, 4.0):
        inputs = {
            "query": size * query,
            "key": size * key,
            "value": 1.0 + value,
            "start": np.zeros(1, int),
            "scale": 0.8,
        }
        yield Call("attention", inputs, ["query", "key", "value"], cotangent=up)


@pytest.mark.parametrize("name", ["numpy", "torch"])
@pytest.mark.parametrize("kind", ["fused", "manual"])
def test_bounds_hold_where_digits_are_lost(name, kind):
    alone = Alone(component("backend", name, ops=kind))
    for seed in range(3):
        for number, call in enumerate(hard_calls(seed)):
            for row in rows_of(alone, call, name):
                assert row.ratio <= 1.0, (number, call.function, row.parameter)


def turned(x, cos, sin):
    """Rotary positions as products of complex numbers."""
    half = x.shape[-1] // 2
    pairs = torch.complex(x[..., :half], x[..., half:]) * torch.complex(cos, sin)[:, None]
    return torch.cat([pairs.real, pairs.imag], dim=-1)


def attended(query, key, value, start, scale, window=None):
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    positions = start[:, None] + torch.arange(query.shape[2])
    keys = torch.arange(key.shape[2])[None, None, :]
    hidden = keys > positions[:, :, None]
    if window is not None:
        hidden = hidden | (keys <= positions[:, :, None] - window)
    scores = torch.einsum("bhtn,bhsn->bhts", query, key) * scale
    return torch.einsum("bhts,bhsn->bhtn", scores.masked_fill(hidden[:, None], -torch.inf).softmax(-1), value)


JUDGES = {
    "linear": lambda x, kernel, bias=None: functional.linear(x, kernel.T, bias),
    "embed": lambda table, ids: functional.embedding(ids, table),
    "layer_norm": lambda x, weight, bias, epsilon: functional.layer_norm(x, weight.shape, weight, bias, epsilon),
    "rms_norm": lambda x, weight, epsilon: functional.rms_norm(x, weight.shape, weight, epsilon),
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu_erf": functional.gelu,
    "relu": functional.relu,
    "silu": functional.silu,
    "sigmoid": torch.sigmoid,
    "softmax": lambda x: x.softmax(-1),
    "logsumexp": lambda x: x.logsumexp(-1),
    "rotary": turned,
    "attention": attended,
    "cross_entropy": lambda logits, targets: functional.cross_entropy(logits.mT, targets, reduction="none"),
}


@pytest.mark.parametrize("piece", [gradient_bounds.PIECE, 20])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_values_are_those_of_automatic_differentiation(operation, piece, monkeypatch):
    """In float64, by torch; and every element comes in exactly one piece."""
    monkeypatch.setattr(gradient_bounds, "PIECE", piece)
    backward, steps = getattr(gradient_bounds, operation), Steps(UNITS["float64"], "float64")
    for title in CASES[operation]:
        call = call_of(operation, title)
        given = {name: torch.tensor(x) if isinstance(x, np.ndarray) else x for name, x in call.inputs.items()}
        leaves = [given[name].requires_grad_() for name in call.learned]
        expected = torch.autograd.grad(JUDGES[operation](*given.values()), leaves, torch.tensor(call.cotangent))
        found = {name: np.zeros(leaf.shape) for name, leaf in zip(call.learned, leaves, strict=True)}
        times = {name: np.zeros(leaf.shape, int) for name, leaf in zip(call.learned, leaves, strict=True)}
        for name, place, gradient in backward(*call.inputs.values(), g=call.cotangent, steps=steps):
            found[name][place] = gradient.value
            times[name][place] += 1
            assert gradient.error.shape == gradient.value.shape and (gradient.error >= 0).all()
        for name, exact in zip(call.learned, expected, strict=True):
            assert (times[name] == 1).all()
            size = np.abs(exact.numpy()).max()
            np.testing.assert_allclose(found[name], exact.numpy(), rtol=0, atol=GRADIENT_BY_HAND * size)


# --- whole models -----------------------------------------------------------------------------------------------------

GPT2_BLOCK = [
    *(f"ffn.out: {name}" for name in ("x", "kernel", "bias")),
    "ffn.act: x",
    *(f"ffn.pre: {name}" for name in ("x", "kernel", "bias")),
    *(f"norm_2: {name}" for name in ("x", "weight", "bias")),
    *(f"attn.out: {name}" for name in ("x", "kernel", "bias")),
    *(f"attn: {name}" for name in ("query", "key", "value")),
    *(f"attn.qkv: {name}" for name in ("x", "kernel", "bias")),
    *(f"norm_1: {name}" for name in ("x", "weight", "bias")),
]
LLAMA_BLOCK = [
    *("ffn.out: x", "ffn.out: kernel", "ffn.silu: x", "ffn.pre: x", "ffn.pre: kernel", "ffn.up: x", "ffn.up: kernel"),
    *("norm_2: x", "norm_2: weight", "attn.out: x", "attn.out: kernel", "attn: query", "attn: key", "attn: value"),
    *("attn.k: x", "attn.q: x", "attn.qkv: x", "attn.qkv: kernel", "norm_1: x", "norm_1: weight"),
]
HEAD = ["loss: logits", "logits: x", "logits: kernel", "final_norm: x", "final_norm: weight"]
NAMES = {
    "gpt2-like": [
        *HEAD,
        "final_norm: bias",
        *(f"blocks.{layer}.{name}" for layer in (1, 0) for name in GPT2_BLOCK),
        "embed.position: table",
        "embed.token: table",
    ],
    "llama-like": [*HEAD, *(f"blocks.{layer}.{name}" for layer in (1, 0) for name in LLAMA_BLOCK), "embed: table"],
}
SOUND = [
    ("gpt2-like", "numpy", "float32", "fused"),
    ("gpt2-like", "numpy", "float64", "fused"),
    ("gpt2-like", "torch", "float32", "fused"),
    ("gpt2-like", "torch", "float64", "manual"),
    ("gpt2-like", "torch", "bfloat16", "fused"),
    ("gpt2-like", "jax", "float32", "fused"),
    ("llama-like", "numpy", "float32", "manual"),
    ("llama-like", "numpy", "float64", "fused"),
    ("llama-like", "torch", "float32", "fused"),
    ("llama-like", "torch", "float32", "manual"),
    ("llama-like", "torch", "float64", "fused"),
    ("llama-like", "jax", "float64", "manual"),
    ("between", "numpy", "float32", "fused"),
    ("between", "torch", "float32", "fused"),
    ("gpt2-like", "numpy", "exact", "fused"),
    ("llama-like", "torch", "exact", "fused"),
]


@pytest.mark.parametrize(("title", "name", "precision", "kind"), SOUND)
def test_sound_models(title, name, precision, kind):
    config = MODELS[title]
    rows = rows_for(title, component("backend", name, precision=precision, ops=kind))
    found = ratios(rows)
    assert {place: ratio for place, ratio in found.items() if not ratio <= 1.0} == {}
    assert first_gradient_divergence(rows) is None
    operations = [place for place in found if ", argument " not in place]
    assert operations == NAMES.get(title, operations)
    between = [place for place in found if place not in operations]  # what is computed by operators
    assert between[0] == "loss: sum, argument 0" and "blocks.1.resid_post: add, argument 1" in between
    assert not any(place.startswith(":") for place in between)
    learned = [row for row in rows if row.ratio is None]
    assert [row.parameter for row in learned] == list(shapes(config))
    for row in learned:
        error, size = row.errors.error_norm, row.errors.truth_norm
        assert size > 0 and row.errors.cosine > 0.99, row.parameter
        if precision != "bfloat16":
            most = GRADIENT_BY_HAND if precision == "float64" else GRADIENT["float32"]
            assert error <= most * size, row.parameter


def test_jax_compiles_each_shape_once_for_all_layers(monkeypatch):
    jax = component("backend", "jax")
    functions, compiling = [], jax.compile
    monkeypatch.setattr(jax, "compile", lambda function: functions.append(compiling(function)) or functions[-1])
    alone = Alone(jax)
    for seed in range(3):
        for operation, title in (("rms_norm", "rows"), ("linear", "rows"), ("linear", "one row")):
            list(rows_of(alone, call_of(operation, title, seed), "jax"))
    assert [function.traces() for function in functions] == [1, 2]


def test_what_is_not_trained_gives_no_rows(monkeypatch):
    assert rows_for("gpt2-like", component("backend", "torch", precision="int8")) == []
    plain = component("backend", "numpy")
    monkeypatch.setattr(type(plain), "can_train", False)
    assert rows_for("gpt2-like", plain) == []


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_the_loss_of_training_is_held_against_weights_that_differ(monkeypatch, name):
    model = model_of("gpt2-like", component("backend", name))
    assert wrong_loss(model, "someone", IDS) == []

    def mean_of_the_weights(ops, config, params, token_ids, weights):
        logits, _ = forward(ops, config, params, token_ids[:, :-1], ops.asarray(np.zeros(len(token_ids), np.int64)))
        return ops.xp.sum(ops.cross_entropy(logits, token_ids[:, 1:])) * ops.xp.mean(weights)

    monkeypatch.setattr(training_loss, "weighted_loss", mean_of_the_weights)
    (said,) = wrong_loss(model, "someone", IDS)
    assert said.startswith("A defect: the weighted loss of training on someone is ")


def test_two_tokens_are_enough():
    rows = rows_for("gpt2-like", component("backend", "numpy"), IDS[:2])
    assert first_gradient_divergence(rows) is None and max(ratios(rows).values()) > 0


def test_a_row_is_flat_in_the_report():
    row = rows_for("gpt2-like", component("backend", "numpy"))[0]
    measures = ["max_abs", "max_rel", "ulp_max", "ulp_p99", "rms", "snr_db", "cosine"]
    assert list(row.to_dict()) == [
        "participant",
        "parameter",
        *measures,
        "ratio",
        "largest_likely",
        "mean_square_likely",
    ]
    assert row.to_dict()["parameter"] == "embed.token" and row.to_dict()["ratio"] is None


def test_the_first_divergence_and_its_worst_input():
    def row(parameter, ratio, participant="a"):
        return GradientRow(participant, parameter, ratio=ratio)

    sound = [row("embed.token", None), row("loss: logits", 1.0)]
    assert first_gradient_divergence(sound) is None
    wrong = [
        *sound,
        row("logits: x", 2.0),
        row("logits: kernel", 3.0),
        row("norm: x", 9.0),
        row("logits: x", 99.0, "b"),
    ]
    assert first_gradient_divergence(wrong).parameter == "logits: kernel"
    assert first_gradient_divergence([*sound, row("logits: x", float("nan"))]).parameter == "logits: x"


# --- wrong gradients are found ----------------------------------------------------------------------------------------


def planted(right, change):
    """The operation with the right result, and change(gradients, inputs, g) of its right gradients."""

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(context, *inputs):
            context.inputs = inputs
            return right(*inputs)

        @staticmethod
        def backward(context, g):
            inputs = [
                x.detach().requires_grad_() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
                for x in context.inputs
            ]
            leaves = [x for x in inputs if isinstance(x, torch.Tensor) and x.requires_grad]
            with torch.enable_grad():
                found = iter(torch.autograd.grad(right(*inputs), leaves, g, allow_unused=True))
            exact = [next(found) if any(x is leaf for leaf in leaves) else None for x in inputs]
            return tuple(change(exact, [x.detach() if isinstance(x, torch.Tensor) else x for x in inputs], g))

    return lambda *inputs: Wrong.apply(*(x for x in inputs if not callable(x)))


def bfloat16(x):
    return x.to(torch.bfloat16).float()


def without_a_mean(found, inputs, g):
    x, weight, _, epsilon = inputs
    r = 1 / torch.sqrt(x.var(-1, correction=0, keepdim=True) + epsilon)
    n, h = (x - x.mean(-1, keepdim=True)) * r, g * weight
    return [r * (h - n * (h * n).mean(-1, keepdim=True)), *found[1:]]


def with_a_rounded_mean(found, inputs, g):
    x, weight, _, epsilon = inputs
    r = 1 / torch.sqrt(x.var(-1, correction=0, keepdim=True) + epsilon)
    n, h = (x - x.mean(-1, keepdim=True)) * r, g * weight
    means = bfloat16((h * n).mean(-1, keepdim=True))
    return [r * (h - h.mean(-1, keepdim=True) - n * means), *found[1:]]


def other_gelu(found, inputs, g):
    x = inputs[0].clone().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(functional.gelu(x), [x], g)


def with_rounded_scores(found, inputs, g):
    query, key, value, _, scale, *_ = inputs
    scores = torch.where(torch.ones(10, 10).tril() > 0, query @ key.mT * scale, -torch.inf)
    pattern = scores.softmax(-1)
    to_pattern = g @ value.mT
    to_scores = bfloat16(pattern * (to_pattern - (pattern * to_pattern).sum(-1, keepdim=True)))
    return [to_scores @ key * scale, to_scores.mT @ query * scale, *found[2:]]


def only_where(wide, change):
    """The change for kernels with so many columns alone."""
    return lambda found, inputs, g: change(found, inputs, g) if g.shape[-1] == wide else found


def without_a_row(found, inputs, g):
    rows, turned = inputs[0].reshape(-1, inputs[0].shape[-1]), g.reshape(-1, g.shape[-1])
    return [found[0], rows[1:].T @ turned[1:], *found[2:]]


def without_softmax(found, inputs, g):
    return [-functional.one_hot(inputs[1], inputs[0].shape[-1]) * g[..., None], None]


PLANTS = {
    "a mean of layer_norm is missing": ("layer_norm", without_a_mean, "final_norm: x", {"x"}),
    "a mean of layer_norm is rounded": ("layer_norm", with_a_rounded_mean, "final_norm: x", {"x"}),
    "the slope of the other gelu": ("gelu_tanh", other_gelu, "blocks.1.ffn.act: x", {"x"}),
    "a rounded slope": ("gelu_tanh", lambda f, i, g: [g * bfloat16(f[0] / g)], "blocks.1.ffn.act: x", {"x"}),
    "the scale of dk is missing": (
        "attention", lambda f, i, g: [f[0], f[1] / i[4], *f[2:]], "blocks.1.attn: key", {"key"}),
    "rounded gradients of scores": ("attention", with_rounded_scores, None, {"query", "key"}),
    "a row is left out of dW": ("linear", only_where(24, without_a_row), "blocks.1.ffn.pre: kernel", {"kernel"}),
    "half of a bias": (
        "linear", only_where(48, lambda f, i, g: [*f[:2], f[2] / 2]), "blocks.1.attn.qkv: bias", {"bias"}),
    "a bias of the first row alone": (
        "linear", only_where(48, lambda f, i, g: [*f[:2], g[0].sum(0)]), "blocks.1.attn.qkv: bias", {"bias"}),
    "a product in bfloat16": (
        "linear", only_where(31, lambda f, i, g: [bfloat16(g) @ i[1].T, *f[1:]]), "logits: x", {"x"}),
    "cross-entropy without softmax": ("cross_entropy", without_softmax, "loss: logits", {"logits"}),
    "a position that is used twice": ("embed", lambda f, i, g: [f[0] * 2, None], "embed.position: table", {"table"}),
}  # fmt: skip


@pytest.mark.parametrize("title", PLANTS)
def test_a_wrong_gradient_is_found(title):
    operation, change, where, inputs = PLANTS[title]
    backend = component("backend", "torch", ops="manual")
    setattr(backend, operation, planted(getattr(backend, operation), change))
    rows = rows_for("gpt2-like", backend)
    above = [place for place, ratio in ratios(rows).items() if not ratio <= 1.0]
    assert {place.split(": ")[1] for place in above} == inputs
    first = first_gradient_divergence(rows)
    assert first.parameter == (where or first.parameter)
    assert first.parameter.split(":")[0] == above[0].split(":")[0]
    assert len({place.split(".")[-1].split(":")[0] for place in above if not place.startswith(("final", "embed"))}) <= 2


def test_a_right_gradient_planted_the_same_way_is_not():
    backend = component("backend", "torch", ops="manual")
    for operation in ("layer_norm", "gelu_tanh", "attention", "linear", "cross_entropy", "embed"):
        setattr(backend, operation, planted(getattr(backend, operation), lambda found, inputs, g: found))
    assert first_gradient_divergence(rows_for("gpt2-like", backend)) is None


def test_a_wrong_gradient_on_numpy(monkeypatch):
    right = gradients_by_hand.rms_norm

    def wrong(ops, x, weight, epsilon):  # the part along n that the norm forgets
        return right(ops, record(x.value, (x, lambda g: g + 1e-4 * x.value)), weight, epsilon)

    monkeypatch.setattr(gradients_by_hand, "rms_norm", wrong)
    rows = rows_for("llama-like", component("backend", "numpy"))
    above = [place for place, ratio in ratios(rows).items() if not ratio <= 1.0]
    assert above == [f"{place}: x" for place in (
        "final_norm", "blocks.1.norm_2", "blocks.1.norm_1", "blocks.0.norm_2", "blocks.0.norm_1")]  # fmt: skip
    whole = {row.parameter: row for row in rows if row.ratio is None}
    assert whole["blocks.0.norm_1.weight"].errors.cosine < 1 - 1e-6 < whole["head.kernel"].errors.cosine


def test_a_wrong_gradient_on_jax():
    jax = pytest.importorskip("jax")
    backend = component("backend", "jax")
    call = call_of("silu", "ordinary")
    (right,) = rows_of(Alone(backend), call, "jax")
    backend.silu = lambda x: x * jax.lax.stop_gradient(jax.nn.sigmoid(x))
    (wrong,) = rows_of(Alone(backend), call, "jax")
    assert right.ratio <= 1.0 < 100 < wrong.ratio
    assert wrong.parameter == "silu: x"


def test_a_wrong_gradient_in_bfloat16_is_found():
    backend = component("backend", "torch", precision="bfloat16")
    backend.linear = planted(backend.linear, only_where(24, without_a_row))
    first = first_gradient_divergence(rows_for("gpt2-like", backend))
    assert first.parameter == "blocks.1.ffn.pre: kernel"


@pytest.mark.parametrize("size", [1.0, 8.0, 30.0])
def test_the_truths_gradient_is_confirmed_where_the_loss_is_curved(size):
    """Large weights make central differences coarse, which is no path that was cut off; one that was is found all the
    same."""
    config = MODELS["gpt2-like"]
    wild = {name: x * size if name.endswith("kernel") else x for name, x in weights(config).items()}
    truth = assemble(config, wild, component("backend", "numpy", precision="float64", ops="manual"))
    found = TrueGradients(truth, IDS)
    assert all(found.detached(seed) == [] for seed in range(3))
    found.parameters["blocks.1.norm_2.weight"] = found.parameters["blocks.1.norm_2.weight"] * 0.5
    assert any("A defect of the definition's gradient" in sentence for sentence in found.detached())
