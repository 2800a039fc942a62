"""The safetensors format by hand: 8 bytes of header length, a JSON header, then the tensors back to back.

Reading trusts nothing: each length is compared with the real size of the file before anything is allocated for it, and
what passes here, safetensors' own reader accepts too (a test holds this). Tensors are read one by one into NumPy memory
of our own, never a memory map. Writing streams, so that a model is never held twice. Which tensors a model needs is not
known here.
"""

import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from transformer_lab.checkpoints.json_file import parse_object
from transformer_lab.checkpoints.number_formats import BITS, FLOATS, decode, encode
from transformer_lab.checkpoints.regular_file import open_regular
from transformer_lab.errors import InputFileError, shown

# safetensors itself allows 100 MB; a header of 80,000 tensors has about 10 MB.
LARGEST_HEADER = 25_000_000
_CHUNK_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Tensor:
    """One entry of a header. `start` counts from the beginning of the file."""

    name: str
    format: str  # a key of number_formats.BITS
    shape: tuple[int, ...]
    start: int
    size: int  # bytes
    file: "SafetensorsFile"


@dataclass(frozen=True, eq=False)
class SafetensorsFile:
    """A checked header. `identity` tells whether the file is still the one that was checked."""

    path: Path
    identity: tuple[int, ...]
    metadata: dict[str, str]
    tensors: dict[str, Tensor]


def read_header(path: Path) -> SafetensorsFile:
    """The header of the file at `path`, checked in full. Raises InputFileError, naming the file and the tensor."""
    with open_regular(path) as handle:
        status = os.fstat(handle.fileno())
        start = _read(handle, path, 8)
        if start == b"version ":
            _refuse(path, "it seems to be a Git LFS pointer, which names the real file; fetch that with `git lfs pull`")
        length = int.from_bytes(start, "little")
        if length > LARGEST_HEADER:
            _refuse(path, f"it claims a header of {length:,} bytes; more than {LARGEST_HEADER:,} is not read")
        if 8 + length > status.st_size:
            _refuse(path, f"it claims a header of {length:,} bytes, but has {status.st_size:,} in all")
        data = _read(handle, path, length)
    if not data.startswith(b"{"):
        _refuse(path, "its header is not a JSON object")
    header = parse_object(data, f"The header of {path}", strict=True)
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse(path, "its __metadata__ is not an object of strings")
    file = SafetensorsFile(path, _identity(status), metadata, {})
    for name, entry in header.items():
        file.tensors[name] = _tensor(file, name, entry, 8 + length)
    _require_seamless(file, 8 + length, status.st_size)
    return file


def read_into(tensor: Tensor, target: Any, progress: Callable[[int], None] | None = None, begin: int = 0) -> None:
    """Fills `target`, a C-contiguous float32 or float64 array, with the numbers of `tensor` from element `begin` on.

    Works in pieces, so that a conversion needs little more memory than the target. `progress` gets the bytes of each.
    """
    path, flat = tensor.file.path, target.reshape(-1)
    assert target.flags.c_contiguous and begin + flat.size <= math.prod(tensor.shape), "contiguous, and no more"
    stored: Any = np.dtype(FLOATS[tensor.format])
    step = _CHUNK_BYTES // stored.itemsize
    scratch = None if stored == flat.dtype else np.empty(min(step, flat.size), stored)
    with open_regular(path) as handle:
        if _identity(os.fstat(handle.fileno())) != tensor.file.identity:
            _refuse(path, "it was changed while it was being read")
        handle.seek(tensor.start + begin * stored.itemsize)
        for position in range(0, flat.size, step):
            piece = flat[position : position + step]
            raw: Any = piece if scratch is None else scratch[: piece.size]
            _fill(handle, path, memoryview(raw).cast("B"), tensor.name)
            if scratch is not None:
                decode(raw, tensor.format, piece)
            if progress:
                progress(raw.nbytes)


def write(handle: BinaryIO, tensors: Iterable[tuple[str, tuple[int, ...], Callable[[], Any]]], format: str) -> None:
    """Writes (name, shape, function that gives the array) in this order, all in one float `format`.

    The arrays may have any layout: `encode` makes each one contiguous (safetensors 0.8.0 would silently permute them).
    """
    tensors = list(tensors)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    start = 0
    for name, shape, _ in tensors:
        end = start + math.prod(shape) * BITS[format] // 8
        header[name] = {"dtype": format, "shape": list(shape), "data_offsets": [start, end]}
        start = end
    data = json.dumps(header, separators=(",", ":")).encode()
    data += b" " * (-len(data) % 8)  # so that the tensors are aligned
    handle.write(len(data).to_bytes(8, "little") + data)
    for name, shape, array in tensors:
        stored = encode(array(), format, name)
        assert stored.shape == shape, f"{name} is {stored.shape}, announced as {shape}"
        if stored.size:
            handle.write(memoryview(stored).cast("B"))


def _tensor(file: SafetensorsFile, name: str, entry: Any, data_start: int) -> Tensor:
    where = f"the tensor {shown(name)}"
    if not isinstance(entry, dict):
        _refuse(file.path, f"{where} is described by {shown(entry)} instead of an object")
    for key in ("dtype", "shape", "data_offsets"):
        if key not in entry:
            _refuse(file.path, f"{where} has no {key}")
    format, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(format, str) or format not in BITS:
        _refuse(file.path, f"{where} has the unknown dtype {shown(format)}")
    if not isinstance(shape, list) or not all(type(size) is int and 0 <= size < 2**63 for size in shape):
        _refuse(file.path, f"{where} has a shape that is not a list of whole numbers from 0 to 2^63")
    if len(shape) > 64:
        _refuse(file.path, f"{where} has {len(shape)} dimensions; 64 is the most")
    two_whole = isinstance(offsets, list) and [type(end) for end in offsets] == [int, int]
    if not two_whole or not 0 <= min(offsets) <= max(offsets) < 2**63:
        _refuse(file.path, f"{where} has data_offsets that are not two whole numbers")
    begin, end = offsets
    bits = math.prod(shape) * BITS[format]
    if bits % 8 or end - begin != bits // 8:
        _refuse(
            file.path,
            f"{where} is {format} {_shown_shape(shape)}, which does not take the {end - begin:,} bytes "
            f"between its data_offsets",
        )
    return Tensor(name, format, tuple(shape), data_start + begin, end - begin, file)


def _require_seamless(file: SafetensorsFile, position: int, file_size: int) -> None:
    """The tensors must lie back to back from the end of the header to the end of the file."""
    for tensor in sorted(file.tensors.values(), key=lambda tensor: (tensor.start, tensor.size)):
        where = f"the tensor {shown(tensor.name)}"
        if tensor.start < position:
            _refuse(file.path, f"{where} overlaps the one before it")
        if tensor.start > position:
            _refuse(file.path, f"there is a hole of {tensor.start - position:,} bytes before {where}")
        position += tensor.size
        if position > file_size:
            _refuse(file.path, f"{where} ends at byte {position:,}, but the file has {file_size:,}; it is truncated")
    if position != file_size:
        _refuse(file.path, f"its tensors end at byte {position:,}, but the file has {file_size:,}")


def _shown_shape(shape: Iterable[int]) -> str:
    return shown(tuple(shape)) if len(tuple(shape)) > 8 else str(list(shape))


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _read(handle: BinaryIO, path: Path, count: int) -> bytes:
    data = bytearray(count)
    _fill(handle, path, memoryview(data), None)
    return bytes(data)


def _fill(handle: BinaryIO, path: Path, target: memoryview, name: str | None) -> None:
    done = 0
    while done < len(target):
        try:
            count = handle.readinto(target[done:])  # type: ignore[attr-defined]
        except OSError as error:
            message = f"{path} cannot be read: {error.strerror}."
            raise InputFileError(message) from error
        if not count:
            _refuse(path, f"it ends inside {'its header' if name is None else f'the tensor {shown(name)}'}")
        done += count


def _refuse(path: Path, reason: str) -> None:
    message = f"{path} is not a usable safetensors file: {reason}."
    raise InputFileError(message)
