"""The NumPy backend: the native track's home, and on processors the one that runs at the speed of memory."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import array_api_compat.numpy as array_namespace
import numpy as np

from transformer_lab.backends.base import Backend, Implementation
from transformer_lab.backends.plain import gradients, manual
from transformer_lab.backends.plain.error_function import erfc
from transformer_lab.backends.plain.manual import OPERATIONS
from transformer_lab.backends.readings import recorded
from transformer_lab.backends.readings.array import Readable
from transformer_lab.backends.readings.exact import operations as exact
from transformer_lab.backends.readings.gradient_rules import CONSTANT, RULES
from transformer_lab.backends.readings.recorded import Recorded, Tape
from transformer_lab.errors import UnavailableError


def pack_kernel(ops: Any, kernel: np.ndarray) -> np.ndarray:
    """[in, out] as a view of an array stored [out, in], in memory that NumPy allocated.

    One decoded token is one row times each kernel, and OpenBLAS reads [out, in] times a vector with both cores at the
    memory's rate. NumPy asks for 2 MB pages for its own large arrays; a memory-mapped file has 4 KB ones.
    """
    if kernel.T.flags.c_contiguous and kernel.dtype == ops.float_dtype:
        return kernel  # it lies [out, in] already, as a tied head does
    stored = np.empty(kernel.shape[::-1], ops.float_dtype)
    stored[...] = kernel.T
    return stored.T


QUERY_BLOCK = 128
# Up to this many rows a product is bound by reading the kernel, and goes faster as [out, in] @ [in, rows], in pieces of
# at most OUT_BLOCK outputs: 8 rows of GPT-2 decode 1.5 times as fast with OpenBLAS's kernels for AVX-512.
FEW_ROWS = 32
OUT_BLOCK = 1024


def linear(ops: Any, x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """One row is a matrix times a vector; more rows are a product of two matrices. The bias is added in place."""
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) == 1:
        y = kernel.T @ rows[0]
    elif len(rows) <= FEW_ROWS:
        y = few_rows(rows, kernel)
    else:
        y = rows @ kernel
    if bias is not None:
        y += bias
    return y.reshape(*x.shape[:-1], kernel.shape[1])


def few_rows(rows: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    columns = np.ascontiguousarray(rows.T)
    y = np.empty((len(rows), kernel.shape[1]), rows.dtype)
    for first in range(0, kernel.shape[1], OUT_BLOCK):
        y[:, first : first + OUT_BLOCK] = (kernel.T[first : first + OUT_BLOCK] @ columns).T
    return y


def layer_norm(ops: Any, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, epsilon: float) -> np.ndarray:
    y = x - x.mean(axis=-1, keepdims=True)
    variance = np.einsum("...d,...d->...", y, y)[..., None] / x.shape[-1]
    y *= 1.0 / np.sqrt(variance + epsilon)
    y *= weight
    y += bias
    return y


def gelu_tanh(ops: Any, x: np.ndarray) -> np.ndarray:
    """The plain formula with one temporary array in place of six."""
    y = x * x
    y *= 0.044715
    y += 1.0
    y *= x
    y *= -2.0 * math.sqrt(2.0 / math.pi)
    np.minimum(y, 80.0, out=y)
    np.exp(y, out=y)
    y += 1.0
    np.divide(x, y, out=y)
    return y


def softmax_in_place(x: np.ndarray) -> np.ndarray:
    x -= x.max(axis=-1, keepdims=True)
    np.exp(x, out=x)
    x /= x.sum(axis=-1, keepdims=True)
    return x


def softmax(ops: Any, x: np.ndarray) -> np.ndarray:
    return softmax_in_place(x.copy())


def attention(
    ops: Any,
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    start: np.ndarray,
    scale: float,
    window: int | None = None,
    tap: Any = manual.identity,
    places: np.ndarray | None = None,
) -> np.ndarray:
    """The plain version with scores, mask and softmax in one buffer; it shows neither scores nor pattern.

    Queries go in blocks, each over the keys that one of them may see: that leaves half of a prompt's products out, more
    with a window, and keeps the scores small.
    """
    queries, last = query.shape[2], int(start.max())
    blocks = []
    for first in range(0, queries, QUERY_BLOCK):
        part = query[:, :, first : first + QUERY_BLOCK]
        if places is not None:
            own = manual.of_queries(places, first, part.shape[2])
            blocks.append(attention_block(ops, part, key, value, start + first, scale, window, own))
            continue
        seen = min(key.shape[2], last + first + part.shape[2])
        hidden = 0 if window is None else max(0, int(start.min()) + first + 1 - window)  # keys at the beginning
        some = (slice(None), slice(None), slice(hidden, seen))
        blocks.append(attention_block(ops, part, key[some], value[some], start + first - hidden, scale, window))
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=2)


def attention_block(
    ops: Any,
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    start: np.ndarray,
    scale: float,
    window: int | None = None,
    places: np.ndarray | None = None,
) -> np.ndarray:
    batch, heads, queries, size = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    rows = query.reshape(batch, kv_heads, -1, size)
    scores = (rows * scale) @ np.matrix_transpose(key)  # [B, K, G * T, S]
    all_in_order = places is None and queries == 1 and int(start.min()) + 1 >= keys
    if not all_in_order or (window is not None and window < keys):  # else all are visible
        hidden = ~manual.visible_keys(ops, start, queries, keys, window, places)  # [B, T, S]
        by_head = scores.reshape(batch, heads, queries, keys)
        np.copyto(by_head, -np.inf, where=hidden[:, None])
    return (softmax_in_place(scores) @ value).reshape(batch, heads, queries, size)


def or_recorded(run: Callable[..., Any], differentiable: Callable[..., Any]) -> Callable[..., Any]:
    """`run`, or the version with a gradient if one of the arguments is on a tape."""

    def either(*arguments: Any, **named: Any) -> Any:
        if Recorded in map(type, arguments) or (named and Recorded in map(type, named.values())):
            return differentiable(*arguments, **named)
        return run(*arguments, **named)

    return either


class NumpyBackend(Backend):
    """NumPy on the CPU. Its gradients are by hand, on recorded arrays (readings/recorded.py, plain/gradients.py)."""

    name = "numpy"
    implementations: ClassVar = {
        "linear": {"gemv": Implementation(linear, pack=pack_kernel)},
        "layer_norm": {"in_place": Implementation(layer_norm)},
        "gelu_tanh": {"in_place": Implementation(gelu_tanh)},
        "softmax": {"in_place": Implementation(softmax)},
        "attention": {"in_place": Implementation(attention)},
    }
    xp = Readable(array_namespace)

    def _bind(self, choice: str | Mapping[str, str]) -> dict[str, str]:
        """Beside each operation lies its version with a gradient by hand; with ops=manual the plain one, recorded."""
        chosen = super()._bind(choice)
        wanted = dict.fromkeys(OPERATIONS, choice) if isinstance(choice, str) else choice
        for operation in OPERATIONS if self.precision != "exact" else ():
            source = manual if wanted.get(operation) == "manual" else gradients
            differentiable = partial(getattr(source, operation), self)
            setattr(self, operation, or_recorded(getattr(self, operation), differentiable))
        return chosen

    def open_device(self, device: str) -> None:
        if device != "cpu":
            message = f"The numpy backend runs on the CPU alone, and device={device} was asked for. Use device=cpu."
            raise UnavailableError(message)
        self.version = np.__version__
        self.float_dtype: Any = np.dtype("float64" if self.precision == "float64" else "float32")
        self.index_dtype: Any = np.dtype(np.int64)

    def asarray(self, x: Any, dtype: Any = None) -> np.ndarray:
        array = np.asarray(x)
        if dtype is None:
            dtype = self.float_dtype if array.dtype.kind == "f" else self.index_dtype
        return array.astype(dtype, copy=False)

    def to_numpy(self, x: Any) -> np.ndarray:
        return np.asarray(x)

    def cast(self, x: Any, dtype: Any) -> Any:
        return x.astype(dtype, copy=False)

    def slice_update(self, target: Any, update: Any, start: Any, axis: int) -> Any:
        if isinstance(target, Recorded) or isinstance(update, Recorded):
            return gradients.slice_update(self, target, update, start, axis)
        length = update.shape[axis]
        before = (slice(None),) * (axis - 1)
        for row, first in enumerate(start.tolist()):
            target[(row, *before, slice(first, first + length))] = update[row]
        return target

    def scatter_add(self, target: Any, index: Any, update: Any) -> Any:
        if isinstance(target, Recorded) or isinstance(update, Recorded):
            return gradients.scatter_add(self, target, index, update)
        np.add.at(target, index, update)
        return target

    def erfc(self, x: Any) -> Any:
        if isinstance(x, Recorded):
            return gradients.erfc(self, x)
        return self.cast(erfc(self.xp, self.cast(x, self.xp.float64)), x.dtype)

    def narrow(self, x: Any) -> Any:
        with np.errstate(over="ignore", invalid="ignore"):
            return x.astype(np.float32)

    def flush(self, x: Any) -> Any:
        small = np.abs(x) < exact.SMALLEST_NORMAL
        if not isinstance(x, np.ndarray):  # one number
            return np.where(small, np.float32(0.0), x)
        if small.any():  # several times as fast as `where`
            x[small] = 0.0
        return x

    def power_of_two_above(self, x: Any) -> Any:
        return np.ldexp(1.0, np.frexp(x)[1])

    def compile(self, function: Callable[..., Any], donate: tuple[int, ...] = ()) -> Callable[..., Any]:
        return function

    def value_and_grad(self, function: Callable[..., Any], extra: bool = False) -> Callable[..., tuple[Any, Any]]:
        def tape() -> Tape:
            return Tape(array_namespace, RULES, CONSTANT, "The numpy backend")

        return recorded.value_and_grad(function, tape, extra=extra)
