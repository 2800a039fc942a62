"""inspect_folder and weights_sha256."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
from checkpoint_cases import GPT2, LLAMA, edit_json, random_parameters, write_raw
from safetensors.numpy import load_file, save_file

from transformer_lab.checkpoints import fingerprint, inspect_folder, save_folder, weights_sha256
from transformer_lab.errors import InputFileError
from transformer_lab.model.parameters import shapes


@pytest.fixture
def folder(tmp_path):
    save_folder(tmp_path / "m", GPT2, random_parameters(GPT2))
    return tmp_path / "m"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "transformer_lab" / "weights_sha256.json"


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
@pytest.mark.parametrize("limit", [None, 2000])
def test_a_folder_that_loads(tmp_path, config, limit):
    save_folder(tmp_path, config, random_parameters(config), dtype="bfloat16", max_shard_size=limit)
    (tmp_path / "merges.txt").touch()
    found = inspect_folder(tmp_path)
    assert found.loads and found.problems == ()
    assert found.total_parameters == sum(np.prod(shape) for shape in shapes(config).values())
    assert found.parameters_by_dtype == {"BF16": found.total_parameters}
    assert found.total_bytes == 2 * found.total_parameters
    assert found.tokenizer_files == ("merges.txt",)
    assert found.config["model_type"] == found.model_type
    assert found.metadata == {"format": "pt"}
    assert (len({tensor.file for tensor in found.tensors}) > 1) == (limit is not None)
    assert json.loads(json.dumps(found.to_dict()))["total_parameters"] == found.total_parameters


def test_buffers_are_no_parameters(folder):
    before = inspect_folder(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"h.0.attn.bias": np.ones((1, 1, 8, 8), np.uint8)}, folder / "model.safetensors")
    found = inspect_folder(folder)
    assert found.loads and found.total_parameters == before.total_parameters
    assert len(found.tensors) == len(before.tensors) + 1


def test_a_single_file(folder):
    found = inspect_folder(folder / "model.safetensors")
    assert not found.loads and "single file" in found.problems[0] and found.model_type is None
    assert len(found.tensors) == len(inspect_folder(folder).tensors)


def test_another_family(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mamba", "d_model": 3}')
    write_raw(tmp_path / "model.safetensors", {"x": {"dtype": "F4", "shape": [4, 2], "data_offsets": [0, 4]}}, bytes(4))
    found = inspect_folder(tmp_path)
    assert not found.loads and "mamba" in found.problems[0]
    assert found.config["d_model"] == 3 and found.parameters_by_dtype == {"F4": 8}
    tensor = found.tensors[0]
    assert (tensor.name, tensor.shape, tensor.dtype, tensor.bytes, tensor.file) == (
        "x",
        (4, 2),
        "F4",
        4,
        "model.safetensors",
    )


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"xx"), "ends inside its header"),
        (lambda folder: edit_json(folder / "config.json", n_layer=3), "Missing: h.2.ln_1.weight"),
        (lambda folder: edit_json(folder / "config.json", n_layer="3"), "'n_layer' is '3'"),
    ],
)
def test_problems_are_listed(folder, spoil, words):
    spoil(folder)
    found = inspect_folder(folder)
    assert not found.loads and any(words in problem for problem in found.problems), found.problems


def test_nothing_to_look_at(folder):
    with pytest.raises(InputFileError, match="nowhere"):
        inspect_folder(folder / "nowhere")
    (folder / "model.bin").touch()
    with pytest.raises(InputFileError, match="pickle"):
        inspect_folder(folder / "model.bin")
    with pytest.raises(InputFileError, match=r"config\.json"):
        inspect_folder(folder / "config.json")


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_sha256_of_one_file(folder):
    assert weights_sha256(folder) == sha256(folder / "model.safetensors")


def test_sha256_of_shards_is_that_of_the_output_of_sha256sum(tmp_path):
    save_folder(tmp_path / "m", GPT2, random_parameters(GPT2), max_shard_size=2000)
    shards = sorted((tmp_path / "m").glob("model-*"))
    text = "".join(f"{sha256(path)}  {path.name}\n" for path in shards)
    assert weights_sha256(tmp_path / "m") == hashlib.sha256(text.encode()).hexdigest()


def test_the_digest_is_remembered_and_forgotten(folder, monkeypatch, cache):
    first = weights_sha256(folder)
    assert cache.exists()
    count = []
    monkeypatch.setattr(fingerprint.hashlib, "sha256", lambda real=hashlib.sha256: count.append(1) or real())
    assert weights_sha256(folder) == first and not count
    path = folder / "model.safetensors"
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # same size, same time of change
    assert weights_sha256(folder) == sha256_of(data) != first
    save_folder(folder, GPT2, random_parameters(GPT2, seed=1))
    assert weights_sha256(folder) not in (first, sha256_of(data))


def sha256_of(data):
    return hashlib.new("sha256", bytes(data)).hexdigest()


@pytest.mark.parametrize("text", ["", "[]", "[" * 99_999, "\xff", '{"x": 1}', "ENTRY 3", 'ENTRY [1, 2, 3, 4, "z"]'])
def test_a_damaged_cache_is_passed_over(folder, cache, text):
    first = weights_sha256(folder)
    key = os.path.realpath(folder / "model.safetensors")
    text = f"{{{json.dumps(key)}: {text[6:]}}}" if text.startswith("ENTRY") else text
    cache.write_text(text, encoding="latin-1")
    assert weights_sha256(folder) == first


def test_a_cache_that_cannot_be_written_is_passed_over(folder, cache, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert weights_sha256(folder) == sha256(folder / "model.safetensors")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    weights_sha256(folder)
    assert (tmp_path / ".cache" / "transformer_lab" / "weights_sha256.json").exists()
    assert not list((tmp_path / ".cache" / "transformer_lab").glob(".*"))


def test_sha256_of_nothing(tmp_path):
    with pytest.raises(InputFileError, match="does not exist"):
        weights_sha256(tmp_path / "nowhere")
    with pytest.raises(InputFileError, match="no weights"):
        weights_sha256(tmp_path)


def test_a_copy_has_the_same_digest(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    assert weights_sha256(tmp_path / "copy") == weights_sha256(folder)
