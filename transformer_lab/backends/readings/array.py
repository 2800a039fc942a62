"""An array that is read in another way than its framework would: recorded, exact, or with its bound.

The decoder and its parts compute with operators and with the functions of `ops.xp`. Where an array of theirs is a
`Read`, each of these is answered by the array's class, by the function's name in the array API standard. So one
definition has many readings, and a reading is a table of functions. Of several readings the outermost answers: what is
recorded may be exact or bounded inside.
"""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NoReturn

import numpy as np

# What NumPy calls otherwise. Its own functions are answered too, where they have one of these names or the standard's.
NUMPY_NAMES = {
    "power": "pow",
    "absolute": "abs",
    "true_divide": "divide",
    "amax": "max",
    "amin": "min",
    "concatenate": "concat",
    "transpose": "permute_dims",
    "cumsum": "cumulative_sum",
    "cumprod": "cumulative_prod",
}


class Read:
    """The operators and the few members that arrays of all frameworks have, answered by `read`.

    A reading derives from it, gives `shape`, `dtype` and `read`, and says with `outer` who answers where two meet.
    """

    __slots__ = ()
    outer: ClassVar[int] = 0

    shape: Any
    dtype: Any
    device: Any = None

    @classmethod
    def read(cls, name: str, arguments: Any, options: Any) -> Any:
        """The function `name` of the array API standard, or "getitem" for x[index]; at least one argument is of this
        reading. Raises ConfigurationError, in words, for one that it does not know."""
        raise NotImplementedError

    @classmethod
    def refuse(cls, what: str) -> NoReturn:
        raise NotImplementedError

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """NumPy calls this for np.exp and the like, and for `numpy_array + x`."""
        if method != "__call__" or options:
            self.refuse(f"{ufunc.__name__} with {', '.join(options) or method}")  # with out=..., that is in place, too
        return answered(NUMPY_NAMES.get(ufunc.__name__, ufunc.__name__), inputs, {})

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        """NumPy calls this for its other functions: np.sum, np.reshape, ..."""
        return answered(NUMPY_NAMES.get(function.__name__, function.__name__), arguments, options)

    def __array__(self, *arguments: Any, **options: Any) -> NoReturn:
        self.refuse("an array that is turned into a plain one")

    def __float__(self) -> NoReturn:
        self.refuse("a number that is taken out of the computation")

    __int__ = __bool__ = __index__ = __complex__ = __float__

    def __setitem__(self, index: Any, value: Any) -> NoReturn:
        self.refuse("writing into an array")

    def __getitem__(self, index: Any) -> Any:
        return answered("getitem", (self, index if isinstance(index, tuple) else (index,)), {})

    def __iter__(self) -> Any:
        return (self[place] for place in range(len(self)))

    def __len__(self) -> int:
        return int(self.shape[0])

    __hash__ = None  # type: ignore[assignment]  # == compares elements

    def __neg__(self) -> Any:
        return answered("negative", (self,), {})

    def __pos__(self) -> Any:
        return self

    def __abs__(self) -> Any:
        return answered("abs", (self,), {})

    def __add__(self, other: Any) -> Any:
        return answered("add", (self, other), {})

    def __radd__(self, other: Any) -> Any:
        return answered("add", (other, self), {})

    def __sub__(self, other: Any) -> Any:
        return answered("subtract", (self, other), {})

    def __rsub__(self, other: Any) -> Any:
        return answered("subtract", (other, self), {})

    def __mul__(self, other: Any) -> Any:
        return answered("multiply", (self, other), {})

    def __rmul__(self, other: Any) -> Any:
        return answered("multiply", (other, self), {})

    def __truediv__(self, other: Any) -> Any:
        return answered("divide", (self, other), {})

    def __rtruediv__(self, other: Any) -> Any:
        return answered("divide", (other, self), {})

    def __pow__(self, other: Any) -> Any:
        return answered("pow", (self, other), {})

    def __rpow__(self, other: Any) -> Any:
        return answered("pow", (other, self), {})

    def __matmul__(self, other: Any) -> Any:
        return answered("matmul", (self, other), {})

    def __rmatmul__(self, other: Any) -> Any:
        return answered("matmul", (other, self), {})

    def __floordiv__(self, other: Any) -> Any:
        return answered("floor_divide", (self, other), {})

    def __rfloordiv__(self, other: Any) -> Any:
        return answered("floor_divide", (other, self), {})

    def __mod__(self, other: Any) -> Any:
        return answered("remainder", (self, other), {})

    def __rmod__(self, other: Any) -> Any:
        return answered("remainder", (other, self), {})

    def __lt__(self, other: Any) -> Any:
        return answered("less", (self, other), {})

    def __le__(self, other: Any) -> Any:
        return answered("less_equal", (self, other), {})

    def __gt__(self, other: Any) -> Any:
        return answered("greater", (self, other), {})

    def __ge__(self, other: Any) -> Any:
        return answered("greater_equal", (self, other), {})

    def __eq__(self, other: Any) -> Any:
        return answered("equal", (self, other), {})

    def __ne__(self, other: Any) -> Any:
        return answered("not_equal", (self, other), {})

    ndim = property(lambda self: len(self.shape))
    size = property(lambda self: int(np.prod(self.shape)))
    T = property(lambda self: answered("permute_dims", (self, tuple(reversed(range(self.ndim)))), {}))
    mT = property(lambda self: answered("matrix_transpose", (self,), {}))

    def reshape(self, *shape: Any) -> Any:
        return answered("reshape", (self, shape[0] if len(shape) == 1 else shape), {})

    def transpose(self, *axes: Any) -> Any:
        given = (axes[0] if len(axes) == 1 else axes) or tuple(reversed(range(self.ndim)))
        return answered("permute_dims", (self, given), {})

    def astype(self, dtype: Any, copy: bool = True) -> Any:
        return answered("astype", (self, dtype), {})

    def sum(self, axis: Any = None, keepdims: bool = False) -> Any:
        return answered("sum", (self,), {"axis": axis, "keepdims": keepdims})

    def mean(self, axis: Any = None, keepdims: bool = False) -> Any:
        return answered("mean", (self,), {"axis": axis, "keepdims": keepdims})

    def max(self, axis: Any = None, keepdims: bool = False) -> Any:
        return answered("max", (self,), {"axis": axis, "keepdims": keepdims})


def reading_of(arguments: Iterable[Any]) -> type[Read] | None:
    """The outermost reading among the arguments and the arrays in lists of theirs, or None."""
    found: type[Read] | None = None
    for argument in arguments:
        kind: Any = type(argument)
        if kind in (list, tuple):
            kind = reading_of(argument)
        elif not issubclass(kind, Read):
            continue
        if kind is not None and (found is None or kind.outer > found.outer):
            found = kind
    return found


def answered(name: str, arguments: Any, options: Any) -> Any:
    """The function, by the outermost reading among its arguments."""
    reading = reading_of((*arguments, *options.values()))
    assert reading is not None
    return reading.read(name, arguments, options)


class Readable:
    """A framework's array namespace, whose functions ask arrays that are read otherwise."""

    def __init__(self, namespace: Any) -> None:
        self._namespace = namespace

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._namespace, name)
        if callable(found) and not isinstance(found, type):
            found = asking(name, found)
        setattr(self, name, found)  # the next time it is at hand
        return found


def asking(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """`run`, unless an argument is read otherwise."""

    def either(*arguments: Any, **options: Any) -> Any:
        reading = reading_of((*arguments, *options.values()) if options else arguments)
        return run(*arguments, **options) if reading is None else reading.read(name, arguments, options)

    return either
