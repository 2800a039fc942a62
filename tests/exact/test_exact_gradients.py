"""Gradients with precision=exact: each the correctly rounded float32 of its formula, so the same bits on every backend.

Operations are held against mpmath, bit for bit; whole models against each other, and against float64.
"""

import mpmath
import numpy as np
import pytest
from operation_cases import CASES
from test_exact_operations import CASE_LIST, float32_inputs, on_backends, rounded, truth

from transformer_lab.config import component

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
        found = true_attention(*arrays, options[0], g)
    else:
        scalar = {
            "relu": lambda v: mpmath.mpf(v > 0),
            "silu": lambda v: mpmath.diff(lambda x: x / (1 + mpmath.exp(-x)), v),
            "gelu_tanh": lambda v: mpmath.diff(gelu_tanh, v),
            "gelu_erf": lambda v: mpmath.diff(lambda x: x * mpmath.ncdf(x), v),
        }[operation]
        found = [g * np.vectorize(scalar, otypes=[object])(x)]
    return [once(array) for array in found]


def gelu_tanh(x):
    return x / (1 + mpmath.exp(-2 * mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf("0.044715") * x**3)))


def true_attention(query, key, value, start, scale, g):
    batch, heads, queries, _ = query.shape
    group, scale = heads // key.shape[1], mpmath.mpf(scale)
    to_query, to_key, to_value = (np.full(array.shape, mpmath.mpf(0)) for array in (query, key, value))
    for b, h, t in np.ndindex(batch, heads, queries):
        seen = (b, h // group, slice(0, int(start[b]) + t + 1))
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
LONG = ("attention", "long prompt in pieces")


@pytest.mark.parametrize(("name", "operation", "title"), on_backends([pair for pair in CASE_LIST if pair != LONG]))
def test_correctly_rounded(name, operation, title):
    case = CASES[operation][title]
    inputs = float32_inputs(case)
    g = cotangent(operation, case, inputs)
    found = gradients(component("backend", name, precision="exact"), operation, case, inputs, g)
    with mpmath.workdps(80):
        expected = true_gradients(operation, inputs, case.options, g)
    for array, right in zip(found.values(), expected, strict=True):
        equal_bits(array, right)
