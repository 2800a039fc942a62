"""NumPy backends that watch how they are used, and one that offers nothing beyond the array API standard.

They are in no configuration: a test builds them. Each runs the plain operations.
"""

import functools
from collections.abc import Callable
from typing import Any

import array_api_strict
import numpy as np

from transformer_lab.backends.base import OPERATIONS
from transformer_lab.backends.frameworks.numpy import NumpyBackend
from transformer_lab.backends.plain.error_function import erfc


def _locked(x: Any) -> Any:
    if isinstance(x, np.ndarray):
        x.flags.writeable = False
    return x


def _locking(run: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(run)  # exact mode reads an operation's signature
    def locked(*arguments: Any, **named: Any) -> Any:
        return _locked(run(*arguments, **named))

    return locked


class ReadOnlyNumpy(NumpyBackend):
    """Everything it returns is read-only: writing in place where nobody said so raises."""

    in_place = False

    def __init__(self, precision: str = "float32", ops: Any = "manual") -> None:
        super().__init__(precision=precision, ops=ops)
        for operation in OPERATIONS:
            setattr(self, operation, _locking(getattr(self, operation)))

    def asarray(self, x: Any, dtype: Any = None) -> Any:
        return _locked(super().asarray(x, dtype).copy())

    def zeros(self, shape: tuple[int, ...]) -> Any:
        return _locked(super().zeros(shape))

    def slice_update(self, target: Any, update: Any, start: Any, axis: int) -> Any:
        return _locked(super().slice_update(target.copy(), update, start, axis))

    def put(self, target: Any, index: Any, update: Any) -> Any:
        return _locked(super().put(target.copy(), index, update))


class PoisoningNumpy(NumpyBackend):
    """What slice_update and put consumed turns to NaN, or to 99: using it again shows in the result."""

    in_place = False

    def __init__(self, precision: str = "float32", ops: Any = "manual") -> None:
        super().__init__(precision=precision, ops=ops)

    def slice_update(self, target: Any, update: Any, start: Any, axis: int) -> Any:
        return self._poisoned(target, super().slice_update(target.copy(), update, start, axis))

    def put(self, target: Any, index: Any, update: Any) -> Any:
        return self._poisoned(target, super().put(target.copy(), index, update))

    def _poisoned(self, target: Any, result: Any) -> Any:
        target.fill(np.nan if target.dtype.kind == "f" else 99)
        return result


class StrictBackend(NumpyBackend):
    """array-api-strict: only what the standard has. It shows that the model and the plain operations use no more."""

    name = "strict"
    can_train = False  # what is recorded are NumPy's arrays
    in_place = False
    xp = array_api_strict

    def __init__(self, precision: str = "float32") -> None:
        super().__init__(precision=precision, ops="manual")
        self.float_dtype = getattr(array_api_strict, precision)
        self.index_dtype = array_api_strict.int64

    def asarray(self, x: Any, dtype: Any = None) -> Any:
        kind = np.asarray(x).dtype.kind
        return array_api_strict.asarray(
            np.array(x), dtype=dtype or (self.float_dtype if kind == "f" else self.index_dtype)
        )

    def to_numpy(self, x: Any) -> Any:
        return np.from_dlpack(x).copy()

    def cast(self, x: Any, dtype: Any) -> Any:
        return array_api_strict.astype(x, dtype)

    def slice_update(self, target: Any, update: Any, start: Any, axis: int) -> Any:
        result, first = self.to_numpy(target), self.to_numpy(start)
        return self.asarray(super().slice_update(result, self.to_numpy(update), first, axis), target.dtype)

    def put(self, target: Any, index: Any, update: Any) -> Any:
        places = tuple(one if isinstance(one, (slice, int)) else self.to_numpy(one) for one in index)
        return self.asarray(super().put(self.to_numpy(target), places, self.to_numpy(update)), target.dtype)

    def scatter_add(self, target: Any, index: Any, update: Any) -> Any:
        return self.asarray(super().scatter_add(*(self.to_numpy(x) for x in (target, index, update))))

    def erfc(self, x: Any) -> Any:
        return self.cast(erfc(self.xp, self.cast(x, self.xp.float64)), x.dtype)
