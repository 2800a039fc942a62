"""Exact mode as a reading of a backend: its arrays are `Exact`, and what is computed of them is the correctly rounded
float32, so it has the same bits on every backend.

A model and its parts are given this object as their `ops`. Its operations are those of `operations.py`, its `xp` is
`algebra.py`, and its gradients are those of a tape (`recorded.py`) of exact arrays: the rules are the same on every
backend, the operations' own are in `gradients.py`. The framework below only ever computes single steps.
"""

from collections.abc import Callable
from inspect import signature
from typing import Any, NoReturn

import numpy as np

from transformer_lab.backends.plain import experts
from transformer_lab.backends.plain.manual import OPERATIONS, identity
from transformer_lab.backends.readings import recorded
from transformer_lab.backends.readings.array import Read, reading_of
from transformer_lab.backends.readings.exact import algebra, gradients
from transformer_lab.backends.readings.exact.operations import SMALLEST_NORMAL, ExactKernel, refuse
from transformer_lab.backends.readings.gradient_rules import CONSTANT, RULES
from transformer_lab.backends.readings.recorded import Recorded, Tape, record_together

# Of a namespace, what is no function of arrays of floats: dtypes, constants, and what tells about them.
FACTS = {
    *("float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"),
    *("pi", "e", "inf", "nan", "newaxis", "finfo", "iinfo", "isdtype", "bfloat16", "float16"),
}
# They make arrays of nothing; floats among them are exact at once.
CREATION = ("zeros", "ones", "full", "eye", "empty", "asarray", "arange")


class Exact(Read):
    """A float32 array of a framework, `value`, of which everything is computed exactly. ops: the `ExactReading`."""

    __slots__ = ("ops", "value")
    outer = 0

    def __init__(self, value: Any, ops: Any) -> None:
        self.value, self.ops = value, ops

    @classmethod
    def read(cls, name: str, arguments: Any, options: Any) -> Any:
        return _ops_of((*arguments, *options.values())).answer(name, arguments, options)

    @classmethod
    def refuse(cls, what: str) -> NoReturn:
        refuse(what, "functions of ops.xp")

    def __repr__(self) -> str:
        return f"Exact({self.value!r})"

    shape = property(lambda self: self.value.shape)
    dtype = property(lambda self: self.value.dtype)
    device = property(lambda self: self.value.device)


def _ops_of(arguments: Any) -> Any:
    for argument in arguments:
        if isinstance(argument, Exact):
            return argument.ops
        if isinstance(argument, (list, tuple)) and reading_of(argument) is Exact:
            return _ops_of(argument)
    raise AssertionError


def raw(x: Any) -> Any:
    """The framework's arrays of an argument, also of a list of them."""
    if isinstance(x, Exact):
        return x.value
    if isinstance(x, experts.Stacked):
        return x  # of `ExactKernel`s, which hold the framework's arrays; and some are not to be fetched for this
    if isinstance(x, (list, tuple)):
        inside = map(raw, x)
        return type(x)(*inside) if hasattr(x, "_fields") else type(x)(inside)
    return x


def _leaves(arguments: Any) -> Any:
    for x in arguments:
        yield from _leaves(x) if isinstance(x, (list, tuple)) else (x,)


def _is_float_array(x: Any, xp: Any) -> bool:
    """Whether it is an array of floats that is not read: nobody knows how it was rounded."""
    if isinstance(x, (Read, np.generic, type)):  # JAX's dtypes have a dtype
        return False
    return getattr(x, "dtype", None) in (xp.float32, xp.float64)


class ExactAlgebra:
    """The namespace `xp` of exact mode."""

    def __init__(self, ops: "ExactReading") -> None:
        self._ops = ops

    def __getattr__(self, name: str) -> Any:
        ops = self._ops
        if name.startswith("_"):
            raise AttributeError(name)
        if name in FACTS:
            return getattr(ops.inner.xp, name)
        if name in ("linalg", "fft"):
            refuse(f"the functions of {name}", "matmul, sum and the other functions of ops.xp")

        def function(*arguments: Any, **options: Any) -> Any:
            if reading_of((*arguments, *options.values())) is Recorded:
                return Recorded.read(name, arguments, options)
            return ops.answer(name, arguments, options)

        setattr(self, name, function)  # the next time it is at hand
        return function


class ExactReading:
    """What a backend is in exact mode. inner: the backend, whose operations take and give the framework's arrays."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.xp = ExactAlgebra(self)
        self.compiles = False  # as a whole; a backend may compile the single steps
        for name in OPERATIONS:
            setattr(self, name, self._operation(getattr(inner, name), getattr(gradients, name)))

    def __getattr__(self, name: str) -> Any:
        """Facts about the backend, and what does not touch arrays of floats: compile, repeat, wait, bucket, ..."""
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def wrapped(self, y: Any) -> Any:
        """Arrays of floats are exact from here on; booleans and integers stay the framework's."""
        if isinstance(y, (tuple, list)):
            return type(y)(map(self.wrapped, y))
        xp = self.inner.xp
        if getattr(y, "dtype", None) == xp.float64:
            y = self.inner.narrow(y)
        return Exact(y, self) if getattr(y, "dtype", None) == xp.float32 else y

    def answer(self, name: str, arguments: Any, options: Any) -> Any:
        """A function of the standard by its name, of exact arrays, integers and numbers."""
        inner = self.inner
        given, named = tuple(map(raw, arguments)), {option: raw(value) for option, value in options.items()}
        touched = reading_of((*arguments, *options.values())) is Exact
        if name == "getitem":
            return self.wrapped(given[0][given[1]])
        if name == "scattered":
            return self.wrapped(algebra.scattered(inner, *given))
        if name == "astype":
            return self.cast(*arguments[:2])
        if name == "asarray":
            return self.asarray(*arguments, **options)
        floats = [x for x in _leaves((*arguments, *options.values())) if _is_float_array(x, inner.xp)]
        if floats:
            refuse("floats of the framework's own, such as a quotient of integers", "ops.asarray of them")
        if name == "where":
            touched = touched or any(isinstance(x, (float, np.floating)) for x in given[1:])
        if touched or name in algebra.ALWAYS_FLOATS:
            if name not in algebra.FUNCTIONS:
                refuse(name, "the functions that docs/extending.md lists")
            with np.errstate(all="ignore"):  # of infinities: frameworks do not warn of them either
                return self.wrapped(algebra.FUNCTIONS[name](inner, *given, **named))
        if name in CREATION:
            return self._created(name, given, named)
        found = getattr(inner.xp, name)(*given, **named)
        if getattr(found, "dtype", None) in (inner.xp.float32, inner.xp.float64):
            refuse(f"{name}, which makes floats", f"{', '.join(CREATION)}, or ops.asarray of a NumPy array")
        return found

    def _created(self, name: str, arguments: Any, options: Any) -> Any:
        inner = self.inner
        steps = (*arguments, *(options[name] for name in ("start", "stop", "step") if name in options))
        if name == "arange" and not all(isinstance(x, (int, np.integer)) for x in steps):
            refuse("arange of floats", "arange of whole numbers, times a step")
        if name == "full" and isinstance(fill := options.get("fill_value", arguments[-1]), (float, np.floating)):
            arguments, options = arguments[:1], options | {"fill_value": algebra.operand(inner, fill)}
        if "dtype" not in options and name in ("zeros", "ones", "eye", "empty"):
            options["dtype"] = inner.xp.float32
        if options.get("device") is None and inner.array_device is not None:
            options["device"] = inner.array_device
        if name == "arange" and options.get("dtype") in (inner.xp.float32, inner.xp.float64):
            options.pop("dtype")
            return self.wrapped(inner.cast(inner.xp.arange(*arguments, **options), inner.xp.float32))
        return self.wrapped(getattr(inner.xp, name)(*arguments, **options))

    # --- the primitives ---------------------------------------------------------------------------------------------

    def asarray(self, x: Any, dtype: Any = None) -> Any:
        if isinstance(x, Exact):
            return x
        if isinstance(x, np.ndarray | np.generic | float | list | tuple):
            array = np.asarray(x)
            if array.dtype.kind == "f" and dtype in (None, self.inner.float_dtype, self.inner.xp.float32):
                return Exact(self.inner.asarray(_without_denormals(array)), self)
        return self.wrapped(self.inner.asarray(x, dtype))

    def to_numpy(self, x: Any) -> np.ndarray:
        return self.inner.to_numpy(raw(x))

    def cast(self, x: Any, dtype: Any) -> Any:
        xp = self.inner.xp
        if isinstance(x, Recorded):
            return x.astype(dtype)
        if isinstance(x, Exact):
            if dtype == xp.float32:
                return x
            if dtype in (getattr(xp, name, None) for name in ("float64", "float16", "bfloat16")):
                refuse(f"a cast to {dtype}", "float32, which is exact here")
        return self.wrapped(self.inner.cast(raw(x), dtype))

    def zeros(self, shape: tuple[int, ...]) -> Any:
        return Exact(self.inner.zeros(shape), self)

    def wait(self, x: Any) -> Any:
        self.inner.wait(raw(x))
        return x

    def slice_update(self, target: Any, update: Any, start: Any, axis: int) -> Any:
        if isinstance(target, Recorded) or isinstance(update, Recorded):
            Recorded.refuse("slice_update; train without a cache")
        return self.wrapped(self.inner.slice_update(raw(target), raw(update), start, axis))

    def put(self, target: Any, index: Any, update: Any) -> Any:
        return self.wrapped(self.inner.put(raw(target), index, raw(update)))

    def scatter_add(self, target: Any, index: Any, update: Any) -> Any:
        """The sum of what comes to one row is rounded once, and once more when it is added to the target's."""
        if isinstance(update, Recorded) or isinstance(target, Recorded):
            value = self.scatter_add(recorded.plain(target), index, recorded.plain(update))
            return record_together(value, (target, update), lambda g: (g, g[index]))
        rows = self.inner.xp.reshape(raw(update), (update.shape[0], -1))
        added = algebra.add_rows(self.inner, target.shape[0], index, rows)
        return target + Exact(self.inner.xp.reshape(added, tuple(target.shape)), self)

    def top_k(self, x: Any, k: int) -> tuple[Any, Any]:
        order = algebra.argsort(self.inner, raw(recorded.plain(x)), descending=True)  # NaN last, everywhere
        indices = self.inner.cast(order[..., :k], self.inner.index_dtype)
        return self.xp.take_along_axis(x, indices, axis=-1), indices

    def erfc(self, x: Any) -> Any:
        if isinstance(x, Recorded):
            p = x.value
            scale = -2.0 / np.pi**0.5
            return recorded.record(self.erfc(p), (x, lambda g: g * (scale * self.xp.exp(-(p * p)))))
        return self.wrapped(algebra.erfc(self.inner, raw(x)))

    # --- parameters -------------------------------------------------------------------------------------------------

    def place(self, name: str, array: np.ndarray) -> Any:
        return self._kept(self.inner.place(name, _without_denormals(array)))

    def place_tied_head(self, table: Any) -> Any:
        return self._kept(self.inner.place_tied_head(raw(table)))

    def _kept(self, parameter: Any) -> Any:
        return parameter if isinstance(parameter, (ExactKernel, experts.Stacked)) else self.wrapped(parameter)

    def recover(self, name: str, parameter: Any) -> np.ndarray:
        return self.inner.recover(name, raw(parameter))

    def picked(self, params: Any, index: Any) -> Any:
        return experts.picked(self, params, index)

    def by_groups(self, run: Callable[[Any, Any], Any], params: Any, rows: Any, sizes: Any) -> Any:
        return experts.by_groups(self, run, params, rows, sizes)

    # --- operations and gradients -----------------------------------------------------------------------------------

    def _operation(self, run: Callable[..., Any], backward: Callable[..., Any]) -> Callable[..., Any]:
        """An operation of the framework's arrays, of exact ones; on a tape with its own backward pass."""
        plan = signature(run)

        def operation(*arguments: Any, **named: Any) -> Any:
            given = plan.bind(*arguments, **named).arguments
            tap, places = given.pop("tap", None), given.pop("places", None)
            inputs = list(given.values())
            if reading_of(inputs) is not Recorded:
                more: dict[str, Any] = {} if tap is None or tap is identity else {"tap": self._tap(tap)}
                more |= {} if places is None else {"places": places}
                return self.wrapped(run(*map(raw, inputs), **more))
            values = [raw(recorded.plain(x)) for x in inputs]

            def send(g: Any) -> list[Any]:
                found = zip(backward(self.inner, raw(g), *values), inputs, strict=False)
                sent = [self.wrapped(gradient()) if isinstance(x, Recorded) else None for gradient, x in found]
                return sent + [None] * (len(inputs) - len(sent))

            # A tap is not called: what is differentiated as a whole shows nothing inside.
            return record_together(self.wrapped(run(*values)), inputs, send)

        return operation

    def _tap(self, tap: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
        return lambda name, x: raw(tap(name, self.wrapped(x)))

    def value_and_grad(self, function: Callable[..., Any], extra: bool = False) -> Callable[..., tuple[Any, Any]]:
        def tape() -> Tape:
            return Tape(self.xp, RULES, CONSTANT, "Exact mode")

        both = recorded.value_and_grad(function, tape, lambda x: isinstance(x, Exact), extra)

        def scoped(*arguments: Any) -> tuple[Any, Any]:
            with self.inner.scope():
                return both(*arguments)

        return scoped


def _without_denormals(array: np.ndarray) -> np.ndarray:
    """float32 with 0 for what XLA takes for 0 (denormals), and for -0."""
    with np.errstate(over="ignore"):
        array = np.asarray(array, np.float32)
    return np.where(np.abs(array) < SMALLEST_NORMAL, np.float32(0.0), array)
