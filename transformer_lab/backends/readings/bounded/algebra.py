"""`ops.xp` of the bounded reading: functions of the array API standard, each with its bound (running error analysis,
Higham 2002, section 3.3).

An error of an argument is carried on by how much the function changes within it, and each step adds its own rounding.
A function without a rule here is computed all the same, and what comes of it is *not judged*, with its name as the
reason. Numbers that were compared give a `Decided`: where rounding may decide otherwise, it says so.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import array_api_compat.numpy as xp
import numpy as np

from transformer_lab.backends.plain.error_function import erfc as _erfc
from transformer_lab.backends.readings.bounded.operations import pair
from transformer_lab.backends.readings.bounded.pairs import EXACTLY, Bounded, Decided, unjudged_of
from transformer_lab.backends.readings.bounded.units import Units

FUNCTIONS: dict[str, Callable[..., Any]] = {}


def function(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(run: Callable[..., Any]) -> Callable[..., Any]:
        FUNCTIONS.update(dict.fromkeys(names, run))
        return run

    return register


def lifted(reading: Any, x: Any) -> Bounded:
    """A number or a plain array as a bounded one. A number that float32 does not have is rounded by who computes."""
    if isinstance(x, Bounded):
        return x
    if isinstance(x, Decided):
        return Bounded(x.value, x.errors, reading)
    if isinstance(x, (float, np.floating)) and reading.precision != "float64":
        off = abs(float(x) - float(np.float32(x))) if math.isfinite(x) else 0.0
        return Bounded(x, (off, off), reading)
    return Bounded(x, EXACTLY, reading)


def rounded(units: Units, value: Any, carried: Any, times: float = 1.0) -> Any:
    """The error of a value whose inputs brought `carried`, after it was rounded: `times` units, as it is kept."""
    with np.errstate(invalid="ignore"):
        off = carried + times * units.stored * (np.abs(value) + carried) + units.smallest
    return np.where(np.isnan(off), math.inf, np.where(np.isinf(value), 0.0, off))


# --- arithmetic ------------------------------------------------------------------------------------------------------


@function("add")
def add(reading: Any, a: Any, b: Any) -> Bounded:
    a, b = lifted(reading, a), lifted(reading, b)
    value = a.value + b.value

    def error(units: Units, off_a: Any, off_b: Any) -> Any:
        # A product that a compiler joins to the sum is not rounded before it.
        fused = sum(units.stored * np.abs(x.value) for x in (a, b) if x.factor)
        return rounded(units, value, off_a + off_b + fused)

    return pair(reading, value, error, a, b)


@function("subtract")
def subtract(reading: Any, a: Any, b: Any) -> Bounded:
    return add(reading, a, negative(reading, lifted(reading, b)))


@function("negative")
def negative(reading: Any, x: Any) -> Bounded:
    x = lifted(reading, x)
    return Bounded(-x.value, x.errors, reading, x.unjudged, x.factor)


@function("positive")
def positive(reading: Any, x: Bounded) -> Bounded:
    return x


@function("multiply")
def multiply(reading: Any, a: Any, b: Any) -> Bounded:
    a, b = lifted(reading, a), lifted(reading, b)
    with np.errstate(invalid="ignore"):
        value = a.value * b.value

    def error(units: Units, off_a: Any, off_b: Any) -> Any:
        with np.errstate(invalid="ignore"):
            return rounded(units, value, np.abs(a.value) * off_b + np.abs(b.value) * off_a + off_a * off_b)

    return pair(reading, value, error, a, b, factor=True)


@function("divide")
def divide(reading: Any, a: Any, b: Any) -> Bounded:
    a, b = lifted(reading, a), lifted(reading, b)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = a.value / b.value

    def error(units: Units, off_a: Any, off_b: Any) -> Any:
        least = np.abs(b.value) - off_b
        with np.errstate(divide="ignore", invalid="ignore"):
            carried = np.where(least > 0.0, (off_a + np.abs(value) * off_b) / least, math.inf)
        return rounded(units, value, carried, times=2.0)  # some multiply by a reciprocal

    return pair(reading, value, error, a, b, factor=True)


@function("square")
def square(reading: Any, x: Bounded) -> Bounded:
    return multiply(reading, x, x)


@function("reciprocal")
def reciprocal(reading: Any, x: Bounded) -> Bounded:
    return divide(reading, 1.0, x)


@function("pow")
def pow(reading: Any, a: Any, b: Any) -> Bounded:
    """A whole power is a product; for others a is positive: b da / a + |log a| db, and as many roundings."""
    if isinstance(b, (int, float)) and b == 2:
        return multiply(reading, a, a)
    a, b = lifted(reading, a), lifted(reading, b)
    with np.errstate(all="ignore"):
        value = a.value**b.value
        log = np.abs(np.log(np.maximum(np.abs(a.value), 1e-300)))

    def error(units: Units, off_a: Any, off_b: Any) -> Any:
        size = np.abs(a.value)
        with np.errstate(all="ignore"):
            turned = np.where(off_a < size, -np.log1p(-np.minimum(off_a / size, 1.0)), math.inf)
            turned = (np.abs(b.value) + off_b) * turned
            carried = np.abs(value) * np.expm1(np.where(size > 0.0, turned, 0.0) + log * off_b)
            lost = np.abs(value) * units.inner * (units.elementary + 4.0 * np.abs(b.value) * log)
        return rounded(units, value, carried + lost)

    return pair(reading, value, error, a, b)


# --- elementary functions --------------------------------------------------------------------------------------------


def _monotone(name: str, run: Callable[[Any], Any], low: float = -math.inf, least: float = 0.0) -> None:
    """A function that grows: an error of its argument reaches as far as its values at both ends.

    low: where it begins to be defined. least: what it may have in place of 0, where it comes near to it.
    """

    @function(name)
    def monotone(reading: Any, x: Any) -> Bounded:
        x = lifted(reading, x)
        with np.errstate(all="ignore"):
            value = run(x.value)

        def error(units: Units, off: Any) -> Any:
            carried: Any = 0.0
            if np.any(off):
                with np.errstate(all="ignore"):
                    above, below = run(x.value + off) - value, value - run(np.maximum(x.value - off, low))
                carried = np.fmax(above, below)
                carried = np.where(np.isnan(above) | np.isnan(below) | (x.value - off < low), math.inf, carried)
            # Of the value where the argument may be, which is larger than that where it is expected.
            lost = units.elementary * units.inner * (np.abs(value) + carried) + least
            return rounded(units, value, carried + lost)

        return pair(reading, value, error, x)


_monotone("exp", np.exp)
_monotone("expm1", np.expm1)
_monotone("log", np.log, low=0.0)
_monotone("log2", np.log2, low=0.0)
_monotone("log1p", np.log1p, low=-1.0)
_monotone("tanh", np.tanh)
_monotone("sqrt", np.sqrt, low=0.0)
# exp(-x) is cut off, so that nothing overflows: by the plain operation at exp(80).
_monotone("sigmoid", lambda x: 1.0 / (1.0 + np.exp(np.minimum(-x, 700.0))), least=math.exp(-80.0))


def _lipschitz(name: str, run: Callable[[Any], Any], slope: float) -> None:
    @function(name)
    def lipschitz(reading: Any, x: Any) -> Bounded:
        x = lifted(reading, x)
        value = run(x.value)

        def error(units: Units, off: Any) -> Any:
            # the argument is reduced by multiples of pi, which it knows no better than its own size
            lost = units.elementary * units.inner * (np.abs(value) + np.abs(x.value) * 2.0**-20)
            return rounded(units, value, np.minimum(slope * off, 2.0) + lost)

        return pair(reading, value, error, x)


_lipschitz("sin", np.sin, 1.0)
_lipschitz("cos", np.cos, 1.0)
_lipschitz("erfc", lambda x: _erfc(np, x), 2.0 / math.sqrt(math.pi))


@function("logaddexp")
def logaddexp(reading: Any, a: Any, b: Any) -> Bounded:
    a, b = lifted(reading, a), lifted(reading, b)
    value = np.logaddexp(a.value, b.value)

    def error(units: Units, off_a: Any, off_b: Any) -> Any:
        lost = units.elementary * units.inner * (np.abs(value) + np.maximum(np.abs(a.value), np.abs(b.value)) + 1.0)
        return rounded(units, value, np.maximum(off_a, off_b) + lost)

    return pair(reading, value, error, a, b)


@function("logsumexp")
def logsumexp(reading: Any, x: Bounded) -> Bounded:
    """Over the last axis."""
    largest = x.value.max(axis=-1)
    safe = np.where(np.isfinite(largest), largest, 0.0)
    value = safe + np.log(np.exp(x.value - safe[..., None]).sum(axis=-1))

    def error(units: Units, off: Any) -> Any:
        reach = np.broadcast_to(off, x.shape).max(axis=-1)
        lost = units.gamma(x.shape[-1]) + units.inner * (units.few + 2.0 * np.abs(safe) + np.abs(value) + 1.0)
        return rounded(units, value, reach + lost)

    return pair(reading, value, error, x)


# --- choices ---------------------------------------------------------------------------------------------------------


@function("abs")
def absolute(reading: Any, x: Any) -> Bounded:
    x = lifted(reading, x)
    return Bounded(np.abs(x.value), x.errors, reading, x.unjudged, x.factor)


def _larger(errors: tuple[Any, Any], others: tuple[Any, Any]) -> tuple[Any, Any]:
    return tuple(np.maximum(mine, theirs) for mine, theirs in zip(errors, others, strict=True))


@function("maximum")
def maximum(reading: Any, a: Any, b: Any) -> Bounded:
    a, b = lifted(reading, a), lifted(reading, b)
    return Bounded(np.maximum(a.value, b.value), _larger(a.errors, b.errors), reading, unjudged_of(a, b))


@function("minimum")
def minimum(reading: Any, a: Any, b: Any) -> Bounded:
    a, b = lifted(reading, a), lifted(reading, b)
    return Bounded(np.minimum(a.value, b.value), _larger(a.errors, b.errors), reading, unjudged_of(a, b))


@function("clip")
def clip(reading: Any, x: Any, min: Any = None, max: Any = None) -> Bounded:
    x = lifted(reading, x) if min is None else maximum(reading, x, min)
    return x if max is None else minimum(reading, x, max)


@function("where")
def where(reading: Any, condition: Any, a: Any, b: Any) -> Any:
    """Where the condition is not sure, either may come."""
    if not isinstance(a, (Bounded, float)) and not isinstance(b, (Bounded, float)):
        a, b = (x.value if isinstance(x, Decided) else x for x in (a, b))
        return Decided(np.where(_plain(condition), a, b), _unsure(condition), reading)
    a, b = lifted(reading, a), lifted(reading, b)
    chosen = _plain(condition)
    value = np.where(chosen, a.value, b.value)
    unsure: Any = condition.unsure if isinstance(condition, Decided) else None

    def error(units: Units, off_a: Any, off_b: Any) -> Any:
        off = np.where(chosen, off_a, off_b)
        if unsure is None or not unsure.any():
            return off
        with np.errstate(invalid="ignore"):
            apart = np.abs(a.value - b.value)
        apart = np.where(np.isnan(apart), 0.0, apart)
        return np.where(unsure, apart + np.maximum(off_a, off_b), off)

    return pair(reading, value, error, a, b)


def _unsure(x: Any) -> Any:
    return x.unsure if isinstance(x, Decided) else np.False_


def _plain(x: Any) -> Any:
    return x.value if isinstance(x, (Bounded, Decided)) else x


def _compared(name: str) -> None:
    run = getattr(np, name)

    @function(name)
    def compared(reading: Any, a: Any, b: Any) -> Any:
        if isinstance(a, Decided) or isinstance(b, Decided):
            unsure = _unsure(a) | _unsure(b)
            return Decided(run(_plain(a), _plain(b)), unsure, reading)
        a, b = lifted(reading, a), lifted(reading, b)
        with np.errstate(invalid="ignore"):
            reach = a.errors[0] + b.errors[0]
            apart = np.abs(a.value - b.value)
            apart = np.where(np.isnan(apart), math.inf, apart)  # both infinite
        return Decided(run(a.value, b.value), apart < reach, reading, margin=_margin(apart, reach))


def _margin(apart: Any, reach: Any) -> float:
    """The smallest distance over its bound."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(np.asarray(reach) == 0.0, math.inf, apart / np.asarray(reach))
    return float(np.min(ratio, initial=math.inf))


for _name in ("less", "less_equal", "greater", "greater_equal", "equal", "not_equal"):
    _compared(_name)


@function("logical_not")
def logical_not(reading: Any, x: Decided) -> Decided:
    return Decided(~x.value, x.unsure, reading)


def _joined(name: str) -> Callable[..., Any]:
    def joined(reading: Any, a: Any, b: Any) -> Decided:
        unsure = _unsure(a) | _unsure(b)
        return Decided(getattr(np, name)(_plain(a), _plain(b)), unsure, reading)

    return joined


for _name in ("logical_and", "logical_or", "logical_xor"):
    FUNCTIONS[_name] = _joined(_name)


FUNCTIONS["isfinite"] = lambda reading, x: np.isfinite(x.value)
FUNCTIONS["isnan"] = lambda reading, x: np.isnan(x.value)
FUNCTIONS["isinf"] = lambda reading, x: np.isinf(x.value)


@function("max")
def max_(reading: Any, x: Any, axis: Any = None, keepdims: bool = False) -> Bounded:
    x = lifted(reading, x)

    def error(units: Units, off: Any) -> Any:
        return np.max(off, axis=axis, keepdims=keepdims) if np.ndim(off) else off

    return pair(reading, np.max(x.value, axis=axis, keepdims=keepdims), error, x)


@function("min")
def min_(reading: Any, x: Bounded, axis: Any = None, keepdims: bool = False) -> Bounded:
    return negative(reading, max_(reading, negative(reading, lifted(reading, x)), axis, keepdims))


def ranked(reading: Any, x: Any, axis: int, count: int | None, descending: bool, ordered: bool) -> Decided:
    """The places of the `count` first along an axis, ties to the lower. Another choice is allowed if the numbers that
    it takes are, within their bounds, no worse than those that it leaves."""
    x = lifted(reading, x)
    moved = np.moveaxis(x.value, axis, -1)
    off = np.moveaxis(x.error, axis, -1)
    sign = -1.0 if descending else 1.0
    with np.errstate(invalid="ignore"):
        order = np.argsort(sign * moved, axis=-1, kind="stable")
    size = order.shape[-1]
    taken = size if count is None else min(count, size)
    values, reach = np.take_along_axis(sign * moved, order, -1), np.take_along_axis(off, order, -1)
    with np.errstate(invalid="ignore"):
        apart = values[..., 1:] - values[..., :-1]
        apart = np.where(np.isnan(apart), math.inf, apart)
    near = reach[..., 1:] + reach[..., :-1]
    close = apart < near  # of a place and the next
    unsure = np.zeros(order.shape, bool)
    unsure[..., 1:] |= close
    unsure[..., :-1] |= close
    edge = slice(0, taken)
    margin = _margin(apart[..., :taken], near[..., :taken])

    def allowed(chosen: np.ndarray) -> bool:
        given = np.moveaxis(np.asarray(chosen), axis, -1)
        if given.shape != order[..., edge].shape or given.min() < 0 or given.max() >= size:
            return False
        if (np.sort(given, axis=-1)[..., 1:] == np.sort(given, axis=-1)[..., :-1]).any():
            return False  # one place twice
        best = np.take_along_axis(sign * moved - off, given, -1)  # at best so small
        worst = np.take_along_axis(sign * moved + off, given, -1)
        if ordered and (np.maximum.accumulate(best, axis=-1) > worst).any():
            return False
        left = sign * moved + off
        np.put_along_axis(left, given, math.inf, -1)
        return bool((best.max(axis=-1) <= left.min(axis=-1)).all())

    return Decided(
        np.moveaxis(order[..., edge], -1, axis), np.moveaxis(unsure[..., edge], -1, axis), reading, allowed, margin
    )


@function("argsort")
def argsort(reading: Any, x: Bounded, axis: int = -1, descending: bool = False, stable: bool = True) -> Decided:
    return ranked(reading, x, axis, None, descending, ordered=True)


@function("argmax")
def argmax(reading: Any, x: Bounded, axis: Any = None, keepdims: bool = False) -> Decided:
    return _extreme(reading, x, axis, keepdims, descending=True)


@function("argmin")
def argmin(reading: Any, x: Bounded, axis: Any = None, keepdims: bool = False) -> Decided:
    return _extreme(reading, x, axis, keepdims, descending=False)


def _extreme(reading: Any, x: Bounded, axis: Any, keepdims: bool, descending: bool) -> Decided:
    if axis is None:
        x, axis = moved("reshape")(reading, x, (-1,)), 0
    first = ranked(reading, x, axis, 1, descending, ordered=True)
    inner = first.allowed

    def allowed(chosen: np.ndarray) -> bool:
        return inner is not None and inner(chosen if keepdims else np.expand_dims(chosen, axis))

    if keepdims:
        return first
    value, unsure = np.squeeze(first.value, axis), np.squeeze(first.unsure, axis)
    return Decided(value, unsure, reading, allowed, first.margin)


@function("sort")
def sort(reading: Any, x: Bounded, axis: int = -1, descending: bool = False, stable: bool = True) -> Bounded:
    """The n-th smallest moves no further than the error that moves most."""
    x = lifted(reading, x)
    value = np.sort(x.value, axis=axis)
    value = np.flip(value, axis) if descending else value

    def error(units: Units, off: Any) -> Any:
        return np.broadcast_to(np.max(off, axis=axis, keepdims=True), x.shape) if np.ndim(off) else off

    return pair(reading, value, error, x)


# --- sums and products -----------------------------------------------------------------------------------------------


def _count(shape: Sequence[int], axis: Any) -> int:
    axes = range(len(shape)) if axis is None else (axis,) if isinstance(axis, int) else axis
    return math.prod(shape[place] for place in axes)


def _of_choices(reading: Any, x: Decided, run: Callable[[Any], Any]) -> Decided:
    """Whole numbers of whole numbers that were decided: not sure where one of these is not. run sums, or the like."""
    return Decided(run(x.value), run(np.asarray(x.unsure, np.int64)) > 0, reading)


@function("sum")
def sum_(reading: Any, x: Any, axis: Any = None, keepdims: bool = False, dtype: Any = None) -> Any:
    if isinstance(x, Decided):
        return _of_choices(reading, x, lambda v: v.sum(axis=axis, keepdims=keepdims))
    x = lifted(reading, x)
    value = x.value.sum(axis=axis, keepdims=keepdims)
    terms = _count(x.shape, axis)

    def error(units: Units, off: Any) -> Any:
        carried = np.broadcast_to(off, x.shape).sum(axis=axis, keepdims=keepdims) if np.ndim(off) else terms * off
        reached = np.abs(x.value).sum(axis=axis, keepdims=keepdims) + carried
        # Where the terms are products that were not rounded before, that is one step more for each.
        return rounded(units, value, carried + units.gamma(terms + 2) * reached)

    return pair(reading, value, error, x)


@function("mean")
def mean(reading: Any, x: Bounded, axis: Any = None, keepdims: bool = False) -> Bounded:
    return divide(reading, sum_(reading, x, axis, keepdims), _count(x.shape, axis))


@function("var")
def var(reading: Any, x: Bounded, axis: Any = None, correction: float = 0.0, keepdims: bool = False) -> Bounded:
    centred = subtract(reading, x, mean(reading, x, axis, True))
    total = sum_(reading, multiply(reading, centred, centred), axis, keepdims)
    return divide(reading, total, _count(x.shape, axis) - correction)


@function("std")
def std(reading: Any, x: Bounded, axis: Any = None, correction: float = 0.0, keepdims: bool = False) -> Bounded:
    found: Bounded = FUNCTIONS["sqrt"](reading, var(reading, x, axis, correction, keepdims))
    return found


@function("prod")
def prod(reading: Any, x: Any, axis: Any = None, keepdims: bool = False, dtype: Any = None) -> Bounded:
    x = lifted(reading, x)
    value = np.prod(x.value, axis=axis, keepdims=keepdims)

    def error(units: Units, off: Any) -> Any:
        with np.errstate(over="ignore", invalid="ignore"):
            widest = np.prod(np.abs(x.value) + off, axis=axis, keepdims=keepdims) - np.abs(value)
            return rounded(units, value, widest + units.gamma(_count(x.shape, axis)) * (np.abs(value) + widest))

    return pair(reading, value, error, x)


@function("cumulative_sum")
def cumulative_sum(reading: Any, x: Any, axis: Any = None, dtype: Any = None, **options: Any) -> Any:
    """The i-th sum has i terms; a scan adds them in whatever order."""
    axis = len(x.shape) - 1 if axis is None else axis
    if isinstance(x, Decided):
        return _of_choices(reading, x, lambda v: xp.cumulative_sum(np.asarray(v, np.int64), axis=axis, **options))
    value = xp.cumulative_sum(x.value, axis=axis, **options)

    def error(units: Units, off: Any) -> Any:
        carried = xp.cumulative_sum(np.broadcast_to(off, x.shape), axis=axis, **options) if np.ndim(off) else 0.0
        reached = xp.cumulative_sum(np.abs(x.value), axis=axis, **options) + carried
        return rounded(units, value, carried + units.gamma(x.shape[axis] + 2) * reached)

    return pair(reading, value, error, x)


@function("matmul")
def matmul(reading: Any, a: Any, b: Any) -> Bounded:
    a, b = lifted(reading, a), lifted(reading, b)
    with np.errstate(invalid="ignore"):
        value = a.value @ b.value
    terms = a.shape[-1]

    def error(units: Units, off_a: Any, off_b: Any) -> Any:
        size, others = np.abs(a.value) + off_a, np.abs(b.value)
        carried: Any = np.broadcast_to(off_a, a.shape) @ others if np.ndim(off_a) else 0.0
        if np.ndim(off_b):
            carried = carried + size @ np.broadcast_to(off_b, b.shape)
        reached = size @ (others + off_b)
        return rounded(units, value, carried + units.gamma(terms + 2) * reached + terms * units.smallest)

    return pair(reading, value, error, a, b)


# --- functions that only move numbers --------------------------------------------------------------------------------


def _moved_errors(x: Any, run: Callable[[Any], Any]) -> tuple[Any, Any]:
    return tuple(run(np.broadcast_to(off, x.shape)) if np.ndim(off) else off for off in x.errors)


def moved(name: str) -> Callable[..., Any]:
    run = getattr(xp, name)

    def apply(reading: Any, x: Any, *arguments: Any, **options: Any) -> Any:
        arguments = tuple(_settled(reading, argument) for argument in arguments)
        if isinstance(x, Decided):
            inside, unsure = run(x.value, *arguments, **options), run(x.unsure, *arguments, **options)
            return Decided(inside, unsure, reading, margin=x.margin)
        value = run(x.value, *arguments, **options)
        errors = _moved_errors(x, lambda off: run(off, *arguments, **options))
        return Bounded(value, errors, reading, x.unjudged, x.factor)

    return apply


def _settled(reading: Any, index: Any) -> Any:
    """An index that was decided: if rounding could have decided otherwise, what it takes is not judged."""
    if isinstance(index, Decided):
        if index.unsure.any():
            reading.open_choice()
        return index.value
    return index


for _name in (
    *("reshape", "permute_dims", "matrix_transpose", "moveaxis", "flip", "roll", "squeeze", "expand_dims"),
    *("broadcast_to", "repeat", "tile", "tril", "triu"),
):
    FUNCTIONS[_name] = moved(_name)


def _taken(run: Callable[..., Any]) -> Callable[..., Any]:
    """Where an index is not sure, what it takes is unknown."""

    def apply(reading: Any, x: Any, indices: Any, **options: Any) -> Any:
        if isinstance(indices, Bounded):  # whole numbers that were worked out of a choice
            indices = Decided(indices.value.astype(np.int64), indices.error > 0.0, reading)
        index = _plain(indices)
        if not isinstance(x, (Bounded, Decided)):  # integers or booleans
            return Decided(run(x, index, **options), bool(indices.unsure.any()), reading)
        if isinstance(x, Decided):
            open_too = isinstance(indices, Decided) and bool(indices.unsure.any())
            return Decided(run(x.value, index, **options), run(x.unsure, index, **options) | open_too, reading)
        value = run(x.value, index, **options)
        errors = _moved_errors(x, lambda off: run(off, index, **options))
        if isinstance(indices, Decided) and indices.unsure.any():
            reason = "a choice within rounding that was not shown"
            return Bounded(value, (math.inf, math.inf), reading, reason)
        return Bounded(value, errors, reading, x.unjudged, x.factor)

    return apply


FUNCTIONS["take"] = _taken(lambda x, index, axis=None: np.take(x, index, axis=axis))
FUNCTIONS["take_along_axis"] = _taken(lambda x, index, axis=-1: np.take_along_axis(x, index, axis=axis))


@function("getitem")
def getitem(reading: Any, x: Any, index: Any) -> Any:
    if any(isinstance(item, Decided) for item in index):
        if len(index) == 1:
            return FUNCTIONS["take"](reading, x, index[0], axis=0)
        Bounded.refuse("an index of several arrays that were decided by numbers")
    if isinstance(x, Decided):
        allowed = x.allowed if all(item is Ellipsis or item == slice(None) for item in index) else None
        return Decided(x.value[index], x.unsure[index], reading, allowed, x.margin)
    return Bounded(x.value[index], _moved_errors(x, lambda off: off[index]), reading, x.unjudged, x.factor)


def _together(name: str) -> Callable[..., Any]:
    run = getattr(xp, name)

    def apply(reading: Any, arrays: Sequence[Any], axis: Any = 0) -> Bounded:
        given = [lifted(reading, x) for x in arrays]
        value = run([x.value for x in given], axis=axis)

        def error(units: Units, *off: Any) -> Any:
            if not any(map(np.any, off)):
                return 0.0
            return run([np.broadcast_to(one, x.shape) for one, x in zip(off, given, strict=True)], axis=axis)

        return pair(reading, value, error, *given)

    return apply


FUNCTIONS["concat"], FUNCTIONS["stack"] = _together("concat"), _together("stack")


@function("unstack")
def unstack(reading: Any, x: Bounded, axis: int = 0) -> tuple[Any, ...]:
    before = (slice(None),) * (axis % x.ndim)
    return tuple(getitem(reading, x, (*before, place)) for place in range(x.shape[axis]))


@function("zeros_like")
def zeros_like(reading: Any, x: Bounded, **options: Any) -> Bounded:
    return Bounded(np.zeros(x.shape), EXACTLY, reading)


@function("ones_like")
def ones_like(reading: Any, x: Bounded, **options: Any) -> Bounded:
    return Bounded(np.ones(x.shape), EXACTLY, reading)


@function("full_like")
def full_like(reading: Any, x: Bounded, value: Any, **options: Any) -> Bounded:
    number = lifted(reading, value)
    return Bounded(np.full(x.shape, number.value), number.errors, reading)


@function("sign")
def sign(reading: Any, x: Any) -> Bounded:
    """Where rounding may cross 0 it may jump by 2."""
    x = lifted(reading, x)
    return pair(reading, np.sign(x.value), lambda units, off: np.where(np.abs(x.value) < off, 2.0, 0.0), x)


def _steps(name: str) -> None:
    run = getattr(np, name)

    @function(name)
    def stepped(reading: Any, x: Any) -> Bounded:
        x = lifted(reading, x)

        def error(units: Units, off: Any) -> Any:
            return np.maximum(run(x.value + off) - run(x.value), run(x.value) - run(x.value - off))

        return pair(reading, run(x.value), error, x)


for _name in ("floor", "ceil", "trunc", "round"):
    _steps(_name)
