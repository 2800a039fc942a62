"""bfloat16 and int8 weights: how a kernel is stored, and the plain product with it.

Only kernels are stored in fewer bits. Embeddings, norms, softmax, the residual stream and the cache stay float32.

bfloat16 keeps the upper 16 bits of a float32, rounded to nearest even. int8 is symmetric and per output channel:
column j of the kernel is scales[j] * values[j], with scales[j] = max|column| / 127 rounded up to a bfloat16, so that
torch's int8 product, which takes its scales in bfloat16, computes with the same numbers.
"""

from typing import Any, NamedTuple

import numpy as np

from transformer_lab.backends.plain import manual


class Int8Kernel(NamedTuple):
    """values [out, in] int8 and scales [out] float32; what they stand for is [in, out]."""

    values: Any
    scales: Any


def quantise(kernel: np.ndarray) -> Int8Kernel:
    """float [in, out] -> NumPy int8 [out, in] and float32 scales [out]. A column of zeros gets the scale 1."""
    columns = np.ascontiguousarray(kernel.T, dtype=np.float32)
    scales = np.abs(columns).max(axis=1) / np.float32(127.0)
    bits = scales.view(np.uint32)
    scales = ((bits + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view(np.float32)  # up to a bfloat16
    scales = np.where(scales == 0.0, np.float32(1.0), scales)
    return Int8Kernel(np.rint(columns / scales[:, None]).astype(np.int8), scales)


def dequantise(kernel: Int8Kernel) -> np.ndarray:
    """NumPy values and scales -> float32 [in, out]."""
    return (kernel.values.astype(np.float32) * kernel.scales[:, None]).T


def linear(ops: Any, x: Any, kernel: Any, bias: Any = None) -> Any:
    """x [..., in] float32 times a stored kernel, widened to float32 again, + bias -> [..., out] float32.

    A plain float32 kernel [in, out], which is one in training, is rounded to bfloat16 here, and so is x.
    """
    xp = ops.xp
    if not isinstance(kernel, Int8Kernel) and kernel.dtype == xp.float32:
        x, kernel = (ops.cast(ops.cast(array, xp.bfloat16), xp.float32) for array in (x, kernel))
        return manual.linear(ops, x, kernel, bias)
    stored = kernel.values if isinstance(kernel, Int8Kernel) else kernel  # [out, in]
    rows = xp.reshape(x, (-1, x.shape[-1]))
    y = xp.matmul(rows, xp.permute_dims(ops.cast(stored, xp.float32), (1, 0)))
    if isinstance(kernel, Int8Kernel):
        y = y * kernel.scales
    y = xp.reshape(y, (*x.shape[:-1], stored.shape[0]))
    return y if bias is None else y + bias


def pack(ops: Any, kernel: np.ndarray) -> Any:
    """A NumPy kernel [in, out] in the form of the backend's precision."""
    if ops.precision == "int8":
        values, scales = quantise(kernel)
        return Int8Kernel(ops.asarray(values, ops.xp.int8), ops.asarray(scales))
    return ops.asarray(np.ascontiguousarray(kernel.T, dtype=np.float32), ops.xp.bfloat16)


def unpack(ops: Any, kernel: Any) -> np.ndarray:
    if isinstance(kernel, Int8Kernel):
        return dequantise(Int8Kernel(ops.to_numpy(kernel.values), ops.to_numpy(kernel.scales)))
    return np.asarray(ops.to_numpy(ops.cast(kernel, ops.xp.float32))).T
