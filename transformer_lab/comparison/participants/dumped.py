"""Activations that another program has written to files: the way into a comparison for stacks outside Python.

A file holds one run: `token_ids`, whole numbers [T], and taps by name (docs/taps.md) in any float format, as .npz or
.safetensors. Several prompts are several files of one folder. Files come from strangers: a header is checked against
the size of the file before memory is taken for it, and no pickle is read.
"""

import os
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

import numpy as np

from transformer_lab.atomic_file import write_file
from transformer_lab.checkpoints.npz_file import StoredArray, read_array, read_arrays
from transformer_lab.checkpoints.number_formats import FLOATS, NAMES
from transformer_lab.checkpoints.regular_file import open_regular
from transformer_lab.checkpoints.safetensors_file import Tensor, read_header, read_into
from transformer_lab.comparison.participants.participant import in_order, numbers, require_precision
from transformer_lab.errors import ConfigurationError, InputFileError, UnavailableError, shown
from transformer_lab.memory import enough_memory
from transformer_lab.paths import expanded

TOKEN_IDS = "token_ids"
KINDS = (".npz", ".safetensors")
# The bound that applies to what is stored so: float16 has three bits more than bfloat16, and no bound of its own.
PRECISION_OF = {"float64": "float64", "float32": "float32", "float16": "bfloat16", "bfloat16": "bfloat16"}
# What safetensors calls the formats of whole numbers, by NumPy's names.
WHOLE = {"int64": "I64", "uint64": "U64", "int32": "I32", "uint32": "U32", "int16": "I16", "uint16": "U16"} | {
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


class Dumped:
    """Takes part with what lies in a file or a folder of files; each run is found by its token ids.

    precision: what the other program computed in; by default the narrowest format that its taps are stored in.
    name: by default that of the file or folder. prompts: the token ids of every run, so that a comparison can be made
    of exactly these: `lab.compare(source, dump.prompts, participants=[dump])`.

    Raises InputFileError for files that are missing, damaged, or hold something else.
    """

    kind = "file"
    version: str | None = None
    device: str | None = None
    config: Any = None

    def __init__(self, path: str | PathLike[str], precision: str | None = None, name: str | None = None) -> None:
        self.path = expanded(path)
        self.name = name or self.path.name
        self._runs = dict(_run(file) for file in _files(self.path))
        self.prompts = [list(ids) for ids in self._runs]
        if precision is None:
            formats = {entry.format for entries in self._runs.values() for entry in entries}
            order = list(PRECISION_OF)
            precision = PRECISION_OF[max(formats & {*order}, key=order.index, default="float32")]
        require_precision(precision, self.name)
        self.precision = precision

    def taps(self, token_ids: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """token_ids [T] -> (tap name, array as in the file), in the order of the computation, read one by one."""
        wanted = tuple(int(token_id) for token_id in token_ids)
        if wanted not in self._runs:
            message = (
                f"{self.path} holds no run of the {len(wanted)} token ids {_shown(wanted)}; it holds "
                f"{'; '.join(_shown(ids) for ids in list(self._runs)[:3])}{'; ...' if len(self._runs) > 3 else ''}. "
                "Compare with those: prompt_ids=[...], or the `prompts` of this Dumped."
            )
            raise InputFileError(message)
        for entry in self._runs[wanted]:
            yield entry.name, numbers(_read(entry), entry.name, str(entry.path))


def write_dump(path: str | PathLike[str], token_ids: Any, taps: Mapping[str, Any]) -> None:
    """Writes one run for somebody else to compare with: .npz or .safetensors, by the ending of `path`.

    token_ids: whole numbers [T]. taps: as `LanguageModel.record` returns them, or any arrays that `Function` takes.
    The file is written under another name and renamed. Raises ConfigurationError for another ending or a wrong tap,
    UnavailableError if the disk does not take it.
    """
    path = expanded(path)
    if path.suffix not in KINDS:
        message = f"{path} is not the name of a dump; it ends in {' or '.join(KINDS)}."
        raise ConfigurationError(message)
    ids = np.asarray(token_ids, np.int64)
    arrays = {name: numbers(array, name, str(path)) for name, array in taps.items()}
    arrays = {TOKEN_IDS: ids} | {name: np.ascontiguousarray(array) for name, array in in_order(arrays, str(path))}

    def write(file: BinaryIO) -> None:
        if path.suffix == ".npz":
            np.savez(file, **arrays)  # type: ignore[arg-type]
        else:
            from safetensors.numpy import save

            file.write(save(arrays))

    try:
        write_file(path, write)
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror or error}."
        raise UnavailableError(message) from error


class _Entry(NamedTuple):
    """One array of a file, not read yet. `format` is NumPy's name of its dtype, or what safetensors alone has."""

    path: Path
    name: str
    format: str
    shape: tuple[int, ...]
    stored: Tensor | StoredArray  # in a safetensors file, or in an archive


def _files(path: Path) -> list[Path]:
    if not os.path.isdir(path):
        if path.suffix not in KINDS:
            _refuse(path, f"it does not end in {' or '.join(KINDS)}")
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix in KINDS and not file.name.startswith("."))
    if not files:
        _refuse(path, f"it holds no file that ends in {' or '.join(KINDS)}")
    return files


def _run(path: Path) -> tuple[tuple[int, ...], list[_Entry]]:
    """The token ids of a file, and its taps in the order of the computation, checked as far as the header goes."""
    entries = _entries(path)
    if TOKEN_IDS not in entries:
        _refuse(path, f"it has no {TOKEN_IDS}")
    ids = _read(entries.pop(TOKEN_IDS))
    if ids.ndim == 2 and len(ids) == 1:
        ids = ids[0]
    if ids.dtype.kind not in "iu" or ids.ndim != 1 or not ids.size:
        _refuse(path, f"its {TOKEN_IDS} are {ids.dtype} {list(ids.shape)}; one row of whole numbers is expected")
    for entry in entries.values():
        if entry.format not in PRECISION_OF and entry.format not in WHOLE:
            _refuse(path, f"{shown(entry.name)} in it has the format {entry.format}")
    try:
        return tuple(int(token_id) for token_id in ids), [entry for _, entry in in_order(entries, "it")]
    except ConfigurationError as error:
        message = f"{path}: {error}"
        raise InputFileError(message) from error


def _entries(path: Path) -> dict[str, _Entry]:
    """Every array of a file by its name, from the headers alone."""
    if path.suffix == ".safetensors":
        names = {stored: name for name, stored in (NAMES | WHOLE).items()}
        tensors = read_header(path).tensors
        return {n: _Entry(path, n, names.get(t.format, t.format), t.shape, t) for n, t in tensors.items()}
    return {n: _Entry(path, n, a.dtype.name, a.shape, a) for n, a in read_arrays(path).items()}


def _read(entry: _Entry) -> np.ndarray:
    """The numbers; what safetensors stores in 16 bits comes as float32."""
    tensor = entry.stored
    if isinstance(tensor, StoredArray):
        return read_array(tensor)
    with enough_memory(f"{entry.name} of {entry.path}"):
        if tensor.format in FLOATS:
            array = np.empty(tensor.shape, np.float64 if tensor.format == "F64" else np.float32)
            read_into(tensor, array)
            return array
        if entry.format not in WHOLE:
            _refuse(entry.path, f"{shown(entry.name)} in it has the format {tensor.format}")
        with open_regular(entry.path) as handle:
            handle.seek(tensor.start)
            stored = np.dtype(entry.format).newbyteorder("<")
            return np.frombuffer(handle.read(tensor.size), stored).reshape(tensor.shape)


def _refuse(path: Path, reason: str) -> NoReturn:
    message = f"{path} is not a usable dump: {reason}."
    raise InputFileError(message)


def _shown(ids: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, ids[:8]))}{', ...' if len(ids) > 8 else ''}]"
