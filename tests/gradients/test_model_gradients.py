"""The loss of whole models: its gradient by hand against those of torch and JAX, and against central differences."""

import tracemalloc
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
from derivatives import apart, central_differences, flattened
from small_models import small_model
from tolerances import FINITE_DIFFERENCE, GRADIENT, GRADIENT_BY_HAND

from transformer_lab.backends.plain import gradients
from transformer_lab.backends.readings.recorded import record
from transformer_lab.block.mixture_of_depths import MixtureOfDepths
from transformer_lab.config import component
from transformer_lab.errors import ConfigurationError
from transformer_lab.ffn.dense import Dense
from transformer_lab.language_model import with_parts
from transformer_lab.model.decoder import forward
from transformer_lab.model.parameters import nest, shapes


@dataclass(frozen=True)
class Normalised:
    """A feed-forward network of a user's own: it is written with `ops` and `ops.xp`, and knows no gradients."""

    taps: ClassVar[tuple[str, ...]] = ()
    size: int = 12
    function: str = ""

    def shapes(self, hidden_size):
        return {"into.kernel": (hidden_size, self.size), "back.kernel": (self.size, hidden_size), "gain": (self.size,)}

    def __call__(self, ops, params, x, tap):
        xp = ops.xp
        inner = ops.linear(x, params["into"]["kernel"])
        inner = xp.tanh(inner) * ops.softmax(inner * params["gain"])
        mean = xp.mean(inner, axis=-1, keepdims=True)
        deviation = xp.sqrt(xp.mean((inner - mean) ** 2, axis=-1, keepdims=True) + 1e-3)
        strongest, where = ops.top_k(inner, 2)
        inner = (inner - mean) / deviation + xp.sum(strongest, axis=-1, keepdims=True)
        inner = xp.where(inner > xp.take_along_axis(inner, where[..., 1:], axis=-1), inner, 0.5 * inner)
        if self.function:
            inner = getattr(xp, self.function)(inner)
        return ops.linear(inner, params["back"]["kernel"])


SIZES = {"vocab_size": 31, "context_length": 12, "hidden_size": 16, "num_layers": 2, "num_heads": 4}
LLAMA = {"position": "rotary", "norm": "rms_norm", "attention_bias": False, "tied_head": False, "num_kv_heads": 2}
HALF_AS_DEEP = partial(MixtureOfDepths, capacity=0.5)
MODELS = {
    "gpt2-like": small_model(**SIZES, ffn=Dense(24)),
    "gpt2-like, exact gelu": small_model(**SIZES, ffn=Dense(24, "gelu_erf"), attention_scale_by_layer=True),
    "llama-like": small_model(**SIZES, ffn=Dense(24, "silu", gated=True, bias=False), **LLAMA),
    "a user's own network": small_model(**SIZES, ffn=Normalised()),
    "a mixture of depths": with_parts(small_model(**SIZES, ffn=Dense(24), **LLAMA), block=HALF_AS_DEEP),
}
IDS = np.random.default_rng(3).integers(0, 31, (3, 11))


def parameters(config):
    """Float64 arrays, far enough from zeros and ones that no term of a gradient vanishes."""
    draw = np.random.default_rng(5)
    flat = {}
    for name, shape in shapes(config).items():
        flat[name] = draw.standard_normal(shape) * 0.3 + (1.0 if name.endswith(".weight") else 0.0)
    return nest(flat)


def mapped(function, tree):
    if isinstance(tree, dict):
        return {key: mapped(function, item) for key, item in tree.items()}
    return [mapped(function, item) for item in tree] if isinstance(tree, list) else function(tree)


def tables_of(config):
    return [part.table(config.context_length) for part in config.rotaries]


def mean_loss(ops, config):
    """params -> the mean loss of the next token over IDS."""
    tables = mapped(ops.asarray, tables_of(config))
    ids, start = ops.asarray(IDS), ops.asarray(np.zeros(len(IDS), np.int64))

    def loss(params):
        params = {**params, "rotary": tables}
        logits, _ = forward(ops, config, params, ids[:, :-1], start)
        return ops.xp.mean(ops.cross_entropy(logits, ids[:, 1:]))

    return loss


def value_and_gradients(name, kind, title, precision="float64"):
    ops, config = component("backend", name, precision=precision, ops=kind), MODELS[title]
    params = mapped(ops.asarray, parameters(config))
    if name == "numpy":
        for array in flattened(params).values():
            array.flags.writeable = False
    value, found = ops.value_and_grad(mean_loss(ops, config))(params)
    assert flattened(found).keys() == flattened(params).keys()
    return float(value), {path: ops.to_numpy(array) for path, array in flattened(found).items()}


@pytest.mark.parametrize("other", ["torch", "jax"])
@pytest.mark.parametrize("kind", ["fused", "manual"])
@pytest.mark.parametrize("title", MODELS)
def test_against_other_frameworks(title, kind, other):
    pytest.importorskip(other)
    value, found = value_and_gradients("numpy", kind, title)
    expected_value, expected = value_and_gradients(other, "fused" if other == "torch" else "manual", title)
    assert abs(value - expected_value) <= 1e-12 * expected_value
    assert apart(found, expected) <= GRADIENT_BY_HAND


@pytest.mark.parametrize("title", MODELS)
def test_against_central_differences(title):
    """Along 8 random directions in the space of all parameters together."""
    _, found = value_and_gradients("numpy", "fused", title)
    ops, config = component("backend", "numpy", precision="float64"), MODELS[title]
    flat = flattened(parameters(config))
    loss = mean_loss(ops, config)
    for seed in range(8):
        draw = np.random.default_rng(seed)
        direction = {name: draw.standard_normal(array.shape) for name, array in flat.items()}

        def along(steps, direction=direction):
            return loss(nest({name: flat[name] + steps["step"] * direction[name] for name in flat}))

        slope = central_differences(along, {"step": np.zeros(())})["step"]
        expected = sum(np.vdot(found[name], direction[name]) for name in flat)
        length = np.sqrt(sum(np.vdot(array, array) for array in found.values()))
        assert abs(slope - expected) <= FINITE_DIFFERENCE * max(1.0, length)


@pytest.mark.parametrize("title", MODELS)
def test_float32(title):
    value, found = value_and_gradients("numpy", "fused", title, "float32")
    expected_value, expected = value_and_gradients("numpy", "fused", title)
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
    assert abs(value - expected_value) <= 1e-6 * expected_value
    assert apart(found, expected) <= GRADIENT["float32"]


def test_the_table_of_angles_can_be_learned_too():
    """Whatever leaf of the tree is asked for gets its gradient."""
    config = MODELS["llama-like"]
    found = {}
    for name in ("numpy", "jax"):
        pytest.importorskip(name)
        ops = component("backend", name, precision="float64")
        plain = {**parameters(config), "rotary": tables_of(config)}
        ids, start = ops.asarray(IDS), ops.asarray(np.zeros(len(IDS), np.int64))

        def loss(params, ops=ops, ids=ids, start=start):
            return ops.xp.mean(ops.cross_entropy(forward(ops, config, params, ids[:, :-1], start)[0], ids[:, 1:]))

        _, tree = ops.value_and_grad(loss)(mapped(ops.asarray, plain))
        found[name] = {path: ops.to_numpy(array) for path, array in flattened(tree).items()}
    assert np.abs(found["numpy"]["rotary.0.cos"]).max() > 0
    assert apart(found["numpy"], found["jax"]) <= GRADIENT_BY_HAND


def test_a_wrong_gradient_is_found(monkeypatch):
    right = gradients.rms_norm

    def forgetful(ops, x, weight, epsilon):
        return right(ops, record(x.value, (x, lambda g: g * (1.0 + 1e-6))), weight, epsilon)

    monkeypatch.setattr(gradients, "rms_norm", forgetful)
    with pytest.raises(AssertionError):
        test_against_other_frameworks("llama-like", "fused", "torch")


def test_a_function_without_a_gradient_is_named():
    config = small_model(**SIZES, ffn=Normalised(function="floor"))
    ops = component("backend", "numpy")
    with pytest.raises(ConfigurationError, match="no gradient of floor"):
        ops.value_and_grad(mean_loss(ops, config))(mapped(ops.asarray, parameters(config)))


def test_training_goes_without_a_cache():
    config = MODELS["gpt2-like"]
    ops = component("backend", "numpy", precision="float64")
    cache_policy = component("cache", "contiguous")

    def loss(params):
        cache = cache_policy.allocate(ops, config, len(IDS), 12)
        return ops.xp.mean(forward(ops, config, params, IDS, np.zeros(len(IDS), np.int64), cache)[0])

    with pytest.raises(ConfigurationError, match="train without a cache"):
        ops.value_and_grad(loss)(parameters(config))


def test_memory():
    """Gradients inside the model are freed as they are used: they need less than the forward computation keeps."""
    config = small_model(vocab_size=32, context_length=128, hidden_size=64, num_layers=8, num_heads=4, ffn=Dense(256))
    ops = component("backend", "numpy")
    params = mapped(ops.asarray, parameters(config))
    ids, start = np.zeros((8, 129), np.int64), np.zeros(8, np.int64)
    after_forward = []

    def loss(params):
        logits, _ = forward(ops, config, params, ids[:, :-1], start)
        after_forward.append(tracemalloc.get_traced_memory()[0])
        return ops.xp.mean(ops.cross_entropy(logits, ids[:, 1:]))

    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        _, found = ops.value_and_grad(loss)(params)
        left, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    size = sum(array.nbytes for array in flattened(found).values())
    kept = after_forward[0] - before
    one_layer = kept / config.num_layers
    assert left - before < 1.1 * size + 1e5
    assert peak - before < kept + size + 3 * one_layer
