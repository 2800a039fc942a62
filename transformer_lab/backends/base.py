"""What a backend is: a namespace of plain algebra, about ten primitives, and the operations of the decoder.

A backend is one file beside this one and one YAML under conf/backend. It subclasses `Backend`, gives the primitives,
and may list faster versions of the operations in `implementations`. Which version of each operation runs is decided
once, here, when the object is built. This file names no framework and knows nothing of models.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from inspect import Signature, signature
from typing import Any, ClassVar

import numpy as np

from transformer_lab.backends.frameworks import low_precision
from transformer_lab.backends.plain import experts, manual
from transformer_lab.backends.plain.manual import OPERATIONS
from transformer_lab.backends.readings.exact import operations as exact
from transformer_lab.backends.readings.exact.reading import ExactReading
from transformer_lab.errors import ConfigurationError

BUCKETS = (64, 128, 256, 384, 512, 768, 1024)  # then every multiple of 1024


@dataclass(frozen=True)
class Implementation:
    """A faster version of an operation.

    run(ops, *arguments) computes it. unavailable(ops) says in words why it cannot run here, or None.
    pack(ops, kernel) and unpack(ops, packed), for `linear` only: the way from a NumPy kernel [in, out] to the form in
    which this version wants it, and back to NumPy. `run` must take a plain [in, out] array as well, for training.
    """

    run: Callable[..., Any]
    unavailable: Callable[[Any], str | None] = lambda ops: None
    pack: Callable[[Any, Any], Any] | None = None
    unpack: Callable[[Any, Any], np.ndarray] | None = None


# In exact mode there is one version of each operation, from exact.py.
EXACT_LINEAR = Implementation(exact.linear, pack=exact.pack_kernel, unpack=exact.unpack_kernel)
# The plain product with kernels of 16 or 8 bits.
LOW_PRECISIONS = ("bfloat16", "int8")
LOW_LINEAR = Implementation(low_precision.linear, pack=low_precision.pack, unpack=low_precision.unpack)


@dataclass
class Certificate:
    """What exact mode has done so far: how many results were rounded to float32, and how many of them were doubtful.

    A doubtful one lay closer to the middle of two float32 than the bound on its error; each was computed again more
    exactly. The others are correctly rounded by their bound.

    places: the same by the place that was set while an operation ran (while it was traced, on a backend that compiles).
    """

    roundings: int = 0
    doubtful: int = 0
    place: str = ""
    places: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, place: str, roundings: int, doubtful: int) -> None:
        self.roundings += roundings
        self.doubtful += doubtful
        before = self.places.get(place, (0, 0))
        self.places[place] = before[0] + roundings, before[1] + doubtful


class ReadBackend(type):
    """What is built with precision="exact" is a reading of the backend: to a model the same, with exact arrays."""

    def __call__(cls, *arguments: Any, **options: Any) -> Any:
        built = super().__call__(*arguments, **options)
        return ExactReading(built) if built.precision == "exact" else built

    @property
    def __signature__(cls) -> Signature:
        """That of the constructor, which is what somebody who builds a backend has to know."""
        of_constructor = signature(cls.__init__)  # type: ignore[misc]  # whichever subclass this is
        return of_constructor.replace(parameters=list(of_constructor.parameters.values())[1:])


class Backend(metaclass=ReadBackend):
    """The `ops` object that the model is given. One device per object; arrays are the framework's own.

    device: "cpu" or what the framework calls its devices. precision: one of `precisions`.
    ops: "fused" (the best version of each operation that runs here), "manual" (the plain one), or a mapping
    operation -> "fused", "manual" or the name of a version; what is not named is fused.

    Raises ConfigurationError for an unknown precision, operation or version, and UnavailableError for a device or a
    framework that is not there.
    """

    name: ClassVar[str]
    version: str
    precisions: ClassVar[tuple[str, ...]] = ("float32", "float64", "exact")
    implementations: ClassVar[Mapping[str, Mapping[str, Implementation]]] = {}  # the best first
    can_train: ClassVar[bool] = True
    in_place: ClassVar[bool] = True  # slice_update writes into its target, so a view of a cache can be updated
    compiles: ClassVar[bool] = False  # so that running the operations one by one is another way
    fixed_threads: ClassVar[bool] = False  # their number is settled when the process starts
    rounds_arithmetic: ClassVar[bool] = True  # + - * / of float32 are those of IEEE 754
    piece: ClassVar[int] = 1 << 15  # float64 elements that exact mode works on at a time, so that they stay in a cache
    steps_per_call: ClassVar[int] = 1  # how many tokens one call of a compiled decoding step may produce

    xp: Any  # the array namespace: reshape, permute_dims, where, exp, sum, max, ... of the array API standard
    float_dtype: Any
    index_dtype: Any
    compile_seconds: float = 0.0  # how long calls took that compiled something
    array_device: Any = None  # the device as xp's creation functions take it

    def __init__(self, device: str = "cpu", precision: str = "float32", ops: str | Mapping[str, str] = "fused") -> None:
        if precision not in self.precisions:
            message = (
                f"The {self.name} backend does not offer precision={precision}; it offers {', '.join(self.precisions)}."
            )
            raise ConfigurationError(message)
        self.precision = precision
        self.device = device
        self.certificate = Certificate()
        self.open_device(device)
        self.ops = self._bind(ops)

    def _bind(self, choice: str | Mapping[str, str]) -> dict[str, str]:
        """Sets self.linear and so on; returns operation -> name of the version that was chosen."""
        wanted = dict.fromkeys((*OPERATIONS, "dispatch"), choice) if isinstance(choice, str) else dict(choice)
        self.dispatch = self._dispatch(wanted.pop("dispatch", "fused"))
        for operation in wanted:
            if operation not in OPERATIONS:
                message = f"There is no operation {operation!r}; there are {', '.join(OPERATIONS)}."
                raise ConfigurationError(message)
        chosen: dict[str, str] = {}
        self.linear_implementation: Implementation | None = None
        for operation in OPERATIONS:
            name, implementation = self._choose(operation, wanted.get(operation, "fused"))
            chosen[operation] = name
            run = implementation.run if implementation else getattr(exact if name == "exact" else manual, operation)
            bound: Callable[..., Any] = partial(run, self)
            setattr(self, operation, bound)
            if operation == "linear":
                self.linear_implementation = implementation
        return chosen | {"dispatch": self.dispatch}

    def _dispatch(self, wanted: str) -> str:
        """How rows come to their experts (`ffn/dispatch.py`); the plain way of the four is the loop over all."""
        if wanted not in ("fused", "manual", *experts.DISPATCHES):
            message = (
                f"dispatch={wanted} is not known; choose one of {', '.join(['fused', 'manual', *experts.DISPATCHES])}."
            )
            raise ConfigurationError(message)
        return "loop" if wanted == "manual" else wanted

    def _choose(self, operation: str, wanted: str) -> tuple[str, Implementation | None]:
        listed = self.implementations.get(operation, {})
        if self.precision == "exact":
            if wanted not in ("exact", "fused", "manual"):
                message = f"precision=exact runs its own version of {operation}; {operation}={wanted} cannot be used."
                raise ConfigurationError(message)
            return "exact", EXACT_LINEAR if operation == "linear" else None
        plain = LOW_LINEAR if operation == "linear" and self.precision in LOW_PRECISIONS else None
        if wanted == "manual":
            return "manual", plain
        if wanted == "fused":
            for name, implementation in listed.items():
                if implementation.unavailable(self) is None:
                    return name, implementation
            return "manual", plain
        if wanted not in listed:
            message = (
                f"{operation}={wanted} is not available on the {self.name} backend; "
                f"choose one of {', '.join(['fused', 'manual', *listed])}."
            )
            raise ConfigurationError(message)
        reason = listed[wanted].unavailable(self)
        if reason is not None:
            message = f"{operation}={wanted} cannot be used on the {self.name} backend here: {reason}"
            raise ConfigurationError(message)
        return wanted, listed[wanted]

    # --- parameters -------------------------------------------------------------------------------------------------

    def place(self, name: str, array: np.ndarray) -> Any:
        """A parameter by its dotted name, from NumPy to where and how the bound operations want it."""
        if name.endswith(".kernel") and self.linear_implementation and self.linear_implementation.pack:
            if array.ndim == 3:  # of experts, one for each
                return self.stacked([self.linear_implementation.pack(self, one) for one in array])
            return self.linear_implementation.pack(self, array)
        return self.asarray(np.ascontiguousarray(array))

    def place_tied_head(self, table: Any) -> Any:
        """The kernel [D, V] of a head that is the placed token embedding `table` [V, D], in the form `linear` wants."""
        if self.linear_implementation and self.linear_implementation.pack:
            return self.linear_implementation.pack(self, self.to_numpy(table).T)
        return self.xp.permute_dims(table, (1, 0))

    def recover(self, name: str, parameter: Any) -> np.ndarray:
        """The inverse of `place`: a NumPy array, kernels as [in, out]."""
        if isinstance(parameter, experts.Stacked):
            return np.stack([self.recover(name, one) for one in parameter])
        if name.endswith(".kernel") and self.linear_implementation and self.linear_implementation.unpack:
            return self.linear_implementation.unpack(self, parameter)
        return self.to_numpy(parameter)

    # --- experts ----------------------------------------------------------------------------------------------------

    def stacked(self, kernels: list[Any]) -> Any:
        """Placed kernels of experts in the form of which `picked` takes one."""
        return experts.Stacked(kernels)

    def picked(self, params: Any, index: Any) -> Any:
        """As `plain/experts.py` has it; index may be traced on a backend that compiles."""
        return experts.picked(self, params, index)

    def by_groups(self, run: Callable[[Any, Any], Any], params: Any, rows: Any, sizes: Any) -> Any:
        """As `plain/experts.py` has it; sizes may be traced on a backend that compiles."""
        return experts.by_groups(self, run, params, rows, sizes)

    # --- what each backend gives ------------------------------------------------------------------------------------

    def open_device(self, device: str) -> None:
        """Sets up the device, xp and dtypes. Raises UnavailableError if the device is not there."""
        raise NotImplementedError

    def asarray(self, x: Any, dtype: Any = None) -> Any:
        """NumPy array or numbers -> an array here. Floats become float_dtype, integers index_dtype, unless given."""
        raise NotImplementedError

    def to_numpy(self, x: Any) -> np.ndarray:
        """An array -> NumPy. The result may share memory with x: copy it before x is consumed."""
        raise NotImplementedError

    def cast(self, x: Any, dtype: Any) -> Any:
        raise NotImplementedError

    def zeros(self, shape: tuple[int, ...]) -> Any:
        """A fresh array of float_dtype."""
        return self.xp.zeros(shape, dtype=self.float_dtype, device=self.array_device)

    def turn_table(self, table: Mapping[str, np.ndarray], angles: np.ndarray) -> dict[str, Any]:
        """{"cos", "sin"} of rotary positions, float64 on the host, as arrays here. angles: what they are of."""
        return {name: self.asarray(values) for name, values in table.items()}

    def wait(self, x: Any) -> Any:
        """Returns x when it is computed."""
        return x

    def scope(self) -> AbstractContextManager[Any]:
        """What must hold around every computation, also an uncompiled one."""
        return nullcontext()

    def slice_update(self, target: Any, update: Any, start: Any, axis: int) -> Any:
        """target[b, ..., start[b] : start[b] + T, ...] = update[b] for each row b, along `axis`; returns the result.

        target [B, ..., C, ...], update [B, ..., T, ...], start integers [B] with start + T <= C.
        It CONSUMES target: written in place on NumPy and torch, donated on JAX. Use only what is returned:

            cache = ops.slice_update(cache, new, start, axis=2)      # right
            other = ops.slice_update(cache, new, start, axis=2)      # `cache` is now changed, or the same, or gone
        """
        raise NotImplementedError

    def put(self, target: Any, index: Any, update: Any) -> Any:
        """target[index] = update, for an index of slices, numbers and arrays of integers. Consumes target."""
        target[index] = update
        return target

    def scatter_add(self, target: Any, index: Any, update: Any) -> Any:
        """target[index[n]] += update[n] for n in order, repeated indices summed. Consumes target.

        target [R, ...], index integers [N], update [N, ...].
        """
        raise NotImplementedError

    def top_k(self, x: Any, k: int) -> tuple[Any, Any]:
        """The k largest along the last axis, largest first, ties to the lower index -> (values, indices) [..., k]."""
        order = self.xp.argsort(-x, axis=-1, stable=True)[..., :k]
        return self.xp.take_along_axis(x, order, axis=-1), self.cast(order, self.index_dtype)

    def erfc(self, x: Any) -> Any:
        """1 - erf(x), elementwise; it is not in the array API standard."""
        raise NotImplementedError

    # What exact mode needs. These versions serve every backend whose arrays can be indexed and are there at once.

    def step(self, run: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """run(self, *arguments, **options), a function that ends in `patch` or rounds nothing that could be doubtful. A
        backend that compiles makes a program of it."""
        return run(self, *arguments, **options)

    def narrow(self, x: Any) -> Any:
        """float64 -> the nearest float32, ties to even, as an array of float32."""
        return self.cast(x, self.xp.float32)

    def flush(self, x: Any) -> Any:
        """float32, what is below 2^-126 in size made 0 and -0 made 0, as XLA has it. Consumes x."""
        return self.xp.where(self.xp.abs(x) < exact.SMALLEST_NORMAL, 0.0, x)

    def power_of_two_above(self, x: Any) -> Any:
        """A power of two above each element of x [...] (float64, not negative), at most twice as large; 1 for 0."""
        raise NotImplementedError

    def patch(self, values: Any, mask: Any, again: Callable[[Any], Any], at_once: int) -> Any:
        """values [N] with again(indices [n]) -> [n] wherever mask [N] is true, `at_once` at a time. Consumes values."""
        (places,) = self.xp.nonzero(mask)
        for first in range(0, places.shape[0], at_once):
            some = places[first : first + at_once]
            values[some] = again(some)
        return values

    def on_host(self, function: Callable[..., np.ndarray], indices: Any, *arrays: Any) -> Any:
        """function(NumPy arrays) -> float64, called on the host. The arrays belong to these indices [n], by their first
        axis, and so does the result [n]. Arrays and results hold float32 values, or integers."""
        return self.asarray(function(*(self.to_numpy(array) for array in arrays)), self.xp.float64)

    def tally(self, doubtful: Any) -> None:
        """Counts roundings and doubtful ones (bool [...]) into the certificate."""
        count = int(self.xp.count_nonzero(doubtful))
        self.certificate.add(self.certificate.place, math.prod(doubtful.shape), count)

    def compile(self, function: Callable[..., Any], donate: tuple[int, ...] = ()) -> Callable[..., Any]:
        """A function of arrays (and trees of arrays) made ready to be called often.

        `donate`: positions of arguments that are consumed. Weights are arguments, never closed over.
        """
        raise NotImplementedError

    def uncompiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Like `compile`, but the operations run one by one; the same thing on a backend that compiles nothing."""
        return self.compile(function)

    def repeat(self, step: Callable[[Any, Any], Any], count: Any, carry: Any) -> Any:
        """carry = step(i, carry) for i in range(count); count may be traced on a backend that compiles."""
        for i in range(int(count)):
            carry = step(i, carry)
        return carry

    def value_and_grad(self, function: Callable[..., Any], extra: bool = False) -> Callable[..., tuple[Any, Any]]:
        """f(params, *arguments) -> scalar becomes one that returns (the scalar, a tree of gradients like params).

        extra: f returns (scalar, a tree of arrays), and so does the first of the two; the tree has no gradient.

        Kernels are plain arrays [in, out] here, not what `place` makes of them. The result may be compiled, alone or as
        a part of something larger.
        """
        raise NotImplementedError

    def bucket(self, length: int, limit: int) -> int:
        """The length to pad to, at most `limit`: `length` itself unless every new shape costs a compilation."""
        return length


def bucket_length(length: int, limit: int) -> int:
    """The smallest bucket that holds `length`, at most `limit`."""
    for size in BUCKETS:
        if length <= size:
            return min(size, limit)
    return min(-(-length // 1024) * 1024, limit)
