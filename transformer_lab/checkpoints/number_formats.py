"""The number formats of a safetensors file, and the ways between the float ones and NumPy, bfloat16 by hand.

bfloat16 is the upper half of a float32, so it is read by a shift and written by rounding the lower half to nearest,
ties to even. NumPy needs no extra package for either. All formats are little-endian.
"""

from typing import Any

import numpy as np

from transformer_lab.errors import ConfigurationError

# Bits per element of every format that safetensors 0.8 knows.
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
# What a parameter may be stored as, and how the stored bits look to NumPy.
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
# What `save_folder(dtype=...)` may be called.
NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def decode(stored: Any, format: str, target: Any) -> None:
    """Fills `target` (float32 or float64) with the numbers in `stored`, an array of the dtype FLOATS[format]."""
    if format == "BF16":
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(all="ignore"):  # a float64 may exceed float32; infinities and NaN pass as what they are
        target[...] = stored


def encode(array: Any, format: str, name: str) -> Any:
    """The tensor as a C-contiguous array of the stored bits. A finite number too large for the format is refused."""
    array = np.ascontiguousarray(array)
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float32)
    with np.errstate(all="ignore"):
        stored = _bfloat16_bits(array) if format == "BF16" else array.astype(FLOATS[format], copy=False)
        infinite = (stored & 0x7FFF) == 0x7F80 if format == "BF16" else np.isinf(stored)
    if infinite.any() and not np.isinf(array[infinite]).all():
        largest = np.abs(array[np.isfinite(array)]).max()
        message = f"{name} holds {largest:.4g}, which is too large for {format}; save in a wider format."
        raise ConfigurationError(message)
    return stored


def _bfloat16_bits(array: Any) -> Any:
    narrow = array.astype("<f4")
    bits = narrow.view("<u4")
    if array.dtype == np.float64:
        # Rounding twice would send a number just off the middle of two bfloat16 to the wrong one. Where the first
        # rounding landed exactly on a middle, one unit back towards the true value keeps it on its own side.
        middle = (bits & 0xFFFF) == 0x8000
        bits = bits + (middle & (np.abs(array) > np.abs(narrow))) - (middle & (np.abs(array) < np.abs(narrow)))
        bits = bits.astype("<u4")
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1)).astype("<u4")) >> 16
    return np.where(np.isnan(narrow), (bits >> 16) | 0x40, rounded).astype("<u2")  # a NaN must stay one
