"""The bounded reading, held against mpmath while it runs: of every result a few elements are computed once more.

Here is each operation a second time, on purpose: as its paper has it, for one element, with DIGITS digits. It shares
no line with what is judged nor with what judges. An element that is farther off than the reading's own bound for
float64 is a fault of the reading itself. What moves or chooses numbers without computing any is not looked at.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np

from transformer_lab.backends.readings.bounded.pairs import EXACTLY, Bounded
from transformer_lab.backends.readings.bounded.reading import BoundedReading, mapped_values
from transformer_lab.backends.readings.bounded.units import UNITS
from transformer_lab.backends.readings.recorded import mapped

DIGITS = 40
ELEMENTS = 2  # of every result

Place = tuple[int, ...]


class Witness(BoundedReading):
    """checked: how many elements of each function were looked at. wrong: those that mpmath has otherwise, in words."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(UNITS["float64"], "float64")
        self.checked: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._generator = np.random.default_rng(seed)

    def _operation(self, run: Any, name: str, *arguments: Any, **named: Any) -> Any:
        given = [self._exactly(x) for x in arguments]
        found = super()._operation(run, name, *given, **named)
        self._look(name, found, given, {key: x for key, x in named.items() if key != "tap"})
        return found

    def answer(self, name: str, arguments: Any, options: Any) -> Any:
        given = mapped(self._exactly, arguments)
        options = {key: self._exactly(x) for key, x in options.items()}
        found = super().answer(name, given, options)
        self._look(name, found, given, options)
        return found

    def erfc(self, x: Any) -> Bounded:
        found = super().erfc(self._exactly(x))
        self._look("erfc", found, [x], {})
        return found

    def _exactly(self, x: Any) -> Any:
        """Its value as it is: what came before is not asked for."""
        return Bounded(x.value, EXACTLY, self, factor=x.factor) if isinstance(x, Bounded) else x

    def _look(self, name: str, found: Any, arguments: Any, options: Any) -> None:
        if name not in FORMULAS or not isinstance(found, Bounded) or not found.value.size:
            return
        plain, named = [mapped_values(x) for x in arguments], {key: mapped_values(x) for key, x in options.items()}
        for flat in self._generator.integers(0, found.value.size, ELEMENTS):
            place = tuple(int(i) for i in np.unravel_index(int(flat), found.shape))
            value, bound = float(found.value[place]), float(found.error[place])
            if not np.isfinite(value) or not np.isfinite(bound):
                continue
            with mpmath.workdps(DIGITS):
                right = FORMULAS[name](place, *plain, **named)
                off = abs(right - value)
            self.checked[name] += 1
            if not off <= bound:
                self.wrong.append(f"{name} is {value!r} in the judge at {list(place)}, and {float(right)!r} by mpmath")


# --- one element of each operation ------------------------------------------------------------------------------------


def _numbers(row: Any) -> list[Any]:
    return [mpmath.mpf(float(x)) for x in np.ravel(row)]


def _linear(place: Place, x: Any, kernel: Any, bias: Any = None) -> Any:
    total = mpmath.fdot(_numbers(x[place[:-1]]), _numbers(kernel[:, place[-1]]))
    return total if bias is None else total + float(bias[place[-1]])


def _embed(place: Place, table: Any, ids: Any) -> Any:
    return mpmath.mpf(float(table[ids[place[:-1]], place[-1]]))


def _layer_norm(place: Place, x: Any, weight: Any, bias: Any, epsilon: float) -> Any:
    row, column = _numbers(x[place[:-1]]), place[-1]
    mean = mpmath.fsum(row) / len(row)
    variance = mpmath.fsum((v - mean) ** 2 for v in row) / len(row)
    return (row[column] - mean) / mpmath.sqrt(variance + epsilon) * float(weight[column]) + float(bias[column])


def _rms_norm(place: Place, x: Any, weight: Any, epsilon: float) -> Any:
    row, column = _numbers(x[place[:-1]]), place[-1]
    mean_square = mpmath.fsum(v * v for v in row) / len(row)
    return row[column] / mpmath.sqrt(mean_square + epsilon) * float(weight[column])


def _softmax(place: Place, x: Any) -> Any:
    row = _numbers(x[place[:-1]])
    return mpmath.exp(row[place[-1]] - _log_sum_exp(row))


def _log_sum_exp(row: list[Any]) -> Any:
    largest = max(row)
    return largest + mpmath.log(mpmath.fsum(mpmath.exp(v - largest) for v in row))


def _rotary(place: Place, x: Any, cos: Any, sin: Any) -> Any:
    row, token, column = x[place[:-1]], place[2], place[-1]
    half = len(row) // 2
    first, second = (mpmath.mpf(float(row[column % half + part])) for part in (0, half))
    turn = (mpmath.mpf(float(table[place[0], token, column % half])) for table in (cos, sin))
    c, s = turn
    return first * c - second * s if column < half else second * c + first * s


def _attention(
    place: Place,
    query: Any,
    key: Any,
    value: Any,
    start: Any,
    scale: float,
    window: int | None = None,
    tap: Any = None,
) -> Any:
    batch, head, token, column = place
    group = head // (query.shape[1] // key.shape[1])
    seen = int(start[batch]) + token + 1
    row = _numbers(query[batch, head, token])
    first = 0 if window is None else max(0, seen - window)
    scores = [mpmath.fdot(row, _numbers(one)) * scale for one in key[batch, group, first:seen]]
    total = _log_sum_exp(scores)
    return mpmath.fdot(
        (mpmath.exp(score - total) for score in scores), _numbers(value[batch, group, first:seen, column])
    )


def _cross_entropy(place: Place, logits: Any, targets: Any) -> Any:
    row = _numbers(logits[place])
    return _log_sum_exp(row) - row[int(targets[place])]


def _gelu_tanh(x: Any) -> Any:
    return x / 2 * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf(0.044715) * x**3)))


def _each(run: Callable[..., Any]) -> Callable[..., Any]:
    """A function of single numbers, broadcast."""

    def element(place: Place, *arguments: Any) -> Any:
        shape = np.broadcast_shapes(*map(np.shape, arguments))
        return run(*(mpmath.mpf(float(np.broadcast_to(x, shape)[place])) for x in arguments))

    return element


def _along(run: Callable[[list[Any]], Any]) -> Callable[..., Any]:
    """A function of a row that becomes one number, along an axis, several or all."""

    def element(place: Place, x: Any, axis: Any = None, keepdims: bool = False, **options: Any) -> Any:
        axes = range(x.ndim) if axis is None else [axis] if isinstance(axis, int) else axis
        gone = {a % x.ndim for a in axes}
        kept = iter(i for at, i in enumerate(place) if not keepdims or at not in gone)
        return run(_numbers(x[tuple(slice(None) if at in gone else next(kept) for at in range(x.ndim))]), **options)

    return element


def _variance(row: list[Any], correction: float = 0.0) -> Any:
    mean = mpmath.fsum(row) / len(row)
    return mpmath.fsum((v - mean) ** 2 for v in row) / (len(row) - correction)


def _cumulative_sum(place: Place, x: Any, axis: int | None = None, include_initial: bool = False, **_: Any) -> Any:
    axis = 0 if axis is None else axis % x.ndim
    row = np.moveaxis(x, axis, -1)[(*place[:axis], *place[axis + 1 :])]
    return mpmath.fsum(_numbers(row[: place[axis] + (0 if include_initial else 1)]))


def _matmul(place: Place, a: Any, b: Any) -> Any:
    rows, columns = np.atleast_2d(a), np.swapaxes(b, -1, -2) if b.ndim > 1 else b[None]
    stack = np.broadcast_shapes(rows.shape[:-2], columns.shape[:-2])
    at = (*place[: len(stack)], *((0,) if a.ndim == 1 else ()), *place[len(stack) :], *((0,) if b.ndim == 1 else ()))
    row = np.broadcast_to(rows, (*stack, *rows.shape[-2:]))[at[:-1]]
    column = np.broadcast_to(columns, (*stack, *columns.shape[-2:]))[(*at[:-2], at[-1])]
    return mpmath.fdot(_numbers(row), _numbers(column))


FORMULAS: dict[str, Callable[..., Any]] = {
    "linear": _linear,
    "embed": _embed,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "softmax": _softmax,
    "rotary": _rotary,
    "attention": _attention,
    "cross_entropy": _cross_entropy,
    "gelu_tanh": _each(_gelu_tanh),
    "gelu_erf": _each(lambda x: x * mpmath.ncdf(x)),
    "silu": _each(lambda x: x / (1 + mpmath.exp(-x))),
    "sigmoid": _each(lambda x: 1 / (1 + mpmath.exp(-x))),
    "relu": _each(lambda x: max(x, mpmath.mpf(0))),
    "logsumexp": lambda place, x: _log_sum_exp(_numbers(x[place])),
    "add": _each(lambda a, b: a + b),
    "subtract": _each(lambda a, b: a - b),
    "multiply": _each(lambda a, b: a * b),
    "divide": _each(lambda a, b: a / b),
    "pow": _each(lambda a, b: a**b),
    "square": _each(lambda x: x * x),
    "reciprocal": _each(lambda x: 1 / x),
    "logaddexp": _each(lambda a, b: _log_sum_exp([a, b])),
    "log2": _each(lambda x: mpmath.log(x, 2)),
    "erfc": _each(mpmath.erfc),
    "sum": _along(lambda row, **_: mpmath.fsum(row)),
    "mean": _along(lambda row: mpmath.fsum(row) / len(row)),
    "prod": _along(lambda row, **_: mpmath.fprod(row)),
    "var": _along(_variance),
    "std": _along(lambda row, **options: mpmath.sqrt(_variance(row, **options))),
    "cumulative_sum": _cumulative_sum,
    "matmul": _matmul,
    **{name: _each(getattr(mpmath, name)) for name in ("exp", "expm1", "log", "log1p", "tanh", "sqrt", "sin", "cos")},
}
