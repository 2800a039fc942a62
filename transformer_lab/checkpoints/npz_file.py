"""Reads .npz files, several arrays of NumPy in a zip archive, that nobody vouches for.

As with safetensors, headers come first: each is held against the bytes that are there, so that whoever asks can refuse
a shape before memory is taken for it. No pickle is read. It does not know what the arrays mean.
"""

import math
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn, cast

import numpy as np

from transformer_lab.checkpoints.regular_file import open_regular
from transformer_lab.errors import InputFileError, LabError, printable, shown
from transformer_lab.memory import enough_memory, is_out_of_memory

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_ENDING = ".npy"
# What zipfile and NumPy raise for damaged files. RuntimeError: a password, or an unknown compression. From TypeError
# on: a header that is no dictionary of Python, or one that Python 2 wrote.
_DAMAGED = (
    ValueError, zipfile.BadZipFile, zlib.error, KeyError, EOFError, OSError, RuntimeError,
    TypeError, SyntaxError, tokenize.TokenError, OverflowError, IndexError, UserWarning,
)  # fmt: skip


class StoredArray(NamedTuple):
    """One array of a file, not read yet."""

    path: Path
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]


def read_arrays(path: Path) -> dict[str, StoredArray]:
    """Every array of the file by its name, in the order of the archive, from the headers alone.

    Raises InputFileError, naming the file and the array, for whatever is no such file.
    """
    arrays = {}
    with _archive(path) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(_ENDING)
            if name == info.filename:
                _refuse(path, f"{shown(name)} in it is not an array of NumPy")
            with archive.open(info) as member:
                handle = cast(BinaryIO, member)
                read = _HEADERS.get(np.lib.format.read_magic(handle))
                if read is None:
                    _refuse(path, f"{shown(name)} in it is not an array of numbers")
                shape, _, dtype = read(handle)
                if dtype.hasobject or math.prod(shape) * dtype.itemsize != info.file_size - handle.tell():
                    _refuse(path, f"{shown(name)} in it is {dtype} {list(shape)}, which its bytes are not")
            arrays[name] = StoredArray(path, name, dtype, shape)
    return arrays


def read_array(array: StoredArray) -> np.ndarray:
    """The numbers. Raises InputFileError for a damaged file, UnavailableError if there is no memory for them."""
    what, member = f"{array.name} of {array.path}", array.name + _ENDING
    with enough_memory(what), _archive(array.path) as archive, archive.open(member) as handle:
        found = np.lib.format.read_array(cast(BinaryIO, handle), allow_pickle=False)
    if (found.dtype, found.shape) != (array.dtype, array.shape):
        _refuse(array.path, f"{shown(array.name)} in it was changed while it was read")
    return found


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with warnings.catch_warnings(), open_regular(path) as handle, zipfile.ZipFile(handle) as archive:
            warnings.simplefilter("error", UserWarning)
            yield archive
    except LabError:
        raise
    except _DAMAGED as error:
        if is_out_of_memory(error):
            raise
        _refuse(path, f"it is damaged or no archive of NumPy ({printable(str(error))})")


def _refuse(path: Path, reason: str) -> NoReturn:
    message = f"{path} is not a usable .npz file: {reason}."
    raise InputFileError(message)
