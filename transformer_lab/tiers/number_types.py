"""The types of numbers that a block may hold: each has a name that a file can say, and a way back from it.

bfloat16 is no type of NumPy's own; it comes with the package ml_dtypes, and whoever has such an array has the package.
"""

import sys

import numpy as np

_PLAIN = ("float16", "float32", "float64", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
NAMES = (*_PLAIN, "bfloat16")


def name_of(dtype: np.dtype) -> str | None:
    """The name, or None: not to be kept. That holds for numbers in the other order of bytes, too."""
    if dtype.name == "bfloat16" and "ml_dtypes" in sys.modules:
        return "bfloat16" if dtype == type_of("bfloat16") else None
    return dtype.name if dtype.name in _PLAIN and dtype.isnative else None


def type_of(name: object) -> np.dtype:
    """The type of that name. Raises KeyError for another name, and ImportError for bfloat16 without ml_dtypes."""
    if name == "bfloat16":
        from ml_dtypes import bfloat16  # only now: most blocks need no such package

        return np.dtype(bfloat16)
    if name not in _PLAIN:
        raise KeyError(name)
    return np.dtype(str(name))
