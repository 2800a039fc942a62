"""Exact mode's backward pass: the gradient of every operation, the same bits on every backend.

With L the loss and g = dL/dy for an operation y, each function here is given g and the operation's inputs. It returns
a function without arguments for each input that is an array of floats, in their order, which gives dL/dx; what nobody
asks for is not computed.

Every gradient is the correctly rounded float32 of the formula in its docstring. The formula's inputs are float32: the
operation's own, g, and its NAMED POINTS, which are results in between that are correctly rounded themselves. They are
placed so that sums over rows are sums of products of two float32, which `exact.py` can do again without any rounding.
What lies between named points is one float64 computation with a bound, and decimal arithmetic for what is in doubt
(`rounding_gradients.py`). The formulas are those of `gradients.py`, the letters those of `manual.py`; r is the
reciprocal of a norm's deviation.

It knows nothing of how they are put together: that is a tape's affair (`reading.py`).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from transformer_lab.backends.plain.error_function import erfc
from transformer_lab.backends.plain.manual import NEGATIVE_INFINITY, identity, visible_keys
from transformer_lab.backends.readings.exact import algebra, rounding_gradients
from transformer_lab.backends.readings.exact import operations as exact
from transformer_lab.backends.readings.exact.operations import FEW, ExactKernel

Gradients = tuple[Callable[[], Any], ...]


# --- products and sums -----------------------------------------------------------------------------------------------


def linear(ops: Any, g: Any, x: Any, kernel: Any, bias: Any = None) -> Gradients:
    """dx = round(g w^T), dw = round(x^T g), db = round(sum of g over the rows)."""
    xp = ops.xp
    rows, g = xp.reshape(x, (-1, x.shape[-1])), xp.reshape(g, (-1, g.shape[-1]))

    def to_x() -> Any:
        packed = isinstance(kernel, ExactKernel)
        turned = ops.narrow(kernel.columns) if packed else xp.permute_dims(kernel, (1, 0))
        return xp.reshape(exact.linear(ops, g, turned), x.shape)

    return (
        to_x,
        lambda: exact.linear(ops, xp.permute_dims(rows, (1, 0)), g),
        lambda: algebra.rounded_sum(ops, xp.permute_dims(ops.cast(g, xp.float64), (1, 0))),
    )


def embed(ops: Any, g: Any, table: Any, ids: Any) -> Gradients:
    """dtable[v] = round(sum of the rows of g whose id is v)."""

    def to_table() -> Any:
        rows = ops.xp.reshape(g, (-1, g.shape[-1]))
        return algebra.add_rows(ops, table.shape[0], ops.xp.reshape(ids, (-1,)), rows)

    return (to_table,)


def rotary(ops: Any, g: Any, x: Any, cos: Any, sin: Any) -> Gradients:
    """(dx1, dx2) = round(g1 cos + g2 sin, g2 cos - g1 sin); over the heads dcos = round(sum of g1 x1 + g2 x2) and
    dsin = round(sum of g2 x1 - g1 x2)."""
    xp = ops.xp
    half = x.shape[-1] // 2
    wide, upper = ops.cast(x, xp.float64), ops.cast(g, xp.float64)

    def over_heads(first: Any, second: Any) -> Any:
        return algebra.rounded_sum(ops, xp.permute_dims(xp.concat([first, second], axis=1), (0, 2, 3, 1)))

    x1, x2, g1, g2 = wide[..., :half], wide[..., half:], upper[..., :half], upper[..., half:]
    return (
        lambda: exact.rotary(ops, g, cos, -sin),
        lambda: over_heads(g1 * x1, g2 * x2),
        lambda: over_heads(g2 * x1, -g1 * x2),
    )


# --- attention, softmax, loss ----------------------------------------------------------------------------------------


def attention(
    ops: Any,
    g: Any,
    query: Any,
    key: Any,
    value: Any,
    start: Any,
    scale: float,
    window: int | None = None,
    tap: Any = identity,
) -> Gradients:
    """Named points: the scores S and the pattern P, as in the forward pass, dP = round(g V^T), and
    dS = round(P (dP - sum_S P dP)), which is 0 for hidden keys, because P is. Then

    dQ = round(scale dS K), dK = round(scale dS^T Q), dV = round(P^T g)

    Query heads that share a key head are rows of one product, so that the sums over them are rounded once.
    """
    xp = ops.xp
    batch, heads, queries, size = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    rows, g_rows = (xp.reshape(array, (batch * kv_heads, -1, size)) for array in (query, g))
    by_key, values = (xp.reshape(array, (batch * kv_heads, keys, size)) for array in (key, value))
    scores = product(ops, rows, xp.matrix_transpose(by_key), scale)
    visible = visible_keys(ops, start, queries, keys, window)[:, None, ...]
    scores = xp.where(visible, xp.reshape(scores, (batch, heads, queries, keys)), NEGATIVE_INFINITY)
    pattern = xp.reshape(exact.softmax(ops, scores), (batch * kv_heads, -1, keys))
    to_scores = through_softmax(ops, pattern, product(ops, g_rows, xp.matrix_transpose(values)))
    return (
        lambda: xp.reshape(product(ops, to_scores, by_key, scale), query.shape),
        lambda: xp.reshape(product(ops, xp.matrix_transpose(to_scores), rows, scale), key.shape),
        lambda: xp.reshape(product(ops, xp.matrix_transpose(pattern), g_rows), value.shape),
    )


@exact.step
def product(ops: Any, left: Any, right: Any, scale: float = 1.0) -> Any:
    """round(scale * left right) for M pairs of matrices: [M, R, I] and [M, I, C] -> [M, R, C]."""
    return exact.products(ops, left, exact.prepare_kernel(ops, ops.xp.matrix_transpose(right)), scale)


def softmax(ops: Any, g: Any, x: Any) -> Gradients:
    """dx = round(P (g - sum_D P g)); the named point is P, the softmax as it was rounded."""
    return (lambda: through_softmax(ops, exact.softmax(ops, x), g),)


@exact.step
def through_softmax(ops: Any, pattern: Any, g: Any) -> Any:
    """round(P (g - sum_D P g)) for float32 P and g [..., D]."""
    xp = ops.xp
    count = g.shape[-1]
    p, upper = ops.cast(pattern, xp.float64), ops.cast(g, xp.float64)
    products = p * upper
    mean = exact.exact_sum(ops, products)[..., None]
    y = p * (upper - mean)
    # The sum of the lower parts in `exact_sum` may be off by this much, in the worst order.
    lower = xp.max(xp.abs(products), axis=-1, keepdims=True) * (4.0 * count**3 * exact.U)
    bound = p * (FEW * (xp.abs(upper) + xp.abs(mean)) + lower) * exact.U
    return exact.settle(ops, y, bound, _again(ops, rounding_gradients.softmax, [pattern, g]), exact.AT_ONCE_ON_HOST)


def cross_entropy(ops: Any, g: Any, logits: Any, targets: Any) -> Gradients:
    """dlogits = round(g (softmax(logits) - onehot(target))).

    For the target, softmax - 1 is written as minus the sum of the others, which does not cancel.
    """

    return (lambda: _cross_entropy_to_logits(ops, g, logits, targets),)


@exact.step
def _cross_entropy_to_logits(ops: Any, g: Any, logits: Any, targets: Any) -> Any:
    xp = ops.xp
    size = logits.shape[-1]
    wide = ops.cast(logits, xp.float64)
    below = wide - xp.max(wide, axis=-1, keepdims=True)
    hit = xp.arange(size, dtype=targets.dtype, device=ops.array_device) == targets[..., None]
    powers = xp.exp(below)
    others = xp.where(hit, 0.0, powers)
    rest = exact.exact_sum(ops, others)[..., None]
    total = rest + xp.sum(powers - others, axis=-1, keepdims=True)
    upper = ops.cast(g, xp.float64)[..., None]
    y = upper * xp.where(hit, -rest, powers) / total
    # exp passes an error of its argument on as a relative one: that of the largest among the others, for their sum.
    # The errors of smaller ones weigh less: at most the logarithm of their number, which is below FEW.
    largest = xp.max(xp.where(hit, NEGATIVE_INFINITY, below), axis=-1, keepdims=True)
    depth = xp.clip(-xp.where(hit, largest, below), None, 750.0)
    bound = xp.abs(y) * ((3.0 * FEW + depth) * exact.U)
    return exact.settle(
        ops, y, bound, _again(ops, rounding_gradients.cross_entropy, [logits], [g, targets]), exact.AT_ONCE_ON_HOST
    )


# --- norms -----------------------------------------------------------------------------------------------------------


def layer_norm(ops: Any, g: Any, x: Any, weight: Any, bias: Any, epsilon: float) -> Gradients:
    """dx = round(r (h - mean_D h - n mean_D (h n))) with h = g w and n = (x - mean_D x) r, which are not rounded.

    dw = round(sum over the rows of g N), where N = round(n) is a named point; db = round(sum over the rows of g).
    """
    xp = ops.xp

    return (
        lambda: _layer_norm_to_x(ops, g, x, weight, epsilon),
        lambda: _over_rows(ops, g, exact.layer_norm(ops, x, xp.ones_like(weight), xp.zeros_like(bias), epsilon)),
        lambda: _over_rows(ops, g),
    )


@exact.step
def _layer_norm_to_x(ops: Any, g: Any, x: Any, weight: Any, epsilon: float) -> Any:
    xp = ops.xp
    size = x.shape[-1]
    wide, h = ops.cast(x, xp.float64), ops.cast(g, xp.float64) * ops.cast(weight, xp.float64)
    mean = exact.exact_sum(ops, wide)[..., None] / size
    centred = wide - mean
    r = 1.0 / xp.sqrt(xp.sum(centred * centred, axis=-1, keepdims=True) / size + epsilon)
    moved = xp.abs(mean) * r * (8.0 * exact.U)
    mean_h = exact.exact_sum(ops, h)[..., None] / size
    y, bound = _through_norm(ops, h, centred * r, r, mean_h, moved)
    judge = partial(rounding_gradients.layer_norm, epsilon=epsilon)
    return exact.settle(ops, y, bound, _again(ops, judge, [x, g], vectors=[weight]), exact.AT_ONCE_ON_HOST)


def rms_norm(ops: Any, g: Any, x: Any, weight: Any, epsilon: float) -> Gradients:
    """dx = round(r (h - n mean_D (h n))) with h = g w and n = x r, which are not rounded.

    dw = round(sum over the rows of g N), where N = round(n) is a named point.
    """
    xp = ops.xp

    return lambda: _rms_norm_to_x(ops, g, x, weight, epsilon), lambda: _over_rows(
        ops, g, exact.rms_norm(ops, x, xp.ones_like(weight), epsilon)
    )


@exact.step
def _rms_norm_to_x(ops: Any, g: Any, x: Any, weight: Any, epsilon: float) -> Any:
    xp = ops.xp
    wide, h = ops.cast(x, xp.float64), ops.cast(g, xp.float64) * ops.cast(weight, xp.float64)
    r = 1.0 / xp.sqrt(xp.sum(wide * wide, axis=-1, keepdims=True) / x.shape[-1] + epsilon)
    y, bound = _through_norm(ops, h, wide * r, r, 0.0, 0.0)
    judge = partial(rounding_gradients.rms_norm, epsilon=epsilon)
    return exact.settle(ops, y, bound, _again(ops, judge, [x, g], vectors=[weight]), exact.AT_ONCE_ON_HOST)


def _through_norm(ops: Any, h: Any, n: Any, r: Any, mean_h: Any, moved: Any) -> tuple[Any, Any]:
    """r (h - mean_h - n mean_D (h n)) [..., D] and its bound, step by step (running error analysis, Higham 2002,
    section 3.3).

    moved: what n may be off by because the mean of x is off by up to 8 U of itself; r feels that only by its square.
    h is exact.
    """
    xp = ops.xp
    size = h.shape[-1]
    products = h * n
    inner = exact.exact_sum(ops, products)[..., None] / size
    y = r * (h - mean_h - n * inner)
    few = FEW * exact.U
    mean_size = xp.mean(xp.abs(h), axis=-1, keepdims=True)
    off_r = few + 0.5 * size * exact.U + moved * moved  # relative; the sum of squares costs size U, the root halves it
    off_n = xp.abs(n) * off_r + moved
    off_inner = xp.mean(xp.abs(products), axis=-1, keepdims=True) * (off_r + few) + moved * mean_size
    off_difference = few * (xp.abs(h) + mean_size + xp.abs(n * inner))
    off_difference = off_difference + xp.abs(n) * off_inner + off_n * (xp.abs(inner) + off_inner)
    return y, 1.01 * (r * off_difference + xp.abs(y) * off_r)


def _over_rows(ops: Any, g: Any, n: Any = None) -> Any:
    """round(sum over all rows of g n), or of g alone: [..., D] -> [D]."""
    xp = ops.xp
    terms = ops.cast(g, xp.float64)
    if n is not None:
        terms = terms * ops.cast(n, xp.float64)
    return algebra.rounded_sum(ops, xp.permute_dims(xp.reshape(terms, (-1, g.shape[-1])), (1, 0)))


# --- activations -----------------------------------------------------------------------------------------------------


def relu(ops: Any, g: Any, x: Any) -> Gradients:
    """dx = g where x > 0, else 0: at 0 frameworks differ, and one slope must be chosen."""
    return (lambda: ops.xp.where(x > 0.0, g, 0.0),)


def sigmoid(ops: Any, g: Any, x: Any) -> Gradients:
    """dx = round(g s (1 - s)), s = 1 / (1 + exp(-x))."""
    return (lambda: _sigmoid_to_x(ops, g, x),)


@exact.step
def _sigmoid_to_x(ops: Any, g: Any, x: Any) -> Any:
    xp = ops.xp
    wide = ops.cast(x, xp.float64)
    power = xp.exp(-xp.abs(wide))  # s (1 - s) is the same for x and -x
    slope = power / ((1.0 + power) * (1.0 + power))
    return _times_slope(ops, rounding_gradients.sigmoid, g, x, slope, 0.0 * slope, FEW)


def logsumexp(ops: Any, g: Any, x: Any) -> Gradients:
    """dx = round(g P); the named point is P, the softmax as it was rounded."""
    return (lambda: algebra.multiply(ops, exact.softmax(ops, x), g[..., None]),)


def silu(ops: Any, g: Any, x: Any) -> Gradients:
    """dx = round(g (s + x s (1 - s))), s = 1 / (1 + exp(-x))."""

    return (lambda: _silu_to_x(ops, g, x),)


@exact.step
def _silu_to_x(ops: Any, g: Any, x: Any) -> Any:
    xp = ops.xp
    wide = ops.cast(x, xp.float64)
    power = xp.exp(xp.clip(-wide, None, 700.0))
    s = 1.0 / (1.0 + power)
    return _times_slope(ops, rounding_gradients.silu, g, x, s, wide * s * (power * s), FEW)


def gelu_tanh(ops: Any, g: Any, x: Any) -> Gradients:
    """dx = round(g (s + x s (1 - s) 2 c (1 + 3 * 0.044715 x^2))), s = 1 / (1 + exp(-2 z)), c = sqrt(2 / pi) and
    z = c (x + 0.044715 x^3)."""

    return (lambda: _gelu_tanh_to_x(ops, g, x),)


@exact.step
def _gelu_tanh_to_x(ops: Any, g: Any, x: Any) -> Any:
    xp = ops.xp
    twice = 2.0 * math.sqrt(2.0 / math.pi)
    wide = ops.cast(x, xp.float64)
    square = wide * wide
    exponent = xp.clip(-twice * (wide + 0.044715 * (square * wide)), None, 700.0)
    power = xp.exp(exponent)
    s = 1.0 / (1.0 + power)
    lean = wide * s * (power * s) * (twice * (1.0 + 3.0 * 0.044715 * square))
    # The exponent is off by 8 U of itself, and so is the power as a whole; far below 0 it is lost beside 1.
    off = FEW + 16.0 * xp.clip(xp.abs(exponent), None, 750.0)
    return _times_slope(ops, rounding_gradients.gelu_tanh, g, x, s, lean, off)


def gelu_erf(ops: Any, g: Any, x: Any) -> Gradients:
    """dx = round(g (F(x) + x f(x))), F the normal distribution and f its density."""

    return (lambda: _gelu_erf_to_x(ops, g, x),)


@exact.step
def _gelu_erf_to_x(ops: Any, g: Any, x: Any) -> Any:
    xp = ops.xp
    wide = ops.cast(x, xp.float64)
    square = wide * wide  # exact
    distribution = 0.5 * erfc(xp, wide * -math.sqrt(0.5))
    density = xp.exp(-0.5 * square) / math.sqrt(2.0 * math.pi)
    off = 2.0 * FEW + 8.0 * xp.clip(square, None, 1500.0)
    return _times_slope(ops, rounding_gradients.gelu_erf, g, x, distribution, wide * density, off)


def _times_slope(ops: Any, judge: Callable[..., Any], g: Any, x: Any, first: Any, second: Any, off: Any) -> Any:
    """round(g (first + second)); either is off by `off` U of itself, and they may cancel."""
    xp = ops.xp
    upper = ops.cast(g, xp.float64)
    y = upper * (first + second)
    bound = xp.abs(upper) * (xp.abs(first) + xp.abs(second)) * ((off + 4.0) * exact.U)
    flat = [xp.reshape(array, (-1,)) for array in (x, g)]
    return exact.settle(
        ops, y, bound, lambda indices: ops.on_host(judge, indices, *(xp.take(a, indices) for a in flat))
    )


# --- the second look on the host -------------------------------------------------------------------------------------


def _again(
    ops: Any,
    judge: Callable[..., Any],
    rows: list[Any],
    numbers: list[Any] | None = None,
    vectors: list[Any] | None = None,
) -> Callable[[Any], Any]:
    """How elements of a result [..., D] are computed again: judge(places, arrays of each).

    rows: arrays [..., D] of which an element needs its row; numbers: arrays [...], one number for each row; vectors:
    arrays [D], the same for all rows.
    """
    xp = ops.xp
    size = rows[0].shape[-1]
    tables = [xp.reshape(array, (-1, size)) for array in rows]
    columns = [xp.reshape(array, (-1,)) for array in numbers or []]

    def again(indices: Any) -> Any:
        row = indices // size
        taken = [xp.take(table, row, axis=0) for table in tables]
        taken += [xp.take(column, row) for column in columns]
        taken += [xp.broadcast_to(vector, (indices.shape[0], size)) for vector in vectors or []]
        return ops.on_host(judge, indices, indices % size, *taken)

    return again
