"""The safetensors reader and writer: against the library that defines the format, and against hostile files."""

import errno
import math
import os
import tracemalloc

import numpy as np
import pytest
import safetensors
from checkpoint_cases import write_raw
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from transformer_lab.checkpoints.number_formats import decode, encode
from transformer_lab.checkpoints.safetensors_file import LARGEST_HEADER, read_header, read_into, write
from transformer_lab.errors import ConfigurationError, InputFileError

A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def entry(**changes):
    return A | changes


def read(path, name="a", dtype=np.float32):
    tensor = read_header(path).tensors[name]
    target = np.full(tensor.shape, 7, dtype)
    read_into(tensor, target)
    return target


def save(path, arrays, format="F32"):
    with open(path, "wb") as handle:
        write(handle, [(name, array.shape, lambda array=array: array) for name, array in arrays.items()], format)


# Each: what is in the file -> words that the message must hold, beside the name of the file.
HOSTILE = {
    "empty": (b"", ["ends inside its header"]),
    "seven bytes": (b"\0" * 7, ["ends inside its header"]),
    "garbage": (bytes(range(256)) * 4, ["claims a header"]),
    "Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", ["git lfs pull"]),
    "header of 2^63": ((2**63).to_bytes(8, "little") + b"{}", ["9,223,372,036,854,775,808"]),
    "header of 2^64-1": (b"\xff" * 8 + b"{}", ["claims a header"]),
    "header over 100 MB": ((101 * 10**6).to_bytes(8, "little") + b"{}", ["101,000,000"]),
    "header longer than the file": ((1000).to_bytes(8, "little") + b"{}", ["1,000", "10"]),
}
HOSTILE_HEADERS = {
    "not JSON": (b"{not json", 0, ["not valid JSON"]),
    "not UTF-8": (b'{"\xff": 1}', 0, ["UTF-8"]),
    "a list": (b"[1, 2]", 0, ["not a JSON object"]),
    "leading space": (b" {}", 0, ["not a JSON object"]),
    "nothing": (b"", 0, ["not a JSON object"]),
    "deep nesting": (b'{"a":' + b"[" * 100_000, 0, ["nested too deeply"]),
    "many values": (b'{"a":[' + b"[]," * 1_000_000, 0, ["values"]),
    "long number": (b'{"a":' + b"9" * 5000 + b"}", 0, ["too many digits"]),
    "same key twice": (b'{"a":1,"a":1}', 0, ["'a'", "twice"]),
    "same field twice": (b'{"a":{"dtype":"F32","dtype":"F32"}}', 0, ["'dtype'", "twice"]),
    "half a surrogate": (b'{"\\ud800": 1}', 0, ["'\\ud800'", "Unicode"]),
    "NaN": (b'{"a": NaN}', 0, ["NaN"]),
    "entry not an object": ({"a": [1, 2]}, 0, ["'a'", "a list"]),
    "no dtype": ({"a": {"shape": [2], "data_offsets": [0, 8]}}, 8, ["'a'", "dtype"]),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, 8, ["'a'", "shape"]),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2]}}, 8, ["'a'", "data_offsets"]),
    "unknown dtype": ({"a": entry(dtype="Q4")}, 8, ["'a'", "'Q4'"]),
    "dtype a list": ({"a": entry(dtype=["F32"])}, 8, ["'a'", "dtype"]),
    "negative shape": ({"a": entry(shape=[-2])}, 8, ["'a'", "shape"]),
    "two negative": ({"a": entry(shape=[-2, -1])}, 8, ["'a'", "shape"]),
    "float shape": ({"a": entry(shape=[2.0])}, 8, ["'a'", "shape"]),
    "true in shape": ({"a": entry(shape=[True, 2])}, 8, ["'a'", "shape"]),
    "shape not a list": ({"a": entry(shape=2)}, 8, ["'a'", "shape"]),
    "huge shape": ({"a": entry(shape=[2**62, 2**62])}, 8, ["'a'", "8 bytes"]),
    "overflowing shape": ({"a": entry(shape=[2**32, 2**32, 2])}, 8, ["'a'", "8 bytes"]),
    "shape of 2^64": ({"a": entry(shape=[2**64])}, 8, ["'a'", "shape"]),
    "many dimensions": ({"a": entry(shape=[1] * 65)}, 8, ["'a'", "65 dimensions"]),
    "shape and bytes": ({"a": entry(shape=[3])}, 8, ["'a'", "[3]", "8 bytes"]),
    "offsets past the end": ({"a": entry(shape=[4], data_offsets=[0, 16])}, 8, ["'a'", "truncated"]),
    "offsets negative": ({"a": entry(data_offsets=[-8, 0])}, 8, ["'a'", "data_offsets"]),
    "offsets float": ({"a": entry(data_offsets=[0.0, 8.0])}, 8, ["'a'", "data_offsets"]),
    "offsets backwards": ({"a": entry(data_offsets=[8, 0])}, 8, ["'a'", "data_offsets"]),
    "offsets three": ({"a": entry(data_offsets=[0, 8, 8])}, 8, ["'a'", "data_offsets"]),
    "offsets huge": ({"a": entry(data_offsets=[0, 10**4000])}, 8, ["'a'", "data_offsets"]),
    "overlap": ({"a": A, "b": entry(data_offsets=[4, 12])}, 12, ["'b'", "overlaps"]),
    "the same bytes": ({"a": A, "b": A}, 8, ["'b'", "overlaps"]),
    "hole in front": ({"a": entry(data_offsets=[8, 16])}, 16, ["'a'", "hole of 8 bytes"]),
    "hole between": ({"a": A, "b": entry(data_offsets=[16, 24])}, 24, ["'b'", "hole of 8 bytes"]),
    "bytes behind": ({"a": A}, 9, ["tensors end at"]),
    "truncated": ({"a": A}, 7, ["'a'", "truncated"]),
    "half a byte": ({"a": entry(dtype="F4", shape=[1], data_offsets=[0, 0])}, 0, ["'a'"]),
    "metadata no object": ({"__metadata__": [], "a": A}, 8, ["__metadata__"]),
    "metadata not strings": ({"__metadata__": {"a": 1}, "a": A}, 8, ["__metadata__"]),
    "escape sequence": ({"\x1b[2J": entry(shape=[3])}, 8, ["'\\x1b[2J'"]),
}


def refused(path):
    tracemalloc.start()
    try:
        with pytest.raises(InputFileError) as caught:
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 300e6
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert str(path) in message
    assert message.isprintable(), "no control characters from a file reach the terminal"
    assert len(message) < 600
    return message


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_file(tmp_path, case):
    data, words = HOSTILE[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    message = refused(path)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("case", HOSTILE_HEADERS)
def test_hostile_header(tmp_path, case):
    header, size, words = HOSTILE_HEADERS[case]
    path = write_raw(tmp_path / "model.safetensors", header, bytes(size))
    message = refused(path)
    assert all(word in message for word in words), message


def test_a_large_header_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "model.safetensors"
    with open(path, "wb") as handle:  # sparse: 200 MB that take no disk
        handle.write((200 * 10**6).to_bytes(8, "little"))
        handle.truncate(200 * 10**6 + 8)
    assert f"{LARGEST_HEADER:,}" in refused(path)


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"a": A},
        {"a": A, "__metadata__": None},
        {"a": A | {"more": 1}, "__metadata__": {"x": "y"}},
        {"b": entry(shape=[0, 5], data_offsets=[0, 0]), "a": A},
        {"a": A, "b": entry(shape=[0], data_offsets=[8, 8])},
        {"a": entry(shape=[], dtype="F64")},
        {"a": entry(dtype="F4", shape=[16])},
    ],
)
def test_unusual_but_valid(tmp_path, header):
    path = write_raw(tmp_path / "x.safetensors", header, bytes(8 if "a" in header else 0))
    with safe_open(path, "np") as judge:
        assert sorted(judge.keys()) == sorted(read_header(path).tensors)


def test_pipe_folder_and_device_do_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "broken").symlink_to("nowhere")
    for name, word in {"pipe": "pipe", "folder": "folder", "loop": "loop", "broken": "link", "none": "no file"}.items():
        with pytest.raises(InputFileError, match=word) as caught:
            read_header(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    with pytest.raises(InputFileError, match="device"):
        read_header((tmp_path / "x").parent / "/dev/zero")
    with pytest.raises(InputFileError):
        read_header(tmp_path / "nul\0")


def test_link_to_a_file_is_read(tmp_path):
    save(tmp_path / "blob", {"a": np.arange(3, dtype=np.float32)})
    (tmp_path / "model.safetensors").symlink_to("blob")
    assert read(tmp_path / "model.safetensors").tolist() == [0, 1, 2]


def test_permission_denied(tmp_path, monkeypatch):
    path = write_raw(tmp_path / "model.safetensors", {})
    path.chmod(0)
    if os.access(path, os.R_OK):  # the superuser may read everything
        monkeypatch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(PermissionError(errno.EACCES, "denied")))
    with pytest.raises(InputFileError, match="permission denied"):
        read_header(path)


def test_a_file_that_changes_between_header_and_tensor(tmp_path):
    path = tmp_path / "model.safetensors"
    save(path, {"a": np.zeros(4, np.float32)})
    tensor = read_header(path).tensors["a"]
    save(tmp_path / "new", {"a": np.ones(4, np.float32)})
    os.replace(tmp_path / "new", path)
    with pytest.raises(InputFileError, match="changed"):
        read_into(tensor, np.empty(4, np.float32))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("target", [np.float32, np.float64])
def test_reads_what_the_library_writes(tmp_path, dtype, target):
    rng = np.random.default_rng(0)
    arrays = {"a": rng.standard_normal((3, 5)).astype(dtype), "b": np.array([np.inf, -np.inf, np.nan], dtype)}
    arrays |= {"scalar": np.array(2, dtype), "none": np.zeros((0, 4), dtype)}
    save_file(arrays, tmp_path / "x.safetensors", metadata={"format": "np"})
    for name, array in arrays.items():
        got = read(tmp_path / "x.safetensors", name, target)
        np.testing.assert_array_equal(got, array.astype(target))
    assert read_header(tmp_path / "x.safetensors").metadata == {"format": "np"}


def test_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("transformer_lab.checkpoints.safetensors_file._CHUNK_BYTES", 8)
    array = np.arange(101, dtype=np.float16)
    save(tmp_path / "x.safetensors", {"a": array}, "F16")
    steps = []
    target = np.empty(101, np.float32)
    read_into(read_header(tmp_path / "x.safetensors").tensors["a"], target, steps.append)
    np.testing.assert_array_equal(target, array)
    assert sum(steps) == 202 and max(steps) == 8
    part = np.empty(5, np.float64)
    read_into(read_header(tmp_path / "x.safetensors").tensors["a"], part, begin=50)
    np.testing.assert_array_equal(part, array[50:55])


@pytest.mark.parametrize("format", ["F64", "F32", "F16"])
def test_the_library_reads_what_we_write(tmp_path, format):
    """Transposed, Fortran-ordered and strided arrays too: safetensors 0.8.0 would write these permuted, in silence."""
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    arrays = {"c": base, "t": base.T, "f": np.asfortranarray(base), "s": base[:, ::2], "r": base[::-1], "0": base[:0]}
    save(tmp_path / "x.safetensors", arrays, format)
    loaded = load_file(tmp_path / "x.safetensors")
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array, err_msg=name)
    data_start = 8 + int.from_bytes((tmp_path / "x.safetensors").read_bytes()[:8], "little")
    assert data_start % 8 == 0


@pytest.mark.skipif(safetensors.__version__ != "0.8.0", reason="about a fault of one version")
def test_the_check_above_can_fail(tmp_path):
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    save_file({"t": base.T}, tmp_path / "x.safetensors")
    assert not np.array_equal(load_file(tmp_path / "x.safetensors")["t"], base.T)


def bfloat16(value):
    """The judge: exact arithmetic on the 8-bit significand, ties to even."""
    if value == 0 or not math.isfinite(value):
        return value
    exponent = max(math.frexp(value)[1] - 8, -133)
    rounded = math.ldexp(round(math.ldexp(value, -exponent)), exponent)  # round is to even
    return rounded if abs(rounded) < 2.0**128 else math.copysign(math.inf, value)


def from_bfloat16(bits):
    target = np.empty(bits.shape, np.float32)
    decode(bits, "BF16", target)
    return target


def test_every_bfloat16_survives():
    bits = np.arange(2**16, dtype=np.uint16)
    values = from_bfloat16(bits)
    with np.errstate(all="ignore"):
        back = encode(values, "BF16", "x")
    number = ~np.isnan(values)
    np.testing.assert_array_equal(back[number], bits[number])
    assert np.isnan(from_bfloat16(back[~number])).all()
    assert 60000 < number.sum() < 2**16


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bfloat16_rounds_to_nearest_even(dtype):
    rng = np.random.default_rng(1)
    numbers = rng.standard_normal(2000) * 10.0 ** rng.integers(-44, 37, 2000)
    ties = np.arange(1, 4000, dtype=np.float64) / 512
    near = [np.nextafter(ties, np.inf), np.nextafter(ties, 0), ties + 2.0**-40, ties - 2.0**-40]
    with np.errstate(all="ignore"):
        values = np.concatenate([numbers, ties, -ties, *near, [0.0, -0.0, 1e-45, -1e-42, np.inf, -np.inf]]).astype(
            dtype
        )
    expected = np.array([bfloat16(float(value)) for value in values])
    np.testing.assert_array_equal(from_bfloat16(encode(values, "BF16", "x")), expected)


def test_rounding_twice_would_fail_the_test_above():
    value = np.array([1 + 2.0**-8 + 2.0**-40])  # just above a tie: up; but as a float32 it is the tie itself: down
    assert from_bfloat16(encode(value, "BF16", "x"))[0] == 1 + 2.0**-7
    assert from_bfloat16(encode(value.astype(np.float32), "BF16", "x"))[0] == 1


def test_bfloat16_equals_torch(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    values = np.random.default_rng(2).standard_normal((50, 40)).astype(np.float32)
    save(tmp_path / "x.safetensors", {"a": values.T}, "BF16")
    loaded = load_file(tmp_path / "x.safetensors")["a"]
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(loaded, torch.from_numpy(values.T.copy()).bfloat16())
    np.testing.assert_array_equal(read(tmp_path / "x.safetensors"), loaded.float().numpy())


@pytest.mark.parametrize("format, value", [("F16", 1e5), ("F32", 1e300), ("BF16", 1e300), ("BF16", 3.4e38)])
def test_a_number_too_large_for_the_format(format, value):
    with pytest.raises(ConfigurationError, match=f"h.0.x holds {value:.4g}".replace("+", r"\+")):
        encode(np.array([1.0, -value, np.inf]), format, "h.0.x")
    encode(np.array([np.inf, np.nan]), format, "h.0.x")
