"""The bounded reading: an `ops` whose arrays are pairs, a value in float64 and how far a sound one may be off.

The decoder runs on it as on any backend, `forward(bounded, config, params, ids, start, tap=judge)`: its tap is given
the expectation of a value with its bound, and returns what goes on as the input of what follows. It knows no
participant and no report.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import array_api_compat.numpy as array_namespace
import numpy as np

from transformer_lab.backends.plain import experts
from transformer_lab.backends.plain.manual import OPERATIONS
from transformer_lab.backends.readings.array import Readable
from transformer_lab.backends.readings.bounded import algebra, operations
from transformer_lab.backends.readings.bounded.pairs import EXACTLY, Bounded, Decided
from transformer_lab.backends.readings.bounded.units import Units
from transformer_lab.backends.readings.recorded import Part, add_part, mapped


class BoundedAlgebra(Readable):
    """The namespace `xp` of bounded arrays, and what a tape of them needs."""

    def __init__(self, reading: "BoundedReading") -> None:
        super().__init__(array_namespace)
        self._reading = reading

    def scattered(self, part: Part, shape: tuple[int, ...]) -> Bounded:
        """Zeros of `shape` with a part of a gradient in its place; what comes to one place twice is summed."""
        g = part.gradient
        part = part._replace(index=mapped_values(part.index))

        def put(values: Any) -> np.ndarray:
            target = np.zeros(shape)
            add_part(target, part._replace(gradient=np.broadcast_to(values, g.shape)))
            return target

        counts, reached = put(np.ones(g.shape)), put(np.abs(g.value))

        def error(units: Units, off: Any) -> np.ndarray:
            gammas = np.array([units.gamma(n) if n > 1 else 0.0 for n in range(int(counts.max(initial=0.0)) + 1)])
            return put(off) + gammas[counts.astype(int)] * (reached + put(off))

        return operations.pair(self._reading, put(g.value), error, g)


class BoundedReading:
    """units: what one rounding may cost. precision: whose units these are."""

    name = "bounded"
    array_device = None
    compiles = False
    dispatch = "loop"  # every expert computes every row, so that a choice within rounding changes no shapes
    in_place = False
    can_train = False

    def __init__(self, units: Units, precision: str) -> None:
        self.levels, self.precision = (units, units.likely()), precision
        self.float_dtype, self.index_dtype = np.dtype(np.float64), np.dtype(np.int64)
        self.xp: Any = BoundedAlgebra(self)
        self.unjudged: dict[str, None] = {}  # functions without a bound that were asked for
        for name in OPERATIONS:
            setattr(self, name, partial(self._operation, getattr(operations, name, None), name))

    def _operation(self, run: Any, name: str, *arguments: Any, **named: Any) -> Any:
        given = [self.exactly(x) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x for x in arguments]
        if run is None:
            return algebra.FUNCTIONS[name](self, *given, **named)
        return run(self, *given, **named)

    def answer(self, name: str, arguments: Any, options: Any) -> Any:
        """A function of the standard by its name; one without a bound leaves its result unjudged."""
        if name == "astype":
            return self.cast(*arguments[:2])
        if name in algebra.FUNCTIONS:
            return algebra.FUNCTIONS[name](self, *arguments, **options)
        return self.without_bound(name, arguments, options)

    def without_bound(self, name: str, arguments: Any, options: Any) -> Any:
        self.unjudged[name] = None
        plain = [mapped_values(x) for x in arguments]
        found = getattr(array_namespace, name)(*plain, **{key: mapped_values(x) for key, x in options.items()})

        def unknown(x: Any) -> Any:
            if np.asarray(x).dtype.kind == "f":
                return Bounded(x, (np.inf, np.inf), self, f"xp.{name}, which has no bound")
            return Decided(x, True, self)

        return mapped(unknown, found)

    # --- arrays -----------------------------------------------------------------------------------------------------

    def exactly(self, x: Any) -> Bounded:
        """What was looked at: its error is 0. But what is below the smallest normal number may be read as 0."""
        wide = np.asarray(x, np.float64)
        size = np.abs(wide)
        small = (size < self.levels[0].smallest) & (size > 0.0)
        off = np.where(small, size, 0.0) if small.any() else 0.0
        return Bounded(wide, (off, off), self)

    def shown(self, x: np.ndarray, fused: bool) -> Bounded:
        """What a participant showed, as the input of what follows. fused: it ends in a product, which a compiler may
        have joined to what follows before it was rounded."""
        found = self.exactly(x)
        if fused:
            off = tuple(
                own + units.inner * np.abs(found.value) for own, units in zip(found.errors, self.levels, strict=True)
            )
            return Bounded(found.value, off, self)
        return found

    def parameters(self, params: Any) -> Any:
        """The tree of float64 arrays of a model, as a participant has them: rounded, if it keeps all in fewer bits."""

        def parameter(x: Any) -> Any:
            off = self.levels[0].weights * np.abs(x) if self.levels[0].weights else 0.0
            return Bounded(x, (off, off), self)

        return mapped(parameter, params)

    def place_tied_head(self, table: Bounded) -> Bounded:
        found: Bounded = self.xp.permute_dims(table, (1, 0))
        return found

    def asarray(self, x: Any, dtype: Any = None) -> Any:
        if isinstance(x, (Bounded, Decided)):
            return x
        array = np.asarray(x)
        return Bounded(array, EXACTLY, self) if array.dtype.kind == "f" else array

    def to_numpy(self, x: Any) -> np.ndarray:
        return x.value if isinstance(x, (Bounded, Decided)) else np.asarray(x)

    def cast(self, x: Any, dtype: Any) -> Any:
        """To integers it cuts off; between floats nothing happens, or what a participant does in fewer bits."""
        kind = np.dtype(dtype).kind
        if isinstance(x, Bounded):
            if kind == "f":
                return x
            cut = algebra.FUNCTIONS["trunc"](self, x)
            return Decided(cut.value.astype(dtype), cut.error > 0.0, self)
        if isinstance(x, Decided):
            return algebra.lifted(self, x) if kind == "f" else Decided(x.value.astype(dtype), x.unsure, self, x.allowed)
        return Bounded(x, EXACTLY, self) if kind == "f" else np.asarray(x).astype(dtype)

    def zeros(self, shape: tuple[int, ...]) -> Bounded:
        return Bounded(np.zeros(shape), EXACTLY, self)

    def turn_table(self, table: Mapping[str, np.ndarray], angles: np.ndarray) -> dict[str, Bounded]:
        """Cosines and sines: a table that was computed in this precision knows its angles no better than their size. In
        exact mode the tables are rounded from float64."""
        off = 2.0 * self.levels[0].inner * np.abs(angles) * np.hypot(table["cos"], table["sin"])
        return {name: Bounded(values, (off, off), self) for name, values in table.items()}

    def top_k(self, x: Any, k: int) -> tuple[Any, Any]:
        indices = algebra.ranked(self, x, -1, k, descending=True, ordered=True)
        values = algebra.FUNCTIONS["sort"](self, x, axis=-1, descending=True)
        return values[..., :k], indices

    def picked(self, params: Any, index: int) -> Any:
        return experts.picked(self, params, index)

    def erfc(self, x: Any) -> Bounded:
        found: Bounded = algebra.FUNCTIONS["erfc"](self, x)
        return found

    def scatter_add(self, target: Any, index: Any, update: Any) -> Bounded:
        """Rows that come to one place are summed in any order."""
        target, update, place = self.asarray(target), self.asarray(update), np.asarray(mapped_values(index))
        counts = np.bincount(place, minlength=target.shape[0]).reshape(-1, *(1,) * (target.ndim - 1)) + 2

        def summed(rows: Any, start: Any) -> np.ndarray:
            total = np.array(np.broadcast_to(start, target.shape), np.float64)
            np.add.at(total, place, np.broadcast_to(rows, update.shape))
            return total

        def error(units: Units, off_target: Any, off_update: Any) -> np.ndarray:
            carried = summed(off_update, off_target)
            reached = summed(np.abs(update.value), np.abs(target.value)) + carried
            gammas = np.vectorize(units.gamma)(counts)
            return carried + gammas * reached + units.stored * reached + units.smallest

        return operations.pair(self, summed(update.value, target.value), error, target, update)

    def slice_update(self, target: Any, update: Any, start: Any, axis: int) -> Any:
        return Bounded.refuse("slice_update; it reads a whole prompt, without a cache")

    def open_choice(self) -> None:
        """A choice within rounding, which nobody showed, decides what is taken."""
        self.unjudged["a choice within rounding"] = None


def mapped_values(x: Any) -> Any:
    """The plain arrays of an argument."""
    return mapped(lambda leaf: leaf.value if isinstance(leaf, (Bounded, Decided)) else leaf, x)
