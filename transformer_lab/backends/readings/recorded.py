"""Reverse-mode differentiation by hand: an array that remembers how it was computed, and a tape that is read backwards.

The forward computation runs as it always does, but on `Recorded` arrays. Each function of them writes one step on a
tape: which values it used, and how the gradient of its result becomes the gradients of these. Read backwards, the tape
applies the chain rule (Wengert 1964; Linnainmaa 1970; a survey: Baydin et al. 2018, arXiv 1502.05767): with L the
number at the end, and g = dL/dy for a step y = f(x), the input gets dL/dx = g df/dx.

The values inside are NumPy's arrays, or arrays of another reading: exact gradients are those of recorded exact arrays,
and the bound of a gradient is that of recorded bounded ones. The gradient of each function is in `gradient_rules.py`,
those of whole operations (attention, norms) in `plain/gradients.py`. This file knows neither models nor backends. What
has no rule raises: nothing is ever taken for a constant in silence. Booleans and integers are constants, because they
have no gradient.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

from transformer_lab.backends.readings.array import Read, reading_of
from transformer_lab.errors import ConfigurationError

Gradient = Callable[[Any], Any]


class Part(NamedTuple):
    """A gradient that is zero but at x[index], where it is `gradient`; indices that repeat are summed.

    along: `index` are the indices of take_along_axis along that axis.
    """

    index: Any
    gradient: Any
    along: int | None = None


class Tape:
    """The steps of one computation.

    xp: the functions of the values inside. rules: function -> how it is put on the tape (`gradient_rules.RULES`).
    constant: functions whose results have no gradient. owner: whose gradients these are, for messages.
    """

    def __init__(self, xp: Any, rules: Mapping[str, Callable[..., Any]], constant: Container[str], owner: str) -> None:
        self.xp, self.rules, self.constant, self.owner = xp, rules, constant, owner
        self.steps: list[tuple[Slot, Gradient]] = []

    def answer(self, name: str, arguments: Any, options: Any) -> Any:
        if name in self.rules:
            return self.rules[name](self, *arguments, **options)
        if name in self.constant:
            inner = {option: plain(value) for option, value in options.items()}
            return getattr(self.xp, name)(*map(plain, arguments), **inner)
        return self.refuse(name)

    def refuse(self, what: str) -> NoReturn:
        message = f"{self.owner} has no gradient of {what}. Use functions that have one: docs/extending.md lists them."
        raise ConfigurationError(message)


class Slot:
    """Where the gradient of one value is collected. It does not hold the value, which may be forgotten before."""

    __slots__ = ("dtype", "gradient", "owned", "plain", "shape")

    def __init__(self, value: Any) -> None:
        self.shape: tuple[int, ...] = tuple(value.shape)
        self.dtype: Any = value.dtype
        self.plain = not isinstance(value, Read)
        self.gradient: Any = None
        self.owned = False  # whether the array is this slot's alone, so that it may be written

    def receive(self, tape: Tape, gradient: Any) -> None:
        """Adds a gradient: a value that was used twice has two, and the chain rule wants their sum.

        Broadcasting and casts are undone here, once, for all rules.
        """
        if isinstance(gradient, Part):
            if self.plain:
                self._receive_part(gradient)
                return
            gradient = tape.xp.scattered(gradient, self.shape)
        gradient = undo_broadcasting(tape.xp, gradient, self.shape)
        if self.plain and gradient.dtype != self.dtype:
            gradient = gradient.astype(self.dtype)
        if self.gradient is None:
            self.gradient = gradient  # perhaps somebody else's too: y = a + b gives one array to both
        elif self.owned:
            self.gradient += gradient
        else:
            self.gradient, self.owned = self.gradient + gradient, self.plain

    def _receive_part(self, part: Part) -> None:
        if self.gradient is None:
            self.gradient = np.zeros(self.shape, self.dtype)
        elif not self.owned:
            self.gradient = np.array(self.gradient)
        self.owned = True
        add_part(self.gradient, part)


def add_part(target: np.ndarray, part: Part) -> None:
    """target[part.index] += part.gradient, repeated indices summed; in place."""
    index = part.index
    if part.along is not None:
        index = list(np.indices(part.gradient.shape, sparse=True))
        index[part.along] = part.index
        index = tuple(index)
    if all(item is None or item is Ellipsis or isinstance(item, (int, slice)) for item in index):
        target[index] += part.gradient  # no place occurs twice
    elif len(index) == 1 and np.asarray(index[0]).dtype.kind in "iu":
        add_rows(target, np.asarray(index[0]), part.gradient)
    else:
        np.add.at(target, index, part.gradient)


def undo_broadcasting(xp: Any, gradient: Any, shape: tuple[int, ...]) -> Any:
    """The sum over the axes along which an array of `shape` was repeated: dL/dx = sum of dL/dy over x's copies."""
    if tuple(gradient.shape) == shape:
        return gradient
    added = gradient.ndim - len(shape)
    repeated = [added + axis for axis, n in enumerate(shape) if n == 1 and gradient.shape[added + axis] != 1]
    axes = (*range(added), *repeated)
    return xp.reshape(xp.sum(gradient, axis=axes) if axes else gradient, shape)


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


class Recorded(Read):
    """An array of floats on a tape. Operators and functions work on it as far as they have a rule."""

    __slots__ = ("slot", "tape", "value")
    outer = 1

    def __init__(self, value: Any, tape: Tape) -> None:
        self.value = value
        self.tape = tape
        self.slot = Slot(value)

    @classmethod
    def read(cls, name: str, arguments: Any, options: Any) -> Any:
        return _tape_of((*arguments, *options.values())).answer(name, arguments, options)

    @classmethod
    def refuse(cls, what: str) -> NoReturn:
        message = (
            f"A recorded computation has no gradient of {what}. "
            "Use functions of ops.xp that have one: docs/extending.md lists them."
        )
        raise ConfigurationError(message)

    def __repr__(self) -> str:
        return f"Recorded({self.value!r})"

    shape = property(lambda self: self.value.shape)
    dtype = property(lambda self: self.value.dtype)
    device = property(lambda self: self.value.device)


def _tape_of(arguments: Sequence[Any]) -> Tape:
    for argument in arguments:
        if isinstance(argument, Recorded):
            return argument.tape
        if isinstance(argument, (list, tuple)) and reading_of(argument) is Recorded:
            return _tape_of(argument)
    raise AssertionError


def plain(x: Any) -> Any:
    """The array without its history."""
    return x.value if isinstance(x, Recorded) else x


def record(value: Any, *inputs: tuple[Any, Gradient]) -> Any:
    """Puts y = `value` on the tape. inputs: for each x that y depends on, (x, the function g -> dL/dx).

    A function holds what it needs of the forward computation, and only the functions of recorded inputs are kept.
    """
    recorded = [x for x, _ in inputs if isinstance(x, Recorded)]
    if not recorded:
        return value
    tape = recorded[0].tape
    edges = [(x.slot, gradient) for x, gradient in inputs if isinstance(x, Recorded)]

    def send(g: Any) -> None:
        for slot, gradient in edges:
            slot.receive(tape, gradient(g))

    return _on_tape(value, recorded, send)


def record_together(value: Any, inputs: Sequence[Any], gradients: Callable[[Any], Sequence[Any]]) -> Any:
    """The same where one function g -> (dL/dx for each x) is cheaper than one for each."""
    recorded = [x for x in inputs if isinstance(x, Recorded)]
    if not recorded:
        return value
    tape = recorded[0].tape
    slots = [x.slot if isinstance(x, Recorded) else None for x in inputs]

    def send(g: Any) -> None:
        for slot, gradient in zip(slots, gradients(g), strict=True):
            if slot is not None:
                slot.receive(tape, gradient)

    return _on_tape(value, recorded, send)


def _on_tape(value: Any, recorded: Sequence[Recorded], send: Gradient) -> Recorded:
    tape = recorded[0].tape
    if any(x.tape is not tape for x in recorded):
        tape.refuse("an array of another computation")
    result = Recorded(value, tape)
    tape.steps.append((result.slot, send))
    return result


def value_and_grad(
    function: Callable[..., Any],
    new_tape: Callable[[], Tape],
    is_leaf: Callable[[Any], bool] | None = None,
    extra: bool = False,
) -> Callable[..., tuple[Any, Any]]:
    """f(params, *arguments) -> one number becomes one that returns (the number, a tree of gradients like params).

    extra: f gives a tree of arrays beside the number, and so does what it becomes. is_leaf: what gradients are taken
    with respect to; NumPy's arrays of floats, if it is not given.
    """

    def both(params: Any, *arguments: Any) -> tuple[Any, Any]:
        tape = new_tape()
        slots: list[Slot] = []

        def leaf(x: Any) -> Recorded:
            if not (is_leaf or _is_float_array)(x):
                message = f"Gradients are taken with respect to NumPy arrays of floats, not {type(x).__name__}."
                raise ConfigurationError(message)
            recorded = Recorded(x, tape)
            slots.append(recorded.slot)
            return recorded

        try:
            result = function(mapped(leaf, params), *arguments)
            result, more = result if extra else (result, None)
            value = plain(result)
            if np.shape(value) != () if not isinstance(value, Read) else tuple(value.shape) != ():
                message = f"Gradients are taken of one number, not of an array of shape {tuple(value.shape)}."
                raise ConfigurationError(message)
            if isinstance(result, Recorded):
                if result.tape is not tape:
                    tape.refuse("an array of another computation")
                result.slot.receive(tape, tape.xp.ones_like(value))
            del result
            backwards(tape)
        finally:
            tape.steps.clear()  # it refers to itself through what the steps hold
        collected = iter(own_arrays(tape, slots))
        gradients = mapped(lambda x: next(collected), params)
        return ((value, mapped(plain, more)) if extra else value), gradients

    return both


def _is_float_array(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


def backwards(tape: Tape) -> None:
    """Reads the tape from its end. A step is forgotten once it is done, and the values it held with it."""
    while tape.steps:
        slot, send = tape.steps.pop()
        if slot.gradient is not None:  # else the result does not depend on this step
            g, slot.gradient = slot.gradient, None
            send(g)


def own_arrays(tape: Tape, slots: list[Slot]) -> list[Any]:
    """The gradients of the leaves, zeros for one that was not used; each an array that shares no memory."""
    found: list[Any] = []
    seen: set[int] = set()
    for slot in slots:
        gradient = slot.gradient
        if gradient is None:
            gradient = tape.xp.zeros(slot.shape, dtype=slot.dtype)
        elif slot.plain:
            gradient = np.asarray(gradient)
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
