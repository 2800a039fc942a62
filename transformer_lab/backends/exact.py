"""Exact mode: every operation gives the correctly rounded float32 of its float32 inputs, so every backend gives the
same bits, whatever the order of sums, the threads, the batch, or the length that was cached.

Arrays are float32 between operations. Inside one, everything is float64, with a bound on its error. Where the whole
interval [y - bound, y + bound] rounds to one float32, that is the answer, on any backend. Where it does not, the
element is doubtful and is computed again more exactly (Ziv's strategy: A. Ziv, "Fast evaluation of elementary
mathematical functions with correctly rounded last bit", ACM TOMS 17, 1991). For products that is a dot product whose
large parts add up without any rounding; for the other functions it is decimal arithmetic on the host (`rounding.py`).

Signed zeros become +0, and results below 2^-126 (float32's denormals, which XLA flushes) become 0.
The letters are those of `manual.py`, and U is the unit of float64's relative rounding error.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from transformer_lab.backends import rounding
from transformer_lab.backends.error_function import erfc
from transformer_lab.backends.manual import NEGATIVE_INFINITY, embed, identity, relu, visible_keys

__all__ = ["embed", "relu"]  # exact as they are: nothing is rounded

U = 2.0**-53
SMALLEST_NORMAL = 2.0**-126
# An elementary function of NumPy, torch or XLA is within 2 U of the truth (measured); formulas of a few of them, with
# a division or a square root that XLA does not round as IEEE asks, stay well below this many.
FEW = 24.0


def settle(ops: Any, y: Any, bound: Any, again: Callable[[Any], Any]) -> Any:
    """y [...] float64, known to `bound` -> float32, correctly rounded. `again(indices [n])` gives better values [n]."""
    xp = ops.xp
    doubtful = xp.logical_and(ops.narrow(y - bound) != ops.narrow(y + bound), xp.isfinite(y))
    ops.tally(doubtful)
    y = xp.reshape(ops.patch(xp.reshape(y, (-1,)), xp.reshape(doubtful, (-1,)), again), y.shape)
    return ops.narrow(xp.where(xp.abs(y) < SMALLEST_NORMAL, 0.0, y))


def without_denormals(ops: Any, x: Any) -> Any:
    """x, float32, with 0 for what XLA takes for 0, and for -0."""
    return ops.xp.where(ops.xp.abs(x) < SMALLEST_NORMAL, 0.0, x)


def exact_sum(ops: Any, terms: Any) -> Any:
    """The sum over the last axis (n terms) in float64, to about 2^-90 of n times the largest term.

    Each term is cut at a multiple of a power of two, chosen so that the upper parts add up exactly in any order
    (Ozaki, Ogita, Oishi and Rump, Numerical Algorithms 59, 2012). Products of two float32 are exact terms; of others
    a compiler may fuse the last multiplication with the cut, which moves the sum by their own rounding at most.
    """
    upper, lower = _cut_and_sum(ops, terms)
    return upper + lower


def sum_to_odd(ops: Any, terms: Any) -> Any:
    """`exact_sum`, but a rounded sum is moved to the odd neighbour on its true side ("rounding to odd").

    What is then rounded to float32 comes out as if it had been rounded once: a sum just beside the middle of two
    float32 does not fall onto it (Boldo and Melquiond, IEEE Transactions on Computers 57, 2008).
    """
    xp = ops.xp
    upper, lower = _cut_and_sum(ops, terms)
    total = upper + lower
    left = (upper - total) + lower  # the exact error of that sum
    unit = ops.power_of_two_above(xp.abs(total)) * U
    even = (total + 0.5 * unit) == total
    return xp.where(xp.logical_and(left != 0.0, even), total + xp.sign(left) * unit, total)


def _cut_and_sum(ops: Any, terms: Any) -> tuple[Any, Any]:
    xp = ops.xp
    count = terms.shape[-1]
    largest = ops.power_of_two_above(xp.max(xp.abs(terms), axis=-1, keepdims=True))
    # Upper parts are multiples of largest * 2^(bits - 53), and `count` of them stay below 2^53 such multiples.
    bits = max(count - 1, 1).bit_length() + 1
    shift = largest * (1.5 * 2.0 ** (bits - 1))
    upper = (terms + shift) - shift
    lower = terms - upper
    return xp.sum(upper, axis=-1), xp.sum(lower, axis=-1)


# --- products --------------------------------------------------------------------------------------------------------


class ExactKernel(NamedTuple):
    """A kernel in float64, stored by columns: `columns` [out, in], and the length of each, `lengths` [out]."""

    columns: Any
    lengths: Any


def wide_rows(ops: Any, x: Any) -> Any:
    """[..., n] -> [rows, n] in float64, one row behind the other in memory: else `take` of a few copies them all."""
    flat = ops.xp.reshape(x, (-1,))
    return ops.cast(ops.xp.reshape(flat, (-1, x.shape[-1])), ops.xp.float64)


def prepare_kernel(ops: Any, kernel: Any) -> ExactKernel:
    """[in, out] float32 -> the form that `linear` works on."""
    columns = wide_rows(ops, ops.xp.permute_dims(kernel, (1, 0)))
    return ExactKernel(columns, ops.xp.sqrt(ops.xp.sum(columns * columns, axis=-1)))


def pack_kernel(ops: Any, kernel: np.ndarray) -> ExactKernel:
    """The same for a kernel that is loaded, once."""
    columns = np.ascontiguousarray(kernel.T, dtype=np.float64)
    lengths = np.sqrt(np.einsum("oi,oi->o", columns, columns))
    return ExactKernel(ops.asarray(columns, ops.xp.float64), ops.asarray(lengths, ops.xp.float64))


def unpack_kernel(ops: Any, kernel: ExactKernel) -> np.ndarray:
    return np.asarray(ops.to_numpy(kernel.columns), np.float32).T


def linear(ops: Any, x: Any, kernel: Any, bias: Any = None) -> Any:
    """round(x kernel + bias): [..., in] -> [..., out]."""
    xp = ops.xp
    if not isinstance(kernel, ExactKernel):
        kernel = prepare_kernel(ops, kernel)
    rows = wide_rows(ops, without_denormals(ops, x))  # x may be a product that was made outside, as in a gated network
    wide_bias = None if bias is None else ops.cast(bias, xp.float64)
    columns = kernel.columns.shape[0]

    def again(indices: Any) -> Any:
        chosen = indices % columns
        left = xp.take(rows, indices // columns, axis=0)
        terms = left * xp.take(kernel.columns, chosen, axis=0)
        if wide_bias is not None:
            terms = xp.concat([terms, xp.take(wide_bias, chosen)[:, None]], axis=-1)
        return sum_to_odd(ops, terms)

    y = xp.matmul(rows, xp.permute_dims(kernel.columns, (1, 0)))
    bound = product_bound(ops, rows, kernel.lengths[None, :], x.shape[-1])
    if wide_bias is not None:
        y = y + wide_bias
        bound = bound + U * xp.abs(y)
    return xp.reshape(settle(ops, y, bound, again), (*x.shape[:-1], columns))


def product_bound(ops: Any, rows: Any, lengths: Any, terms: int) -> Any:
    """What float64 can err in rows [..., in] times columns of these lengths, in any order of the sum.

    gamma_n |x| |w| (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1), with |x| |w| replaced
    by the product of the Euclidean lengths, which is never smaller.
    """
    own = ops.xp.sqrt(ops.xp.sum(rows * rows, axis=-1, keepdims=True))
    return own * (lengths * (1.01 * (terms + 4) * U))


def attention(ops: Any, query: Any, key: Any, value: Any, start: Any, scale: float, tap: Any = identity) -> Any:
    """Scores, pattern and the mixed values are each rounded; shapes as in `manual.attention`."""
    xp = ops.xp
    batch, heads, queries, size = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    rows = xp.reshape(query, (batch, kv_heads, -1, size))
    scores = products(ops, rows, xp.matrix_transpose(key), scale)
    scores = xp.reshape(scores, (batch, heads, queries, keys))
    visible = visible_keys(ops, start, queries, keys)[:, None, ...]
    scores = tap("scores", xp.where(visible, scores, NEGATIVE_INFINITY))
    pattern = tap("pattern", softmax(ops, scores))
    mixed = products(ops, xp.reshape(pattern, (batch, kv_heads, -1, keys)), value, 1.0)
    return xp.reshape(mixed, (batch, heads, queries, size))


def products(ops: Any, left: Any, right: Any, scale: float) -> Any:
    """round(scale * left right) for stacks of matrices: [B, K, R, I] and [B, K, I, C] -> [B, K, R, C]."""
    xp = ops.xp
    left, right = ops.cast(left, xp.float64), ops.cast(right, xp.float64)
    terms, columns, count = left.shape[-1], right.shape[-1], left.shape[-2]
    flat_left = xp.reshape(left, (-1, terms))
    flat_right = xp.reshape(xp.matrix_transpose(right), (-1, terms))  # a row for each column of each matrix

    def again(indices: Any) -> Any:
        row = indices // columns
        column = row // count * columns + indices % columns
        return sum_to_odd(ops, xp.take(flat_left, row, axis=0) * xp.take(flat_right, column, axis=0)) * scale

    lengths = xp.sqrt(xp.sum(right * right, axis=-2, keepdims=True))
    y = xp.matmul(left, right) * scale
    return settle(ops, y, product_bound(ops, left, lengths, terms) * scale + U * xp.abs(y), again)


def rotary(ops: Any, x: Any, cos: Any, sin: Any) -> Any:
    """Products of two float32 are exact in float64, so one sum is rounded, and it as IEEE asks: nothing is doubtful."""
    xp = ops.xp
    half = x.shape[-1] // 2
    x, cos, sin = (ops.cast(array, xp.float64) for array in (x, cos[:, None, ...], sin[:, None, ...]))
    first, second = x[..., :half], x[..., half:]
    turned = xp.concat([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return ops.narrow(xp.where(xp.abs(turned) < SMALLEST_NORMAL, 0.0, turned))


# --- norms, softmax, activations -------------------------------------------------------------------------------------


def layer_norm(ops: Any, x: Any, weight: Any, bias: Any, epsilon: float) -> Any:
    """Shapes as in `manual.layer_norm`; the result alone is rounded."""
    xp = ops.xp
    wide, weight, bias = (ops.cast(array, xp.float64) for array in (x, weight, bias))
    size = x.shape[-1]
    mean = exact_sum(ops, wide)[..., None] / size
    centred = wide - mean
    deviation = xp.sqrt(xp.sum(centred * centred, axis=-1, keepdims=True) / size + epsilon)
    normal = centred / deviation * weight
    y = normal + bias
    # The mean is off by a few U of itself, the sum of squares by size * U of itself, which the root halves; an error
    # of the mean reaches the deviation only squared.
    bound = ((FEW + size / 2) * xp.abs(normal) + 4.0 * xp.abs(mean * weight / deviation) + xp.abs(y)) * U
    return settle(ops, y, bound, _row_by_row(ops, rounding.layer_norm, wide, [weight, bias], epsilon))


def rms_norm(ops: Any, x: Any, weight: Any, epsilon: float) -> Any:
    """Shapes as in `manual.rms_norm`; the result alone is rounded."""
    xp = ops.xp
    wide, weight = ops.cast(x, xp.float64), ops.cast(weight, xp.float64)
    size = x.shape[-1]
    y = wide / xp.sqrt(xp.sum(wide * wide, axis=-1, keepdims=True) / size + epsilon) * weight
    bound = (FEW + size / 2) * U * xp.abs(y)
    return settle(ops, y, bound, _row_by_row(ops, rounding.rms_norm, wide, [weight], epsilon))


def softmax(ops: Any, x: Any) -> Any:
    """Over the last axis."""
    xp = ops.xp
    wide = ops.cast(x, xp.float64)
    below = wide - xp.max(wide, axis=-1, keepdims=True)
    powers = xp.exp(below)
    y = powers / exact_sum(ops, powers)[..., None]
    # exp passes an error of its argument on as a relative one; far below 2^-126 nothing is left of y anyway.
    bound = y * (FEW - xp.clip(below, -200.0, None)) * U
    return settle(ops, y, bound, _row_by_row(ops, rounding.softmax, wide, [], None))


def cross_entropy(ops: Any, logits: Any, targets: Any) -> Any:
    """-log softmax(logits)[target], rounded: [..., V], [...] -> [...]."""
    xp = ops.xp
    wide = ops.cast(logits, xp.float64)
    shifted = wide - xp.max(wide, axis=-1, keepdims=True)
    chosen = xp.take_along_axis(shifted, targets[..., None], axis=-1)[..., 0]
    total = xp.log(exact_sum(ops, xp.exp(shifted)))
    y = total - chosen
    # total >= 0 has an absolute error of a few U, because the sum is at least 1.
    bound = (FEW * (1.0 + total) + xp.abs(chosen) + xp.abs(y)) * U
    rows, goals = xp.reshape(wide, (-1, wide.shape[-1])), xp.reshape(targets, (-1,))

    def again(indices: Any) -> Any:
        taken = (xp.take(rows, indices, axis=0), xp.take(goals, indices))
        return ops.on_host(rounding.cross_entropy, indices.shape, *taken)

    return settle(ops, y, bound, again)


def _row_by_row(ops: Any, judge: Callable[..., Any], wide: Any, columns: list[Any], option: Any) -> Callable[..., Any]:
    """How a doubtful element of a function of rows is computed again: from its row, its place, and columns' values."""
    xp = ops.xp
    size = wide.shape[-1]
    rows = xp.reshape(wide, (-1, size))

    def again(indices: Any) -> Any:
        place = indices % size
        taken = [xp.take(rows, indices // size, axis=0), place, *(xp.take(column, place) for column in columns)]
        if option is not None:
            return ops.on_host(lambda *arrays: judge(*arrays, option), indices.shape, *taken)
        return ops.on_host(judge, indices.shape, *taken)

    return again


def _elementwise(ops: Any, judge: Callable[..., Any], x: Any, y: Any, bound: Any) -> Any:
    flat = ops.xp.reshape(x, (-1,))
    return settle(ops, y, bound, lambda i: ops.on_host(judge, i.shape, ops.xp.take(flat, i)))


def gelu_tanh(ops: Any, x: Any) -> Any:
    """x / (1 + exp(-2 z)), rounded; see `manual.gelu_tanh`."""
    xp = ops.xp
    x = ops.cast(x, xp.float64)
    exponent = xp.clip((-2.0 * math.sqrt(2.0 / math.pi)) * (x + 0.044715 * (x * x * x)), None, 700.0)
    y = x / (1.0 + xp.exp(exponent))
    # exp turns the few U of its argument into as many times the argument; near 0 the result does not feel it.
    bound = xp.abs(y) * ((FEW + 8.0 * xp.abs(exponent)) * U)
    return _elementwise(ops, rounding.gelu_tanh, x, y, bound)


def gelu_erf(ops: Any, x: Any) -> Any:
    """0.5 x erfc(-x / sqrt 2), rounded. erfc is ours everywhere: its error is known."""
    xp = ops.xp
    x = ops.cast(x, xp.float64)
    argument = x * -math.sqrt(0.5)
    y = 0.5 * x * erfc(xp, argument)
    bound = xp.abs(y) * ((2.0 * FEW + 8.0 * xp.clip(x * x, None, 1500.0)) * U)
    return _elementwise(ops, rounding.gelu_erf, x, y, bound)


def silu(ops: Any, x: Any) -> Any:
    """x / (1 + exp(-x)), rounded."""
    xp = ops.xp
    x = ops.cast(x, xp.float64)
    y = x / (1.0 + xp.exp(xp.clip(-x, None, 700.0)))
    return _elementwise(ops, rounding.silu, x, y, xp.abs(y) * (FEW * U))
