"""The operations of the decoder, each with a bound on what a sound implementation may differ by.

A sharp rule for a whole operation, where step by step too much would be allowed. The bounds hold for every order of a
sum, blocked, fused or threaded; an implementation that exceeds one does not compute this operation in this precision.
Each rule is written once, and taken for the worst case and for what is likely (`units.py`).

Shape letters as in `backends/plain/manual.py`.
"""

import math
from typing import Any

import numpy as np

from transformer_lab.backends.plain import manual
from transformer_lab.backends.plain.error_function import erfc
from transformer_lab.backends.readings.bounded.pairs import Bounded, Decided, bounds, unjudged_of
from transformer_lab.backends.readings.bounded.units import Units

COLUMNS = 4096  # of a kernel that are worked on at a time, so that the copies of a large head stay small
TINY = float(np.finfo(np.float64).tiny)


def pair(reading: Any, value: np.ndarray, error: Any, *inputs: Any, factor: bool = False) -> Bounded:
    """A result with its bounds: error(units, the errors of the inputs) for both levels."""
    known = [x for x in inputs if x is not None]
    largest = reading.levels[0].largest
    with np.errstate(over="ignore", invalid="ignore"):
        worst, likely = bounds(reading.levels, error, *known)
    errors = _may_overflow(value, worst, largest), _may_overflow(value, likely, largest)
    return Bounded(value, errors, reading, unjudged_of(*known), factor)


def _may_overflow(value: np.ndarray, error: Any, largest: float) -> Any:
    """The error is infinite where what is computed may be: beyond the largest number, but not infinite here. And where
    nothing is known of a factor of 0."""
    if value.size == 0 or max(value.max(), -value.min()) + np.max(error) < largest:
        return error
    reached = np.isfinite(value) & (np.abs(value) + error >= largest)
    return np.where(reached | np.isnan(error), math.inf, error)


def linear(reading: Any, x: Bounded, kernel: Bounded, bias: Bounded | None = None) -> Bounded:
    """x [..., in] @ kernel [in, out] + bias [out] -> [..., out]."""
    terms, columns = kernel.shape
    rows = x.value.reshape(-1, terms)
    value = rows @ kernel.value
    magnitude = np.empty_like(value)  # |x| |w|
    squares: Any = np.empty_like(value) if reading.levels[0].kernel else None  # the root of x^2 w^2
    size = np.abs(rows)
    for first in range(0, columns, COLUMNS):
        part = slice(first, first + COLUMNS)
        weight = np.abs(kernel.value[:, part])
        magnitude[:, part] = size @ weight
        if squares is not None:
            squares[:, part] = np.sqrt((size * size) @ (weight * weight))

    def error(units: Units, off_x: Any, off_w: Any, *off_bias: Any) -> np.ndarray:
        reached: Any = magnitude
        carried: Any = 0.0
        if np.ndim(off_x):
            off_x = off_x.reshape(rows.shape)
            carried = np.empty_like(value)
            for first in range(0, columns, COLUMNS):
                part = slice(first, first + COLUMNS)
                carried[:, part] = off_x @ np.abs(kernel.value[:, part])
            reached = magnitude + carried
        if np.ndim(off_w):
            lost = (size + off_x) @ off_w
            carried, reached = carried + lost, reached + lost
        off = units.gamma(terms + 2) * reached + carried + terms * units.smallest
        if units.kernel:  # the input, the kernel and the result each lose bits
            off += 3.0 * units.kernel * (squares if units.independent else reached)
            off += units.kernel * np.abs(value) if units.independent else 0.0
        if units.levels:  # scales are rounded up to 8 bits, so a step is up to 1 % wider than the largest / levels
            step = np.abs(kernel.value).max(axis=0) * (1.01 / units.levels)
            length = np.sqrt(np.sum(size * size, -1)) if units.independent else np.sum(size + off_x, -1)
            off += 0.5 * length[:, None] * step
        total = value
        if bias is not None:
            total = value + bias.value
            off += units.gamma(terms + 2) * np.abs(bias.value) + off_bias[0]
        return (off + units.stored * np.abs(total)).reshape(shape)

    shape = (*x.shape[:-1], columns)
    result = value if bias is None else value + bias.value
    # An int8 product ends in a multiplication by the kernel's scales.
    return pair(reading, result.reshape(shape), error, x, kernel, bias, factor=bool(reading.levels[0].levels))


def embed(reading: Any, table: Bounded, ids: Any) -> Bounded:
    """Rows of table [V, D] for integer ids [...] -> [..., D]: nothing is rounded. Where an id is not sure, nothing is
    known of its row."""
    if isinstance(ids, Decided):
        unsure = np.where(ids.unsure, math.inf, 0.0)[..., None]
        found = embed(reading, table, ids.value)
        return pair(reading, found.value, lambda units, off: off + unsure, found) if ids.unsure.any() else found

    def error(units: Units, off: Any) -> Any:
        rows = off[ids] if np.ndim(off) else off
        return rows + units.weights * np.abs(table.value[ids]) if units.weights else rows

    return pair(reading, table.value[ids], error, table)


def layer_norm(reading: Any, x: Bounded, weight: Bounded, bias: Bounded, epsilon: float) -> Bounded:
    """(x - mean) / sqrt(variance + epsilon) * weight + bias over the last axis."""
    size = x.shape[-1]
    centred = x.value - _mean(x.value)

    def error(units: Units, off_x: Any, off_weight: Any, off_bias: Any) -> Any:
        # Some implementations take the mean of the squares, or go along the row updating both: a few steps per term.
        rounded = units.gamma(size + 2) * _mean(np.abs(x.value) + off_x)
        off = (_mean(off_x) if np.ndim(off_x) else off_x) + rounded
        centred_off = off_x + off + units.inner * (np.abs(centred) + off_x + off)
        return (
            _root_error(units, centred, centred_off, rounded, epsilon, weight.value, bias.value, off_weight) + off_bias
        )

    value = centred / np.sqrt(_mean(centred * centred) + epsilon) * weight.value + bias.value
    return pair(reading, value, error, x, weight, bias, factor=not bias.value.any())


def rms_norm(reading: Any, x: Bounded, weight: Bounded, epsilon: float) -> Bounded:
    """x / sqrt(mean(x^2) + epsilon) * weight over the last axis."""

    def error(units: Units, off_x: Any, off_weight: Any) -> Any:
        return _root_error(units, x.value, off_x, np.zeros(1), epsilon, weight.value, None, off_weight)

    value = x.value / np.sqrt(_mean(x.value**2) + epsilon) * weight.value
    return pair(reading, value, error, x, weight, factor=True)


def _root_error(
    units: Units,
    x: np.ndarray,
    off: Any,
    rounded: np.ndarray,
    epsilon: float,
    weight: np.ndarray,
    bias: np.ndarray | None,
    off_weight: Any,
) -> np.ndarray:
    """The bound of x / sqrt(mean(x^2) + epsilon) * weight + bias. rounded: how much of `off` is the rounding of a mean
    that was taken off."""
    size = x.shape[-1]
    square = _mean(x * x)
    square_off = _mean(2.0 * np.abs(x) * off + off * off) + units.gamma(size + 4) * _mean((np.abs(x) + off) ** 2)
    share = square_off / (square + epsilon)
    root_off = inverse_root(share) + units.few * units.inner
    scaled = weight / np.sqrt(square + epsilon)
    normal = x * scaled
    value = normal if bias is None else normal + bias
    with np.errstate(invalid="ignore"):
        error = np.abs(scaled) * off * (1.0 + root_off) + np.abs(normal) * root_off
    # Whatever went in, a row is no longer than sqrt(size) afterwards, but for the rounding of its mean.
    longest = (math.sqrt(size) + rounded / math.sqrt(epsilon)) * (1.0 + (units.few + size) * units.inner)
    error = np.fmin(error, np.abs(normal) + np.abs(weight) * longest)
    error = error + off_weight * np.abs(x) / np.sqrt(square + epsilon)
    return error + (units.stored + units.inner) * np.abs(value) + units.smallest


def inverse_root(share: np.ndarray) -> np.ndarray:
    """1 / sqrt(1 - share) - 1; where the error is as large as the square itself, nothing is known."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(share < 1.0, 1.0 / np.sqrt(1.0 - np.minimum(share, 1.0)) - 1.0, math.inf)


def _mean(x: Any) -> Any:
    return x.mean(axis=-1, keepdims=True)


def gelu_tanh(reading: Any, x: Bounded) -> Bounded:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    inner = math.sqrt(2.0 / math.pi) * (x.value + 0.044715 * x.value**3)
    return _activation(reading, x, x.value * logistic(2.0 * inner), 1.13)


def gelu_erf(reading: Any, x: Bounded) -> Bounded:
    """0.5 x (1 + erf(x / sqrt 2))."""
    return _activation(reading, x, 0.5 * x.value * erfc(np, x.value * -math.sqrt(0.5)), 1.13)


def silu(reading: Any, x: Bounded) -> Bounded:
    """x / (1 + exp(-x))."""
    return _activation(reading, x, x.value * logistic(x.value), 1.1)


def relu(reading: Any, x: Bounded) -> Bounded:
    """max(x, 0): nothing is rounded."""
    return pair(reading, np.maximum(x.value, 0.0), lambda units, off: off, x)


def logistic(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(np.minimum(-x, 700.0)))


def _activation(reading: Any, x: Bounded, value: np.ndarray, slope: float) -> Bounded:
    """slope: the largest of the function. Errors are a few roundings of x: `1 + tanh` cancels, and is sound."""

    def error(units: Units, off: Any) -> np.ndarray:
        size = np.abs(x.value) + off
        lost = (units.few * units.inner + 4.0 * units.activation) * size
        return slope * off + lost + units.stored * np.abs(value) + units.smallest

    return pair(reading, value, error, x)


def rotary(reading: Any, x: Bounded, cos: Bounded, sin: Bounded) -> Bounded:
    """Turns the pairs (x[i], x[i + N / 2]) of every head: x [B, H, T, N], cos and sin [B, T, N / 2]."""
    half = x.shape[-1] // 2
    c, s = cos.value[:, None], sin.value[:, None]
    first, second = x.value[..., :half], x.value[..., half:]
    value = np.concatenate([first * c - second * s, second * c + first * s], axis=-1)

    def error(units: Units, off: Any, off_cos: Any, off_sin: Any) -> np.ndarray:
        size = np.abs(x.value) + off
        off = np.broadcast_to(off, size.shape)
        known = np.maximum(off_cos, off_sin)
        known = 4.0 * units.stored * np.hypot(c, s) + (known[:, None] if np.ndim(known) else known)
        turned = [
            np.abs(c) * here + np.abs(s) * there + known * (size[..., :half] + size[..., half:])
            for here, there in ((off[..., :half], off[..., half:]), (off[..., half:], off[..., :half]))
        ]
        return np.concatenate(turned, axis=-1) + units.smallest

    return pair(reading, value, error, x, cos, sin)


def attention(
    reading: Any,
    query: Bounded,
    key: Bounded,
    value: Bounded,
    start: np.ndarray,
    scale: float,
    window: int | None = None,
    tap: Any = manual.identity,
    places: np.ndarray | None = None,
) -> Bounded:
    """Scores, pattern and mixture, each with its bound: shapes as in `manual.attention`."""
    visible = manual.visible_keys(reading, start, query.shape[2], key.shape[2], window, places)[:, None]
    pattern = tap("pattern", softmax(reading, tap("scores", scores(reading, query, key, visible, scale))))
    return mix(reading, pattern, value)


def scores(reading: Any, query: Bounded, key: Bounded, visible: np.ndarray, scale: float) -> Bounded:
    """scale * query key^T, -inf where not visible: [B, H, T, N], [B, K, S, N], bool [B, 1, T, S] -> [B, H, T, S]."""
    shared = query.shape[1] // key.shape[1]  # query heads to a key head
    keys = np.swapaxes(np.repeat(key.value, shared, axis=1), -1, -2)
    value = query.value @ keys * scale
    terms = query.shape[-1]

    def error(units: Units, off_query: Any, off_key: Any) -> np.ndarray:
        size = np.abs(query.value) + off_query
        off_keys = np.swapaxes(np.repeat(np.broadcast_to(off_key, key.shape), shared, axis=1), -1, -2)
        carried = size @ off_keys if np.ndim(off_key) else 0.0
        carried = carried + (off_query @ np.abs(keys) if np.ndim(off_query) else 0.0)
        magnitude = size @ (np.abs(keys) + off_keys)
        off = (carried + units.gamma(terms + 4) * magnitude + terms * units.smallest) * abs(scale)
        off = off + units.stored * np.abs(value)
        return np.where(visible, off, 0.0)

    return pair(reading, np.where(visible, value, -math.inf), error, query, key, factor=True)


def softmax(reading: Any, x: Bounded) -> Bounded:
    """exp(x) / sum(exp(x)) over the last axis; at least one element of each row is finite."""
    below = x.value - x.value.max(axis=-1, keepdims=True)
    powers = np.exp(below)
    value = powers / powers.sum(axis=-1, keepdims=True)
    seen = np.isfinite(below)
    share = np.maximum(value, TINY)  # which an error so large may have made of a share that is 0 here

    def error(units: Units, off_x: Any) -> np.ndarray:
        # An error of the argument becomes a relative one of the power, and through the sum one of every other.
        off = (
            np.where(seen, off_x - units.inner * below, 0.0)
            if np.ndim(off_x)
            else np.where(seen, -units.inner * below, 0.0)
        )
        with np.errstate(over="ignore"):
            carried = np.expm1(off + np.log(np.sum(share * np.exp(off), axis=-1, keepdims=True)))
            rounded = units.gamma(x.shape[-1] + 2) + 2 * units.few * units.inner
            found = share * (carried + rounded * (1.0 + carried) + units.stored)
        found = np.minimum(found, 1.0 + rounded)  # whatever went in, shares are from 0 to 1
        return np.where(seen, found, 0.0) + units.smallest

    return pair(reading, value, error, x)


def mix(reading: Any, pattern: Bounded, value: Bounded) -> Bounded:
    """pattern value: [B, H, T, S], [B, K, S, N] -> [B, H, T, N]."""
    shared = pattern.shape[1] // value.shape[1]
    values = np.repeat(value.value, shared, axis=1)
    mixed = pattern.value @ values
    terms = pattern.shape[-1]

    def error(units: Units, off_pattern: Any, off_value: Any) -> np.ndarray:
        weights = pattern.value + off_pattern
        off_values = np.repeat(np.broadcast_to(off_value, value.shape), shared, axis=1)
        off = weights @ off_values if np.ndim(off_value) else 0.0
        off = off + (off_pattern @ np.abs(values) if np.ndim(off_pattern) else 0.0)
        # A fused attention divides by the sum only now, and scales what it has when a larger score turns up.
        reached = weights @ (np.abs(values) + off_values)
        return off + units.gamma(terms + 8) * reached + terms * units.smallest + units.stored * np.abs(mixed)

    return pair(reading, mixed, error, pattern, value)


def cross_entropy(reading: Any, logits: Bounded, targets: np.ndarray) -> Bounded:
    """log(sum(exp(x))) - x[target]: [..., V], integers [...] -> [...]."""
    below = logits.value - logits.value.max(axis=-1, keepdims=True)
    powers = np.exp(below)
    total = powers.sum(axis=-1, keepdims=True)
    share = powers / total
    chosen = np.take_along_axis(below, targets[..., None], axis=-1)[..., 0]
    value = np.log(total[..., 0]) - chosen
    terms = logits.shape[-1]

    def error(units: Units, off_x: Any) -> np.ndarray:
        off = np.broadcast_to(off_x, below.shape) - units.inner * below
        largest = off.max(axis=-1, keepdims=True)  # taken off, so that nothing overflows
        grown = largest[..., 0] + np.log(np.sum(np.maximum(share, TINY) * np.exp(off - largest), axis=-1))
        spread = np.maximum(grown, 0.0)  # of the logarithm of the sum; downwards it moves less
        rounded = units.gamma(terms + 2) + units.few * units.inner
        own = np.take_along_axis(off, targets[..., None], axis=-1)[..., 0]
        return spread + rounded * (1.0 + np.abs(value)) + own + units.stored * np.abs(value)

    return pair(reading, value, error, logits)
