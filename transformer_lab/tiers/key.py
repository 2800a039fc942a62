"""The key of a block: a SHA-256 over everything its numbers depend on. Pure functions; nothing is kept here.

The key of a block is made of the key before it, so it stands for all tokens before it too. The chunk boundaries are
part of it, because in float32 the lengths of the passes change bits.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass

LAYOUT_VERSION = 1


@dataclass(frozen=True)
class Provenance:
    """What all blocks of a run have in common; each field is text that changes when the numbers may."""

    weights: str
    configuration: str
    backend: str
    operations: str
    precision: str
    layout: str = str(LAYOUT_VERSION)


def first_key(provenance: Provenance) -> bytes:
    """The key that stands before the first block, 32 bytes."""
    return _digest(b"provenance", *(field.encode() for field in astuple(provenance)))


def next_key(before: bytes, token_ids: Sequence[int], passes: Sequence[int]) -> bytes:
    """The key, 32 bytes, of the block after `before`, whose tokens were computed in passes of these lengths."""
    return _digest(b"block", before, of_numbers(token_ids), of_numbers(passes))


def named_key(before: bytes, name: str) -> bytes:
    """The key, 32 bytes, of something without tokens, such as the kernels of one expert."""
    return _digest(b"named", before, name.encode())


def of_numbers(numbers: Sequence[int]) -> bytes:
    """Eight bytes each, signed, little-endian. Raises OverflowError for a number that takes more."""
    return b"".join(int(number).to_bytes(8, "little", signed=True) for number in numbers)


def _digest(*parts: bytes) -> bytes:
    """Each part behind its length, so that no two lists of parts are the same bytes."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()
