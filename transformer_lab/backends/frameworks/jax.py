"""The JAX backend: CPU, CUDA and TPU, compiled. The only file that names jax.

JAX's switch for 64-bit types is global. Here it is scoped: a backend of precision float64 or exact turns it on around
each trace and call and nowhere else, so float32 and float64 live in one process.
"""

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, ClassVar, NamedTuple

import numpy as np

from transformer_lab.backends.base import Backend, Implementation, bucket_length
from transformer_lab.backends.plain import manual
from transformer_lab.backends.readings.exact import operations as exact
from transformer_lab.errors import UnavailableError
from transformer_lab.paths import cache_folder

try:
    import jax
    import jax.numpy as jnp
except ImportError as error:
    message = "The jax backend needs JAX, which is not installed. Run: pip install 'transformer_lab[jax]'"
    raise UnavailableError(message) from error

LOOKS = (16, 256)  # how many doubtful elements a program computes again, before it is as many as may be


def split_linear(ops: Any, x: Any, kernel: Any, bias: Any = None) -> Any:
    """x times a kernel that is stored as two halves of its columns.

    XLA runs one product of a single row on one core, and two independent ones on two.
    """
    if not isinstance(kernel, tuple):
        return manual.linear(ops, x, kernel, bias)
    rows = x.reshape(-1, x.shape[-1])
    halves = [times_chosen(rows, *half) if isinstance(half, Chosen) else rows @ half for half in kernel]
    y = jnp.concatenate(halves, axis=-1).reshape(*x.shape[:-1], -1)
    return y if bias is None else y + bias


def split_pack(ops: Any, kernel: np.ndarray) -> Any:
    middle = -(-kernel.shape[1] // 2)
    halves = (np.array(half, ops.float_dtype, order="C") for half in (kernel[:, :middle], kernel[:, middle:]))
    with ops.scope():
        return tuple(jax.device_put(half, ops.jax_device) for half in halves)  # JAX may keep the very arrays: no copy


def split_unpack(ops: Any, kernel: Any) -> np.ndarray:
    return np.concatenate([np.asarray(half) for half in kernel], axis=1)


def split_unavailable(ops: Any) -> str | None:
    if ops.precision not in ("float32", "float64"):
        return "split kernels are float32 or float64."
    return None if ops.device == "cpu" else "the kernel is split for the cores of a CPU."


PIECE = 1 << 18  # numbers of a kernel that are copied at a time


class Chosen(NamedTuple):
    """One kernel of a stack [E, D, F], by a number [] that is not known before.

    `rows @ stack[number]` would copy all of it into memory that is fresh in every call, which takes XLA several times
    as long as the product itself.
    """

    stack: Any
    number: Any


def _in_pieces(rows: Any, stack: Any, number: Any) -> Any:
    """rows [R, D] @ stack[number] [D, F]: a piece of the kernel's rows after the other, whose copies all lie in one
    place."""
    size, width = stack.shape[1:]
    height = max(1, min(size, PIECE // width))

    def piece(y: Any, first: Any, height: int) -> Any:
        first = jnp.asarray(first, number.dtype)
        part = jax.lax.dynamic_slice(stack, (number, first, jnp.zeros_like(number)), (1, height, width))[0]
        return y + jax.lax.dynamic_slice_in_dim(rows, first, height, 1) @ part

    def step(index: Any, y: Any) -> Any:
        return piece(y, index * height, height)

    y = jax.lax.fori_loop(0, size // height, step, jnp.zeros((rows.shape[0], width), rows.dtype))
    rest = size % height
    return piece(y, size - rest, rest) if rest else y


def _forward_of_chosen(rows: Any, stack: Any, number: Any) -> Any:
    return _in_pieces(rows, stack, number), (rows, stack, number)


def _backward_of_chosen(kept: Any, gradient: Any) -> Any:
    rows, stack, number = kept
    kernel = jax.lax.dynamic_index_in_dim(stack, number, 0, keepdims=False)
    return gradient @ kernel.T, jnp.zeros_like(stack).at[number].set(rows.T @ gradient), None


times_chosen = jax.custom_vjp(_in_pieces)
times_chosen.defvjp(_forward_of_chosen, _backward_of_chosen)


SMALLEST_BLOCK, LARGEST_BLOCK = 8, 64


def taken(params: Any, number: Any) -> Any:
    """Of each stack the part with this number []."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, number, 0, keepdims=False), params)


def by_blocks(run: Callable[[Any, Any], Any], params: Any, rows: Any, sizes: Any) -> Any:
    """`by_groups` where no shape may depend on numbers: a loop over blocks of rows, each of one group.

    A block that is not full reaches into the next group, whose own blocks come later and write over that. Gradients run
    the same loop again: jax.lax.ragged_dot would compute all groups for every row on a CPU, and the gradient of a plain
    loop would add up whole stacks of kernels, once for each block.
    """
    groups, total = sizes.shape[0], rows.shape[0]
    block = SMALLEST_BLOCK
    while block < LARGEST_BLOCK and 2 * block * groups <= total:
        block *= 2

    def places(sizes: Any) -> tuple[Any, Any, Any]:
        counts = -(-sizes // block)
        return jnp.cumsum(counts), counts, jnp.cumsum(sizes) - sizes

    def group_of(index: Any, sizes: Any) -> tuple[Any, Any, Any]:
        """(the group of a block, its first row, how many rows of it are the group's)."""
        ends, counts, firsts = places(sizes)
        group = jnp.searchsorted(ends, index, side="right")
        begin = (index - ends[group] + counts[group]) * block
        return group, firsts[group] + begin, jnp.minimum(block, sizes[group] - begin)

    def part(array: Any, first: Any) -> Any:
        return jax.lax.dynamic_slice_in_dim(array, first, block, 0)

    def padded(array: Any) -> Any:
        return jnp.concatenate([array, jnp.zeros((block, *array.shape[1:]), array.dtype)])

    def forward(params: Any, rows: Any, sizes: Any) -> Any:
        wide = padded(rows)
        out = jax.eval_shape(run, jax.tree.map(lambda leaf: leaf[0], params), wide[:block])

        def step(index: Any, y: Any) -> Any:
            group, first, own = group_of(index, sizes)
            made = jnp.where(jnp.arange(block)[:, None] < own, run(taken(params, group), part(wide, first)), 0)
            return jax.lax.dynamic_update_slice_in_dim(y, made, first, 0)

        start = jnp.zeros((total + block, *out.shape[1:]), out.dtype)
        return jax.lax.fori_loop(0, places(sizes)[0][-1], step, start)[:total]

    def backward(kept: Any, gradient: Any) -> Any:
        params, rows, sizes = kept
        wide, gradient = padded(rows), padded(gradient)

        def step(index: Any, carry: Any) -> Any:
            sums, dx = carry
            group, first, own = group_of(index, sizes)
            _, back = jax.vjp(run, taken(params, group), part(wide, first))
            dp, dpart = back(jnp.where(jnp.arange(block)[:, None] < own, part(gradient, first), 0))
            sums = jax.tree.map(lambda total, more: total.at[group].add(more), sums, dp)
            return sums, jax.lax.dynamic_update_slice_in_dim(dx, dpart, first, 0)

        zeros = jax.tree.map(jnp.zeros_like, (params, wide))
        sums, dx = jax.lax.fori_loop(0, places(sizes)[0][-1], step, zeros)
        return sums, dx[:total], None

    made = jax.custom_vjp(forward)
    made.defvjp(lambda params, rows, sizes: (forward(params, rows, sizes), (params, rows, sizes)), backward)
    return made(params, rows, sizes)


class Phase:
    """What is noted while a step is traced. indices: the elements that are computed again, or None the first time."""

    def __init__(self, indices: Any = None) -> None:
        self.indices = indices
        self.mask: Any = None
        self.found: Any = None
        self.judge: Callable[..., Any] | None = None
        self.given: Any = ()
        self.at_once = 0


class Step:
    """A function of exact mode that is rounded at most once, as two compiled programs."""

    def __init__(self, ops: Any, run: Callable[..., Any], structure: Any, fixed: Any, dynamic: list[bool]) -> None:
        self.ops, self.at_once = ops, 0
        self.judge: Callable[..., Any] | None = None

        def traced(arrays: list[Any], indices: Any) -> tuple[Any, Phase]:
            given = iter(arrays)
            leaves = [next(given) if moving else leaf for leaf, moving in zip(fixed, dynamic, strict=True)]
            arguments, options = jax.tree.unflatten(structure, leaves)
            ops._phase = phase = Phase(indices)
            try:
                return run(ops, *arguments, **options), phase
            finally:
                ops._phase = None

        def first(arrays: list[Any]) -> Any:
            result, phase = traced(arrays, None)
            self.at_once = phase.at_once
            return result, phase.mask

        def second(arrays: list[Any], indices: Any) -> Any:
            _, phase = traced(arrays, indices)
            self.judge = phase.judge
            return phase.given if phase.judge is not None else phase.found

        self.first, self.second = jax.jit(first), jax.jit(second)

    def __call__(self, arrays: list[Any]) -> Any:
        result, mask = self.first(arrays)
        if mask is None:  # nothing is ever doubtful
            return result
        doubtful = np.flatnonzero(np.asarray(mask))
        self.ops.certificate.add(self.ops.certificate.place, mask.size, len(doubtful))
        if not len(doubtful):
            return result
        values = np.array(result).reshape(-1)
        for first in range(0, len(doubtful), self.at_once):
            places = doubtful[first : first + self.at_once]
            count = next((size for size in LOOKS if len(places) <= size), self.at_once)
            padded = np.concatenate([places, np.repeat(places[:1], count - len(places))])
            found = self.second(arrays, jnp.asarray(padded))
            if self.judge is not None:
                found = self.judge(*(np.asarray(array)[: len(places)] for array in found))  # float32 values already
                found = np.where(np.abs(found) < exact.SMALLEST_NORMAL, 0.0, found)
            values[places] = np.asarray(found)[: len(places)]
        return jax.device_put(values.reshape(result.shape), self.ops.jax_device)


class JaxBackend(Backend):
    """JAX. device: "cpu", "cuda", "tpu", or what jax.devices(...) takes, with an optional number ("cuda:1")."""

    name = "jax"
    precisions = ("float32", "float64", "exact", "bfloat16", "int8")
    in_place = False
    compiles = True
    fixed_threads = True
    rounds_arithmetic = False
    steps_per_call = 16
    piece = 1 << 20
    implementations: ClassVar[Mapping[str, Mapping[str, Implementation]]] = {
        "linear": {"split": Implementation(split_linear, split_unavailable, split_pack, split_unpack)},
        "gelu_tanh": {"jax": Implementation(lambda ops, x: jax.nn.gelu(x, approximate=True))},
        "gelu_erf": {"jax": Implementation(lambda ops, x: jax.nn.gelu(x, approximate=False))},
        "softmax": {"jax": Implementation(lambda ops, x: jax.nn.softmax(x, axis=-1))},
    }
    xp = jnp

    def open_device(self, device: str) -> None:
        self.version = jax.__version__
        kind, _, number = device.partition(":")
        try:
            self.jax_device = jax.devices(kind)[int(number or 0)]
        except (RuntimeError, IndexError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            message = f"JAX has no device {device!r} on this machine ({reason}). Use backend.device=cpu."
            raise UnavailableError(message) from error
        if jax.config.jax_compilation_cache_dir is None:  # nobody chose one: a second run starts fast all the same
            with suppress(RuntimeError):  # there is no home folder
                jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "jax"))
                jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        self.wide = self.precision in ("float64", "exact")
        self._steps: dict[Any, Step] = {}
        self._phase: Phase | None = None  # while a step of exact mode is traced
        self.float_dtype: Any = np.dtype("float64" if self.precision == "float64" else "float32")
        self.index_dtype: Any = np.dtype(np.int32)

    @contextmanager
    def scope(self) -> Iterator[None]:
        """What must hold around every trace and call: this backend's device, and 64-bit types if it needs them."""
        with jax.enable_x64(self.wide), jax.default_device(self.jax_device):
            yield

    def asarray(self, x: Any, dtype: Any = None) -> Any:
        array = x if isinstance(x, jax.Array) else np.asarray(x)
        if dtype is None:
            dtype = self.float_dtype if jnp.issubdtype(array.dtype, np.floating) else self.index_dtype
        with self.scope():
            return jax.device_put(array.astype(dtype), self.jax_device)

    def to_numpy(self, x: Any) -> np.ndarray:
        return np.asarray(x)

    def cast(self, x: Any, dtype: Any) -> Any:
        return x.astype(dtype)

    def zeros(self, shape: tuple[int, ...]) -> Any:
        with self.scope():
            return jnp.zeros(shape, self.float_dtype)

    def wait(self, x: Any) -> Any:
        return jax.block_until_ready(x)

    def slice_update(self, target: Any, update: Any, start: Any, axis: int) -> Any:
        def one(row: Any, new: Any, first: Any) -> Any:
            return jax.lax.dynamic_update_slice_in_dim(row, new, first, axis - 1)

        if target.shape[0] == 1:
            return jax.lax.dynamic_update_slice_in_dim(target, update, start[0], axis)
        return jax.vmap(one)(target, update, start)

    def put(self, target: Any, index: Any, update: Any) -> Any:
        return target.at[index].set(update)

    def scatter_add(self, target: Any, index: Any, update: Any) -> Any:
        return target.at[index].add(update)

    def top_k(self, x: Any, k: int) -> tuple[Any, Any]:
        values, indices = jax.lax.top_k(x, k)  # ties go to the lower index, as its documentation says
        return values, indices.astype(self.index_dtype)

    def erfc(self, x: Any) -> Any:
        return jax.lax.erfc(x)

    def compile(self, function: Callable[..., Any], donate: tuple[int, ...] = ()) -> Callable[..., Any]:
        if self.precision == "exact":
            return self._in_scope(function)
        compiled = jax.jit(function, donate_argnums=donate)

        @functools.wraps(function)
        def scoped(*arguments: Any) -> Any:
            begin, before = time.perf_counter(), compiled._cache_size()
            with self.scope():
                result = compiled(*arguments)
            if compiled._cache_size() > before:
                self.compile_seconds += time.perf_counter() - begin
            return result

        scoped.traces = compiled._cache_size  # type: ignore[attr-defined]  # how many shapes were compiled
        return scoped

    def _in_scope(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def scoped(*arguments: Any) -> Any:
            with self.scope():
                return function(*arguments)

        return scoped

    def uncompiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        compiled = self.compile(function)

        @functools.wraps(function)
        def eager(*arguments: Any) -> Any:
            with jax.disable_jit():
                return compiled(*arguments)

        return eager

    def narrow(self, x: Any) -> Any:
        # In a program XLA drops a plain round trip through float32; this it keeps. But it takes for 0 what is half a
        # step below the smallest normal number, and should be rounded up to it.
        size, smallest = jnp.abs(x), exact.SMALLEST_NORMAL
        x = jnp.where((size < smallest) & (size >= smallest * (1.0 - 2.0**-24)), jnp.sign(x) * smallest, x)
        return jax.lax.reduce_precision(x, 8, 23).astype(jnp.float32)

    def power_of_two_above(self, x: Any) -> Any:
        exponents = jnp.frexp(x)[1].astype(jnp.int64)
        return jax.lax.bitcast_convert_type((exponents + 1023) << 52, jnp.float64)

    # Exact mode runs step by step. A step is a small program, compiled once for each shape; it gives its results and
    # which of them are doubtful. Only if there are any, a second small program computes these again, so nothing calls
    # back to the host from within, and JAX's cache on disk can keep both.

    def step(self, run: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        if self._phase is not None:  # a step within a step
            return run(self, *arguments, **options)
        leaves, structure = jax.tree.flatten((arguments, options))
        dynamic = [isinstance(leaf, jax.Array) for leaf in leaves]
        fixed = tuple(None if moving else leaf for leaf, moving in zip(leaves, dynamic, strict=True))
        key = (run, structure, fixed)
        if key not in self._steps:
            self._steps[key] = Step(self, run, structure, fixed, dynamic)
        with self.scope():
            return self._steps[key]([leaf for leaf, moving in zip(leaves, dynamic, strict=True) if moving])

    def patch(self, values: Any, mask: Any, again: Callable[[Any], Any], at_once: int) -> Any:
        assert self._phase is not None, "exact mode on JAX rounds within steps"
        self._phase.mask, self._phase.at_once = mask, at_once
        if self._phase.indices is not None:
            self._phase.found = again(self._phase.indices)
        return values

    def on_host(self, function: Callable[..., np.ndarray], indices: Any, *arrays: Any) -> Any:
        assert self._phase is not None
        self._phase.judge = function
        self._phase.given = arrays
        return jnp.zeros(indices.shape)

    def tally(self, doubtful: Any) -> None:
        """The step counts what it hands out."""

    def repeat(self, step: Callable[[Any, Any], Any], count: Any, carry: Any) -> Any:
        if self.precision == "exact":
            return super().repeat(step, count, carry)
        return jax.lax.fori_loop(0, count, step, carry)

    def _dispatch(self, wanted: str) -> str:
        """In exact mode every other size is another program, so every expert computes every row."""
        return "loop" if self.precision == "exact" and wanted == "fused" else super()._dispatch(wanted)

    def stacked(self, kernels: list[Any]) -> Any:
        if self.precision == "exact":
            return super().stacked(kernels)
        with self.scope():
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *kernels)

    def recover(self, name: str, parameter: Any) -> np.ndarray:
        leaves = jax.tree.leaves(parameter)
        if self.precision != "exact" and name.endswith(".kernel") and leaves[0].ndim == 3:
            ones = (jax.tree.map(lambda leaf, place=place: leaf[place], parameter) for place in range(len(leaves[0])))
            return np.stack([super(JaxBackend, self).recover(name, one) for one in ones])
        return super().recover(name, parameter)

    def picked(self, params: Any, index: Any) -> Any:
        if isinstance(index, int):
            return jax.tree.map(lambda leaf: leaf[index], params)

        def one(stack: Any) -> Any:
            split = isinstance(stack, tuple) and split_unavailable(self) is None
            return tuple(Chosen(half, index) for half in stack) if split else taken(stack, index)

        return {name: {leaf: one(stack) for leaf, stack in own.items()} for name, own in params.items()}

    def by_groups(self, run: Callable[[Any, Any], Any], params: Any, rows: Any, sizes: Any) -> Any:
        return by_blocks(run, params, rows, sizes)

    def value_and_grad(self, function: Callable[..., Any], extra: bool = False) -> Callable[..., tuple[Any, Any]]:
        return self._in_scope(jax.value_and_grad(function, has_aux=extra))

    def bucket(self, length: int, limit: int) -> int:
        return bucket_length(length, limit)
