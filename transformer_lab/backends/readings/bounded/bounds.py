"""The operations of the decoder in float64, each with a bound on what a sound implementation may differ by.

A value here is a pair: what an operation gives in exact arithmetic (computed in float64), and how far an implementation
in some precision may be from it, element by element. The inputs are pairs too: where one was looked at, its error is 0;
where it was not, because it lies inside a fused operation or was not shown, its own bound goes on into the next one.

The bounds are the standard ones of rounding error analysis (Higham, Accuracy and Stability of Numerical Algorithms, 2nd
edition, 2002, chapters 3 and 4): a sum of n products in any order is off by at most gamma_n times the sum of their
absolute values, gamma_n = n u / (1 - n u). So they hold for every order of a sum, blocked, fused or threaded; an
implementation that exceeds one does not compute this operation in this precision.

Shape letters as in `backends/plain/manual.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from transformer_lab.backends.plain.error_function import erfc

COLUMNS = 4096  # of a kernel that are worked on at a time, so that the copies of a large head stay small
# Roundings that an elementary function and the few operations around it may cost: torch's exp inside its attention is
# off by up to 20 units in the last place (its name is exp_u20), the others by one to four.
FEW = 48
TINY = float(np.finfo(np.float64).tiny)


class Bounded(NamedTuple):
    """value [...] in float64, and error [...], at least 0: how far from it a sound implementation may be."""

    value: np.ndarray
    error: np.ndarray


@dataclass(frozen=True)
class Units:
    """What one rounding may cost, relative to the result.

    inner: of each step inside an operation. stored: of an operation's result, where it is kept. kernel: of the inputs
    and the result of a product whose kernel is stored in fewer bits. levels: the kernel's columns are stored in that
    many steps on each side of 0 (int8). smallest: results below it may be flushed to 0. activation: of each step of an
    activation function, relative to its argument, where these are kept, too.
    """

    inner: float
    stored: float
    kernel: float = 0.0
    levels: int = 0
    smallest: float = 2.0**-126
    activation: float = 0.0

    def gamma(self, terms: int) -> float:
        """The bound on a sum of that many terms, in any order, relative to the sum of their absolute values."""
        spent = terms * self.inner
        return spent / (1.0 - spent)


JUDGE = 2.0**-53  # what is computed here is itself only float64
# Where a result is kept, two roundings are allowed: one may add the bias or apply the last factor apart from the rest.
# Exact mode rounds once, and correctly.
UNITS = {
    "float32": Units(2.0**-24 + JUDGE, 2.0 * 2.0**-24 + JUDGE),
    "float64": Units(2.0 * JUDGE, 3.0 * JUDGE, smallest=2.0**-1022),
    "exact": Units(2.0 * JUDGE, 2.0**-24 + 2.0 * JUDGE),
    "bfloat16": Units(2.0**-24, 2.0 * 2.0**-24, kernel=2.0**-8),
    "int8": Units(2.0**-24, 2.0 * 2.0**-24, kernel=2.0**-8, levels=127),
}
# Our bfloat16 keeps kernels in 16 bits and all else in float32. Elsewhere every result is kept in 16, after sums in
# float32; a few roundings may follow each other (a product, its scale, its mask).
KEPT_IN_BFLOAT16 = Units(2.0**-24, 4.0 * 2.0**-8, kernel=2.0**-8, activation=2.0**-8)


def exactly(x: np.ndarray, smallest: float = 0.0) -> Bounded:
    """What was looked at: its error is 0. But what is below `smallest` may be read as 0."""
    wide = np.asarray(x, np.float64)
    size = np.abs(wide)
    return Bounded(wide, np.where(size < smallest, size, 0.0))


def linear(x: Bounded, kernel: np.ndarray, bias: np.ndarray | None, units: Units) -> Bounded:
    """x [..., in] @ kernel [in, out] + bias [out] -> [..., out]."""
    terms, columns = kernel.shape
    value = np.empty((*x.value.shape[:-1], columns))
    error = np.empty_like(value)
    size = np.abs(x.value) + x.error
    inexact = bool(x.error.any())
    for first in range(0, columns, COLUMNS):
        part = slice(first, first + COLUMNS)
        weight = kernel[:, part]
        value[..., part] = x.value @ weight
        magnitude = np.abs(weight)
        error[..., part] = size @ magnitude
        off = error[..., part] * units.gamma(terms + 2)
        if units.kernel:  # the input, the kernel and the result each lose bits
            off += error[..., part] * (3.0 * units.kernel)
        if units.levels:  # scales are rounded up to 8 bits, so a step is up to 1 % wider than the largest / levels
            step = magnitude.max(axis=0) * (1.01 / units.levels)
            off += 0.5 * np.sum(size, axis=-1, keepdims=True) * step
        if inexact:
            off += x.error @ magnitude
        error[..., part] = off + terms * units.smallest
    if bias is not None:
        value += bias
        error += units.gamma(terms + 2) * np.abs(bias)
    error += units.stored * np.abs(value)
    return Bounded(value, error)


def add(a: Bounded, b: Bounded, units: Units) -> Bounded:
    value = a.value + b.value
    carried = a.error + b.error
    return Bounded(value, carried + units.stored * (np.abs(value) + carried) + units.smallest)


def multiply(a: Bounded, b: Bounded, units: Units) -> Bounded:
    value = a.value * b.value
    carried = np.abs(a.value) * b.error + np.abs(b.value) * a.error + a.error * b.error
    return Bounded(value, carried + units.stored * (np.abs(value) + carried) + units.smallest)


def layer_norm(x: Bounded, weight: np.ndarray, bias: np.ndarray, epsilon: float, units: Units) -> Bounded:
    """(x - mean) / sqrt(variance + epsilon) * weight + bias over the last axis."""
    size = x.value.shape[-1]
    mean = x.value.mean(axis=-1, keepdims=True)
    # Some implementations take the mean of the squares, or go along the row updating both: a few roundings per term.
    rounded = units.gamma(size + 2) * _mean(np.abs(x.value) + x.error)
    off = _mean(x.error) + rounded
    centred = x.value - mean
    centred_off = x.error + off + units.inner * (np.abs(centred) + x.error + off)
    return _divided_by_root(centred, centred_off, rounded, epsilon, weight, bias, units)


def rms_norm(x: Bounded, weight: np.ndarray, epsilon: float, units: Units) -> Bounded:
    """x / sqrt(mean(x^2) + epsilon) * weight over the last axis."""
    return _divided_by_root(x.value, x.error, np.zeros(1), epsilon, weight, None, units)


def _divided_by_root(
    x: np.ndarray,
    off: np.ndarray,
    rounded: np.ndarray,
    epsilon: float,
    weight: np.ndarray,
    bias: np.ndarray | None,
    units: Units,
) -> Bounded:
    """rounded: how much of `off` is the rounding of a mean that was taken off."""
    size = x.shape[-1]
    square = _mean(x * x)
    square_off = _mean(2.0 * np.abs(x) * off + off * off) + units.gamma(size + 4) * _mean((np.abs(x) + off) ** 2)
    share = square_off / (square + epsilon)
    with np.errstate(divide="ignore", invalid="ignore"):
        # 1 / sqrt(1 - share) - 1; where the error is as large as the square itself, nothing is known.
        root_off = np.where(share < 1.0, 1.0 / np.sqrt(1.0 - np.minimum(share, 1.0)) - 1.0, math.inf)
    root_off = root_off + FEW * units.inner
    scaled = weight / np.sqrt(square + epsilon)
    normal = x * scaled
    value = normal if bias is None else normal + bias
    with np.errstate(invalid="ignore"):
        error = np.abs(scaled) * off * (1.0 + root_off) + np.abs(normal) * root_off
    # Whatever went in, a row is no longer than sqrt(size) afterwards, but for the rounding of its mean.
    longest = (math.sqrt(size) + rounded / math.sqrt(epsilon)) * (1.0 + (FEW + size) * units.inner)
    error = np.fmin(error, np.abs(normal) + np.abs(weight) * longest)
    return Bounded(value, error + (units.stored + units.inner) * np.abs(value) + units.smallest)


def _mean(x: np.ndarray) -> np.ndarray:
    return x.mean(axis=-1, keepdims=True)


def gelu_tanh(x: Bounded, units: Units) -> Bounded:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    inner = math.sqrt(2.0 / math.pi) * (x.value + 0.044715 * x.value**3)
    return _activation(x, x.value * _logistic(2.0 * inner), 1.13, units)


def gelu_erf(x: Bounded, units: Units) -> Bounded:
    """0.5 x (1 + erf(x / sqrt 2))."""
    return _activation(x, 0.5 * x.value * erfc(np, x.value * -math.sqrt(0.5)), 1.13, units)


def silu(x: Bounded, units: Units) -> Bounded:
    """x / (1 + exp(-x))."""
    return _activation(x, x.value * _logistic(x.value), 1.1, units)


def relu(x: Bounded, units: Units) -> Bounded:
    """max(x, 0): nothing is rounded."""
    return Bounded(np.maximum(x.value, 0.0), x.error)


def _logistic(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(np.minimum(-x, 700.0)))


def _activation(x: Bounded, value: np.ndarray, slope: float, units: Units) -> Bounded:
    """slope: the largest of the function. Errors are a few roundings of x: `1 + tanh` cancels, and is sound."""
    size = np.abs(x.value) + x.error
    error = slope * x.error + (FEW * units.inner + 4.0 * units.activation) * size + units.stored * np.abs(value)
    return Bounded(value, error + units.smallest)


ACTIVATIONS: dict[str, Callable[[Bounded, Units], Bounded]] = {
    "gelu_tanh": gelu_tanh,
    "gelu_erf": gelu_erf,
    "relu": relu,
    "silu": silu,
}


def rotary(x: Bounded, angles: np.ndarray, units: Units) -> Bounded:
    """Turns the pairs (x[i], x[i + N / 2]) of every head: x [B, H, T, N], angles [T, N / 2]."""
    half = x.value.shape[-1] // 2
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = x.value[..., :half], x.value[..., half:]
    value = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    size = np.abs(x.value) + x.error
    # A table of cosines that was computed in this precision knows its angles no better than it knows their size. In
    # exact mode the tables are rounded from float64, so this is the rounding of float32 alone.
    known = (4.0 * units.stored + 2.0 * units.inner * np.abs(angles)) * np.ones_like(cos)
    turned = [
        np.abs(cos) * here + np.abs(sin) * there + known * (size[..., :half] + size[..., half:])
        for here, there in (
            (x.error[..., :half], x.error[..., half:]),
            (x.error[..., half:], x.error[..., :half]),
        )
    ]
    return Bounded(value, np.concatenate(turned, axis=-1) + units.smallest)


def scores(query: Bounded, key: Bounded, visible: np.ndarray, scale: float, units: Units) -> Bounded:
    """scale * query key^T, -inf where not visible: [B, H, T, N], [B, K, S, N], bool [T, S] -> [B, H, T, S]."""
    shared = query.value.shape[1] // key.value.shape[1]  # query heads to a key head
    keys, keys_off = (np.swapaxes(np.repeat(x, shared, axis=1), -1, -2) for x in key)
    value = query.value @ keys * scale
    carried = query.error @ np.abs(keys) + (np.abs(query.value) + query.error) @ keys_off
    magnitude = (np.abs(query.value) + query.error) @ (np.abs(keys) + keys_off)
    terms = query.value.shape[-1]
    error = (carried + units.gamma(terms + 4) * magnitude + terms * units.smallest) * abs(scale)
    error += units.stored * np.abs(value)
    return Bounded(np.where(visible, value, -math.inf), np.where(visible, error, 0.0))


def softmax(x: Bounded, units: Units) -> Bounded:
    """exp(x) / sum(exp(x)) over the last axis; at least one element of each row is finite."""
    below = x.value - x.value.max(axis=-1, keepdims=True)
    powers = np.exp(below)
    value = powers / powers.sum(axis=-1, keepdims=True)
    finite = np.where(np.isfinite(below), -below, 0.0)
    # An error of the argument becomes a relative one of the power, and through the sum one of every other.
    off = x.error + units.inner * finite
    share = np.maximum(value, TINY)  # which an error so large may have made of a share that is 0 here
    with np.errstate(over="ignore"):
        carried = np.expm1(off + np.log(np.sum(share * np.exp(off), axis=-1, keepdims=True)))
        rounded = units.gamma(x.value.shape[-1] + 2) + 2 * FEW * units.inner
        error = share * (carried + rounded * (1.0 + carried) + units.stored)
    error = np.minimum(error, 1.0 + rounded)  # whatever went in, shares are from 0 to 1
    return Bounded(value, np.where(np.isfinite(below), error, 0.0) + units.smallest)


def mix(pattern: Bounded, value: Bounded, units: Units) -> Bounded:
    """pattern value: [B, H, T, S], [B, K, S, N] -> the heads side by side, [B, T, H N]."""
    shared = pattern.value.shape[1] // value.value.shape[1]
    values, values_off = (np.repeat(x, shared, axis=1) for x in value)
    mixed = pattern.value @ values
    weights = pattern.value + pattern.error
    error = pattern.error @ np.abs(values) + weights @ values_off
    # A fused attention divides by the sum only now, and scales what it has when a larger score turns up.
    terms = pattern.value.shape[-1]
    error += units.gamma(terms + 8) * (weights @ (np.abs(values) + values_off)) + terms * units.smallest
    error += units.stored * np.abs(mixed)
    batch, heads, length, size = mixed.shape
    return Bounded(*(x.transpose(0, 2, 1, 3).reshape(batch, length, heads * size) for x in (mixed, error)))
