"""A GGUF file as a folder: unpacked once, anew when it is another file; and files that are damaged or hostile."""

import struct
import tracemalloc

import numpy as np
import pytest
from gguf_writer import byte_level, random_model, write_gguf

import transformer_lab as lab
from transformer_lab.checkpoints import inspect_folder
from transformer_lab.checkpoints.gguf.file import MOST_TENSORS, MOST_VALUES, read_gguf
from transformer_lab.checkpoints.gguf.folder import unpacked

SMALL = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, random_model(**SMALL), "llama", "Q8_0")
    return path


def test_what_is_unpacked_is_unpacked_once(tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, random_model(**SMALL), "llama")
    first = lab.load_model(path)
    stamp = (first.folder / "model.safetensors").stat().st_mtime_ns
    assert lab.load_model(path).folder == first.folder
    assert (first.folder / "model.safetensors").stat().st_mtime_ns == stamp
    path.unlink()
    write_gguf(path, random_model("Qwen2", **SMALL), "qwen2")  # another file under the same name
    assert lab.load_model(path).folder != first.folder


def test_a_file_that_is_cut_off(file):
    data = file.read_bytes()
    tensors = read_gguf(file).tensors.values()
    header, end = min(tensor.start for tensor in tensors), max(tensor.start + tensor.size for tensor in tensors)
    draw = np.random.default_rng(0)
    for length in [0, 3, 4, 8, 20, 24, *draw.integers(24, header, 40), header, end - 1]:
        file.write_bytes(data[:length])
        with pytest.raises(lab.InputFileError, match=r"model\.gguf"):
            lab.load_model(file)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_random_damage(architecture, tmp_path):
    """Only errors with a message of ours come out, in loading and in looking."""
    path = tmp_path / "model.gguf"
    kind, sizes = ("Llama", SMALL) if architecture == "llama" else ("GPT2", {"n_layer": 1, "n_embd": 32})
    write_gguf(path, random_model(kind, **sizes), architecture)
    data, draw, refused = path.read_bytes(), np.random.default_rng(0), 0
    header = min(tensor.start for tensor in read_gguf(path).tensors.values())
    words = data.index(b"tokenizer.ggml.tokens")  # before it are the values of the model, behind it mostly tokens
    for number in range(150):
        changed = bytearray(data)
        place = int(draw.integers(0, (words, header)[number % 2]))
        changed[place : place + 8] = draw.bytes(int(draw.integers(1, 9)))
        path.write_bytes(changed)
        for look in (unpacked, inspect_folder):
            try:
                look(path)
            except lab.LabError as error:
                refused += 1
                assert len(str(error)) < 1000 and str(path) in str(error)
    assert refused > 50


class Crafted:
    """A file by hand: what it claims need not be there."""

    def __init__(self):
        self.values, self.tensors, self.counts = [], [], None

    def text(self, value):
        return struct.pack("<Q", len(value)) + value.encode()

    def value(self, name, kind, content):
        self.values.append(self.text(name) + struct.pack("<I", kind) + content)
        return self

    def tensor(self, name, shape, kind=0, start=0):
        sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        self.tensors.append(self.text(name) + sizes + struct.pack("<IQ", kind, start))
        return self

    def write(self, path, version=3, counts=None, behind=0):
        counts = counts or (len(self.tensors), len(self.values))
        data = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(self.values + self.tensors)
        path.write_bytes(data + bytes(-len(data) % 32 + behind))


@pytest.mark.parametrize(
    ("crafted", "options", "words"),
    [
        (Crafted(), {"version": 1}, "is of version 1"),
        (Crafted(), {"version": 3 << 24}, "another byte order"),
        (Crafted(), {"counts": (MOST_TENSORS + 1, 0)}, "claims 100001 tensors"),
        (Crafted(), {"counts": (2**63, 2**63)}, "claims 9223372036854775808 tensors"),
        (Crafted(), {"counts": (0, MOST_VALUES + 1)}, "claims 0 tensors and 5000001 values"),
        (Crafted(), {"counts": (0, MOST_VALUES)}, "ends within its header"),
        (Crafted().value("a", 8, struct.pack("<Q", 2**62)), {}, "has a text of"),
        (Crafted().value("a", 8, struct.pack("<Q", 40_000_000)), {}, "ends within its header"),
        (Crafted().value("a", 9, struct.pack("<IQ", 4, 2**60)), {}, "has a list of"),
        (Crafted().value("a", 9, struct.pack("<IQ", 10, MOST_VALUES)), {}, "ends within its header"),
        (Crafted().value("a", 9, struct.pack("<IQ", 8, MOST_VALUES)), {}, "ends within its header"),
        (Crafted().value("a", 9, struct.pack("<IQ", 9, 1) * 60), {}, "has a list of 1 values, 3 deep"),
        (Crafted().value("a", 13, b""), {}, "a value of the unknown kind 13"),
        (Crafted().value("a", 4, bytes(4)).value("a", 4, bytes(4)), {}, "has 'a' twice"),
        (Crafted().value("general.alignment", 4, struct.pack("<I", 48)), {}, "has the alignment 48"),
        (Crafted().value("general.alignment", 4, struct.pack("<I", 0)), {}, "has the alignment 0"),
        (Crafted().tensor("a", [2**40, 2**40]), {}, "has the tensor 'a' with the shape"),
        (Crafted().tensor("a", [0]), {}, "has the tensor 'a' with the shape"),
        (Crafted().tensor("a", [1] * 9), {}, "has the tensor 'a' with 9 dimensions"),
        (Crafted().tensor("a", []), {}, "has the tensor 'a' with 0 dimensions"),
        (Crafted().tensor("a", [2**30]), {"behind": 64}, "'a' lies outside of it"),
        (Crafted().tensor("a", [8], start=2**62), {"behind": 64}, "'a' lies outside of it"),
        (Crafted().tensor("a", [8], start=7), {"behind": 64}, "'a' lies outside of it"),
        (Crafted().tensor("a", [8]).tensor("b", [8]), {"behind": 64}, "has the tensor 'b' in the midst of another"),
        (Crafted().tensor("a", [8]).tensor("a", [8], start=32), {"behind": 64}, "has the tensor 'a' twice"),
        (Crafted().tensor("a", [31], kind=8), {"behind": 64}, "rows of 31 in 'a', which are no whole blocks of 32"),
        (Crafted().tensor("a", [8]), {"behind": 64}, "'general.architecture' is null"),
    ],
)
def test_hostile_headers_are_refused_before_anything_large_is_made(crafted, options, words, tmp_path):
    path = tmp_path / "hostile.gguf"
    crafted.write(path, **options)
    tracemalloc.start()
    with pytest.raises(lab.InputFileError, match=words) as error:
        lab.load_model(path)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000 and "hostile.gguf" in str(error.value)
    tracemalloc.stop()


def test_a_file_that_is_none(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK" * 100)
    with pytest.raises(lab.InputFileError, match="does not begin with GGUF"):
        lab.load_model(path)
    with pytest.raises(lab.InputFileError, match="does not begin with GGUF"):
        inspect_folder(path)


def test_tensors_that_do_not_fit_are_named_before_they_are_read(tmp_path):
    path, model = tmp_path / "model.gguf", random_model(**SMALL)
    write_gguf(path, model, "llama", tokenizer=byte_level(300))
    path.write_bytes(path.read_bytes().replace(b"blk.0.ffn_up.weight", b"blk.0.ffn_xx.weight"))
    with pytest.raises(lab.InputFileError, match=r"Missing: 'blk\.0\.ffn_up\.weight'\. Unexpected: 'blk\.0\.ffn_xx"):
        lab.load_model(path)
