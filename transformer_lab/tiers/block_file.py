"""The file of one block: written and read, without a word of it being trusted.

Eight bytes that name the format, the length of the header (four bytes, little-endian), a SHA-256 (32 bytes) over the
two before it, the header and the payload; then the header as JSON, and the payload: the arrays one after another.

Files are read, not mapped. A mapped file that another process cuts short ends the program with a signal (SIGBUS) at the
next look at it, and one that is written to changes under a checksum that was right. So each array is read once into
memory of its own, and what was summed up is what is handed out.
"""

import hashlib
import json
import math
import os
import stat
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from transformer_lab.tiers.block import Block
from transformer_lab.tiers.key import LAYOUT_VERSION
from transformer_lab.tiers.number_types import type_of

MAGIC = b"TLBLOCK2"
_FRONT = len(MAGIC) + 4 + 32
_LONGEST_HEADER = 1 << 24


class DamagedError(Exception):
    """What lies there is no whole block file. It never reaches the user: a damaged block is a miss."""


class UnreadableError(Exception):
    """A whole file, perhaps, but not for here: bfloat16 without ml_dtypes. A miss, and the file stays."""


def header_of(key: bytes, block: Block) -> bytes:
    """What stands between the front and the payload."""
    fields = {
        "layout": LAYOUT_VERSION,
        "order": sys.byteorder,
        "key": key.hex(),
        "tokens": list(block.token_ids),
        "arrays": [[name, array.dtype.name, list(array.shape)] for name, array in block.arrays.items()],
        "payload": block.bytes,
    }
    return json.dumps(fields).encode()


def file_size(header: bytes, block: Block) -> int:
    """In bytes, of the whole file."""
    return _FRONT + len(header) + block.bytes


def write_block(file: BinaryIO, header: bytes, block: Block) -> None:
    """Writes all of it to an open file. Raises OSError."""
    beginning = MAGIC + len(header).to_bytes(4, "little")
    digest = hashlib.sha256(beginning + header)
    for array in block.arrays.values():
        digest.update(_bytes_of(array))
    file.write(beginning + digest.digest() + header)
    for array in block.arrays.values():
        file.write(_bytes_of(array))


def read_block(path: Path, key: bytes, largest: int) -> Block:
    """The block of that key, from a file of at most `largest` bytes; a larger one is not read at all.

    Raises DamagedError for whatever is not whole, UnreadableError, FileNotFoundError and other OSErrors.
    """
    if not stat.S_ISREG(os.lstat(path).st_mode):  # before open: opening a device can already do something
        raise DamagedError
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > largest:
            raise DamagedError
        front = file.read(_FRONT)
        length = int.from_bytes(front[8:12], "little")
        rest = status.st_size - _FRONT - length
        if len(front) != _FRONT or front[:8] != MAGIC or length > _LONGEST_HEADER or rest < 0:
            raise DamagedError
        header = file.read(length)
        try:
            block = _empty(json.loads(header), key, rest)
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
            raise DamagedError from error
        except ImportError as error:
            raise UnreadableError from error
        digest = hashlib.sha256(front[:12] + header)
        for array in block.arrays.values():
            if file.readinto(_bytes_of(array)) != array.nbytes:
                raise DamagedError
            digest.update(_bytes_of(array))
            array.flags.writeable = False
    if digest.digest() != front[12:]:
        raise DamagedError
    return block


def _empty(fields: Any, key: bytes, rest: int) -> Block:
    """The block that the header describes, its arrays not yet read; together they take `rest` bytes."""
    tokens = fields["tokens"]
    if (fields["layout"], fields["key"], fields["payload"]) != (LAYOUT_VERSION, key.hex(), rest):
        raise DamagedError
    if not all(type(token) is int for token in tokens):
        raise DamagedError
    described = {}
    for name, kind, shape in fields["arrays"]:
        if type(name) is not str or name in described or not all(type(size) is int and size >= 0 for size in shape):
            raise DamagedError
        described[name] = (type_of(kind), tuple(shape))
    if sum(math.prod(shape) * dtype.itemsize for dtype, shape in described.values()) != rest:  # before it is allocated
        raise DamagedError
    if fields["order"] != sys.byteorder:
        raise UnreadableError
    return Block(tuple(tokens), {name: np.empty(shape, dtype) for name, (dtype, shape) in described.items()})


def _bytes_of(array: NDArray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
