"""The gradient of every function of the array API standard that a component may use, beside its formula.

In the rules below g is dL/dy, with the shape of y, and every rule gives dL/dx for each input. They are written with the
operators and functions of the values themselves (`xp`), so they hold for NumPy's arrays, exact ones and bounded ones.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from transformer_lab.backends.readings.recorded import Part, Recorded, Tape, plain, record, record_together

RULES: dict[str, Callable[..., Any]] = {}
# Their results are booleans, integers or shapes: constants.
CONSTANT = {
    *("less", "less_equal", "greater", "greater_equal", "equal", "not_equal"),
    *("isfinite", "isnan", "isinf", "signbit", "logical_not", "logical_and", "logical_or"),
    *("argsort", "argmax", "argmin", "count_nonzero", "nonzero", "any", "all", "searchsorted"),
    *("shape", "ndim", "size", "zeros_like", "ones_like", "empty_like", "full_like", "result_type"),
}


def rule(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(handler: Callable[..., Any]) -> Callable[..., Any]:
        RULES.update(dict.fromkeys(names, handler))
        return handler

    return register


# --- arithmetic ------------------------------------------------------------------------------------------------------


@rule("add")
def _add(tape: Tape, a: Any, b: Any) -> Any:
    """y = a + b: dL/da = dL/db = g."""
    return record(plain(a) + plain(b), (a, lambda g: g), (b, lambda g: g))


@rule("subtract")
def _subtract(tape: Tape, a: Any, b: Any) -> Any:
    """y = a - b: dL/da = g, dL/db = -g."""
    return record(plain(a) - plain(b), (a, lambda g: g), (b, lambda g: -g))


@rule("multiply")
def _multiply(tape: Tape, a: Any, b: Any) -> Any:
    """y = a b: dL/da = g b, dL/db = g a."""
    p, q = plain(a), plain(b)
    return record(p * q, (a, lambda g: g * q), (b, lambda g: g * p))


@rule("divide")
def _divide(tape: Tape, a: Any, b: Any) -> Any:
    """y = a / b: dL/da = g / b, dL/db = -g y / b."""
    q = plain(b)
    y = plain(a) / q
    return record(y, (a, lambda g: g / q), (b, lambda g: -g * y / q))


@rule("pow")
def _pow(tape: Tape, a: Any, b: Any) -> Any:
    """y = a^b: dL/da = g b a^(b - 1), dL/db = g y log a."""
    p, q = plain(a), plain(b)
    y = p**q
    return record(y, (a, lambda g: g * (q * p ** (q - 1))), (b, lambda g: g * y * tape.xp.log(p)))


@rule("remainder")
def _remainder(tape: Tape, a: Any, b: Any) -> Any:
    """y = a - b floor(a / b): dL/da = g, dL/db = -g floor(a / b)."""
    p, q = plain(a), plain(b)
    return record(p % q, (a, lambda g: g), (b, lambda g: -g * (p // q)))


@rule("maximum")
def _maximum(tape: Tape, a: Any, b: Any) -> Any:
    """y = max(a, b): g goes to the larger one; to equal ones, half each."""
    xp, p, q = tape.xp, plain(a), plain(b)

    def share(g: Any, larger: Any) -> Any:
        return xp.where(larger, g, xp.where(p == q, 0.5 * g, 0.0))

    return record(xp.maximum(p, q), (a, lambda g: share(g, p > q)), (b, lambda g: share(g, q > p)))


@rule("minimum")
def _minimum(tape: Tape, a: Any, b: Any) -> Any:
    """y = min(a, b) = -max(-a, -b)."""
    return -_maximum(tape, -a, -b)


@rule("negative")
def _negative(tape: Tape, x: Any) -> Any:
    """y = -x: dL/dx = -g."""
    return record(-x.value, (x, lambda g: -g))


@rule("positive")
def _positive(tape: Tape, x: Any) -> Any:
    return x


@rule("abs")
def _abs(tape: Tape, x: Any) -> Any:
    """y = |x|: dL/dx = g sign x."""
    p = x.value
    return record(abs(p), (x, lambda g: g * tape.xp.sign(p)))


@rule("square")
def _square(tape: Tape, x: Any) -> Any:
    """y = x^2: dL/dx = 2 g x."""
    p = x.value
    return record(p * p, (x, lambda g: 2.0 * g * p))


@rule("reciprocal")
def _reciprocal(tape: Tape, x: Any) -> Any:
    """y = 1 / x: dL/dx = -g y^2."""
    y = 1.0 / x.value
    return record(y, (x, lambda g: -g * y * y))


@rule("sqrt")
def _sqrt(tape: Tape, x: Any) -> Any:
    """y = sqrt x: dL/dx = g / (2 y)."""
    y = tape.xp.sqrt(x.value)
    return record(y, (x, lambda g: g / (2.0 * y)))


# --- elementary functions --------------------------------------------------------------------------------------------


@rule("exp")
def _exp(tape: Tape, x: Any) -> Any:
    """y = e^x: dL/dx = g y."""
    y = tape.xp.exp(x.value)
    return record(y, (x, lambda g: g * y))


@rule("expm1")
def _expm1(tape: Tape, x: Any) -> Any:
    """y = e^x - 1: dL/dx = g (y + 1)."""
    y = tape.xp.expm1(x.value)
    return record(y, (x, lambda g: g * (y + 1.0)))


@rule("log")
def _log(tape: Tape, x: Any) -> Any:
    """y = log x: dL/dx = g / x."""
    p = x.value
    return record(tape.xp.log(p), (x, lambda g: g / p))


@rule("log2")
def _log2(tape: Tape, x: Any) -> Any:
    """y = log2 x: dL/dx = g / (x log 2)."""
    p = x.value
    return record(tape.xp.log2(p), (x, lambda g: g / (p * math.log(2.0))))


@rule("log10")
def _log10(tape: Tape, x: Any) -> Any:
    """y = log10 x: dL/dx = g / (x log 10)."""
    p = x.value
    return record(tape.xp.log10(p), (x, lambda g: g / (p * math.log(10.0))))


@rule("log1p")
def _log1p(tape: Tape, x: Any) -> Any:
    """y = log(1 + x): dL/dx = g / (1 + x)."""
    p = x.value
    return record(tape.xp.log1p(p), (x, lambda g: g / (1.0 + p)))


@rule("logaddexp")
def _logaddexp(tape: Tape, a: Any, b: Any) -> Any:
    """y = log(e^a + e^b): dL/da = g e^(a - y), dL/db = g e^(b - y)."""
    xp, p, q = tape.xp, plain(a), plain(b)
    y = xp.logaddexp(p, q)
    return record(y, (a, lambda g: g * xp.exp(p - y)), (b, lambda g: g * xp.exp(q - y)))


@rule("tanh")
def _tanh(tape: Tape, x: Any) -> Any:
    """y = tanh x: dL/dx = g (1 - y^2)."""
    y = tape.xp.tanh(x.value)
    return record(y, (x, lambda g: g * (1.0 - y * y)))


@rule("sin")
def _sin(tape: Tape, x: Any) -> Any:
    """y = sin x: dL/dx = g cos x."""
    p = x.value
    return record(tape.xp.sin(p), (x, lambda g: g * tape.xp.cos(p)))


@rule("cos")
def _cos(tape: Tape, x: Any) -> Any:
    """y = cos x: dL/dx = -g sin x."""
    p = x.value
    return record(tape.xp.cos(p), (x, lambda g: -g * tape.xp.sin(p)))


# --- choices ---------------------------------------------------------------------------------------------------------


@rule("clip")
def _clip(tape: Tape, x: Any, min: Any = None, max: Any = None) -> Any:
    """y = min(max(x, low), high): dL/dx = g inside, 0 where a bound holds x. The bounds are constants."""
    if isinstance(min, Recorded) or isinstance(max, Recorded):
        tape.refuse("clip's bounds")
    xp, p = tape.xp, x.value
    y = xp.astype(xp.clip(p, min, max), p.dtype)

    def to_x(g: Any) -> Any:
        if min is not None:
            g = xp.where(p > min, g, 0.0)
        return g if max is None else xp.where(p < max, g, 0.0)

    return record(y, (x, to_x))


@rule("where")
def _where(tape: Tape, condition: Any, a: Any, b: Any) -> Any:
    """y = a where the condition holds, else b: g goes to the one that was taken."""
    if isinstance(condition, Recorded):
        tape.refuse("a condition that is not of booleans")
    xp = tape.xp
    return record(
        xp.where(condition, plain(a), plain(b)),
        (a, lambda g: xp.where(condition, g, 0.0)),
        (b, lambda g: xp.where(condition, 0.0, g)),
    )


@rule("max")
def _max(tape: Tape, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """y = max x over some axes: g goes to the largest; several equal ones share it."""
    xp, p = tape.xp, x.value

    def to_x(g: Any) -> Any:
        largest = xp.astype(p == xp.max(p, axis=axis, keepdims=True), p.dtype)
        shares = largest / xp.sum(largest, axis=axis, keepdims=True)
        return spread(xp, g, p.shape, axis) * shares

    return record(xp.max(p, axis=axis, keepdims=keepdims), (x, to_x))


@rule("min")
def _min(tape: Tape, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """y = min x = -max(-x)."""
    return -_max(tape, -x, axis=axis, keepdims=keepdims)


@rule("sort")
def _sort(tape: Tape, x: Any, axis: int = -1, descending: bool = False, stable: bool = True, **numpy: Any) -> Any:
    """The sorted values are values of x: g goes where they came from."""
    order = tape.xp.argsort(x.value, axis=axis, descending=descending, stable=True)
    return _take_along_axis(tape, x, order, axis=axis)


# --- sums and products -----------------------------------------------------------------------------------------------


def kept_shape(shape: Sequence[int], axis: Any) -> tuple[int, ...]:
    """The shape of a sum over these axes that are kept with the length 1."""
    axes = range(len(shape)) if axis is None else (axis,) if isinstance(axis, int) else axis
    axes = {place % len(shape) for place in axes}
    return tuple(1 if place in axes else size for place, size in enumerate(shape))


def spread(xp: Any, g: Any, shape: Sequence[int], axis: Any) -> Any:
    """The gradient of a sum: g, for each element that was summed up."""
    return xp.broadcast_to(xp.reshape(g, kept_shape(shape, axis)), tuple(shape))


@rule("sum")
def _sum(tape: Tape, x: Any, axis: Any = None, keepdims: bool = False, dtype: Any = None) -> Any:
    """y = sum x over some axes: dL/dx = g for each of them."""
    xp, shape = tape.xp, x.shape
    _no_dtype(tape, "sum", x, dtype)
    return record(xp.sum(x.value, axis=axis, keepdims=keepdims), (x, lambda g: spread(xp, g, shape, axis)))


@rule("mean")
def _mean(tape: Tape, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """y = sum x / n: dL/dx = g / n."""
    xp, shape = tape.xp, x.shape
    count = math.prod(shape) // max(1, math.prod(kept_shape(shape, axis)))
    y = xp.mean(x.value, axis=axis, keepdims=keepdims)
    return record(y, (x, lambda g: spread(xp, g / count, shape, axis)))


@rule("var")
def _var(tape: Tape, x: Any, axis: Any = None, correction: float = 0.0, keepdims: bool = False) -> Any:
    """y = sum (x - mean)^2 / (n - c): dL/dx = g 2 (x - mean) / (n - c)."""
    xp, p = tape.xp, x.value
    count = math.prod(p.shape) // max(1, math.prod(kept_shape(p.shape, axis)))
    y = xp.var(p, axis=axis, correction=correction, keepdims=keepdims)

    def to_x(g: Any) -> Any:
        centred = p - xp.mean(p, axis=axis, keepdims=True)
        return spread(xp, g * (2.0 / (count - correction)), p.shape, axis) * centred

    return record(y, (x, to_x))


@rule("std")
def _std(tape: Tape, x: Any, axis: Any = None, correction: float = 0.0, keepdims: bool = False) -> Any:
    """The root of `var`."""
    return _sqrt(tape, _var(tape, x, axis=axis, correction=correction, keepdims=keepdims))


@rule("prod")
def _prod(tape: Tape, x: Any, axis: Any = None, keepdims: bool = False, dtype: Any = None) -> Any:
    """y = the product of x over some axes: dL/dx = g times the product of the others, which is 0 beside another 0."""
    xp, p = tape.xp, x.value
    _no_dtype(tape, "prod", x, dtype)

    def to_x(g: Any) -> Any:
        zero = p == 0.0
        factors = xp.where(zero, 1.0, p)
        others = xp.prod(factors, axis=axis, keepdims=True) / factors
        zeros = xp.sum(xp.astype(zero, p.dtype), axis=axis, keepdims=True)
        alone = xp.where(zero, zeros, zeros + 1.0) == 1.0  # no other factor is 0
        return xp.where(alone, spread(xp, g, p.shape, axis) * others, 0.0)

    return record(xp.prod(p, axis=axis, keepdims=keepdims), (x, to_x))


@rule("cumulative_sum")
def _cumulative_sum(tape: Tape, x: Any, axis: Any = None, dtype: Any = None, include_initial: bool = False) -> Any:
    """y[i] = x[0] + ... + x[i]: x[i] is in y[i] and all that follow, so dL/dx[i] = g[i] + g[i + 1] + ..."""
    xp = tape.xp
    _no_dtype(tape, "cumulative_sum", x, dtype)
    if include_initial:
        tape.refuse("cumulative_sum with include_initial")
    if axis is None:
        x, axis = _reshape(tape, x, (-1,)), 0

    def to_x(g: Any) -> Any:
        return xp.flip(xp.cumulative_sum(xp.flip(g, axis=axis), axis=axis), axis=axis)

    return record(xp.cumulative_sum(x.value, axis=axis), (x, to_x))


@rule("matmul")
def _matmul(tape: Tape, a: Any, b: Any) -> Any:
    """y = a b, for the matrices in the last two axes: dL/da = g b^T, dL/db = a^T g."""
    xp = tape.xp
    if b.ndim == 1:
        return _matmul(tape, a, b[:, None])[..., 0]
    if a.ndim == 1:
        return _matmul(tape, a[None, :], b)[..., 0, :]
    p, q = plain(a), plain(b)
    return record(
        xp.matmul(p, q),
        (a, lambda g: xp.matmul(g, xp.matrix_transpose(q))),
        (b, lambda g: xp.matmul(xp.matrix_transpose(p), g)),
    )


def _no_dtype(tape: Tape, name: str, x: Any, dtype: Any) -> None:
    if dtype is not None and dtype != x.dtype:
        tape.refuse(f"{name} in another dtype")


# --- places: where numbers come from ---------------------------------------------------------------------------------


@rule("getitem")
def _getitem(tape: Tape, x: Any, index: Any) -> Any:
    """y = x[index]: g goes to these places."""
    if not isinstance(x, Recorded) or any(isinstance(item, Recorded) for item in index):
        tape.refuse("an index that is not of integers or booleans")
    return record(x.value[index], (x, lambda g: Part(index, g)))


@rule("take")
def _take(tape: Tape, x: Any, indices: Any, axis: Any = None) -> Any:
    """y = x[indices] along an axis: g goes to these places, and is summed where one was taken twice."""
    if isinstance(indices, Recorded):
        tape.refuse("an index that is not of integers")
    if axis is None:
        x, axis = _reshape(tape, x, (-1,)), 0
    index = (*(slice(None) for _ in range(axis % x.ndim)), indices)
    return record(tape.xp.take(x.value, indices, axis=axis), (x, lambda g: Part(index, g)))


@rule("take_along_axis")
def _take_along_axis(tape: Tape, x: Any, indices: Any, axis: int = -1) -> Any:
    """y[..., i, ...] = x[..., indices[..., i, ...], ...]: g goes to these places."""
    if isinstance(indices, Recorded):
        tape.refuse("an index that is not of integers")
    y = tape.xp.take_along_axis(x.value, indices, axis=axis)
    return record(y, (x, lambda g: Part(indices, g, along=axis % x.ndim)))


# --- functions that only move numbers: g moves back ------------------------------------------------------------------


@rule("astype")
def _astype(tape: Tape, x: Any, dtype: Any, copy: bool = True, **numpy: Any) -> Any:
    """y = x in another precision: dL/dx = g, which is cast back when it is received."""
    if dtype == x.dtype:
        return x
    value = tape.xp.astype(x.value, dtype)
    floating = value.dtype in (getattr(tape.xp, name) for name in ("float32", "float64"))
    return record(value, (x, lambda g: g)) if floating else value


@rule("reshape")
def _reshape(tape: Tape, x: Any, shape: Any, order: str = "C", copy: Any = None) -> Any:
    old = tuple(x.shape)
    if order != "C":
        tape.refuse("reshape in another order than C")
    return record(tape.xp.reshape(x.value, shape), (x, lambda g: tape.xp.reshape(g, old)))


@rule("permute_dims")
def _permute_dims(tape: Tape, x: Any, axes: Any = None) -> Any:
    axes = tuple(axis % x.ndim for axis in axes) if axes is not None else tuple(reversed(range(x.ndim)))
    back = tuple(axes.index(axis) for axis in range(x.ndim))
    return record(tape.xp.permute_dims(x.value, axes), (x, lambda g: tape.xp.permute_dims(g, back)))


@rule("matrix_transpose")
def _matrix_transpose(tape: Tape, x: Any) -> Any:
    return record(tape.xp.matrix_transpose(x.value), (x, tape.xp.matrix_transpose))


@rule("swapaxes")
def _swapaxes(tape: Tape, x: Any, first: int, second: int) -> Any:
    order = list(range(x.ndim))
    order[first], order[second] = order[second], order[first]
    return _permute_dims(tape, x, order)


@rule("moveaxis")
def _moveaxis(tape: Tape, x: Any, source: Any, destination: Any) -> Any:
    xp = tape.xp
    return record(xp.moveaxis(x.value, source, destination), (x, lambda g: xp.moveaxis(g, destination, source)))


@rule("flip")
def _flip(tape: Tape, x: Any, axis: Any = None) -> Any:
    return record(tape.xp.flip(x.value, axis=axis), (x, lambda g: tape.xp.flip(g, axis=axis)))


@rule("roll")
def _roll(tape: Tape, x: Any, shift: Any, axis: Any = None) -> Any:
    back = -shift if isinstance(shift, int) else tuple(-n for n in shift)
    return record(tape.xp.roll(x.value, shift, axis=axis), (x, lambda g: tape.xp.roll(g, back, axis=axis)))


@rule("squeeze")
def _squeeze(tape: Tape, x: Any, axis: Any = None) -> Any:
    return _reshape(tape, x, tape.xp.squeeze(x.value, axis).shape)


@rule("expand_dims")
def _expand_dims(tape: Tape, x: Any, axis: Any = 0) -> Any:
    return _reshape(tape, x, tape.xp.expand_dims(x.value, axis=axis).shape)


@rule("broadcast_to")
def _broadcast_to(tape: Tape, x: Any, shape: Any) -> Any:
    """x is repeated; `receive` sums the gradients of its copies."""
    return record(tape.xp.broadcast_to(x.value, shape), (x, lambda g: g))


@rule("repeat")
def _repeat(tape: Tape, x: Any, repeats: int, axis: Any = None) -> Any:
    """Each element `repeats` times: a new axis, repeated, and joined with the one before it."""
    if not isinstance(repeats, int):
        tape.refuse("repeat with another number for each element")
    if axis is None:
        x, axis = _reshape(tape, x, (-1,)), 0
    axis %= x.ndim
    before, after = tuple(x.shape[: axis + 1]), tuple(x.shape[axis + 1 :])
    copies = _broadcast_to(tape, _reshape(tape, x, (*before, 1, *after)), (*before, repeats, *after))
    return _reshape(tape, copies, (*before[:-1], before[-1] * repeats, *after))


@rule("tril")
def _tril(tape: Tape, x: Any, k: int = 0) -> Any:
    return record(tape.xp.tril(x.value, k=k), (x, lambda g: tape.xp.tril(g, k=k)))


@rule("triu")
def _triu(tape: Tape, x: Any, k: int = 0) -> Any:
    return record(tape.xp.triu(x.value, k=k), (x, lambda g: tape.xp.triu(g, k=k)))


@rule("concat")
def _concat(tape: Tape, arrays: Sequence[Any], axis: Any = 0) -> Any:
    """The arrays one behind the other: each gets its piece of g."""
    if axis is None:
        flat = [_reshape(tape, x, (-1,)) if isinstance(x, Recorded) else tape.xp.reshape(x, (-1,)) for x in arrays]
        return _concat(tape, flat)
    value = tape.xp.concat([plain(x) for x in arrays], axis=axis)
    pieces, first = [], 0
    for x in arrays:
        last = first + x.shape[axis]
        pieces.append((*(slice(None) for _ in range(axis % value.ndim)), slice(first, last)))
        first = last
    return record_together(value, arrays, lambda g: [g[piece] for piece in pieces])


@rule("stack")
def _stack(tape: Tape, arrays: Sequence[Any], axis: int = 0) -> Any:
    value = tape.xp.stack([plain(x) for x in arrays], axis=axis)
    before = (slice(None),) * (axis % value.ndim)
    return record_together(value, arrays, lambda g: [g[(*before, place)] for place in range(len(arrays))])


@rule("unstack")
def _unstack(tape: Tape, x: Any, axis: int = 0) -> Any:
    before = (slice(None),) * (axis % x.ndim)
    return tuple(_getitem(tape, x, (*before, place)) for place in range(x.shape[axis]))
