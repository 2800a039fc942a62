"""`ops.xp` in exact mode: functions of the array API standard, each correctly rounded to float32, or refused by name.

Everything here works on the framework's own arrays, float32 in and float32 out; `reading.py` wraps them. Four kinds:

- nothing is rounded: shapes, indexing, comparisons, selection, sorting (ties to the lower index);
- IEEE 754 fixes the result: + - * / and the square root. XLA takes liberties with the last two in float32, and so does
  torch with the root, so there they are computed in float64 and rounded once. That is the correctly rounded
  float32: 53 bits are more than 2 * 24 + 1 (Figueroa, ACM SIGNUM Newsletter 30, 1995), and a quotient or a root of
  float32 keeps a distance of 2^-51 from the middle of two float32, more than a division off by two units can bridge;
- sums and products: float64 with a bound, and an exact second look at what it leaves in doubt;
- elementary functions: from the exponential and the logarithm in float64, with a bound, and decimal arithmetic.

Results that are rounded to less than 2^-126 are 0, and -0 is 0. A Python number counts as the float32 nearest to it.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from transformer_lab.backends.plain.error_function import erfc as _erfc
from transformer_lab.backends.readings.exact import operations as exact
from transformer_lab.backends.readings.exact import rounding
from transformer_lab.backends.readings.exact.operations import FEW, U, step

FUNCTIONS: dict[str, Callable[..., Any]] = {}
# Nothing is rounded by these: the framework's own serve.
UNCHANGED = (
    *("reshape", "permute_dims", "matrix_transpose", "moveaxis", "flip", "roll", "squeeze", "broadcast_to"),
    *("repeat", "tile", "tril", "triu", "stack", "unstack", "take", "take_along_axis"),
    *("isfinite", "isnan", "isinf"),
    *("logical_not", "logical_and", "logical_or", "any", "all", "count_nonzero", "nonzero"),
    *("abs", "sign", "floor", "max", "min", "argmax", "argmin"),
    *("zeros_like", "ones_like", "empty_like"),
)
# Floats, also of numbers and integers alone.
ALWAYS_FLOATS = {"exp", "expm1", "log", "log2", "log10", "log1p", "tanh", "sin", "cos", "sqrt", "reciprocal", "divide"}
ALWAYS_FLOATS |= {"mean", "var", "std", "logaddexp"}
WIDE = 256.0 * U  # elementary functions stay well within; one element in a million is then in doubt
SMALL = 0.125  # below it a series is summed, because 1 + x would lose what matters
TERMS = 12


def function(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(run: Callable[..., Any]) -> Callable[..., Any]:
        FUNCTIONS.update(dict.fromkeys(names, run))
        return run

    return register


def _unchanged(name: str) -> Callable[..., Any]:
    return lambda ops, *arguments, **options: getattr(ops.xp, name)(*arguments, **options)


FUNCTIONS.update({name: _unchanged(name) for name in UNCHANGED})


def operand(ops: Any, x: Any) -> Any:
    """A float32 array, or the number that is the float32 nearest to a Python number; integers become float32."""
    if isinstance(x, (bool, int, float, np.generic)):
        with np.errstate(over="ignore"):
            number = float(np.float32(x))
        return 0.0 if abs(number) < exact.SMALLEST_NORMAL else number
    return x if x.dtype == ops.xp.float32 else ops.cast(x, ops.xp.float32)


def same_shape(ops: Any, *operands: Any) -> list[Any]:
    """The operands as float32 arrays of one shape."""
    arrays = [ops.asarray(np.float32(x), ops.xp.float32) if isinstance(x, float) else x for x in operands]
    shape = np.broadcast_shapes(*(tuple(x.shape) for x in arrays))
    return [ops.xp.broadcast_to(x, shape) for x in arrays]


# --- arithmetic ------------------------------------------------------------------------------------------------------


def _arithmetic(run: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    @step
    def rounded(ops: Any, a: Any, b: Any) -> Any:
        a, b = operand(ops, a), operand(ops, b)
        if ops.rounds_arithmetic:  # of two arrays: torch makes number / x a product with the reciprocal of x
            a, b = (ops.asarray(np.float32(x), ops.xp.float32) if isinstance(x, float) else x for x in (a, b))
            return ops.flush(run(a, b))
        a, b = (x if isinstance(x, float) else ops.cast(x, ops.xp.float64) for x in (a, b))
        return ops.flush(ops.narrow(run(a, b)))

    return rounded


add = function("add")(_arithmetic(lambda a, b: a + b))
subtract = function("subtract")(_arithmetic(lambda a, b: a - b))
multiply = function("multiply")(_arithmetic(lambda a, b: a * b))
divide = function("divide")(_arithmetic(lambda a, b: a / b))
FUNCTIONS["square"] = lambda ops, x: multiply(ops, x, x)
FUNCTIONS["reciprocal"] = lambda ops, x: divide(ops, 1.0, x)


@function("positive")
def positive(ops: Any, x: Any) -> Any:
    return x


@function("negative")
@step
def negative(ops: Any, x: Any) -> Any:
    return ops.flush(-x)


for _name in ("ceil", "trunc", "round"):
    FUNCTIONS[_name] = partial(lambda ops, x, name: ops.flush(getattr(ops.xp, name)(x) + 0.0), name=_name)


@function("sqrt")
@step
def sqrt(ops: Any, x: Any) -> Any:
    return ops.flush(ops.narrow(ops.xp.sqrt(ops.cast(*same_shape(ops, operand(ops, x)), ops.xp.float64))))


@function("remainder")
@step
def remainder(ops: Any, a: Any, b: Any) -> Any:
    """a - b floor(a / b): the exact rest, with the sign of a, and once rounded where b is added to it."""
    xp = ops.xp
    a, b = (ops.cast(x, xp.float64) for x in same_shape(ops, operand(ops, a), operand(ops, b)))
    return ops.flush(ops.narrow(xp.remainder(a, b)))


@function("floor_divide")
@step
def floor_divide(ops: Any, a: Any, b: Any) -> Any:
    """round(floor(a / b))."""
    xp = ops.xp
    a, b = same_shape(ops, operand(ops, a), operand(ops, b))
    flat = [xp.reshape(x, (-1,)) for x in (a, b)]
    y = xp.floor(ops.cast(a, xp.float64) / ops.cast(b, xp.float64))
    # A smaller quotient that is no whole number is farther from one than its rounding could move it.
    size = xp.abs(y)
    bound = xp.where(xp.logical_and(size > 2.0**24, xp.isfinite(y)), 2.0 + 8.0 * U * size, 0.0)

    def again(indices: Any) -> Any:
        return ops.on_host(rounding.quotient_floor, indices, *(xp.take(x, indices) for x in flat))

    return exact.settle(ops, y, bound, again, exact.AT_ONCE_ON_HOST)


def _compared(name: str) -> Callable[..., Any]:
    """Numbers and integers are compared as float32, which is what is computed with."""
    return lambda ops, a, b: getattr(ops.xp, name)(*same_shape(ops, operand(ops, a), operand(ops, b)))


for _name in ("less", "less_equal", "greater", "greater_equal", "equal", "not_equal"):
    FUNCTIONS[_name] = _compared(_name)


@function("full_like")
def full_like(ops: Any, x: Any, fill_value: Any, **options: Any) -> Any:
    return ops.xp.full_like(x, operand(ops, fill_value), **options)


@function("maximum")
def maximum(ops: Any, a: Any, b: Any) -> Any:
    return ops.xp.maximum(*same_shape(ops, operand(ops, a), operand(ops, b)))


@function("minimum")
def minimum(ops: Any, a: Any, b: Any) -> Any:
    return ops.xp.minimum(*same_shape(ops, operand(ops, a), operand(ops, b)))


@function("clip")
def clip(ops: Any, x: Any, min: Any = None, max: Any = None) -> Any:
    if min is not None:
        x = maximum(ops, x, min)
    return x if max is None else minimum(ops, x, max)


@function("where")
def where(ops: Any, condition: Any, a: Any, b: Any) -> Any:
    a, b = (operand(ops, x) for x in (a, b))
    if isinstance(a, float) and isinstance(b, float):
        a = ops.asarray(np.float32(a), ops.xp.float32)
    return ops.xp.where(condition, a, b)


@function("concat")
def concat(ops: Any, arrays: Sequence[Any], axis: Any = 0) -> Any:
    return ops.xp.concat([operand(ops, x) for x in arrays], axis=axis)


@function("expand_dims")
def expand_dims(ops: Any, x: Any, axis: int = 0) -> Any:
    return ops.xp.expand_dims(x, axis=axis)


@function("argsort")
def argsort(ops: Any, x: Any, axis: int = -1, descending: bool = False, stable: bool = True) -> Any:
    """Ties to the lower index, whichever way."""
    return ops.xp.argsort(-x if descending else x, axis=axis, stable=True)


@function("sort")
def sort(ops: Any, x: Any, axis: int = -1, descending: bool = False, stable: bool = True) -> Any:
    return ops.xp.take_along_axis(x, argsort(ops, x, axis, descending), axis=axis)


# --- elementary functions --------------------------------------------------------------------------------------------


def _series(x: Any, coefficients: Sequence[float]) -> Any:
    """c0 + c1 x + c2 x^2 + ..., by Horner's rule."""
    total = coefficients[-1] + 0.0 * x
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total


_EXPM1 = [1.0 / math.factorial(n + 1) for n in range(TERMS)]  # (e^x - 1) / x
_ATANH = [1.0 / (2 * n + 1) for n in range(TERMS)]  # atanh(s) / s, in s^2
# tanh(x) / x, in x^2: 2^(2n) (2^(2n) - 1) B_2n / (2n)!
_TANH = [
    *(1.0, -1 / 3, 2 / 15, -17 / 315, 62 / 2835, -1382 / 155925, 21844 / 6081075, -929569 / 638512875),
    *(6404582 / 10854718875, -443861162 / 1856156927625),
]


def _log1p_small(x: Any) -> Any:
    """log(1 + x) = 2 atanh(x / (2 + x)), for |x| up to SMALL."""
    s = x / (2.0 + x)
    return 2.0 * s * _series(s * s, _ATANH)


def _expm1_small(x: Any) -> Any:
    return x * _series(x, _EXPM1)


def _inside(xp: Any, x: Any) -> Any:
    """x, cut to where a series holds: what lies outside is not taken from it."""
    return xp.clip(x, -SMALL, SMALL)


def _exp(xp: Any, x: Any) -> Any:
    return xp.exp(x)


def _expm1(xp: Any, x: Any) -> Any:
    return xp.where(xp.abs(x) < SMALL, _expm1_small(_inside(xp, x)), xp.exp(x) - 1.0)


def _log(xp: Any, x: Any) -> Any:
    return xp.where(xp.abs(x - 1.0) < SMALL, _log1p_small(_inside(xp, x - 1.0)), xp.log(x))


def _log1p(xp: Any, x: Any) -> Any:
    return xp.where(xp.abs(x) < SMALL, _log1p_small(_inside(xp, x)), xp.log(1.0 + x))


def _tanh(xp: Any, x: Any) -> Any:
    small = _inside(xp, x)
    size = xp.abs(x)
    power = xp.exp(-2.0 * size)
    return xp.where(size < SMALL, small * _series(small * small, _TANH), xp.sign(x) * ((1.0 - power) / (1.0 + power)))


ELEMENTARY = {"exp": _exp, "expm1": _expm1, "log": _log, "log1p": _log1p, "tanh": _tanh}
ELEMENTARY |= {"sin": lambda xp, x: xp.sin(x), "cos": lambda xp, x: xp.cos(x)}
ELEMENTARY |= {"log2": lambda xp, x: _log(xp, x) / math.log(2.0), "log10": lambda xp, x: _log(xp, x) / math.log(10.0)}


def _elementary(name: str) -> Callable[..., Any]:
    formula, judge = ELEMENTARY[name], getattr(rounding, name)

    @step
    def rounded(ops: Any, x: Any) -> Any:
        def estimate(x: Any) -> tuple[Any, Any]:
            y = formula(ops.xp, x)
            # sine and cosine are known to a unit of their argument's reduction, next to their zeros
            floor = 2.0**-90 * ops.xp.abs(x) if name in ("sin", "cos") else 0.0
            return y, WIDE * ops.xp.abs(y) + floor

        (x,) = same_shape(ops, operand(ops, x))
        return exact.elementwise(ops, x, estimate, judge)

    return rounded


FUNCTIONS.update({name: _elementary(name) for name in ELEMENTARY})


@function("erfc")
@step
def erfc(ops: Any, x: Any) -> Any:
    def estimate(x: Any) -> tuple[Any, Any]:
        x = ops.xp.clip(x, -30.0, 30.0)  # beyond, float32 has 0 and 2
        y = _erfc(ops.xp, x)
        return y, ops.xp.abs(y) * ((2.0 * FEW + 8.0 * ops.xp.clip(x * x, None, 1500.0)) * U)

    return exact.elementwise(ops, operand(ops, x), estimate, rounding.erfc)


@function("pow")
@step
def pow(ops: Any, a: Any, b: Any) -> Any:
    """a^b. A whole power up to 2 is a product; others have a bound that grows with |b log a|."""
    if isinstance(b, (int, float)) and float(b) in (1.0, 2.0):
        return multiply(ops, a, a if b == 2 else 1.0)
    xp = ops.xp
    pair = same_shape(ops, operand(ops, a), operand(ops, b))
    flat = [xp.reshape(x, (-1,)) for x in pair]

    def estimate(some: slice) -> tuple[Any, Any]:
        base, power = (ops.cast(x[some], xp.float64) for x in flat)
        y = base**power
        size = xp.abs(base)
        turns = xp.abs(power * xp.log(xp.where(size > 0.0, size, 1.0)))
        bound = WIDE * (1.0 + turns) * xp.abs(y)
        return y, xp.where(xp.isfinite(bound), bound, 0.0)

    def again(indices: Any) -> Any:
        return ops.on_host(rounding.power, indices, *(xp.take(x, indices) for x in flat))

    pieces = exact.row_pieces(ops, flat[0].shape[0], 1)
    return exact.settle_pieces(ops, tuple(pair[0].shape), pieces, estimate, again, exact.AT_ONCE_ON_HOST)


@function("logaddexp")
def logaddexp(ops: Any, a: Any, b: Any) -> Any:
    pair = same_shape(ops, operand(ops, a), operand(ops, b))
    return exact.logsumexp(ops, ops.xp.stack(pair, axis=-1))


# --- sums and products -----------------------------------------------------------------------------------------------


@step
def rounded_sum(ops: Any, terms: Any) -> Any:
    """round(sum over the last axis): terms [..., n], float64, each exact -> [...], in whatever order they stand."""
    xp = ops.xp
    count = terms.shape[-1]
    rows = xp.reshape(exact.wide(ops, terms), (-1, count))
    y = xp.sum(rows, axis=-1)
    bound = xp.sum(xp.abs(rows), axis=-1) * (1.01 * count * exact.U)  # Higham 2002, section 4.2
    found = exact.settle(ops, y, bound, lambda indices: exact.sum_again(ops, indices, xp.take(rows, indices, axis=0)))
    return xp.reshape(found, terms.shape[:-1])


def rows_of(ops: Any, x: Any, axis: Any) -> tuple[Any, tuple[int, ...], tuple[int, ...]]:
    """x with the axes that are summed up joined in the last: ([R, n], shape without these axes, shape with 1 there)."""
    axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    summed = sorted({place % x.ndim for place in axes}) if x.ndim else []
    rest = [place for place in range(x.ndim) if place not in summed]
    shape = tuple(x.shape[place] for place in rest)
    kept = tuple(1 if place in summed else size for place, size in enumerate(x.shape))
    count = math.prod(x.shape[place] for place in summed)
    return ops.xp.reshape(ops.xp.permute_dims(x, (*rest, *summed)), (-1, count)), shape, kept


def _over_axes(run: Callable[..., Any]) -> Callable[..., Any]:
    """A function of rows [R, n] -> [R], over any axes."""

    def rounded(ops: Any, x: Any, axis: Any = None, keepdims: bool = False, dtype: Any = None, **options: Any) -> Any:
        if dtype is not None and dtype != ops.xp.float32:
            exact.refuse(f"{run.__name__} in another dtype than float32", "leave out dtype")
        rows, shape, kept = rows_of(ops, x, axis)
        return ops.xp.reshape(run(ops, rows, **options), kept if keepdims else shape)

    return rounded


def _settled_rows(ops: Any, rows: Any, y: Any, bound: Any, judge: Callable[..., Any], **options: Any) -> Any:
    def again(indices: Any) -> Any:
        taken = ops.xp.take(rows, indices, axis=0)
        return ops.on_host(partial(judge, **options), indices, taken)

    return exact.settle(ops, y, bound, again, exact.AT_ONCE_ON_HOST)


@function("sum")
@_over_axes
def sum(ops: Any, rows: Any) -> Any:
    return rounded_sum(ops, ops.cast(rows, ops.xp.float64))


@function("mean")
@_over_axes
@step
def mean(ops: Any, rows: Any) -> Any:
    xp, count = ops.xp, rows.shape[-1]
    wide = ops.cast(rows, xp.float64)
    y = xp.sum(wide, axis=-1) / count
    bound = xp.sum(xp.abs(wide), axis=-1) * (1.01 * (count + 4) * U / count)
    return _settled_rows(ops, rows, y, bound, rounding.mean)


@function("var")
@_over_axes
@step
def var(ops: Any, rows: Any, correction: float = 0.0) -> Any:
    xp, count = ops.xp, rows.shape[-1]
    wide = ops.cast(rows, xp.float64)
    centre = exact.exact_sum(ops, wide) / count
    centred = wide - centre[..., None]
    y = xp.sum(centred * centred, axis=-1) / (count - correction)
    # The squares cost count U of their sum; an error of the mean comes in by its square alone.
    bound = (count + FEW) * U * y + (8.0 * U * centre) ** 2 * (count / (count - correction))
    return _settled_rows(ops, rows, y, bound, rounding.variance, correction=correction)


@function("std")
def std(ops: Any, x: Any, axis: Any = None, correction: float = 0.0, keepdims: bool = False) -> Any:
    """The correctly rounded root of the correctly rounded variance: two roundings, the same everywhere."""
    return sqrt(ops, FUNCTIONS["var"](ops, x, axis=axis, correction=correction, keepdims=keepdims))


@function("prod")
@_over_axes
@step
def prod(ops: Any, rows: Any) -> Any:
    xp, count = ops.xp, rows.shape[-1]
    wide = ops.cast(rows, xp.float64)
    y, size = xp.prod(wide, axis=-1), xp.abs(wide)
    # Where float64 itself could run over or under on the way, in some order, everything is in doubt.
    largest, smallest = (xp.prod(part, axis=-1) for part in (xp.clip(size, 1.0, None), xp.clip(size, None, 1.0)))
    safe = xp.logical_and(largest < 1e250, smallest > 1e-250)
    bound = xp.where(safe, 1.01 * count * U * xp.abs(y), math.inf)
    # 0, the infinities and NaN decide alone; of the others only the sign counts then.
    alone = xp.logical_or(rows == 0.0, xp.logical_not(xp.isfinite(rows)))
    signs = xp.prod(xp.where(alone, wide, xp.sign(wide)), axis=-1)
    plain = xp.any(alone, axis=-1)
    y = xp.where(plain, signs, xp.where(safe, y, 0.0))
    return _settled_rows(ops, rows, y, xp.where(plain, 0.0, bound), rounding.product)


@function("cumulative_sum")
def cumulative_sum(ops: Any, x: Any, axis: Any = None, dtype: Any = None, include_initial: bool = False) -> Any:
    """Each of the sums is rounded once."""
    if include_initial or (dtype is not None and dtype != ops.xp.float32):
        exact.refuse("cumulative_sum with include_initial or another dtype", "prepend a 0 with concat")
    xp = ops.xp
    axis = x.ndim - 1 if axis is None else axis % x.ndim
    moved = xp.moveaxis(x, axis, -1)
    found = _cumulated(ops, xp.reshape(moved, (-1, moved.shape[-1])))
    return xp.moveaxis(xp.reshape(found, tuple(moved.shape)), -1, axis)


@step
def _cumulated(ops: Any, rows: Any) -> Any:
    xp, count = ops.xp, rows.shape[-1]
    wide = ops.cast(rows, xp.float64)
    y = xp.cumulative_sum(wide, axis=-1)
    bound = xp.cumulative_sum(xp.abs(wide), axis=-1) * (1.01 * count * U)

    def again(indices: Any) -> Any:
        return ops.on_host(rounding.prefix, indices, xp.take(rows, indices // count, axis=0), indices % count)

    return exact.settle(ops, y, bound, again, exact.AT_ONCE_ON_HOST)


@function("matmul")
def matmul(ops: Any, a: Any, b: Any) -> Any:
    """Matrices in the last two axes, the others broadcast; a vector is a row on the left and a column on the right."""
    xp = ops.xp
    if a.ndim == 1:
        return matmul(ops, a[None, ...], b)[..., 0, :] if b.ndim > 1 else matmul(ops, a[None, ...], b[:, None])[0, 0]
    if b.ndim == 1:
        return matmul(ops, a, b[:, None])[..., 0]
    if b.ndim == 2:  # one matrix on the right, whatever the batch
        left = xp.reshape(a, (1, -1, a.shape[-1]))
        found = exact.products(ops, left, exact.prepare_kernel(ops, xp.matrix_transpose(b)[None, ...]))
        return xp.reshape(found, (*a.shape[:-1], b.shape[-1]))
    batch = np.broadcast_shapes(tuple(a.shape[:-2]), tuple(b.shape[:-2]))
    left = xp.reshape(xp.broadcast_to(a, (*batch, *a.shape[-2:])), (-1, *a.shape[-2:]))
    right = xp.reshape(xp.broadcast_to(b, (*batch, *b.shape[-2:])), (-1, *b.shape[-2:]))
    found = exact.products(ops, left, exact.prepare_kernel(ops, xp.matrix_transpose(right)))
    return xp.reshape(found, (*batch, a.shape[-2], b.shape[-1]))


# --- places ----------------------------------------------------------------------------------------------------------


def scattered(ops: Any, part: Any, shape: tuple[int, ...]) -> Any:
    """Zeros of `shape` with a `Part` of a gradient in its place: what comes to one place twice is summed, and rounded
    once."""
    xp, index, g = ops.xp, part.index, part.gradient
    if part.along is not None:
        # g[..., i] goes to index[..., i]: for each place the sum over the i that point to it.
        axis = part.along
        there, values = xp.moveaxis(index, axis, -1), xp.moveaxis(g, axis, -1)
        places = xp.arange(shape[axis], dtype=there.dtype, device=ops.array_device)
        terms = xp.where(there[..., None, :] == places[:, None], values[..., None, :], 0.0)
        return xp.moveaxis(FUNCTIONS["sum"](ops, terms, axis=-1), -1, axis)
    if all(item is None or item is Ellipsis or isinstance(item, (int, slice)) for item in index):
        return ops.put(ops.zeros(shape), index, g)
    axis = len(index) - 1
    if any(item != slice(None) for item in index[:-1]) or index[-1].dtype == xp.bool:
        exact.refuse("the gradient of an index of booleans or of several arrays", "take or take_along_axis")
    ids = index[-1]
    rows = xp.reshape(g, (*shape[:axis], -1, *shape[axis + 1 :]))
    rows = xp.reshape(xp.moveaxis(rows, axis, 0), (math.prod(ids.shape), -1))
    summed = add_rows(ops, shape[axis], xp.reshape(ids, (-1,)), rows)
    return xp.moveaxis(xp.reshape(summed, (shape[axis], *shape[:axis], *shape[axis + 1 :])), 0, axis)


def add_rows(ops: Any, count: int, ids: Any, rows: Any) -> Any:
    """[count, D]: in row v the sum of the rows [n, D] whose id [n] is v, rounded once.

    The sums are a product with the matrix that says which rows have the same id [n, n], so that each has a bound and a
    second look; adding one row after the other would have an order.
    """
    xp = ops.xp
    ids = xp.where(ids < 0, ids + count, ids)
    same = ids[:, None] == ids[None, :]
    sums = exact.linear(ops, ops.cast(same, xp.float32), rows)
    places = xp.arange(ids.shape[0], device=ops.array_device)
    repeated = xp.any(xp.logical_and(same, places[None, :] < places[:, None]), axis=1)[:, None]
    return ops.scatter_add(ops.zeros((count, rows.shape[1])), ids, xp.where(repeated, 0.0, sums))
