"""A file of a block gives the block back bit for bit, or nothing at all."""

import json
import os
import random
import sys

import numpy as np
import pytest

from tests.tiers.blocks import arrays, block, key, same, tokens
from transformer_lab.errors import ConfigurationError
from transformer_lab.tiers import block_file
from transformer_lab.tiers.block import owned
from transformer_lab.tiers.block_file import DamagedError, UnreadableError, header_of, read_block, write_block
from transformer_lab.tiers.number_types import NAMES, type_of

LARGE = 1 << 20


def written(path, one=None, header=None):
    one = one or block(0)
    with open(path, "wb") as file:
        write_block(file, header_of(key(0), one) if header is None else header, one)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_every_type_of_numbers_comes_back(tmp_path, name):
    if name == "bfloat16":
        pytest.importorskip("ml_dtypes")
    given = {"odd": np.arange(3).astype(np.int8), "some": np.arange(6).reshape(2, 1, 3).astype(type_of(name))}
    given |= {"one": np.array(5).astype(type_of(name)), "none": np.zeros((0, 4), type_of(name))}
    found = read_block(written(tmp_path / "file", owned([], given)), key(0), LARGE)
    assert same(found.arrays, given) and found.token_ids == ()
    for array in given:
        assert found.arrays[array].dtype == given[array].dtype and found.arrays[array].shape == given[array].shape
        assert found.arrays[array].flags.aligned and not found.arrays[array].flags.writeable


@pytest.mark.parametrize("kind", ["object", "bool", "complex64", ">f4", "U3", "datetime64[s]"])
def test_what_could_not_be_read_back_is_refused(kind):
    with pytest.raises(ConfigurationError, match="The array keys of a block is of the type"):
        owned([1], {"keys": np.zeros(3, kind)})


def test_blocks_without_a_byte_and_token_ids_that_are_none_are_refused():
    with pytest.raises(ConfigurationError, match="without a byte"):
        owned([1], {"keys": np.zeros((0, 3))})
    with pytest.raises(TypeError):
        owned([1.5], arrays(0))
    with pytest.raises(OverflowError):
        owned([2**63], arrays(0))
    assert owned(np.array([1, 2], np.uint8), arrays(0)).token_ids == (1, 2)


def test_bfloat16_without_its_package_is_a_miss_and_no_damage(tmp_path, monkeypatch):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    path = written(tmp_path / "file", owned([1], {"keys": np.ones(3, ml_dtypes.bfloat16)}))
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(UnreadableError):
        read_block(path, key(0), LARGE)


def test_every_flipped_bit_of_the_front_and_the_header_and_some_of_the_payload_is_found(tmp_path):
    path = written(tmp_path / "file")
    whole = path.read_bytes()
    assert same(read_block(path, key(0), LARGE).arrays, arrays(0))
    header = 44 + int.from_bytes(whole[8:12], "little")
    noise = random.Random(0)
    places = [(at, bit) for at in range(header) for bit in range(8)]
    places += [(at, noise.randrange(8)) for at in noise.sample(range(header, len(whole)), 60)]
    for at, bit in places:
        broken = bytearray(whole)
        broken[at] ^= 1 << bit
        path.write_bytes(broken)
        with pytest.raises((DamagedError, UnreadableError)):
            read_block(path, key(0), LARGE)


@pytest.mark.parametrize(
    "change", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b"", lambda b: b[:20], lambda b: b * 2]
)
def test_files_of_another_length_are_damaged(tmp_path, change):
    path = written(tmp_path / "file")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DamagedError):
        read_block(path, key(0), LARGE)


HOSTILE = {
    "layout": ["layout", 99],
    "another key": ["key", key(1).hex()],
    "a token that is none": ["tokens", [True]],
    "tokens that are no list": ["tokens", 3],
    "payload": ["payload", 10**30],
    "an unknown type": ["arrays", [["keys", "object", [4, 4]]]],
    "a type that is no name": ["arrays", [["keys", ["float32"], [4, 4]]]],
    "less than nothing": ["arrays", [["keys", "float32", [-4, -8]]]],
    "more than the file": ["arrays", [["keys", "float32", [1 << 50]]]],
    "less than the file": ["arrays", [["keys", "float32", [4]]]],
    "nothing times far too much": ["arrays", [["none", "float32", [0, 10**30]], ["keys", "float32", [32]]]],
    "too many axes": ["arrays", [["keys", "float32", [1] * 100 + [32]]]],
    "a name twice": ["arrays", [["keys", "float32", [4, 4]], ["keys", "float32", [4, 4]]]],
    "a name that is none": ["arrays", [[7, "float32", [32]]]],
}


@pytest.mark.parametrize("what", HOSTILE)
def test_headers_that_lie_with_a_right_checksum_are_refused(tmp_path, what):
    fields = json.loads(header_of(key(0), block(0)))
    field, value = HOSTILE[what]
    assert field in fields
    fields[field] = value
    with pytest.raises(DamagedError):
        read_block(written(tmp_path / "file", header=json.dumps(fields).encode()), key(0), LARGE)


@pytest.mark.parametrize(
    "header", [b"", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"tokens": [1' + b"0" * 5000 + b"]}"]
)
def test_headers_that_are_none_are_refused(tmp_path, header):
    with pytest.raises(DamagedError):
        read_block(written(tmp_path / "file", header=header), key(0), LARGE)


def test_the_other_order_of_bytes_is_not_for_here(tmp_path):
    header = header_of(key(0), block(0)).replace(sys.byteorder.encode(), b"middle")
    with pytest.raises(UnreadableError):
        read_block(written(tmp_path / "file", header=header), key(0), LARGE)


def test_a_sparse_file_beyond_the_bound_is_not_read(tmp_path, monkeypatch):
    path = written(tmp_path / "file")
    size = path.stat().st_size
    assert read_block(path, key(0), size).token_ids == tuple(tokens(0))
    os.truncate(path, 1 << 40)
    monkeypatch.setattr(block_file, "_empty", None)  # it does not come that far
    with pytest.raises(DamagedError):
        read_block(path, key(0), size)


def test_pipes_folders_and_links_are_refused_without_waiting(tmp_path):
    written(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for path in (tmp_path / "pipe", tmp_path / "link", tmp_path):
        with pytest.raises(DamagedError):
            read_block(path, key(0), LARGE)
