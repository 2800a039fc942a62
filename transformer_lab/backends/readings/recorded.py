"""Reverse-mode differentiation by hand: an array that remembers how it was computed, and a gradient for each function.

The forward computation runs as it always does, on NumPy, but on `Recorded` arrays. Each function of them writes one
step on a tape: which values it used, and how the gradient of its result becomes the gradients of these. Read
backwards, the tape applies the chain rule (Wengert 1964; Linnainmaa 1970; a survey: Baydin et al. 2018,
arXiv 1502.05767): with L the number at the end, and g = dL/dy for a step y = f(x), the input gets dL/dx = g df/dx.

In the rules below `g` is always that: dL/dy, with the shape of y. Gradients of whole operations (attention, norms) are
in gradients.py. This file knows neither models nor the backend. What has no rule raises: nothing is ever taken for a
constant in silence. Booleans and integers are constants, because they have no gradient.
"""

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple, NoReturn

import numpy as np

from transformer_lab.errors import ConfigurationError

Gradient = Callable[[Any], Any]


class Part(NamedTuple):
    """A gradient that is zero but at x[index], where it is `gradient`; indices that repeat are summed."""

    index: Any
    gradient: Any


class Slot:
    """Where the gradient of one value is collected. It does not hold the value, which may be forgotten before."""

    __slots__ = ("dtype", "gradient", "owned", "shape")

    def __init__(self, value: Any) -> None:
        self.shape: tuple[int, ...] = value.shape
        self.dtype: Any = value.dtype
        self.gradient: Any = None
        self.owned = False  # whether the array is this slot's alone, so that it may be written

    def receive(self, gradient: Any) -> None:
        """Adds a gradient: a value that was used twice has two, and the chain rule wants their sum.

        Broadcasting and casts are undone here, once, for all rules.
        """
        if isinstance(gradient, Part):
            self.receive_part(*gradient)
            return
        gradient = undo_broadcasting(gradient, self.shape)
        if gradient.dtype != self.dtype:
            gradient = gradient.astype(self.dtype)
        if self.gradient is None:
            self.gradient = gradient  # perhaps somebody else's too: y = a + b gives one array to both
        elif self.owned:
            self.gradient += gradient
        else:
            self.gradient, self.owned = self.gradient + gradient, True

    def receive_part(self, index: Any, gradient: Any) -> None:
        if self.gradient is None:
            self.gradient = np.zeros(self.shape, self.dtype)
        elif not self.owned:
            self.gradient = np.array(self.gradient)
        self.owned = True
        if all(item is None or item is Ellipsis or isinstance(item, (int, slice)) for item in index):
            self.gradient[index] += gradient  # no place occurs twice
        elif len(index) == 1 and np.asarray(index[0]).dtype.kind in "iu":
            add_rows(self.gradient, np.asarray(index[0]), gradient)
        else:
            np.add.at(self.gradient, index, gradient)


def undo_broadcasting(gradient: Any, shape: tuple[int, ...]) -> Any:
    """The sum over the axes along which an array of `shape` was repeated: dL/dx = sum of dL/dy over x's copies."""
    if gradient.shape == shape:
        return gradient
    added = gradient.ndim - len(shape)
    repeated = [added + axis for axis, n in enumerate(shape) if n == 1 and gradient.shape[added + axis] != 1]
    return gradient.sum(axis=(*range(added), *repeated)).reshape(shape)


def add_rows(target: np.ndarray, index: np.ndarray, rows: Any) -> None:
    """target[index[n]] += rows[n], repeated indices summed: target [R, ...], index [...], rows [..., ...].

    The rows are sorted by index and summed in runs, several times as fast as np.add.at.
    """
    index = np.where(index < 0, index + len(target), index).reshape(-1)
    if index.size:
        rows = np.reshape(rows, (index.size, *target.shape[1:]))
        order = np.argsort(index, kind="stable")
        index = index[order]
        first = np.flatnonzero(np.concatenate(([True], index[1:] != index[:-1])))  # where each run begins
        target[index[first]] += np.add.reduceat(rows[order], first, axis=0)


Tape = list[tuple[Slot, Gradient]]


class Recorded(np.lib.mixins.NDArrayOperatorsMixin):
    """A NumPy array of floats on a tape. Operators and NumPy's functions work on it as far as they have a rule."""

    __slots__ = ("slot", "tape", "value")

    def __init__(self, value: Any, tape: Tape) -> None:
        self.value = value
        self.tape = tape
        self.slot = Slot(value)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """NumPy calls this for +, np.exp and the like when one of the inputs is Recorded."""
        if method != "__call__" or options:
            refuse(f"{ufunc.__name__} with {', '.join(options) or method}")  # with out=..., that is in place, too
        return apply(ufunc, inputs, {})

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        """NumPy calls this for its other functions: np.sum, np.reshape, ..."""
        return apply(function, arguments, options)

    def __array__(self, *arguments: Any, **options: Any) -> NoReturn:
        refuse("an array that is turned into a plain one")

    def __float__(self) -> NoReturn:
        refuse("a number that is taken out of the computation")

    __int__ = __bool__ = __index__ = __complex__ = __float__

    def __setitem__(self, index: Any, value: Any) -> NoReturn:
        refuse("writing into an array")

    def __getitem__(self, index: Any) -> Any:
        """y = x[index]: g goes to these places."""
        index = index if isinstance(index, tuple) else (index,)
        if any(isinstance(item, Recorded) for item in index):
            refuse("an index that is not of integers or booleans")
        return record(self.value[index], (self, lambda g: Part(index, g)))

    def __len__(self) -> int:
        return len(self.value)

    def __repr__(self) -> str:
        return f"Recorded({self.value!r})"

    shape = property(lambda self: self.value.shape)
    ndim = property(lambda self: self.value.ndim)
    size = property(lambda self: self.value.size)
    dtype = property(lambda self: self.value.dtype)
    device = property(lambda self: "cpu")
    T = property(lambda self: np.transpose(self))
    mT = property(lambda self: np.swapaxes(self, -1, -2))

    def reshape(self, *shape: Any) -> Any:
        return np.reshape(self, shape[0] if len(shape) == 1 else shape)

    def transpose(self, *axes: Any) -> Any:
        return np.transpose(self, (axes[0] if len(axes) == 1 else axes) or None)

    def astype(self, dtype: Any, copy: bool = True) -> Any:
        """y = x in another precision: dL/dx = g, which is cast back when it is received."""
        if np.dtype(dtype) == self.dtype:
            return self
        value = self.value.astype(dtype)
        return value if value.dtype.kind != "f" else record(value, (self, lambda g: g))

    def sum(self, axis: Any = None, keepdims: bool = False) -> Any:
        return np.sum(self, axis=axis, keepdims=keepdims)

    def mean(self, axis: Any = None, keepdims: bool = False) -> Any:
        return np.mean(self, axis=axis, keepdims=keepdims)

    def max(self, axis: Any = None, keepdims: bool = False) -> Any:
        return np.max(self, axis=axis, keepdims=keepdims)


def refuse(what: str) -> NoReturn:
    message = (
        f"The numpy backend has no gradient of {what}. "
        "Use functions that have one, or train with backend=torch or backend=jax."
    )
    raise ConfigurationError(message)


def plain(x: Any) -> Any:
    """The array without its history."""
    return x.value if isinstance(x, Recorded) else x


def record(value: Any, *inputs: tuple[Any, Gradient]) -> Any:
    """Puts y = `value` on the tape. inputs: for each x that y depends on, (x, the function g -> dL/dx).

    A function holds what it needs of the forward computation, and only the functions of recorded inputs are kept.
    """
    edges = [(x.slot, gradient) for x, gradient in inputs if isinstance(x, Recorded)]

    def send(g: Any) -> None:
        for slot, gradient in edges:
            slot.receive(gradient(g))

    return _on_tape(value, [x for x, _ in inputs], send)


def record_together(value: Any, inputs: Sequence[Any], gradients: Callable[[Any], Sequence[Any]]) -> Any:
    """The same where one function g -> (dL/dx for each x) is cheaper than one for each."""
    slots = [x.slot if isinstance(x, Recorded) else None for x in inputs]

    def send(g: Any) -> None:
        for slot, gradient in zip(slots, gradients(g), strict=True):
            if slot is not None:
                slot.receive(gradient)

    return _on_tape(value, inputs, send)


def _on_tape(value: Any, inputs: Sequence[Any], send: Gradient) -> Any:
    tapes = [x.tape for x in inputs if isinstance(x, Recorded)]
    if not tapes:
        return value
    if any(tape is not tapes[0] for tape in tapes):
        refuse("an array of another computation")
    result = Recorded(value, tapes[0])
    tapes[0].append((result.slot, send))
    return result


def value_and_grad(function: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """f(params, *arguments) -> one number becomes one that returns (the number, a tree of gradients like params)."""

    def both(params: Any, *arguments: Any) -> tuple[Any, Any]:
        tape: Tape = []
        slots: list[Slot] = []

        def leaf(x: Any) -> Recorded:
            if not isinstance(x, np.ndarray) or x.dtype.kind != "f":
                message = f"Gradients are taken with respect to NumPy arrays of floats, not {type(x).__name__}."
                raise ConfigurationError(message)
            recorded = Recorded(x, tape)
            slots.append(recorded.slot)
            return recorded

        try:
            result = function(mapped(leaf, params), *arguments)
            value = plain(result)
            if np.shape(value) != ():
                message = f"Gradients are taken of one number, not of an array of shape {np.shape(value)}."
                raise ConfigurationError(message)
            if isinstance(result, Recorded):
                if result.tape is not tape:
                    refuse("an array of another computation")
                result.slot.receive(np.ones_like(value))
            del result
            backwards(tape)
        finally:
            tape.clear()  # it refers to itself through what the steps hold
        collected = iter(own_arrays(slots))
        return value, mapped(lambda x: next(collected), params)

    return both


def backwards(tape: Tape) -> None:
    """Reads the tape from its end. A step is forgotten once it is done, and the values it held with it."""
    while tape:
        slot, send = tape.pop()
        if slot.gradient is not None:  # else the result does not depend on this step
            g, slot.gradient = slot.gradient, None
            send(g)


def own_arrays(slots: list[Slot]) -> list[np.ndarray]:
    """The gradients of the leaves, zeros for one that was not used; each an array that shares no memory."""
    found: list[np.ndarray] = []
    seen: set[int] = set()
    for slot in slots:
        gradient = np.zeros(slot.shape, slot.dtype) if slot.gradient is None else np.asarray(slot.gradient)
        if not gradient.flags.owndata or id(gradient) in seen:
            gradient = gradient.copy()
        seen.add(id(gradient))
        found.append(gradient)
    return found


def mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """The tree of dicts, lists and tuples with function(leaf) for each leaf."""
    if isinstance(tree, dict):
        return {key: mapped(function, item) for key, item in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)([mapped(function, item) for item in tree])
    return function(tree)


# --- rules: y, and dL/dx for each input ------------------------------------------------------------------------------

RULES: dict[Any, Callable[..., Any]] = {}
# Their results are booleans, integers or shapes: constants.
PLAIN = {
    *(np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal),
    *(np.isfinite, np.isnan, np.isinf, np.signbit, np.logical_not, np.logical_and, np.logical_or),
    *(np.argsort, np.argmax, np.argmin, np.count_nonzero, np.nonzero, np.any, np.all),
    *(np.shape, np.ndim, np.size, np.zeros_like, np.ones_like, np.empty_like, np.result_type),
}


def apply(function: Any, arguments: Any, options: Any) -> Any:
    if function in RULES:
        return RULES[function](*arguments, **options)
    if function in PLAIN:
        return function(*map(plain, arguments), **{name: plain(option) for name, option in options.items()})
    refuse(function.__name__)


def rule(*functions: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(handler: Callable[..., Any]) -> Callable[..., Any]:
        RULES.update(dict.fromkeys(functions, handler))
        return handler

    return register


@rule(np.add)
def _add(a: Any, b: Any) -> Any:
    """y = a + b: dL/da = dL/db = g."""
    return record(plain(a) + plain(b), (a, lambda g: g), (b, lambda g: g))


@rule(np.subtract)
def _subtract(a: Any, b: Any) -> Any:
    """y = a - b: dL/da = g, dL/db = -g."""
    return record(plain(a) - plain(b), (a, lambda g: g), (b, lambda g: -g))


@rule(np.multiply)
def _multiply(a: Any, b: Any) -> Any:
    """y = a b: dL/da = g b, dL/db = g a."""
    p, q = plain(a), plain(b)
    return record(p * q, (a, lambda g: g * q), (b, lambda g: g * p))


@rule(np.divide)
def _divide(a: Any, b: Any) -> Any:
    """y = a / b: dL/da = g / b, dL/db = -g y / b."""
    q = plain(b)
    y = plain(a) / q
    return record(y, (a, lambda g: g / q), (b, lambda g: -g * y / q))


@rule(np.power)
def _power(a: Any, b: Any) -> Any:
    """y = a^b: dL/da = g b a^(b - 1), dL/db = g y log a."""
    p, q = plain(a), plain(b)
    y = p**q
    return record(y, (a, lambda g: g * q * p ** (q - 1)), (b, lambda g: g * y * np.log(p)))


@rule(np.maximum)
def _maximum(a: Any, b: Any) -> Any:
    """y = max(a, b): g goes to the larger one; to equal ones, half each."""
    p, q = plain(a), plain(b)
    return record(
        np.maximum(p, q),
        (a, lambda g: g * np.where(p > q, 1.0, np.where(p == q, 0.5, 0.0)).astype(g.dtype)),
        (b, lambda g: g * np.where(q > p, 1.0, np.where(p == q, 0.5, 0.0)).astype(g.dtype)),
    )


@rule(np.minimum)
def _minimum(a: Any, b: Any) -> Any:
    """y = min(a, b) = -max(-a, -b)."""
    return -np.maximum(-a, -b)


@rule(np.negative)
def _negative(x: Any) -> Any:
    """y = -x: dL/dx = -g."""
    return record(-x.value, (x, lambda g: -g))


@rule(np.positive)
def _positive(x: Any) -> Any:
    return x


@rule(np.absolute)
def _absolute(x: Any) -> Any:
    """y = |x|: dL/dx = g sign x."""
    p = x.value
    return record(np.abs(p), (x, lambda g: g * np.sign(p)))


@rule(np.square)
def _square(x: Any) -> Any:
    """y = x^2: dL/dx = 2 g x."""
    p = x.value
    return record(p * p, (x, lambda g: 2.0 * g * p))


@rule(np.reciprocal)
def _reciprocal(x: Any) -> Any:
    """y = 1 / x: dL/dx = -g y^2."""
    y = 1.0 / x.value
    return record(y, (x, lambda g: -g * y * y))


@rule(np.sqrt)
def _sqrt(x: Any) -> Any:
    """y = sqrt x: dL/dx = g / (2 y)."""
    y = np.sqrt(x.value)
    return record(y, (x, lambda g: g / (2.0 * y)))


@rule(np.exp)
def _exp(x: Any) -> Any:
    """y = e^x: dL/dx = g y."""
    y = np.exp(x.value)
    return record(y, (x, lambda g: g * y))


@rule(np.expm1)
def _expm1(x: Any) -> Any:
    """y = e^x - 1: dL/dx = g (y + 1)."""
    y = np.expm1(x.value)
    return record(y, (x, lambda g: g * (y + 1.0)))


@rule(np.log)
def _log(x: Any) -> Any:
    """y = log x: dL/dx = g / x."""
    p = x.value
    return record(np.log(p), (x, lambda g: g / p))


@rule(np.log1p)
def _log1p(x: Any) -> Any:
    """y = log(1 + x): dL/dx = g / (1 + x)."""
    p = x.value
    return record(np.log1p(p), (x, lambda g: g / (1.0 + p)))


@rule(np.tanh)
def _tanh(x: Any) -> Any:
    """y = tanh x: dL/dx = g (1 - y^2)."""
    y = np.tanh(x.value)
    return record(y, (x, lambda g: g * (1.0 - y * y)))


@rule(np.sin)
def _sin(x: Any) -> Any:
    """y = sin x: dL/dx = g cos x."""
    p = x.value
    return record(np.sin(p), (x, lambda g: g * np.cos(p)))


@rule(np.cos)
def _cos(x: Any) -> Any:
    """y = cos x: dL/dx = -g sin x."""
    p = x.value
    return record(np.cos(p), (x, lambda g: -g * np.sin(p)))


@rule(np.clip)
def _clip(x: Any, low: Any = None, high: Any = None) -> Any:
    """y = min(max(x, low), high): dL/dx = g inside, 0 where a bound holds x. The bounds are constants."""
    if isinstance(low, Recorded) or isinstance(high, Recorded):
        refuse("clip's bounds")
    p = x.value
    y = np.clip(p, low, high).astype(p.dtype, copy=False)
    inside = np.ones(p.shape, bool)
    if low is not None:
        inside &= p > low
    if high is not None:
        inside &= p < high
    return record(y, (x, lambda g: g * inside))


@rule(np.where)
def _where(condition: Any, a: Any, b: Any) -> Any:
    """y = a where the condition holds, else b: g goes to the one that was taken."""
    if isinstance(condition, Recorded):
        refuse("a condition that is not of booleans")
    return record(
        np.where(condition, plain(a), plain(b)),
        (a, lambda g: np.where(condition, g, 0.0)),
        (b, lambda g: np.where(condition, 0.0, g)),
    )


@rule(np.matmul)
def _matmul(a: Any, b: Any) -> Any:
    """y = a b, for the matrices in the last two axes: dL/da = g b^T, dL/db = a^T g."""
    if np.ndim(b) == 1:
        return np.matmul(a, b[:, None])[..., 0]
    if np.ndim(a) == 1:
        return np.matmul(a[None, :], b)[..., 0, :]
    p, q = plain(a), plain(b)
    return record(
        p @ q,
        (a, lambda g: g @ np.matrix_transpose(q)),
        (b, lambda g: np.matrix_transpose(p) @ g),
    )


def spread(g: Any, shape: tuple[int, ...], axis: Any, keepdims: bool) -> Any:
    """The gradient of a sum: g, for each element that was summed up."""
    if axis is not None and not keepdims:
        g = np.expand_dims(g, axis)
    return np.broadcast_to(g, shape)


@rule(np.sum)
def _sum(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """y = sum x over some axes: dL/dx = g for each of them."""
    shape = x.shape
    return record(x.value.sum(axis=axis, keepdims=keepdims), (x, lambda g: spread(g, shape, axis, keepdims)))


@rule(np.mean)
def _mean(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """y = sum x / n: dL/dx = g / n."""
    shape, y = x.shape, x.value.mean(axis=axis, keepdims=keepdims)
    count = math.prod(shape) // max(1, y.size)
    return record(y, (x, lambda g: spread(g / count, shape, axis, keepdims)))


@rule(np.max, np.amax)
def _max(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """y = max x over some axes: g goes to the largest; several equal ones share it."""
    p = x.value
    largest = p == p.max(axis=axis, keepdims=True)
    shares = largest / largest.sum(axis=axis, keepdims=True, dtype=p.dtype)
    return record(p.max(axis=axis, keepdims=keepdims), (x, lambda g: spread(g, p.shape, axis, keepdims) * shares))


@rule(np.min, np.amin)
def _min(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """y = min x = -max(-x)."""
    return -np.max(-x, axis=axis, keepdims=keepdims)


@rule(np.cumsum)
def _cumsum(x: Any, axis: Any = None) -> Any:
    """y[i] = x[0] + ... + x[i]: x[i] is in y[i] and all that follow, so dL/dx[i] = g[i] + g[i + 1] + ..."""
    if axis is None:
        x, axis = np.reshape(x, (-1,)), 0
    return record(np.cumsum(x.value, axis), (x, lambda g: np.flip(np.cumsum(np.flip(g, axis), axis), axis)))


@rule(np.sort)
def _sort(x: Any, axis: int = -1, kind: Any = None) -> Any:
    """The sorted values are values of x: g goes where they came from."""
    return np.take_along_axis(x, np.argsort(x.value, axis=axis, kind="stable"), axis=axis)


@rule(np.take)
def _take(x: Any, indices: Any, axis: Any = None) -> Any:
    """y = x[indices] along an axis: g goes to these places, and is summed where one was taken twice."""
    if isinstance(indices, Recorded):
        refuse("an index that is not of integers")
    if axis is None:
        x, axis = np.reshape(x, (-1,)), 0
    index = (*(slice(None) for _ in range(axis % x.ndim)), np.asarray(indices))
    return record(np.take(x.value, indices, axis), (x, lambda g: Part(index, g)))


@rule(np.take_along_axis)
def _take_along_axis(x: Any, indices: Any, axis: Any = -1) -> Any:
    """y[..., i, ...] = x[..., indices[..., i, ...], ...]: g goes to these places."""
    if isinstance(indices, Recorded):
        refuse("an index that is not of integers")
    y = np.take_along_axis(x.value, indices, axis)
    index: list[Any] = list(np.indices(y.shape, sparse=True))
    index[axis] = indices
    return record(y, (x, lambda g: Part(tuple(index), g)))


# Functions that only move numbers: g moves back.


@rule(np.reshape)
def _reshape(x: Any, shape: Any, order: str = "C", copy: Any = None) -> Any:
    old = x.shape
    if order != "C":
        refuse("reshape in another order than C")
    return record(x.value.reshape(shape), (x, lambda g: np.reshape(g, old)))


@rule(np.transpose)
def _transpose(x: Any, axes: Any = None) -> Any:
    axes = tuple(axis % x.ndim for axis in axes) if axes is not None else tuple(reversed(range(x.ndim)))
    back = tuple(axes.index(axis) for axis in range(x.ndim))
    return record(x.value.transpose(axes), (x, lambda g: g.transpose(back)))


@rule(np.matrix_transpose)
def _matrix_transpose(x: Any) -> Any:
    return np.swapaxes(x, -1, -2)


@rule(np.swapaxes)
def _swapaxes(x: Any, first: int, second: int) -> Any:
    return record(x.value.swapaxes(first, second), (x, lambda g: g.swapaxes(first, second)))


@rule(np.moveaxis)
def _moveaxis(x: Any, source: Any, destination: Any) -> Any:
    return record(np.moveaxis(x.value, source, destination), (x, lambda g: np.moveaxis(g, destination, source)))


@rule(np.flip)
def _flip(x: Any, axis: Any = None) -> Any:
    return record(np.flip(x.value, axis), (x, lambda g: np.flip(g, axis)))


@rule(np.roll)
def _roll(x: Any, shift: Any, axis: Any = None) -> Any:
    back = -shift if isinstance(shift, int) else tuple(-n for n in shift)
    return record(np.roll(x.value, shift, axis), (x, lambda g: np.roll(g, back, axis)))


@rule(np.squeeze)
def _squeeze(x: Any, axis: Any = None) -> Any:
    return np.reshape(x, np.squeeze(x.value, axis).shape)


@rule(np.expand_dims)
def _expand_dims(x: Any, axis: Any) -> Any:
    return np.reshape(x, np.expand_dims(x.value, axis).shape)


@rule(np.broadcast_to)
def _broadcast_to(x: Any, shape: Any) -> Any:
    """x is repeated; `receive` sums the gradients of its copies."""
    return record(np.broadcast_to(x.value, shape), (x, lambda g: g))


@rule(np.repeat)
def _repeat(x: Any, repeats: int, axis: Any = None) -> Any:
    """Each element `repeats` times: a new axis, repeated, and joined with the one before it."""
    if not isinstance(repeats, int):
        refuse("repeat with another number for each element")
    if axis is None:
        x, axis = np.reshape(x, (-1,)), 0
    axis %= x.ndim
    before, after = x.shape[: axis + 1], x.shape[axis + 1 :]
    copies = np.broadcast_to(np.expand_dims(x, axis + 1), (*before, repeats, *after))
    return np.reshape(copies, (*before[:-1], before[-1] * repeats, *after))


@rule(np.tril)
def _tril(x: Any, k: int = 0) -> Any:
    return record(np.tril(x.value, k), (x, lambda g: np.tril(g, k)))


@rule(np.triu)
def _triu(x: Any, k: int = 0) -> Any:
    return record(np.triu(x.value, k), (x, lambda g: np.triu(g, k)))


@rule(np.concatenate)
def _concatenate(arrays: Sequence[Any], axis: Any = 0) -> Any:
    """The arrays one behind the other: each gets its piece of g."""
    if axis is None:
        arrays, axis = [np.reshape(x, (-1,)) for x in arrays], 0
    value = np.concatenate([plain(x) for x in arrays], axis)
    inputs, first = [], 0
    for x in arrays:
        last = first + x.shape[axis]
        piece = (*(slice(None) for _ in range(axis % value.ndim)), slice(first, last))
        inputs.append((x, lambda g, piece=piece: g[piece]))
        first = last
    return record(value, *inputs)


@rule(np.stack)
def _stack(arrays: Sequence[Any], axis: int = 0) -> Any:
    return np.concatenate([np.expand_dims(x, axis) for x in arrays], axis)


@rule(np.unstack)
def _unstack(x: Any, axis: int = 0) -> Any:
    return tuple(np.moveaxis(x, axis, 0))


def recordable(namespace: Any) -> SimpleNamespace:
    """The array namespace, with the two functions replaced that look at an array before NumPy's protocols are asked."""

    def clip(x: Any, /, min: Any = None, max: Any = None) -> Any:
        return (_clip if Recorded in map(type, (x, min, max)) else namespace.clip)(x, min, max)

    def cumulative_sum(x: Any, /, **options: Any) -> Any:
        if not isinstance(x, Recorded):
            return namespace.cumulative_sum(x, **options)
        if options.keys() - {"axis"}:
            refuse(f"cumulative_sum with {', '.join(options.keys() - {'axis'})}")
        return np.cumsum(x, **options)

    return SimpleNamespace(**vars(namespace) | {"clip": clip, "cumulative_sum": cumulative_sum})
