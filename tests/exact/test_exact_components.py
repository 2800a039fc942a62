"""Feed-forward networks of a user's own in exact mode: what they compute with ops.xp has the same bits everywhere.

Each is written as a user would write it, and knows nothing of exact mode. Logits, taps and gradients are compared byte
by byte: between backends, cached and not, in a batch and alone.
"""

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from small_models import small_model
from test_exact_operations import INSTALLED
from tolerances import GRADIENT

from transformer_lab.backends.readings.exact import algebra
from transformer_lab.comparison.judging.training_loss import parameter_gradients
from transformer_lab.config import component
from transformer_lab.errors import ConfigurationError
from transformer_lab.language_model import assemble
from transformer_lab.model.parameters import nest, shapes


@dataclass(frozen=True)
class TwoMaps:
    """down(middle(up(x)))."""

    taps: ClassVar[tuple[str, ...]] = ("pre", "act")
    size: int = 12

    def shapes(self, hidden_size):
        return {"up.kernel": (hidden_size, self.size), "down.kernel": (self.size, hidden_size), "gain": (self.size,)}

    def __call__(self, ops, params, x, tap):
        pre = tap("pre", ops.linear(x, params["up"]["kernel"]))
        act = tap("act", self.middle(ops, params, pre))
        return ops.linear(act, params["down"]["kernel"])


class SquaredReLU(TwoMaps):
    """That of the README."""

    def middle(self, ops, params, x):
        return ops.relu(x) ** 2


class Gate(TwoMaps):
    """A softmax by hand from exp, a sum and a quotient, with a tanh and a logarithm."""

    def middle(self, ops, params, x):
        xp = ops.xp
        powers = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
        gate = powers / xp.sum(powers, axis=-1, keepdims=True)
        return xp.tanh(x * params["gain"]) * gate + xp.log(1.0 + xp.abs(x)) * 0.1


class Running(TwoMaps):
    """A running mean over the tokens, where it is positive."""

    def middle(self, ops, params, x):
        xp = ops.xp
        count = xp.astype(xp.arange(1, x.shape[1] + 1), xp.float32)[:, None]
        running = xp.cumulative_sum(x * params["gain"], axis=1) / count
        return xp.where(running > 0.0, running, xp.expm1(x))


class Attentive(TwoMaps):
    """Every token looks at those before it: scores, a mask of -inf and a softmax of its own."""

    def middle(self, ops, params, x):
        xp = ops.xp
        scores = xp.matmul(x, xp.matrix_transpose(x * params["gain"])) / x.shape[-1] ** 0.5
        places = xp.arange(x.shape[1])
        scores = xp.where(places[None, :] <= places[:, None], scores, -xp.inf)
        powers = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))
        return (powers / xp.sum(powers, axis=-1, keepdims=True)) @ x


class Router(TwoMaps):
    """The two largest of sigmoid scores choose and weigh what goes on."""

    def middle(self, ops, params, x):
        xp = ops.xp
        scores = 1 / (1 + xp.exp(-x))
        weights, chosen = ops.top_k(scores * params["gain"], 2)
        weights /= xp.sum(xp.abs(weights), axis=-1, keepdims=True)
        values = xp.take_along_axis(x, chosen, axis=-1)
        return x + xp.sum(weights * values, axis=-1, keepdims=True) * params["gain"][chosen[..., :1]]


class Statistics(TwoMaps):
    """A norm of its own, by var, with quotients, powers and rolled features."""

    def middle(self, ops, params, x):
        xp = ops.xp
        centred = x - xp.mean(x, axis=-1, keepdims=True)
        normal = centred / xp.sqrt(xp.var(x, axis=-1, keepdims=True) + 1e-5)
        spread = (
            xp.std(x, axis=(0, 2), correction=1, keepdims=True) if x.shape[0] < 0 else xp.std(x, axis=-1)[..., None]
        )
        return normal**3 * 0.1 + xp.roll(x, 1, axis=-1) * spread - xp.flip(normal, axis=-1) % 2.0


COMPONENTS = {kind.__name__: kind() for kind in (SquaredReLU, Gate, Running, Attentive, Router, Statistics)}
# They look at other tokens of the piece that they are given: with a cache, or padding, that is another network.
OVER_TOKENS = {"Running", "Attentive"}
SIZES = {"vocab_size": 31, "context_length": 12, "hidden_size": 16, "num_layers": 1, "num_heads": 4}
IDS = np.random.default_rng(3).integers(0, 31, (2, 12))


def model(ffn, backend):
    draw, config = np.random.default_rng(5), small_model(**SIZES, ffn=ffn)
    weights = {
        place: (draw.standard_normal(shape) * 0.5 + (1.0 if place.endswith((".weight", "gain")) else 0.0)).astype("f4")
        for place, shape in shapes(config).items()
    }
    return assemble(config, weights, component("backend", backend, precision="exact"))


def same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype == np.float32
        assert found[name].tobytes() == array.tobytes(), name


def computed(ffn, backend):
    """(logits and taps, gradients)."""
    made = model(ffn, backend)
    return made.record(IDS) | {"logits": made.logits(IDS)}, parameter_gradients(made, IDS)


@pytest.mark.parametrize(("title", "backend"), [
    pytest.param(title, name, marks=[pytest.mark.full] if name == "jax" else [])
    for title in COMPONENTS
    for name in INSTALLED
    if name != "numpy"
])  # fmt: skip
def test_models_have_the_same_bits_on_every_backend(title, backend):
    (expected, right), (found, gradients) = (computed(COMPONENTS[title], name) for name in ("numpy", backend))
    assert {"blocks.0.ffn.pre", "blocks.0.ffn.act"} <= expected.keys()
    same_bits(found, expected)
    same_bits(gradients, right)
    for array in (*expected.values(), *right.values()):
        assert not np.isnan(array).any()
    assert np.count_nonzero(right["blocks.0.ffn.up.kernel"])


@pytest.mark.parametrize(("title", "backend"), [
    pytest.param(title, name, marks=[pytest.mark.full] if name == "jax" else [])
    for title in sorted(COMPONENTS.keys() - OVER_TOKENS)
    for name in INSTALLED
])  # fmt: skip
def test_cached_or_not_in_a_batch_or_alone(title, backend):
    made = model(COMPONENTS[title], backend)
    whole = made.logits(IDS)
    assert made.logits(IDS[1]).tobytes() == whole[1:].tobytes()
    prompts = [IDS[0, :3].tolist(), IDS[1, :6].tolist()]
    for prompt, row in zip(prompts, made.generate(prompts, max_new_tokens=4), strict=True):
        rows = made.logits(prompt + row.token_ids)[0][len(prompt) - 1 : len(prompt) + 3]
        assert row.logits_sha256 == hashlib.sha256(rows.astype("<f4").tobytes()).hexdigest()


def test_a_component_that_is_off_by_a_bit_on_one_backend_is_found(monkeypatch):
    right = algebra.FUNCTIONS["tanh"]

    def off(ops, x):
        y = right(ops, x)
        return y * (1 + 2.0**-23) if ops.name == "torch" else y

    monkeypatch.setitem(algebra.FUNCTIONS, "tanh", off)
    with pytest.raises(AssertionError):
        test_models_have_the_same_bits_on_every_backend("Gate", "torch")


def alone(ffn, backend):
    """The component's result, its tap and its gradients, without a model around it."""
    ops, draw = component("backend", backend, precision="exact"), np.random.default_rng(7)
    arrays = {name: draw.standard_normal(shape).astype("f4") for name, shape in ffn.shapes(8).items()}
    arrays["x"] = draw.standard_normal((1, 5, 8)).astype("f4")
    seen = {}

    def loss(arrays):
        params = nest({name: array for name, array in arrays.items() if name != "x"})
        return ops.xp.sum(ffn(ops, params, arrays["x"], lambda name, x: seen.setdefault(name, x)) ** 2)

    total, gradients = ops.compile(lambda arrays: (loss(arrays), ops.value_and_grad(loss)(arrays)[1]))(
        {name: ops.asarray(array) for name, array in arrays.items()}
    )
    return {name: ops.to_numpy(array) for name, array in ({"total": total} | seen | gradients).items()}


@pytest.mark.parametrize(("title", "backend"), [
    pytest.param(title, name, marks=[pytest.mark.full] if name == "jax" and title not in ("Gate", "Router") else [])
    for title in COMPONENTS
    for name in INSTALLED
    if name != "numpy"
])  # fmt: skip
def test_components_alone_have_the_same_bits(title, backend):
    same_bits(alone(COMPONENTS[title], backend), alone(COMPONENTS[title], "numpy"))


# --- one expression at a time -----------------------------------------------------------------------------------------

DRAW = np.random.default_rng(6)
X = DRAW.standard_normal((2, 3, 4)).astype(np.float32)
Y = (DRAW.standard_normal((3, 4)) * 3).astype(np.float32)
IDENTICAL = np.array([[2, 1, 2, 1]] * 3, np.float32) + 0 * X


def in_place(xp, x, y):
    x += y
    x *= 2
    x -= 1
    x /= 3
    return x


def integers(xp, x):
    return xp.arange(x.shape[-1])


# Functions of (xp, x [2, 3, 4], y [3, 4]).
EXPRESSIONS = {
    "chained": lambda xp, x, y: (x * y + 1) / (x * x + 2) - y**2 * 0.1,
    "cube": lambda xp, x, y: x**3 + abs(y) ** 1.5 + (x * x + 1) ** -0.5,
    "powers of arrays": lambda xp, x, y: abs(x) ** y + 2 ** (x / 8) + (y * y) ** 0,
    "remainder": lambda xp, x, y: x % 2.0 + x % (abs(y) + 1),
    "whole quotient": lambda xp, x, y: x * (x.shape[-1] // 2) + xp.astype(xp.arange(4) // 3, xp.float32),
    "reciprocal": lambda xp, x, y: 1 / (x * x + 1) + xp.reciprocal(y) + xp.square(x),
    "signs": lambda xp, x, y: -x + abs(y) - +x,
    "slices": lambda xp, x, y: x[..., ::2] + y[1:, :2][0] + x[:, -1:, 1:3] - x[:, None, 0, :1],
    "new axes": lambda xp, x, y: x[:, None] * y[None, :, None],
    "one element": lambda xp, x, y: x[1, 2, 3] * y + x[..., 0][..., None],
    "comparisons": lambda xp, x, y: xp.where(x > y, x, y) * (x >= 0.1) + xp.astype(x < 0.3, x.dtype) * x - (x == x) * y,
    "masks": lambda xp, x, y: xp.where((x > 0) & (y < 1) | ~(x < -1), x, 0.25),
    "integers": lambda xp, x, y: integers(xp, x) * x + x * integers(xp, x) - integers(xp, x) / (y * y + 1) + (1 - x),
    "minus infinity": lambda xp, x, y: xp.exp(xp.where(x > 0, x, -xp.inf)) + xp.max(xp.where(y > 9, -xp.inf, y)),
    "means": lambda xp, x, y: xp.mean(x, axis=-1, keepdims=True) * xp.mean(y) + x.mean(axis=0),
    "spreads": lambda xp, x, y: xp.var(x, axis=1, keepdims=True) + xp.std(y, axis=-1, correction=1)[:, None],
    "largest": lambda xp, x, y: xp.max(x, axis=-1, keepdims=True) + xp.min(y, axis=0) + x.max(axis=(0, 2))[0],
    "largest of equals": lambda xp, x, y: xp.max(x * 0 + xp.asarray(IDENTICAL), axis=-1) * xp.sum(x * x, axis=-1),
    "where the largest is": lambda xp, x, y: x * xp.argmax(x, axis=-1, keepdims=True) + xp.argmin(y, axis=0),
    "sorted": lambda xp, x, y: xp.sort(x, axis=-1) * y + xp.sort(x, axis=1, descending=True),
    "in the order of another": lambda xp, x, y: xp.take_along_axis(x, xp.argsort(x, axis=-1), axis=-1) * y,
    "stacked": lambda xp, x, y: xp.stack([x, x * y, x[:, ::1]], axis=1) + xp.concat([x, x[:1]], axis=0)[:2, None],
    "moved": lambda xp, x, y: xp.roll(x, 1, axis=-1) + xp.flip(x, axis=1) + xp.moveaxis(x, 0, -1).mT.T.mT[0, 0, 0],
    "triangles": lambda xp, x, y: xp.tril(x) + xp.triu(x, k=1) * 2 + xp.tril(xp.ones((3, 4))) * x,
    "repeated": lambda xp, x, y: xp.repeat(x, 2, axis=-1) + xp.reshape(xp.broadcast_to(y[:, :1], (3, 8)), (1, 3, 8)),
    "shapes": lambda xp, x, y: xp.reshape(x, (2, -1))[:, :4] + xp.squeeze(x[:, :1], axis=1) + xp.expand_dims(y[0]),
    "pieces": lambda xp, x, y: sum(part * n for n, part in enumerate(xp.unstack(x, axis=1))) + list(y)[1],
    "rows": lambda xp, x, y: xp.take(y, xp.asarray([0, 2, 0]), axis=0) * y[xp.asarray([1, 1, 2])] + x,
    "sums": lambda xp, x, y: xp.sum(x, axis=(0, 2)) @ y + xp.sum(xp.prod(y)) - xp.cumulative_sum(y, axis=0)[-1],
    "products": lambda xp, x, y: x @ y.T @ y + xp.matmul(x, xp.matrix_transpose(x)) @ y + (y @ y[0])[:, None],
    "limits": lambda xp, x, y: xp.clip(x, -0.5, 0.7) + xp.maximum(x, 0.1) + xp.minimum(x, y) + xp.maximum(0, y),
    "elementary": lambda xp, x, y: xp.exp(x) + xp.log1p(abs(y)) + xp.sin(x) * xp.cos(y) + xp.tanh(x) + xp.expm1(y / 9),
    "logarithms": lambda xp, x, y: xp.log(x * x + 1) + xp.log2(abs(y) + 1) + xp.log10(x * x + 1) + xp.logaddexp(x, y),
    "constants": lambda xp, x, y: x * xp.asarray(0.3) + xp.full((4,), 0.7) + xp.arange(4) + xp.zeros((1,)) - xp.pi,
    "like": lambda xp, x, y: x * xp.full_like(x, 0.3) + xp.ones_like(y) - xp.zeros_like(x),
    "numbers of NumPy": lambda xp, x, y: np.float64(0.1) * x + y / np.float32(3) + np.int64(2) * x - np.pi,
    "NumPy's functions": lambda xp, x, y: xp.asarray(np.linspace(0.0, 1.0, 4)) * x,
    "in place": in_place,
    "a vanishing product": lambda xp, x, y: x * 1e-30 * 1e-15 * 1e30 + y,
}  # fmt: skip


def expression(backend, function):
    """(value, gradients) of a weighted sum of it."""
    ops = component("backend", backend, precision="exact")

    def loss(arrays):
        return ops.xp.sum(function(ops.xp, *arrays) * ops.asarray(np.float32(0.7)))

    def both(arrays):
        return function(ops.xp, *arrays), ops.value_and_grad(loss)(arrays)

    value, (total, gradients) = ops.compile(both)([ops.asarray(X), ops.asarray(Y)])
    return [ops.to_numpy(array) for array in (value, total, *gradients)]


@pytest.mark.parametrize(("title", "backend"), [
    pytest.param(title, name, marks=[pytest.mark.full] if name == "jax" else [])
    for title in EXPRESSIONS
    for name in INSTALLED
    if name != "numpy"
])  # fmt: skip
def test_expressions_have_the_same_bits(title, backend):
    expected, found = (expression(name, EXPRESSIONS[title]) for name in ("numpy", backend))
    for array, right in zip(found, expected, strict=True):
        assert array.dtype == right.dtype == np.float32
        assert not np.isnan(right).any()
        assert array.shape == right.shape
        assert array.tobytes() == right.tobytes()
    assert np.count_nonzero(expected[0])


@pytest.mark.parametrize("title", EXPRESSIONS)
def test_expressions_are_near_those_in_float64(title):
    """The value and the gradients are those of the same expression, computed plainly."""
    ops = component("backend", "numpy", precision="float64")
    arrays = [X.astype(np.float64), Y.astype(np.float64)]
    function = EXPRESSIONS[title]
    value, gradients = ops.value_and_grad(lambda a: ops.xp.sum(function(ops.xp, *(1.0 * x for x in a)) * 0.7))(arrays)
    _, total, *found = expression("numpy", function)
    for array, right in zip((total, *found), (value, *gradients), strict=True):
        assert np.abs(array - right).max() <= GRADIENT["float32"] * max(1.0, np.abs(right).max())


REFUSED = {
    "sign has no gradient": ("no gradient of sign", lambda xp, x, y: xp.sign(x) * x),
    "floor has no gradient": ("no gradient of floor", lambda xp, x, y: xp.floor(x) * x),
    "einsum": ("does not offer einsum", lambda xp, x, y: xp.einsum("btd,td->bt", x, y)),
    "a quotient of integers": ("ops.asarray", lambda xp, x, y: x * (xp.arange(4) / 3)),
    "writing": ("writing into", lambda xp, x, y: x.__setitem__(0, y)),
    "a mask of numbers": ("an index of booleans", lambda xp, x, y: xp.sum(x[x > 0.5])),
}


@pytest.mark.parametrize("backend", INSTALLED)
@pytest.mark.parametrize("title", REFUSED)
def test_what_is_refused_says_so(title, backend):
    named, function = REFUSED[title]
    with pytest.raises(ConfigurationError, match=named):
        expression(backend, function)
