"""The file of one block: written and read, without a word of it being trusted.

Eight bytes that name the format, the length of the header (four bytes, little-endian), a SHA-256 (32 bytes) over the
two before it, the header and the payload; then the header as JSON, and the payload: the arrays one after another.
"""

import hashlib
import json
import math
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from transformer_lab.tiers.block import Block
from transformer_lab.tiers.key import LAYOUT_VERSION

MAGIC = b"TLBLOCK1"
_FRONT = len(MAGIC) + 4 + 32
_LONGEST_HEADER = 1 << 24
_DTYPES = {"float16", "float32", "float64", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"}


class DamagedError(Exception):
    """What lies there is no whole block file. It never reaches the user: a damaged block is a miss."""


def write_block(file: BinaryIO, key: bytes, block: Block) -> None:
    """Writes all of it to an open file. Raises OSError."""
    arrays = [[name, array.dtype.name, list(array.shape)] for name, array in block.arrays.items()]
    fields = {
        "layout": LAYOUT_VERSION,
        "key": key.hex(),
        "tokens": list(block.token_ids),
        "arrays": arrays,
        "payload": block.bytes,
    }
    header = json.dumps(fields).encode()
    length = len(header).to_bytes(4, "little")
    digest = hashlib.sha256(MAGIC + length + header)
    views = [array.reshape(-1).view(np.uint8).data for array in block.arrays.values() if array.size]
    for view in views:
        digest.update(view)
    file.write(MAGIC + length + digest.digest() + header)
    for view in views:
        file.write(view)


def read_block(path: Path) -> tuple[bytes, Block]:
    """The key and the block. Raises DamagedError for whatever is not whole, FileNotFoundError and other OSErrors."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise DamagedError
    with os.fdopen(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise DamagedError
        front = file.read(_FRONT)
        length = int.from_bytes(front[8:12], "little")
        if len(front) != _FRONT or front[:8] != MAGIC or length > min(_LONGEST_HEADER, status.st_size - _FRONT):
            raise DamagedError
        header = file.read(length)
        payload = file.read(status.st_size - _FRONT - length)  # no more than the file holds
    if hashlib.sha256(front[:12] + header + payload).digest() != front[12:]:
        raise DamagedError
    try:
        return _parsed(json.loads(header), payload)
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        raise DamagedError from error


def _parsed(fields: Any, payload: bytes) -> tuple[bytes, Block]:
    if fields["layout"] != LAYOUT_VERSION or fields["payload"] != len(payload):
        raise DamagedError
    key, tokens = bytes.fromhex(fields["key"]), fields["tokens"]
    if len(key) != 32 or not all(type(token) is int for token in tokens):
        raise DamagedError
    arrays, at = {}, 0
    for name, kind, shape in fields["arrays"]:
        if kind not in _DTYPES or not all(type(size) is int and size >= 0 for size in shape):
            raise DamagedError
        dtype = np.dtype(kind)
        count = math.prod(shape)
        if count * dtype.itemsize > len(payload) - at:
            raise DamagedError
        arrays[str(name)] = np.frombuffer(payload, dtype, count, at).reshape(shape)
        at += count * dtype.itemsize
    if at != len(payload):
        raise DamagedError
    return key, Block(tuple(tokens), arrays)
