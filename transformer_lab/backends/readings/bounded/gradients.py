"""The backward pass of every operation in float64, with a bound on what a sound implementation may differ by.

Each function here is given an operation's inputs and g = dL/dy, the gradient of the loss at its result, both exactly.
It yields the gradients of the inputs, with L's derivative in float64 and how far an implementation in some precision
may be from it. The formulas are those of `backends/plain/gradients.py`; here they are written for the sake of their
errors.

A product is bounded by gamma_n |a| |b|, for every order of its sums (Higham, Accuracy and Stability of Numerical
Algorithms, 2nd edition, 2002, section 3.5). Where several steps follow each other, the bound is computed along with the
value (running error analysis, ibid., section 3.3), by the arithmetic of the bounded reading. And where frameworks use
several formulas for one gradient, equal in exact arithmetic and not in rounding, the bound is the largest of theirs.

Large gradients come in pieces, so that little is held at a time. Shape letters as in `backends/plain/manual.py`.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from transformer_lab.backends.plain.error_function import erfc
from transformer_lab.backends.plain.manual import visible_keys
from transformer_lab.backends.readings.bounded import operations
from transformer_lab.backends.readings.bounded.operations import inverse_root, logistic, pair
from transformer_lab.backends.readings.bounded.pairs import EXACTLY, Bounded, Errors
from transformer_lab.backends.readings.bounded.reading import BoundedReading
from transformer_lab.backends.readings.bounded.units import Units

PIECE = 2**20  # elements of a gradient that are worked on at a time, 8 MB
# Roundings that the derivative of an activation may cost: its elementary functions are off by up to four units in the
# last place, and one minus one of them, or its square, by twice that.
SLOPE = 16
# Activations cut their exponent at 80, and so their slope below this. A slope with the square of 1 + exp(-x) in it is
# lost earlier, where that square leaves the range of the precision: below the root of its smallest number.
CUT = 1e-33


class Piece(NamedTuple):
    """`gradient[place]` for the input of that name: its value, and its bound."""

    input: str
    place: Any
    gradient: Bounded


class Steps(BoundedReading):
    """Arithmetic in which each step is rounded once. kept: the units by which the gradient is kept at the end."""

    def __init__(self, units: Units, precision: str) -> None:
        super().__init__(replace(units, stored=units.inner), precision)
        self.kept = (units, units.likely())


def _exactly(x: Any, steps: Steps) -> Bounded:
    return Bounded(x, EXACTLY, steps)


def _stored(*ways: Bounded) -> Bounded:
    """The gradient as it is kept: its value, and the largest error of all ways to compute it."""
    value, steps = ways[0].value, ways[0].reading

    def error(level: int, units: Units) -> np.ndarray:
        off = np.broadcast_to(ways[0].errors[level], value.shape)
        for way in ways[1:]:
            off = np.maximum(off, way.errors[level])
        off = off + units.stored * np.abs(value) + units.smallest
        return np.where(np.isnan(off), math.inf, off)  # where a step is unbounded, nothing is known

    return Bounded(value, (error(0, steps.kept[0]), error(1, steps.kept[1])), steps)


def _bounded(steps: Steps, value: np.ndarray, error: Callable[[Units], Any]) -> Bounded:
    """A gradient whose bound follows from its inputs at once."""
    return Bounded(value, (error(steps.kept[0]), error(steps.kept[1])), steps)


def linear(
    x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None = None, *, g: np.ndarray, steps: Steps
) -> Iterator[Piece]:
    """y = x w + b: dx = g w^T, dw = x^T g, db = the sum of g over the rows.

    With a kernel of fewer bits both factors of a product, and the product, lose them.
    """
    rows, turned = x.reshape(-1, x.shape[-1]).astype(np.float64), g.reshape(-1, g.shape[-1])
    count, (size, columns) = len(rows), kernel.shape

    def product(value: np.ndarray, magnitude: np.ndarray, terms: int) -> Bounded:
        def error(units: Units) -> np.ndarray:
            fewer_bits = (1.0 + units.kernel) ** 3 - 1.0
            off = magnitude * (units.gamma(terms + 2) + fewer_bits) + terms * units.smallest
            return off + units.stored * np.abs(value)

        return _bounded(steps, value, error)

    to_x, magnitude = np.zeros(rows.shape), np.zeros(rows.shape)
    step = max(1, PIECE // size)
    for first in range(0, columns, step):
        part = slice(first, first + step)
        w = np.asarray(kernel[:, part], np.float64)
        to_x += turned[:, part] @ w.T
        magnitude += np.abs(turned[:, part]) @ np.abs(w).T
        to_w, its_magnitude = rows.T @ turned[:, part], np.abs(rows).T @ np.abs(turned[:, part])
        yield Piece("kernel", (slice(None), part), product(to_w, its_magnitude, count))
    yield Piece("x", ..., _shaped(product(to_x, magnitude, columns), x.shape))
    if bias is not None:
        yield Piece("bias", ..., _stored(_over_rows(_exactly(turned, steps))))


def _shaped(x: Bounded, shape: tuple[int, ...]) -> Bounded:
    errors: Errors = tuple(np.broadcast_to(off, x.shape).reshape(shape) for off in x.errors)  # type: ignore[assignment]
    return Bounded(x.value.reshape(shape), errors, x.reading)


def _over_rows(x: Bounded) -> Bounded:
    """The sum over all axes but the last."""
    return x.reshape((-1, x.shape[-1])).sum(axis=0)


def _mean(x: Bounded) -> Bounded:
    return x.mean(axis=-1, keepdims=True)


def embed(table: np.ndarray, ids: np.ndarray, *, g: np.ndarray, steps: Steps) -> Iterator[Piece]:
    """y = table[ids]: row r of the table gets the sum of g where ids are r, and rows that are not used get 0."""
    size = table.shape[1]
    rows, places = g.reshape(-1, size), np.asarray(ids).reshape(-1)
    step = max(1, PIECE // size)
    for first in range(0, len(table), step):
        part = slice(first, min(first + step, len(table)))
        here = (places >= part.start) & (places < part.stop)
        value, magnitude = np.zeros((2, part.stop - part.start, size))
        used = np.bincount(places[here] - first, minlength=len(value))
        np.add.at(value, places[here] - first, rows[here])
        np.add.at(magnitude, places[here] - first, np.abs(rows[here]))

        def error(units: Units, used: Any = used, magnitude: Any = magnitude) -> np.ndarray:
            gammas = np.array([units.gamma(n) for n in range(int(used.max()) + 1)])
            return gammas[used][:, None] * magnitude + used[:, None] * units.smallest

        yield Piece("table", part, _bounded(steps, value, error))


def layer_norm(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, epsilon: float, *, g: np.ndarray, steps: Steps
) -> Iterator[Piece]:
    """y = n w + b, n = (x - mean) r, r = 1 / sqrt(variance + epsilon). With h = g w:

    dx = r (h - mean h - n mean(h n)), dw = the sum of g n over the rows, db = that of g.
    """
    given, up = _exactly(x, steps), _exactly(g, steps)
    h = up * _exactly(weight, steps)
    mean = _mean(given)
    centred = given - mean
    r = _inverse_root(_mean(centred * centred), epsilon)
    n = centred * r
    inner = _mean(h * n)
    part = r * (h - n * inner)
    # torch multiplies out: dx = r h + b x + c, with sums over h x where the other has sums over h (x - mean).
    b = (_mean(h) * mean - _mean(h * given)) * (r * r * r)
    c = b * mean + _mean(h) * r
    yield Piece("x", ..., _stored(r * (h - _mean(h) - n * inner), part - _mean(part), r * h + b * given - c))
    yield Piece("weight", ..., _stored(_over_rows(up * n), _over_rows(up * (r * given - r * mean))))
    yield Piece("bias", ..., _stored(_over_rows(up)))


def rms_norm(x: np.ndarray, weight: np.ndarray, epsilon: float, *, g: np.ndarray, steps: Steps) -> Iterator[Piece]:
    """y = n w, n = x r, r = 1 / sqrt(mean x^2 + epsilon). With h = g w:

    dx = r (h - n mean(h n)), dw = the sum of g n over the rows.
    """
    given, up = _exactly(x, steps), _exactly(g, steps)
    h = up * _exactly(weight, steps)
    r = _inverse_root(_mean(given * given), epsilon)
    n = given * r
    yield Piece("x", ..., _stored(r * (h - n * _mean(h * n)), r * h - given * (_mean(h * given) * (r * r * r))))
    yield Piece("weight", ..., _stored(_over_rows(up * n)))


def _inverse_root(square: Bounded, epsilon: float) -> Bounded:
    """1 / sqrt(square + epsilon)."""
    value = 1.0 / np.sqrt(square.value + epsilon)

    def error(units: Units, off: Any) -> np.ndarray:
        return value * (inverse_root(off / (square.value + epsilon)) + units.few * units.inner)

    return pair(square.reading, value, error, square)


def gelu_tanh(x: np.ndarray, *, g: np.ndarray, steps: Steps) -> Iterator[Piece]:
    """y = x s, s = 1 / (1 + exp(-2 z)), z = c (x + a x^3), c = sqrt(2 / pi), a = 0.044715, dz/dx = c (1 + 3 a x^2):

    dx = g (s + 2 x s (1 - s) dz/dx). With s = (1 + tanh z) / 2, what cancels is rounded by units of 1.
    """
    x = np.asarray(x, np.float64)
    scale = math.sqrt(2.0 / math.pi)
    z, turn = scale * (x + 0.044715 * x**3), scale * (1.0 + 3.0 * 0.044715 * x * x)
    s = logistic(2.0 * z)
    slope = s + 2.0 * x * s * logistic(-2.0 * z) * turn
    yield _sloped(slope, 1.0 + np.abs(x) * turn, x, g, steps)


def gelu_erf(x: np.ndarray, *, g: np.ndarray, steps: Steps) -> Iterator[Piece]:
    """y = x F(x), F the normal distribution, f its density: dx = g (F + x f)."""
    x = np.asarray(x, np.float64)
    with np.errstate(under="ignore"):
        density = np.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)
    slope = 0.5 * erfc(np, x * -math.sqrt(0.5)) + x * density
    yield _sloped(slope, 1.0 + np.abs(x) * density * (1.0 + x * x), x, g, steps)


def silu(x: np.ndarray, *, g: np.ndarray, steps: Steps) -> Iterator[Piece]:
    """y = x s, s = 1 / (1 + exp(-x)): dx = g s (1 + x (1 - s))."""
    x = np.asarray(x, np.float64)
    s = logistic(x)
    yield _sloped(s * (1.0 + x * logistic(-x)), s * (1.0 + np.abs(x)), x, g, steps)


def sigmoid(x: np.ndarray, *, g: np.ndarray, steps: Steps) -> Iterator[Piece]:
    """y = s: dx = g s (1 - s)."""
    s, rest = logistic(np.asarray(x, np.float64)), logistic(-np.asarray(x, np.float64))
    yield _sloped(s * rest, s, x, g, steps)


def logsumexp(x: np.ndarray, *, g: np.ndarray, steps: Steps) -> Iterator[Piece]:
    """y = log(sum(exp(x))): dx = g softmax(x)."""
    given, up = steps.exactly(x), _exactly(g[..., None], steps)
    yield Piece("x", ..., _stored(*_through_largest(given, _softmax(given) * up)))


def relu(x: np.ndarray, *, g: np.ndarray, steps: Steps) -> Iterator[Piece]:
    """y = max(x, 0): dx = g where x > 0, else 0. At 0 every slope from 0 to 1 is one."""
    value = np.where(np.asarray(x) > 0.0, g, 0.0)
    yield Piece(
        "x", ..., _bounded(steps, value, lambda units: np.where(np.asarray(x) == 0.0, np.abs(g), units.smallest))
    )


def _sloped(slope: np.ndarray, size: np.ndarray, x: np.ndarray, g: np.ndarray, steps: Steps) -> Piece:
    """g times a slope that is off by a few roundings of `size`."""
    value = g * slope

    def error(units: Units) -> np.ndarray:
        off = np.abs(g) * (SLOPE * units.inner * size + max(CUT, math.sqrt(units.smallest)) * (1.0 + np.abs(x)))
        return off + units.stored * np.abs(value) + units.smallest

    return Piece("x", ..., _bounded(steps, value, error))


def softmax(x: np.ndarray, *, g: np.ndarray, steps: Steps) -> Iterator[Piece]:
    """y = softmax(x): dx = y (g - sum(g y))."""
    given, up = steps.exactly(x), _exactly(g, steps)
    y = _softmax(given)
    means = (up * y).sum(axis=-1, keepdims=True)
    yield Piece("x", ..., _stored(*_through_largest(given, y * (up - means), y * up - y * means)))


def _softmax(x: Bounded, kept: bool = False) -> Bounded:
    """exp(x) / sum(exp(x)), also computed as exp(x - largest - log(sum(exp(x - largest)))).

    kept: what is kept for the backward pass may be l = largest + log(sum(...)) alone, rounded, and exp(x - l) is taken.
    """
    largest = x.value.max(axis=-1, keepdims=True)
    below = np.where(np.isfinite(x.value), x.value - largest, 0.0)
    logs = np.log(np.exp(x.value - largest).sum(axis=-1, keepdims=True))
    size = np.abs(below) + logs
    if kept:
        size = size + np.abs(largest) + np.abs(largest + below)
    moved = pair(x.reading, x.value, lambda units, off: off + 4.0 * units.inner * size, x)
    return operations.softmax(x.reading, moved)


def _through_largest(x: Bounded, *ways: Bounded) -> Iterator[Bounded]:
    """Adds to dx what may come through max(x), which is taken off before the exponential.

    Its gradient is the sum of dx along the row, 0 in exact arithmetic, and rounding here. It goes to the largest.
    """
    reach = x.value + x.error
    largest = reach >= (x.value - x.error).max(axis=-1, keepdims=True)
    for way in ways:
        yield way
        total = way.sum(axis=-1, keepdims=True)

        def error(units: Units, off: Any, off_total: Any) -> np.ndarray:
            row = np.sum(np.broadcast_to(off, largest.shape), axis=-1, keepdims=True) + off_total
            return off + np.where(largest, row, 0.0)

        yield pair(way.reading, way.value, error, way, total)


def rotary(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, *, g: np.ndarray, steps: Steps) -> Iterator[Piece]:
    """(y1, y2) = (x1 cos - x2 sin, x2 cos + x1 sin): dx1 = g1 cos + g2 sin, dx2 = g2 cos - g1 sin.

    The table is no parameter, and its gradient is not looked at.
    """
    half = x.shape[-1] // 2
    first, second = _exactly(g[..., :half], steps), _exactly(g[..., half:], steps)
    cosines, sines = (_exactly(table[:, None, ...], steps) for table in (cos, sin))
    for place, way in (
        (slice(None, half), first * cosines + second * sines),
        (slice(half, None), second * cosines - first * sines),
    ):
        yield Piece("x", (..., place), _stored(way))


def attention(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    start: np.ndarray,
    scale: float,
    window: int | None = None,
    *,
    g: np.ndarray,
    steps: Steps,
) -> Iterator[Piece]:
    """y = P v, P = softmax(S), S = scale q k^T. With d = sum_S P dP, which is sum_N g y:

    dP = g v^T, dS = P (dP - d), dq = scale dS k, dk = scale dS^T q, dv = P^T g. Query heads that share a key are rows
    of one product. One key head at a time.
    """
    batch, heads, queries, size = query.shape
    kv_heads, keys = key.shape[1:3]
    shared = heads // kv_heads
    for row in range(batch):
        visible = visible_keys(steps, np.asarray(start[row : row + 1]), queries, keys, window)[:, None]
        for head in range(kv_heads):
            its = (slice(row, row + 1), slice(head * shared, (head + 1) * shared))  # queries, and what comes of them
            own = (slice(row, row + 1), slice(head, head + 1))
            scores = operations.scores(steps, steps.exactly(query[its]), steps.exactly(key[own]), visible, scale)
            scores = _shaped(scores, (-1, keys))
            q, up = (_exactly(x[its].reshape(-1, size), steps) for x in (query, g))
            k, v = (_exactly(x[own].reshape(keys, size), steps) for x in (key, value))
            pattern = _softmax(scores, kept=True)
            to_pattern = up @ v.mT
            y = _stored(pattern @ v)
            ways = []
            for means in ((pattern * to_pattern).sum(axis=-1, keepdims=True), (up * y).sum(axis=-1, keepdims=True)):
                ways += [pattern * (to_pattern - means), pattern * to_pattern - pattern * means]
            to_scores = _stored(*_through_largest(scores, *ways))
            yield Piece("query", its, _shaped(_stored((to_scores @ k) * scale), query[its].shape))
            yield Piece("key", own, _shaped(_stored((to_scores.mT @ q) * scale), key[own].shape))
            yield Piece("value", own, _shaped(_stored(pattern.mT @ up), value[own].shape))


def cross_entropy(logits: np.ndarray, targets: np.ndarray, *, g: np.ndarray, steps: Steps) -> Iterator[Piece]:
    """y = log(sum(exp(x))) - x[target]: dx = g (softmax(x) - onehot(target)). Some rows at a time."""
    size = logits.shape[-1]
    step = max(1, PIECE // size)
    for index in np.ndindex(*logits.shape[:-2]):
        for first in range(0, logits.shape[-2], step):
            place = (*index, slice(first, first + step))
            given = steps.exactly(logits[place])
            up = _exactly(g[place][:, None], steps)
            chosen = _exactly(np.arange(size) == np.asarray(targets)[place][:, None], steps)
            y = _softmax(given)
            yield Piece("logits", place, _stored(*_through_largest(given, (y - chosen) * up, y * up - chosen * up)))
