"""The backward pass of every operation in float64, with a bound on what a sound implementation may differ by.

Each function here is given an operation's inputs and g = dL/dy, the gradient of the loss at its result, both exactly.
It yields the gradients of the inputs, with L's derivative in float64 and how far an implementation in some precision
may be from it. The formulas are those of `backends/plain/gradients.py`; here they are written for the sake of their
errors.

A product is bounded by gamma_n |a| |b|, for every order of its sums (Higham, Accuracy and Stability of Numerical
Algorithms, 2nd edition, 2002, section 3.5). Where several steps follow each other, the bound is computed along with the
value (running error analysis, ibid., section 3.3): see `Running`. And where frameworks use several formulas for one
gradient, equal in exact arithmetic and not in rounding, the bound is the largest of theirs.

Large gradients come in pieces, so that little is held at a time. Shape letters as in `backends/plain/manual.py`.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from transformer_lab.backends.plain.error_function import erfc
from transformer_lab.backends.readings.bounded import bounds
from transformer_lab.backends.readings.bounded.bounds import FEW, Bounded, Units

PIECE = 2**20  # elements of a gradient that are worked on at a time, 8 MB
# Roundings that the derivative of an activation may cost: its elementary functions are off by up to four units in the
# last place, and one minus one of them, or its square, by twice that.
SLOPE = 16
# Activations cut their exponent at 80, and so their slope below this.
CUT = 1e-33


class Piece(NamedTuple):
    """`gradient[place]` for the input of that name: its value, and its bound."""

    input: str
    place: Any
    gradient: Bounded


class Running:
    """A value, and how far a computation of it in the precision of `units` may be off.

    Arithmetic carries both on: the errors that the operands bring, and the rounding of each step.
    """

    def __init__(self, value: np.ndarray, error: Any, units: Units) -> None:
        self.value, self.error, self.units = value, error, units

    def __add__(self, other: "Running") -> "Running":
        return self._rounded(self.value + other.value, self.error + other.error)

    def __sub__(self, other: "Running") -> "Running":
        return self._rounded(self.value - other.value, self.error + other.error)

    def __mul__(self, other: "Running") -> "Running":
        carried = np.abs(self.value) * other.error + self.error * (np.abs(other.value) + other.error)
        return self._rounded(self.value * other.value, carried + self.units.smallest)

    def __matmul__(self, other: "Running") -> "Running":
        """The product of two matrices, in the last two axes."""
        terms = self.value.shape[-1]
        size = np.abs(self.value) + self.error
        others = np.abs(other.value)
        error = self.error @ others if np.ndim(self.error) else 0.0
        if np.ndim(other.error):
            error = error + size @ other.error
            others = others + other.error
        error = error + self.units.gamma(terms + 2) * (size @ others) + terms * self.units.smallest
        return Running(self.value @ other.value, error, self.units)

    def scaled(self, factor: float) -> "Running":
        """Times a constant, which is rounded itself."""
        size = abs(factor)
        return Running(
            self.value * factor,
            self.error * size + 2.0 * self.units.inner * size * (np.abs(self.value) + self.error),
            self.units,
        )

    def sum(self, axis: int, keepdims: bool = True) -> "Running":
        size = np.abs(self.value) + self.error
        off = np.broadcast_to(self.error, size.shape).sum(axis=axis, keepdims=keepdims)
        terms = self.value.shape[axis]
        error = off + self.units.gamma(terms + 2) * size.sum(axis=axis, keepdims=keepdims)
        return Running(self.value.sum(axis=axis, keepdims=keepdims), error, self.units)

    def mean(self) -> "Running":
        """Over the last axis, which is kept."""
        return self.sum(-1).scaled(1.0 / self.value.shape[-1])

    def transposed(self) -> "Running":
        return Running(np.swapaxes(self.value, -1, -2), _transposed(self.error), self.units)

    def _rounded(self, value: np.ndarray, carried: Any) -> "Running":
        return Running(value, carried + self.units.inner * (np.abs(value) + carried), self.units)


def _transposed(error: Any) -> Any:
    return np.swapaxes(error, -1, -2) if np.ndim(error) else error


def _exactly(x: np.ndarray, units: Units) -> Running:
    return Running(np.asarray(x, np.float64), 0.0, units)


def _stored(*ways: Running) -> Bounded:
    """The gradient as it is kept: its value, and the largest error of all ways to compute it."""
    value, units = ways[0].value, ways[0].units
    error = np.broadcast_to(ways[0].error, value.shape)
    for way in ways[1:]:
        error = np.maximum(error, way.error)
    error = error + units.stored * np.abs(value) + units.smallest
    return Bounded(value, np.where(np.isnan(error), math.inf, error))  # where a step is unbounded, nothing is known


def linear(
    x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None = None, *, g: np.ndarray, units: Units
) -> Iterator[Piece]:
    """y = x w + b: dx = g w^T, dw = x^T g, db = the sum of g over the rows.

    With a kernel of fewer bits both factors of a product, and the product, lose them.
    """
    fewer_bits = (1.0 + units.kernel) ** 3 - 1.0
    rows, turned = x.reshape(-1, x.shape[-1]).astype(np.float64), g.reshape(-1, g.shape[-1])
    count, (size, columns) = len(rows), kernel.shape

    def product(value: np.ndarray, magnitude: np.ndarray, terms: int) -> Bounded:
        error = magnitude * (units.gamma(terms + 2) + fewer_bits) + terms * units.smallest
        return Bounded(value, error + units.stored * np.abs(value))

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
        yield Piece("bias", ..., _stored(_over_rows(_exactly(turned, units))))


def _shaped(pair: Bounded, shape: tuple[int, ...]) -> Bounded:
    return Bounded(pair.value.reshape(shape), pair.error.reshape(shape))


def _over_rows(x: Running) -> Running:
    """The sum over all axes but the last."""
    size = x.value.shape[-1]
    error = np.broadcast_to(x.error, x.value.shape).reshape(-1, size)
    return Running(x.value.reshape(-1, size), error, x.units).sum(0, keepdims=False)


def embed(table: np.ndarray, ids: np.ndarray, *, g: np.ndarray, units: Units) -> Iterator[Piece]:
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
        gammas = np.array([units.gamma(n) for n in range(int(used.max()) + 1)])
        yield Piece("table", part, Bounded(value, gammas[used][:, None] * magnitude + used[:, None] * units.smallest))


def layer_norm(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, epsilon: float, *, g: np.ndarray, units: Units
) -> Iterator[Piece]:
    """y = n w + b, n = (x - mean) r, r = 1 / sqrt(variance + epsilon). With h = g w:

    dx = r (h - mean h - n mean(h n)), dw = the sum of g n over the rows, db = that of g.
    """
    given, up = _exactly(x, units), _exactly(g, units)
    h = up * _exactly(weight, units)
    mean = given.mean()
    centred = given - mean
    r = _inverse_root((centred * centred).mean(), epsilon)
    n = centred * r
    inner = (h * n).mean()
    part = r * (h - n * inner)
    # torch multiplies out: dx = r h + b x + c, with sums over h x where the other has sums over h (x - mean).
    b = (h.mean() * mean - (h * given).mean()) * (r * r * r)
    c = b * mean + h.mean() * r
    yield Piece("x", ..., _stored(r * (h - h.mean() - n * inner), part - part.mean(), r * h + b * given - c))
    yield Piece("weight", ..., _stored(_over_rows(up * n), _over_rows(up * (r * given - r * mean))))
    yield Piece("bias", ..., _stored(_over_rows(up)))


def rms_norm(x: np.ndarray, weight: np.ndarray, epsilon: float, *, g: np.ndarray, units: Units) -> Iterator[Piece]:
    """y = n w, n = x r, r = 1 / sqrt(mean x^2 + epsilon). With h = g w:

    dx = r (h - n mean(h n)), dw = the sum of g n over the rows.
    """
    given, up = _exactly(x, units), _exactly(g, units)
    h = up * _exactly(weight, units)
    r = _inverse_root((given * given).mean(), epsilon)
    n = given * r
    yield Piece("x", ..., _stored(r * (h - n * (h * n).mean()), r * h - given * ((h * given).mean() * (r * r * r))))
    yield Piece("weight", ..., _stored(_over_rows(up * n)))


def _inverse_root(square: Running, epsilon: float) -> Running:
    """1 / sqrt(square + epsilon)."""
    share = square.error / (square.value + epsilon)
    with np.errstate(divide="ignore"):
        # 1 / sqrt(1 - share) - 1; where the error is as large as the square itself, nothing is known.
        off = np.where(share < 1.0, 1.0 / np.sqrt(1.0 - np.minimum(share, 1.0)) - 1.0, math.inf)
    value = 1.0 / np.sqrt(square.value + epsilon)
    return Running(value, value * (off + FEW * square.units.inner), square.units)


def gelu_tanh(x: np.ndarray, *, g: np.ndarray, units: Units) -> Iterator[Piece]:
    """y = x s, s = 1 / (1 + exp(-2 z)), z = c (x + a x^3), c = sqrt(2 / pi), a = 0.044715, dz/dx = c (1 + 3 a x^2):

    dx = g (s + 2 x s (1 - s) dz/dx). With s = (1 + tanh z) / 2, what cancels is rounded by units of 1.
    """
    x = np.asarray(x, np.float64)
    scale = math.sqrt(2.0 / math.pi)
    z, turn = scale * (x + 0.044715 * x**3), scale * (1.0 + 3.0 * 0.044715 * x * x)
    s = _logistic(2.0 * z)
    slope = s + 2.0 * x * s * _logistic(-2.0 * z) * turn
    yield _sloped(slope, 1.0 + np.abs(x) * turn, x, g, units)


def gelu_erf(x: np.ndarray, *, g: np.ndarray, units: Units) -> Iterator[Piece]:
    """y = x F(x), F the normal distribution, f its density: dx = g (F + x f)."""
    x = np.asarray(x, np.float64)
    with np.errstate(under="ignore"):
        density = np.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)
    slope = 0.5 * erfc(np, x * -math.sqrt(0.5)) + x * density
    yield _sloped(slope, 1.0 + np.abs(x) * density * (1.0 + x * x), x, g, units)


def silu(x: np.ndarray, *, g: np.ndarray, units: Units) -> Iterator[Piece]:
    """y = x s, s = 1 / (1 + exp(-x)): dx = g s (1 + x (1 - s))."""
    x = np.asarray(x, np.float64)
    s = _logistic(x)
    yield _sloped(s * (1.0 + x * _logistic(-x)), s * (1.0 + np.abs(x)), x, g, units)


def relu(x: np.ndarray, *, g: np.ndarray, units: Units) -> Iterator[Piece]:
    """y = max(x, 0): dx = g where x > 0, else 0. At 0 every slope from 0 to 1 is one."""
    error = np.where(np.asarray(x) == 0.0, np.abs(g), units.smallest)
    yield Piece("x", ..., Bounded(np.where(np.asarray(x) > 0.0, g, 0.0), error))


def _logistic(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(np.minimum(-x, 700.0)))


def _sloped(slope: np.ndarray, size: np.ndarray, x: np.ndarray, g: np.ndarray, units: Units) -> Piece:
    """g times a slope that is off by a few roundings of `size`."""
    value = g * slope
    error = np.abs(g) * (SLOPE * units.inner * size + CUT * (1.0 + np.abs(x)))
    return Piece("x", ..., Bounded(value, error + units.stored * np.abs(value) + units.smallest))


def softmax(x: np.ndarray, *, g: np.ndarray, units: Units) -> Iterator[Piece]:
    """y = softmax(x): dx = y (g - sum(g y))."""
    given, up = bounds.exactly(x), _exactly(g, units)
    y = _softmax(given, units)
    means = (up * y).sum(-1)
    yield Piece("x", ..., _stored(*_through_largest(given, y * (up - means), y * up - y * means)))


def _softmax(x: Bounded, units: Units, kept: bool = False) -> Running:
    """exp(x) / sum(exp(x)), also computed as exp(x - largest - log(sum(exp(x - largest)))).

    kept: what is kept for the backward pass may be l = largest + log(sum(...)) alone, rounded, and exp(x - l) is taken.
    """
    largest = x.value.max(axis=-1, keepdims=True)
    below = np.where(np.isfinite(x.value), x.value - largest, 0.0)
    logs = np.log(np.exp(x.value - largest).sum(axis=-1, keepdims=True))
    size = np.abs(below) + logs
    if kept:
        size = size + np.abs(largest) + np.abs(largest + below)
    return Running(*bounds.softmax(Bounded(x.value, x.error + 4.0 * units.inner * size), units), units)


def _through_largest(x: Bounded, *ways: Running) -> Iterator[Running]:
    """Adds to dx what may come through max(x), which is taken off before the exponential.

    Its gradient is the sum of dx along the row, 0 in exact arithmetic, and rounding here. It goes to the largest.
    """
    reach = x.value + x.error
    largest = reach >= (x.value - x.error).max(axis=-1, keepdims=True)
    for way in ways:
        yield way
        row = way.error.sum(axis=-1, keepdims=True) + way.sum(-1).error
        yield Running(way.value, way.error + np.where(largest, row, 0.0), way.units)


def rotary(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, *, g: np.ndarray, units: Units) -> Iterator[Piece]:
    """(y1, y2) = (x1 cos - x2 sin, x2 cos + x1 sin): dx1 = g1 cos + g2 sin, dx2 = g2 cos - g1 sin.

    The table is no parameter, and its gradient is not looked at.
    """
    half = x.shape[-1] // 2
    first, second = _exactly(g[..., :half], units), _exactly(g[..., half:], units)
    cosines, sines = (_exactly(table[:, None, ...], units) for table in (cos, sin))
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
    *,
    g: np.ndarray,
    units: Units,
) -> Iterator[Piece]:
    """y = P v, P = softmax(S), S = scale q k^T. With d = sum_S P dP, which is sum_N g y:

    dP = g v^T, dS = P (dP - d), dq = scale dS k, dk = scale dS^T q, dv = P^T g. Query heads that share a key are rows
    of one product. One key head at a time.
    """
    batch, heads, queries, size = query.shape
    kv_heads, keys = key.shape[1:3]
    shared = heads // kv_heads
    for row in range(batch):
        visible = np.arange(keys)[None, :] <= int(start[row]) + np.arange(queries)[:, None]
        for head in range(kv_heads):
            its = (slice(row, row + 1), slice(head * shared, (head + 1) * shared))  # queries, and what comes of them
            own = (slice(row, row + 1), slice(head, head + 1))
            scores = bounds.scores(bounds.exactly(query[its]), bounds.exactly(key[own]), visible, scale, units)
            scores = Bounded(*(x.reshape(-1, keys) for x in scores))
            q, up = (_exactly(x[its].reshape(-1, size), units) for x in (query, g))
            k, v = (_exactly(x[own].reshape(keys, size), units) for x in (key, value))
            pattern = _softmax(scores, units, kept=True)
            to_pattern = up @ v.transposed()
            y = Running(*_stored(pattern @ v), units)
            ways = []
            for means in ((pattern * to_pattern).sum(-1), (up * y).sum(-1)):
                ways += [pattern * (to_pattern - means), pattern * to_pattern - pattern * means]
            to_scores = Running(*_stored(*_through_largest(scores, *ways)), units)
            yield Piece("query", its, _shaped(_stored((to_scores @ k).scaled(scale)), query[its].shape))
            yield Piece("key", own, _shaped(_stored((to_scores.transposed() @ q).scaled(scale)), key[own].shape))
            yield Piece("value", own, _shaped(_stored(pattern.transposed() @ up), value[own].shape))


def cross_entropy(logits: np.ndarray, targets: np.ndarray, *, g: np.ndarray, units: Units) -> Iterator[Piece]:
    """y = log(sum(exp(x))) - x[target]: dx = g (softmax(x) - onehot(target)). Some rows at a time."""
    size = logits.shape[-1]
    step = max(1, PIECE // size)
    for index in np.ndindex(*logits.shape[:-2]):
        for first in range(0, logits.shape[-2], step):
            place = (*index, slice(first, first + step))
            given = bounds.exactly(logits[place])
            up = _exactly(g[place][:, None], units)
            chosen = _exactly(np.arange(size) == np.asarray(targets)[place][:, None], units)
            y = _softmax(given, units)
            yield Piece("logits", place, _stored(*_through_largest(given, (y - chosen) * up, y * up - chosen * up)))
