"""Exact mode: every operation gives the correctly rounded float32 of its float32 inputs, so every backend gives the
same bits, whatever the order of sums, the threads, the batch, or the length that was cached.

Arrays are float32 between operations. Inside one, everything is float64, with a bound on its error. Where the whole
interval [y - bound, y + bound] rounds to one float32, that is the answer, on any backend. Where it does not, the
element is doubtful and is computed again more exactly (Ziv's strategy: A. Ziv, "Fast evaluation of elementary
mathematical functions with correctly rounded last bit", ACM TOMS 17, 1991). For products that is a dot product whose
large parts add up without any rounding; for the other functions it is decimal arithmetic on the host (`rounding.py`).

Signed zeros become +0, and results that are rounded to less than 2^-126 (float32's denormals, which XLA flushes) to 0.
The letters are those of `manual.py`, and U is the unit of float64's relative rounding error.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, NamedTuple, NoReturn

import numpy as np

from transformer_lab.backends.plain.error_function import erfc
from transformer_lab.backends.plain.manual import NEGATIVE_INFINITY, embed, identity, of_queries, relu, visible_keys
from transformer_lab.backends.readings.exact import rounding
from transformer_lab.errors import ConfigurationError

__all__ = ["embed", "relu"]  # exact as they are: nothing is rounded

U = 2.0**-53
SMALLEST_NORMAL = 2.0**-126
# An elementary function of NumPy, torch or XLA is within 2 U of the truth (measured); formulas of a few of them, with
# a division or a square root that XLA does not round as IEEE asks, stay well below this many.
FEW = 24.0
GAMMA = 1.01 * U  # gamma_n is at most n times this, for every n that a model has
AT_ONCE_ON_HOST = 16  # elements that a compiled program asks the host for at a time; mostly there are none or one
PART = 512  # terms of a product whose sum is left to the library
QUERY_BLOCK = 128
COMPILED_BLOCKS = 4  # at most: each is compiled, and four already leave out three eighths of the hidden scores


def refuse(what: str, instead: str) -> NoReturn:
    message = f"Exact mode does not offer {what}: its bits would depend on the framework. Use {instead}."
    raise ConfigurationError(message)


def step(run: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is rounded once: a backend may compile it as one program (`Backend.step`)."""

    @wraps(run)
    def stepped(ops: Any, *arguments: Any, **options: Any) -> Any:
        return ops.step(run, *arguments, **options)

    return stepped


def settle(ops: Any, y: Any, bound: Any, again: Callable[[Any], Any], at_once: int = 128) -> Any:
    """y [...] float64, known to `bound` -> float32, correctly rounded. Consumes y; for the rest see `settle_pieces`."""
    return settle_pieces(ops, y.shape, [None], lambda whole: (y, bound), again, at_once)


def settle_pieces(
    ops: Any,
    shape: tuple[int, ...],
    pieces: Sequence[Any],
    estimate: Callable[[Any], tuple[Any, Any]],
    again: Callable[[Any], Any],
    at_once: int,
) -> Any:
    """An array that is known to a bound -> [shape] float32, correctly rounded.

    It is worked on in pieces, because a processor's cache is several times as fast as its memory. They come in the
    order of the array; estimate(piece) -> (y, bound) in float64, which are consumed.
    again(indices [n] into the flat array) -> better values [n]: correctly rounded, or rounded to odd, in float64. It is
    asked for at most `at_once` of them at a time.
    """
    xp = ops.xp

    def settled(piece: Any) -> tuple[Any, Any]:
        y, bound = estimate(piece)
        value = ops.flush(ops.narrow(y))
        with np.errstate(invalid="ignore"):
            above = ops.narrow(y + bound)
            y -= bound
        doubtful = above > ops.narrow(y)  # never so for what is infinite or not a number
        return xp.reshape(value, (-1,)), xp.reshape(doubtful, (-1,))

    found = zip(*map(settled, pieces), strict=True)
    values, doubtful = (parts[0] if len(parts) == 1 else xp.concat(parts) for parts in found)
    ops.tally(doubtful)
    values = ops.patch(values, doubtful, lambda indices: ops.flush(ops.narrow(again(indices))), at_once)
    return xp.reshape(values, shape)


def row_pieces(ops: Any, rows: int, width: int) -> list[slice]:
    """[rows, width] in pieces that fit the cache, or whole where a compiler sees to that."""
    step = rows if ops.compiles else max(1, ops.piece // max(width, 1))
    return [slice(first, min(first + step, rows)) for first in range(0, rows, step)]


def exact_sum(ops: Any, terms: Any, largest: float | None = None) -> Any:
    """The sum over the last axis (n terms) in float64, to about 2^-90 of n times the largest term.

    largest: a power of two that no term is above in size, if one is known.

    Each term is cut at a multiple of a power of two, chosen so that the upper parts add up exactly in any order
    (Ozaki, Ogita, Oishi and Rump, Numerical Algorithms 59, 2012). Products of two float32 are exact terms; of others
    a compiler may fuse the last multiplication with the cut, which moves the sum by their own rounding at most.
    """
    upper, lower = _cut(ops, terms, largest)
    return ops.xp.sum(upper, axis=-1) + ops.xp.sum(lower, axis=-1)


def sum_again(ops: Any, indices: Any, terms: Any, scale: float = 1.0) -> Any:
    """The second look at sums: terms [n, k], float64, each exact -> scale * (sum over the last axis) [n].

    It is `exact_sum` with a bound, which is the rounding of the lower parts. Where large terms cancel and leave so
    little that this could show, the host sums up without any rounding.
    """
    xp = ops.xp
    upper, rest = _cut(ops, terms)
    upper, lower = xp.sum(upper, axis=-1), xp.sum(rest, axis=-1)
    off = xp.sum(xp.abs(rest), axis=-1) * (1.01 * (terms.shape[-1] + 2) * U)
    above, value, below = (_to_odd(ops, upper, part) * scale for part in (lower + off, lower, lower - off))
    doubtful = ops.narrow(above) != ops.narrow(below)
    return ops.on_host(partial(rounding.sums, scale=scale), indices, value, doubtful, terms)


def _to_odd(ops: Any, a: Any, b: Any) -> Any:
    """a + b, where a rounded sum is moved to the odd neighbour on its true side ("rounding to odd").

    What is then rounded to float32 comes out as if it had been rounded once: a sum just beside the middle of two
    float32 does not fall onto it (Boldo and Melquiond, IEEE Transactions on Computers 57, 2008).
    """
    xp = ops.xp
    total = a + b
    moved = total - a
    left = (a - (total - moved)) + (b - moved)  # the exact error of that sum (Knuth)
    unit = ops.power_of_two_above(xp.abs(total)) * U
    even = (total + 0.5 * unit) == total
    return xp.where(xp.logical_and(left != 0.0, even), total + xp.sign(left) * unit, total)


def _cut(ops: Any, terms: Any, largest: Any = None) -> tuple[Any, Any]:
    """The upper and the lower part of each term."""
    xp = ops.xp
    if largest is None:
        largest = ops.power_of_two_above(xp.max(xp.abs(terms), axis=-1, keepdims=True))
    # Upper parts are multiples of largest * 2^(bits - 53), and `count` of them stay below 2^53 such multiples.
    bits = max(terms.shape[-1] - 1, 1).bit_length() + 1
    shift = largest * (1.5 * 2.0 ** (bits - 1))
    upper = terms + shift
    upper -= shift
    return upper, terms - upper


# --- products --------------------------------------------------------------------------------------------------------


class ExactKernel(NamedTuple):
    """Matrices in float64, by columns: `columns` [..., out, in], and the length of each, `lengths` [..., out]."""

    columns: Any
    lengths: Any


def wide(ops: Any, x: Any) -> Any:
    """x in float64, one row behind the other in memory: else to fetch a few rows copies them all."""
    return ops.xp.reshape(ops.cast(ops.xp.reshape(x, (-1,)), ops.xp.float64), x.shape)


def prepare_kernel(ops: Any, columns: Any) -> ExactKernel:
    """[..., out, in] float32 -> the form that `products` works on."""
    columns = wide(ops, columns)
    return ExactKernel(columns, ops.xp.sqrt(ops.xp.sum(columns * columns, axis=-1)))


def pack_kernel(ops: Any, kernel: np.ndarray) -> ExactKernel:
    """The same for a kernel [in, out] that is loaded, once."""
    columns = np.ascontiguousarray(kernel.T, dtype=np.float64)
    lengths = np.sqrt(np.einsum("oi,oi->o", columns, columns))
    return ExactKernel(ops.asarray(columns, ops.xp.float64), ops.asarray(lengths, ops.xp.float64))


def unpack_kernel(ops: Any, kernel: ExactKernel) -> np.ndarray:
    return np.asarray(ops.to_numpy(kernel.columns), np.float32).T


@step
def linear(ops: Any, x: Any, kernel: Any, bias: Any = None) -> Any:
    """round(x kernel + bias): [..., in] -> [..., out]."""
    xp = ops.xp
    if not isinstance(kernel, ExactKernel):
        kernel = prepare_kernel(ops, xp.permute_dims(kernel, (1, 0)))
    rows = xp.reshape(x, (1, -1, x.shape[-1]))
    y = products(ops, rows, ExactKernel(*(part[None, ...] for part in kernel)), bias=bias)
    return xp.reshape(y, (*x.shape[:-1], y.shape[-1]))


@step
def products(
    ops: Any, left: Any, right: ExactKernel, scale: float = 1.0, bias: Any = None, outputs: int | None = None
) -> Any:
    """round(scale * left right + bias) for M pairs of matrices: [M, R, in] -> [M, R, out].

    Of longer columns in `right` the first `in` are used, and of more columns the first `outputs`. bias [out] float32.
    """
    xp = ops.xp
    left = wide(ops, left)
    matrices, count, terms = left.shape
    columns = right.columns[:, :outputs, :terms]
    out = columns.shape[1]
    wide_bias, slack = None, None
    if bias is not None:
        wide_bias = ops.cast(bias, xp.float64)
        slack = U * xp.abs(wide_bias)
    # What float64 errs by, in any order of the sum, is at most gamma_n |x| |w| (Higham, Accuracy and Stability of
    # Numerical Algorithms, 2002, section 3.1). |x| |w| is replaced by the product of the Euclidean lengths, which is
    # never smaller. Long sums are cut, and n is then the terms of a part and the number of parts: the share of doubtful
    # elements grows with n, and so does the price of each. One more rounding, by the factor or the bias, is in it.
    part = terms if terms <= 2 * PART else PART
    own = xp.sqrt(xp.sum(left * left, axis=-1, keepdims=True))
    lengths = right.lengths[:, None, :outputs] * (GAMMA * (part + terms // part + 6) * scale)
    y = _stacked(ops, left[..., :part], columns[..., :part])
    for first in range(part, terms, part):
        y += _stacked(ops, left[..., first : first + part], columns[..., first : first + part])

    def estimate(piece: tuple[slice, slice]) -> tuple[Any, Any]:
        some, rows = piece
        value = y[some, rows, :]
        bound = own[some, rows, :] * lengths[some, ...]
        if scale != 1.0:
            value *= scale
        if wide_bias is not None:
            value += wide_bias
            bound += slack
        return value, bound

    def again(indices: Any) -> Any:
        row, column = indices // out, indices % out
        column = row // count * right.columns.shape[1] + column
        stored = xp.reshape(right.columns, (-1, right.columns.shape[2]))
        found = xp.take(xp.reshape(left, (-1, terms)), row, axis=0) * xp.take(stored, column, axis=0)[:, :terms]
        if wide_bias is not None:
            found = xp.concat([found, xp.take(wide_bias, indices % out)[:, None]], axis=-1)
        return sum_again(ops, indices, found, scale)

    several = row_pieces(ops, matrices, count * out)
    pieces = [(some, rows) for some in several for rows in row_pieces(ops, count, out)]
    return settle_pieces(ops, (matrices, count, out), pieces, estimate, again, max(16, ops.piece // terms))


def _stacked(ops: Any, left: Any, columns: Any) -> Any:
    """[M, R, in] times [M, out, in] turned -> [M, R, out]. XLA has a slow way for a stack of one."""
    if left.shape[0] == 1:
        return ops.xp.matmul(left[0, ...], ops.xp.matrix_transpose(columns[0, ...]))[None, ...]
    return ops.xp.matmul(left, ops.xp.matrix_transpose(columns))


def attention(
    ops: Any,
    query: Any,
    key: Any,
    value: Any,
    start: Any,
    scale: float,
    window: int | None = None,
    tap: Any = identity,
    places: Any = None,
) -> Any:
    """Scores, pattern and the mixed values are each rounded; shapes as in `manual.attention`.

    Queries go in blocks, each over the keys that its last query may see, unless somebody looks at scores and pattern,
    which are then computed whole: the bits are the same.
    """
    xp = ops.xp
    batch, heads, queries, size = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    by_key = prepare_kernel(ops, xp.reshape(key, (-1, keys, size)))  # M = B * K matrices
    by_place = prepare_kernel(ops, xp.reshape(xp.matrix_transpose(value), (-1, size, keys)))
    step = queries
    if tap is identity:
        step = max(QUERY_BLOCK, -(-queries // COMPILED_BLOCKS) if ops.compiles else 0)
    blocks = []
    for first in range(0, queries, step):
        count = min(step, queries - first)
        # start + T <= S always holds, so no query of this block sees further, if keys lie in the order of positions
        seen = keys if places is not None else keys - queries + first + count
        rows = xp.reshape(query[:, :, first : first + count, :], (batch * kv_heads, -1, size))
        scores = xp.reshape(products(ops, rows, by_key, scale, outputs=seen), (batch, heads, count, seen))
        own = of_queries(places, first, count)
        visible = visible_keys(ops, start + first, count, seen, window, own)[:, None, ...]
        scores = tap("scores", xp.where(visible, scores, NEGATIVE_INFINITY))
        pattern = tap("pattern", softmax(ops, scores))
        mixed = products(ops, xp.reshape(pattern, (batch * kv_heads, -1, seen)), by_place)
        blocks.append(xp.reshape(mixed, (batch, heads, count, size)))
    return blocks[0] if len(blocks) == 1 else xp.concat(blocks, axis=2)


@step
def rotary(ops: Any, x: Any, cos: Any, sin: Any) -> Any:
    """Products of two float32 are exact in float64, so one sum is rounded, and it as IEEE asks: nothing is doubtful."""
    xp = ops.xp
    half = x.shape[-1] // 2
    x, cos, sin = (ops.cast(array, xp.float64) for array in (x, cos[:, None, ...], sin[:, None, ...]))
    first, second = x[..., :half], x[..., half:]
    turned = xp.concat([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return ops.flush(ops.narrow(turned))


# --- norms, softmax, activations -------------------------------------------------------------------------------------


@step
def layer_norm(ops: Any, x: Any, weight: Any, bias: Any, epsilon: float) -> Any:
    """Shapes as in `manual.layer_norm`; the result alone is rounded."""
    xp = ops.xp
    weight, bias = (ops.cast(array, xp.float64) for array in (weight, bias))
    size = x.shape[-1]

    def estimate(wide: Any) -> tuple[Any, Any]:
        mean = exact_sum(ops, wide)[..., None] / size
        wide -= mean
        deviation = xp.sqrt(xp.sum(wide * wide, axis=-1, keepdims=True) / size + epsilon)
        slope = weight / deviation
        wide *= slope
        # The mean is off by a few U of itself, the sum of squares by size * U of itself, which the root halves; an
        # error of the mean reaches the deviation only squared.
        bound = ((FEW + size / 2) * U) * xp.abs(wide)
        bound += (4.0 * U) * xp.abs(mean * slope)
        wide += bias
        bound += U * xp.abs(wide)
        return wide, bound

    return _row_by_row(ops, x, estimate, rounding.layer_norm, [weight, bias], epsilon)


@step
def rms_norm(ops: Any, x: Any, weight: Any, epsilon: float) -> Any:
    """Shapes as in `manual.rms_norm`; the result alone is rounded."""
    xp = ops.xp
    weight = ops.cast(weight, xp.float64)
    size = x.shape[-1]

    def estimate(wide: Any) -> tuple[Any, Any]:
        y = wide / xp.sqrt(xp.sum(wide * wide, axis=-1, keepdims=True) / size + epsilon) * weight
        return y, ((FEW + size / 2) * U) * xp.abs(y)

    return _row_by_row(ops, x, estimate, rounding.rms_norm, [weight], epsilon)


@step
def softmax(ops: Any, x: Any) -> Any:
    """Over the last axis."""
    xp = ops.xp

    def estimate(wide: Any) -> tuple[Any, Any]:
        wide -= xp.max(wide, axis=-1, keepdims=True)
        y = xp.exp(wide)
        y /= exact_sum(ops, y, 1.0)[..., None]  # no power is above 1
        # exp passes an error of its argument on as a relative one; far below 2^-126 nothing is left of y anyway.
        bound = xp.maximum(wide, -200.0)
        bound -= FEW
        bound *= -U
        bound *= y
        return y, bound

    return _row_by_row(ops, x, estimate, rounding.softmax, [])


def cross_entropy(ops: Any, logits: Any, targets: Any) -> Any:
    """-log softmax(logits)[target], rounded: [..., V], [...] -> [...]."""
    xp = ops.xp
    rows, goals = xp.reshape(logits, (-1, logits.shape[-1])), xp.reshape(targets, (-1,))
    return xp.reshape(_losses(ops, rows, goals), targets.shape)


@step
def _losses(ops: Any, rows: Any, goals: Any) -> Any:
    xp = ops.xp

    def estimate(some: slice) -> tuple[Any, Any]:
        wide = _wide(ops, rows[some, :])
        wide -= xp.max(wide, axis=-1, keepdims=True)
        chosen = xp.take_along_axis(wide, goals[some, None], axis=-1)[..., 0]
        total = xp.log(exact_sum(ops, xp.exp(wide), 1.0))
        y = total - chosen
        # total >= 0 has an absolute error of a few U, because the sum is at least 1.
        return y, (FEW * (1.0 + total) + xp.abs(chosen) + xp.abs(y)) * U

    def again(indices: Any) -> Any:
        taken = (xp.take(rows, indices, axis=0), xp.take(goals, indices))
        return ops.on_host(rounding.cross_entropy, indices, *taken)

    return settle_pieces(ops, goals.shape, row_pieces(ops, *rows.shape), estimate, again, AT_ONCE_ON_HOST)


def _row_by_row(
    ops: Any,
    x: Any,
    estimate: Callable[[Any], tuple[Any, Any]],
    judge: Callable[..., Any],
    columns: list[Any],
    *options: float,
) -> Any:
    """A function of the rows of x [..., D] that is rounded once: [..., D] -> [..., D].

    estimate(rows [n, D] in float64, which it consumes) -> (y, bound) [n, D].
    judge(rows [n, D], places [n], the values of `columns` [D] there, *options) -> values [n], on the host.
    """
    xp = ops.xp
    rows = xp.reshape(x, (-1, x.shape[-1]))
    count, size = rows.shape

    def again(indices: Any) -> Any:
        place = indices % size
        taken = [xp.take(rows, indices // size, axis=0), place, *(xp.take(column, place) for column in columns)]
        return ops.on_host(lambda *arrays: judge(*arrays, *options), indices, *taken)

    def piece(some: slice) -> tuple[Any, Any]:
        return estimate(_wide(ops, rows[some, :]))

    return settle_pieces(ops, x.shape, row_pieces(ops, count, size), piece, again, AT_ONCE_ON_HOST)


def _wide(ops: Any, x: Any) -> Any:
    """A float64 array of one's own."""
    return ops.xp.astype(x, ops.xp.float64, copy=True)


def elementwise(ops: Any, x: Any, estimate: Callable[[Any], tuple[Any, Any]], judge: Callable[..., Any]) -> Any:
    """A function of single elements that is rounded once. estimate(x [n] in float64) -> (y, bound) [n]."""
    flat = ops.xp.reshape(x, (-1,))

    def piece(some: slice) -> tuple[Any, Any]:
        return estimate(_wide(ops, flat[some]))

    def again(indices: Any) -> Any:
        return ops.on_host(judge, indices, ops.xp.take(flat, indices))

    return settle_pieces(ops, x.shape, row_pieces(ops, flat.shape[0], 1), piece, again, AT_ONCE_ON_HOST)


@step
def gelu_tanh(ops: Any, x: Any) -> Any:
    """x / (1 + exp(-2 z)), rounded; see `manual.gelu_tanh`."""
    xp = ops.xp
    slope = -2.0 * math.sqrt(2.0 / math.pi)

    def estimate(x: Any) -> tuple[Any, Any]:
        exponent = x * x
        exponent *= slope * 0.044715
        exponent += slope
        exponent *= x
        exponent = xp.clip(exponent, None, 700.0)
        y = xp.exp(exponent)
        y += 1.0
        y = x / y
        # exp turns the few U of its argument into as many times the argument; near 0 the result does not feel it.
        bound = xp.abs(exponent)
        bound *= 8.0 * U
        bound += FEW * U
        bound *= xp.abs(y)
        return y, bound

    return elementwise(ops, x, estimate, rounding.gelu_tanh)


@step
def gelu_erf(ops: Any, x: Any) -> Any:
    """0.5 x erfc(-x / sqrt 2), rounded. erfc is ours everywhere: its error is known."""
    xp = ops.xp

    def estimate(x: Any) -> tuple[Any, Any]:
        y = 0.5 * x * erfc(xp, x * -math.sqrt(0.5))
        return y, xp.abs(y) * ((2.0 * FEW + 8.0 * xp.clip(x * x, None, 1500.0)) * U)

    return elementwise(ops, x, estimate, rounding.gelu_erf)


@step
def sigmoid(ops: Any, x: Any) -> Any:
    """1 / (1 + exp(-x)), rounded."""
    xp = ops.xp

    def estimate(x: Any) -> tuple[Any, Any]:
        y = 1.0 / (1.0 + xp.exp(xp.clip(-x, None, 700.0)))
        return y, y * (FEW * U)

    return elementwise(ops, x, estimate, rounding.sigmoid)


def logsumexp(ops: Any, x: Any) -> Any:
    """log(sum(exp(x))) over the last axis, rounded: [..., D] -> [...]."""
    rows = ops.xp.reshape(x, (-1, x.shape[-1]))
    return ops.xp.reshape(_logsumexp(ops, rows), tuple(x.shape[:-1]))


@step
def _logsumexp(ops: Any, rows: Any) -> Any:
    xp = ops.xp
    wide = ops.cast(rows, xp.float64)
    largest = xp.max(wide, axis=-1)
    largest = xp.where(xp.isfinite(largest), largest, 0.0)
    with np.errstate(all="ignore"):
        total = xp.log(exact_sum(ops, xp.exp(wide - largest[..., None]), 1.0))
        y = xp.where(xp.max(wide, axis=-1) == math.inf, math.inf, largest + total)
        # total >= 0 has an absolute error of a few U, because the sum is at least 1.
        bound = (FEW * (1.0 + xp.abs(total)) + 2.0 * (xp.abs(largest) + xp.abs(y))) * U

    def again(indices: Any) -> Any:
        return ops.on_host(rounding.logsumexp, indices, xp.take(rows, indices, axis=0))

    return settle(ops, y, bound, again, AT_ONCE_ON_HOST)


@step
def silu(ops: Any, x: Any) -> Any:
    """x / (1 + exp(-x)), rounded."""
    xp = ops.xp

    def estimate(x: Any) -> tuple[Any, Any]:
        y = x / (1.0 + xp.exp(xp.clip(-x, None, 700.0)))
        return y, xp.abs(y) * (FEW * U)

    return elementwise(ops, x, estimate, rounding.silu)
