"""The file format of llama.cpp, version 2 and 3: a header of named values and tensors, then the numbers, in blocks.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Nothing that the header claims is believed before it is
compared with the size of the file. Numbers in float32, float16 and bfloat16 are read here; the quantised kinds by the
package `gguf`, which is llama.cpp's own.
"""

import math
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from transformer_lab.checkpoints.regular_file import open_regular, regular_file_size
from transformer_lab.errors import InputFileError, UnavailableError, shown

MAGIC = b"GGUF"
MOST_VALUES, MOST_TENSORS, LONGEST_TEXT, MOST_DIMENSIONS = 5_000_000, 100_000, 50_000_000, 8
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
_FLOATS = {0: ("F32", 4), 1: ("F16", 2), 30: ("BF16", 2)}


@dataclass(frozen=True)
class GGUFTensor:
    """shape: as NumPy has it, the axis of the blocks last. kind: of ggml's types, 0 for float32, whose name is format.
    size: bytes."""

    name: str
    shape: tuple[int, ...]
    kind: int
    format: str
    start: int
    size: int


@dataclass(frozen=True)
class GGUFFile:
    """values: the header's, by their names. tensors: by their names."""

    path: Path
    values: dict[str, Any]
    tensors: dict[str, GGUFTensor]

    def numbers(self, name: str) -> np.ndarray:
        """float32, in the tensor's shape."""
        tensor = self.tensors[name]
        with open_regular(self.path) as handle:
            handle.seek(tensor.start)
            data = np.frombuffer(handle.read(tensor.size), np.uint8)
        if tensor.kind == 0:
            found = data.view("<f4")
        elif tensor.kind == 1:
            found = data.view("<f2").astype(np.float32)
        elif tensor.kind == 30:
            found = (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            quants = _package()
            with np.errstate(all="ignore"):  # a damaged file may have scales that are no numbers
                found = quants.dequantize(data, quants.GGMLQuantizationType(tensor.kind))
        return np.array(found, np.float32).reshape(tensor.shape)


def read_gguf(path: Path) -> GGUFFile:
    """The header. Raises InputFileError, in words, for what is no such file, or is damaged or cut off."""
    size = regular_file_size(path)
    with open_regular(path) as handle:
        reader = _Reader(handle, path, size)
        if reader.take(4) != MAGIC:
            reader.refuse("does not begin with GGUF")
        version = reader.number("I")
        if version not in (2, 3):
            reader.refuse(
                f"is of version {version}; 2 and 3 are read (a file of another byte order looks like this, too)"
            )
        tensors, values = reader.number("Q"), reader.number("Q")
        if tensors > MOST_TENSORS or values > MOST_VALUES:
            reader.refuse(f"claims {tensors} tensors and {values} values")
        found: dict[str, Any] = {}
        for _ in range(values):
            name = reader.text()
            if name in found:
                reader.refuse(f"has {shown(name)} twice")
            found[name] = reader.value(reader.number("I"))
        alignment = found.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= 2**20 or alignment & (alignment - 1):
            reader.refuse(f"has the alignment {shown(alignment)}")
        described = [reader.tensor() for _ in range(tensors)]
        begin = -(-handle.tell() // alignment) * alignment
    placed: dict[str, GGUFTensor] = {}
    end = begin
    for tensor in sorted(described, key=lambda tensor: tensor.start):
        tensor = replace(tensor, start=tensor.start + begin)
        if tensor.start % alignment or tensor.start + tensor.size > size:
            reader.refuse(f"is cut off, or damaged: {shown(tensor.name)} lies outside of it")
        if tensor.start < end:
            reader.refuse(f"has the tensor {shown(tensor.name)} in the midst of another")
        if tensor.name in placed:
            reader.refuse(f"has the tensor {shown(tensor.name)} twice")
        placed[tensor.name], end = tensor, tensor.start + tensor.size
    return GGUFFile(path, found, placed)


class _Reader:
    def __init__(self, handle: BinaryIO, path: Path, size: int) -> None:
        self.handle, self.path, self.size, self.values = handle, path, size, 0

    def refuse(self, reason: str) -> NoReturn:
        message = f"{self.path} is not a usable GGUF file: it {reason}."
        raise InputFileError(message)

    def take(self, count: int) -> bytes:
        found = self.handle.read(count) if count <= self.size else b""
        if len(found) != count:
            self.refuse("ends within its header")
        return found

    def number(self, form: str) -> Any:
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))[0]

    def text(self) -> str:
        length = self.number("Q")
        if length > LONGEST_TEXT:
            self.refuse(f"has a text of {length} bytes")
        return self.take(length).decode("utf-8", "surrogateescape")

    def value(self, kind: int, depth: int = 0) -> Any:
        self.values += 1
        if self.values > MOST_VALUES:
            self.refuse(f"has more than {MOST_VALUES:,} values")
        if kind == _TEXT:
            return self.text()
        if kind == _LIST:
            inner, count = self.number("I"), self.number("Q")
            if depth > 2 or count > MOST_VALUES:
                self.refuse(f"has a list of {count} values, {depth} deep")
            return self._numbers(inner, count) if inner in _NUMBERS else self._values(inner, count, depth + 1)
        if kind not in _NUMBERS:
            self.refuse(f"has a value of the unknown kind {kind}")
        return self.number(_NUMBERS[kind])

    def _values(self, kind: int, count: int, depth: int) -> list[Any]:
        return [self.value(kind, depth) for _ in range(count)]

    def _numbers(self, kind: int, count: int) -> list[Any]:
        """As `_values`, at once."""
        self.values += count
        form = np.dtype(_NUMBERS[kind]).newbyteorder("<")
        return np.frombuffer(self.take(count * form.itemsize), form).tolist()

    def tensor(self) -> GGUFTensor:
        name, dimensions = self.text(), self.number("I")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            self.refuse(f"has the tensor {shown(name)} with {dimensions} dimensions")
        shape = tuple(reversed([self.number("Q") for _ in range(dimensions)]))
        kind, start = self.number("I"), self.number("Q")
        count = math.prod(shape)
        if count == 0 or count > 2**40:
            self.refuse(f"has the tensor {shown(name)} with the shape {shown(list(shape))}")
        format, size = self._stored(name, kind, shape, count)
        return GGUFTensor(name, shape, kind, format, start, size)

    def _stored(self, name: str, kind: int, shape: tuple[int, ...], count: int) -> tuple[str, int]:
        """The name of the kind, and how many bytes there are."""
        if kind in _FLOATS:
            return _FLOATS[kind][0], count * _FLOATS[kind][1]
        quants = _package()
        try:
            kept = quants.GGMLQuantizationType(kind)
            block, size = quants.GGML_QUANT_SIZES[kept]
            quants.type_traits[kept]
        except (ValueError, KeyError):
            self.refuse(f"holds {shown(name)} as ggml's type {kind}, which the package gguf does not read")
        if shape[-1] % block:
            self.refuse(f"has rows of {shape[-1]} in {shown(name)}, which are no whole blocks of {block}")
        return kept.name, int(count // block * size)


class _Quants:
    """What is used of the package."""

    def __init__(self) -> None:
        from gguf import quants
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        self.dequantize, self.type_traits = quants.dequantize, quants._type_traits
        self.GGML_QUANT_SIZES, self.GGMLQuantizationType = GGML_QUANT_SIZES, GGMLQuantizationType


def _package() -> _Quants:
    try:
        return _Quants()
    except ImportError as error:
        message = "Quantised GGUF files need the package gguf. Run: pip install 'transformer_lab[gguf]'"
        raise UnavailableError(message) from error
