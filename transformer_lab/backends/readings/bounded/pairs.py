"""The arrays of the bounded reading: a value, and how far a sound implementation may be from it.

Beside the value of an operation in exact arithmetic (computed in float64) stands a bound on the error of an
implementation, for the worst case and for what is likely (`units.py`). Where a value was looked at, its error is 0;
where it was not, because it lies inside a fused operation or was not shown, its bound goes on into the next operation.
"""

from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import numpy as np

from transformer_lab.backends.readings.array import Read, reading_of
from transformer_lab.backends.readings.bounded.units import Units
from transformer_lab.errors import ConfigurationError

Errors = tuple[Any, Any]  # for the worst case, and likely; each 0.0 or an array with the value's shape
EXACTLY: Errors = (0.0, 0.0)


class Bounded(Read):
    """value: float64. errors: its bounds. unjudged: why nothing is known about it, or None; its errors are infinite
    then. factor: it is a product, which a compiler may join to what follows, so that it is never rounded."""

    __slots__ = ("errors", "factor", "reading", "unjudged", "value")
    outer = 0

    def __init__(
        self, value: Any, errors: Errors, reading: Any, unjudged: str | None = None, factor: bool = False
    ) -> None:
        self.value, self.errors, self.reading = np.asarray(value, np.float64), errors, reading
        self.unjudged, self.factor = unjudged, factor

    @classmethod
    def read(cls, name: str, arguments: Any, options: Any) -> Any:
        return _reading_in((*arguments, *options.values())).answer(name, arguments, options)

    @classmethod
    def refuse(cls, what: str) -> NoReturn:
        message = f"A comparison cannot follow {what}. Use functions of ops.xp: docs/extending.md lists them."
        raise ConfigurationError(message)

    def __repr__(self) -> str:
        return f"Bounded({self.value!r}, {self.errors[0]!r})"

    @property
    def error(self) -> np.ndarray:
        """The bound for the worst case, with the value's shape."""
        return np.broadcast_to(self.errors[0], self.value.shape)

    @property
    def likely(self) -> np.ndarray:
        return np.broadcast_to(self.errors[1], self.value.shape)

    shape = property(lambda self: self.value.shape)
    dtype = property(lambda self: self.value.dtype)
    device = property(lambda self: "cpu")


class Decided(Read):
    """Booleans or integers that were found by comparing bounded numbers.

    value: what exact arithmetic decides. unsure: where rounding may decide otherwise. allowed(chosen) says whether
    another choice, an array like `value`, would have been right within the bounds too; None where that is not known.
    margin: the smallest distance of two numbers that were compared, over the sum of their bounds: above 1 all is sure.
    """

    __slots__ = ("allowed", "margin", "reading", "unsure", "value")
    outer = 0

    def __init__(
        self,
        value: Any,
        unsure: Any,
        reading: Any,
        allowed: Callable[[np.ndarray], bool] | None = None,
        margin: float = float("inf"),
    ) -> None:
        self.value, self.unsure, self.reading = np.asarray(value), np.broadcast_to(unsure, np.shape(value)), reading
        self.allowed, self.margin = allowed, margin

    @classmethod
    def read(cls, name: str, arguments: Any, options: Any) -> Any:
        return _reading_in((*arguments, *options.values())).answer(name, arguments, options)

    @classmethod
    def refuse(cls, what: str) -> NoReturn:
        Bounded.refuse(what)

    @property
    def errors(self) -> Errors:
        """As numbers: a boolean is off by 1 at most; another place or count may be any."""
        jump = np.where(self.unsure, 1.0 if self.value.dtype == bool else np.inf, 0.0)
        return jump, jump

    def __invert__(self) -> "Decided":
        return Decided(~self.value, self.unsure, self.reading, margin=self.margin)

    def __and__(self, other: Any) -> Any:
        return self.read("logical_and", (self, other), {})

    def __or__(self, other: Any) -> Any:
        return self.read("logical_or", (self, other), {})

    __rand__, __ror__ = __and__, __or__

    shape = property(lambda self: self.value.shape)
    dtype = property(lambda self: self.value.dtype)
    device = property(lambda self: "cpu")


def _reading_in(arguments: Iterable[Any]) -> Any:
    for argument in arguments:
        if isinstance(argument, (Bounded, Decided)):
            return argument.reading
        if isinstance(argument, (list, tuple)) and reading_of(argument) is not None:
            return _reading_in(argument)
    raise AssertionError


def bounds(levels: tuple[Units, Units], error: Callable[..., Any], *inputs: Bounded) -> Errors:
    """error(units, the errors of the inputs at this level) for both levels."""
    worst, likely = levels
    return (
        error(worst, *(x.errors[0] for x in inputs)),
        error(likely, *(x.errors[1] for x in inputs)),
    )


def unjudged_of(*inputs: Any) -> str | None:
    """The first reason among the inputs, if one of them is not known."""
    return next((x.unjudged for x in inputs if isinstance(x, Bounded) and x.unjudged), None)
