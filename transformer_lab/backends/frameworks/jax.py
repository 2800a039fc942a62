"""The JAX backend: CPU, CUDA and TPU, compiled. The only file that names jax.

JAX's switch for 64-bit types is global. Here it is scoped: a backend of precision float64 or exact turns it on around
each trace and call and nowhere else, so float32 and float64 live in one process.
"""

import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from transformer_lab.backends.base import Backend, Implementation, bucket_length, in_order
from transformer_lab.backends.plain import manual
from transformer_lab.backends.readings.exact import gradients as exact_gradients
from transformer_lab.backends.readings.exact import operations as exact
from transformer_lab.errors import UnavailableError
from transformer_lab.paths import cache_folder

try:
    import jax
    import jax.numpy as jnp
except ImportError as error:
    message = "The jax backend needs JAX, which is not installed. Run: pip install 'transformer_lab[jax]'"
    raise UnavailableError(message) from error


RUN = 256  # elements of a mask among which one is looked for


def split_linear(ops: Any, x: Any, kernel: Any, bias: Any = None) -> Any:
    """x times a kernel that is stored as two halves of its columns.

    XLA runs one product of a single row on one core, and two independent ones on two.
    """
    if not isinstance(kernel, tuple):
        return manual.linear(ops, x, kernel, bias)
    rows = x.reshape(-1, x.shape[-1])
    y = jnp.concatenate([rows @ half for half in kernel], axis=-1).reshape(*x.shape[:-1], -1)
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


class JaxBackend(Backend):
    """JAX. device: "cpu", "cuda", "tpu", or what jax.devices(...) takes, with an optional number ("cuda:1")."""

    name = "jax"
    precisions = ("float32", "float64", "exact", "bfloat16", "int8")
    in_place = False
    compiles = True
    fixed_threads = True
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
            jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "jax"))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        self._counts: list[tuple[str, Any]] = []  # what exact mode tallied in the trace that is running
        self._counter: Any = None  # while exact mode is differentiated: see `_differentiable`
        self.wide = self.precision in ("float64", "exact")
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

    def scatter_add(self, target: Any, index: Any, update: Any) -> Any:
        return target.at[index].add(update)

    def top_k(self, x: Any, k: int) -> tuple[Any, Any]:
        values, indices = jax.lax.top_k(x, k)  # ties go to the lower index, as its documentation says
        return values, indices.astype(self.index_dtype)

    def erfc(self, x: Any) -> Any:
        return jax.lax.erfc(x)

    def compile(self, function: Callable[..., Any], donate: tuple[int, ...] = ()) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            result, found = self._tallied(lambda: function(*arguments))
            counts: dict[str, Any] = {}
            for place, count in found:
                counts[place] = counts.get(place, 0) + count
            return result, counts

        compiled = jax.jit(counted, donate_argnums=donate)

        @functools.wraps(function)
        def scoped(*arguments: Any) -> Any:
            begin, before = time.perf_counter(), compiled._cache_size()
            with self.scope():
                result, counts = compiled(*arguments)
            for place, count in counts.items():
                self.certificate.add(place, *np.asarray(count).tolist())
            if compiled._cache_size() > before:
                self.compile_seconds += time.perf_counter() - begin
            return result

        scoped.traces = compiled._cache_size  # type: ignore[attr-defined]  # how many shapes were compiled
        return scoped

    def uncompiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        compiled = self.compile(function)

        @functools.wraps(function)
        def eager(*arguments: Any) -> Any:
            with jax.disable_jit():
                return compiled(*arguments)

        return eager

    def narrow(self, x: Any) -> Any:
        # Under jit, XLA drops a plain round trip through float32; this it keeps. But it takes for 0 what is half a step
        # below the smallest normal number, and should be rounded up to it.
        size, smallest = jnp.abs(x), exact.SMALLEST_NORMAL
        x = jnp.where((size < smallest) & (size >= smallest * (1.0 - 2.0**-24)), jnp.sign(x) * smallest, x)
        return jax.lax.reduce_precision(x, 8, 23).astype(jnp.float32)

    def power_of_two_above(self, x: Any) -> Any:
        exponents = jnp.frexp(x)[1].astype(jnp.int64)
        return jax.lax.bitcast_convert_type((exponents + 1023) << 52, jnp.float64)

    def patch(self, values: Any, mask: Any, again: Callable[[Any], Any], at_once: int) -> Any:
        count = values.shape[0]
        runs = -(-count // RUN)
        size = min(at_once, runs)

        def some(carry: Any) -> Any:
            # To look for places in all of the mask is slow. So each round takes one place out of each of some runs.
            values, mask, found = carry
            (chosen,) = jnp.nonzero(found, size=size, fill_value=jnp.argmax(found))  # padded with the first of them
            inside = mask[chosen]
            place = jnp.argmax(inside, axis=1)
            left = inside.at[jnp.arange(size), place].set(False)
            places = chosen * RUN + place
            values = values.at[places].set(again(places))
            return values, mask.at[chosen].set(left), found.at[chosen].set(jnp.any(left, axis=1))

        mask = jnp.pad(mask, (0, runs * RUN - count)).reshape(runs, RUN)
        begin = values, mask, jnp.any(mask, axis=1)
        return jax.lax.while_loop(lambda carry: jnp.any(carry[2]), some, begin)[0]

    def on_host(self, function: Callable[..., np.ndarray], indices: Any, *arrays: Any) -> Any:
        def called(indices: Any, *arrays: Any) -> np.ndarray:
            # Indices are padded with one that is there already. The switch for 64-bit types is off in the thread that
            # calls this; what comes and goes are float32 values and integers.
            _, first, place = np.unique(np.asarray(indices), return_index=True, return_inverse=True)
            return np.asarray(function(*(np.asarray(array)[first] for array in arrays)), np.float32)[place]

        found = jax.pure_callback(called, jax.ShapeDtypeStruct(indices.shape, jnp.float32), indices, *arrays)
        return found.astype(jnp.float64)

    def tally(self, doubtful: Any) -> None:
        count = jnp.stack([jnp.asarray(math.prod(doubtful.shape)), jnp.count_nonzero(doubtful)])
        self._counts.append((self.certificate.place, count))

    def _tallied(self, run: Callable[[], Any]) -> tuple[Any, list[tuple[str, Any]]]:
        """(run(), what it tallied: (place, [roundings, doubtful]) each). Traced values must not outlive their trace, so
        whoever begins a trace hands them out of it."""
        before, self._counts = self._counts, []
        try:
            return run(), self._counts
        finally:
            self._counts = before

    def with_gradient(self, run: Callable[..., Any], gradients: Callable[..., exact_gradients.Gradients]) -> Any:
        def either(*arguments: Any, **named: Any) -> Any:
            if self._counter is None:
                return run(*arguments, **named)
            inputs = in_order(run, arguments, named)
            arrays = [x for x in inputs if not isinstance(x, (int, float))]
            # What depends on a parameter is traced as the counter is. The rest must not come to depend on the counter.
            learned = any(type(leaf) is type(self._counter) for leaf in jax.tree.leaves(arrays))
            counter = self._counter if learned else jnp.zeros(2)
            return self._differentiable(run, gradients, inputs[len(arrays) :])(counter, *arrays)

        return either

    def _differentiable(self, run: Callable[..., Any], gradients: Callable[..., Any], numbers: list[Any]) -> Any:
        """(counter, arrays) -> run(*arrays, *numbers), with `gradients` for its derivative.

        The counter has no influence; its "gradient" is what was tallied, forward and backward. So the sum over all
        operations comes out of the differentiation by itself, as no other value may.
        """
        wanted: list[bool] = []

        def total(found: list[tuple[str, Any]]) -> Any:
            return sum((count for _, count in found), jnp.zeros(2)).astype(float)

        def first(counter: Any, *primals: Any) -> Any:
            arrays = jax.tree.map(lambda primal: primal.value, primals)
            wanted[:] = [any(leaf.perturbed for leaf in jax.tree.leaves(primal)) for primal in primals]
            y, found = self._tallied(lambda: run(*arrays, *numbers))
            return y, (arrays, total(found))

        def backward(kept: Any, g: Any) -> Any:
            arrays, forward_total = kept

            def asked() -> list[Any]:
                found = zip(gradients(g, *arrays, *numbers), wanted, strict=False)
                return [gradient() if asked else None for gradient, asked in found]

            to_arrays, found = self._tallied(asked)
            return forward_total + total(found), *to_arrays, *[None] * (len(arrays) - len(to_arrays))

        function = jax.custom_vjp(lambda counter, *arrays: self._tallied(lambda: run(*arrays, *numbers))[0])
        function.defvjp(first, backward, symbolic_zeros=True)
        return function

    def repeat(self, step: Callable[[Any, Any], Any], count: Any, carry: Any) -> Any:
        return jax.lax.fori_loop(0, count, step, carry)

    def value_and_grad(self, function: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
        both = self._exact_value_and_grad(function) if self.precision == "exact" else jax.value_and_grad(function)

        @functools.wraps(function)
        def scoped(*arguments: Any) -> Any:
            with self.scope():
                return both(*arguments)

        return scoped

    def _exact_value_and_grad(self, function: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
        def counted(params_and_counter: Any, *arguments: Any) -> Any:
            params, self._counter = params_and_counter
            try:
                return function(params, *arguments)
            finally:
                self._counter = None

        def both(params: Any, *arguments: Any) -> tuple[Any, Any]:
            value, (found, count) = jax.value_and_grad(counted)((params, jnp.zeros(2)), *arguments)
            count = count.astype(int)
            if isinstance(count, jax.core.Tracer):
                self._counts.append((self.certificate.place, count))
            else:
                self.certificate.add(self.certificate.place, *count.tolist())
            return value, jax.tree.map(functools.partial(exact.without_denormals, self), found)

        return both

    def bucket(self, length: int, limit: int) -> int:
        return bucket_length(length, limit)
