"""load_parameters on folders of our own making: names, shapes, dtypes, shards, and everything that can be wrong."""

import json
import os
import shutil
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from checkpoint_cases import GPT2, LLAMA, assert_same, edit_json, random_parameters, write_raw
from safetensors.numpy import load_file, save_file
from small_models import small_model

from transformer_lab import load_model
from transformer_lab.checkpoints import inspect_folder, load_parameters, read_config, save_folder
from transformer_lab.errors import ConfigurationError, InputFileError
from transformer_lab.ffn.dense import Dense
from transformer_lab.model.parameters import flatten, shapes

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path):
    save_folder(tmp_path / "m", GPT2, random_parameters(GPT2))
    return tmp_path / "m"


@pytest.fixture
def sharded(tmp_path):
    save_folder(tmp_path / "m", GPT2, random_parameters(GPT2), max_shard_size=2000)
    return tmp_path / "m"


def rewrite(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / WEIGHTS)


def refused(folder, *words, config=None):
    with pytest.raises(InputFileError) as caught:
        load_parameters(folder, config or read_config(folder))
    for word in words:
        assert word in str(caught.value)
    assert str(folder) in str(caught.value)
    assert len(str(caught.value)) < 2000
    return str(caught.value)


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shard_size", [None, 1, 2000])
def test_round_trip(tmp_path, config, dtype, shard_size):
    parameters = random_parameters(config)
    save_folder(tmp_path, config, parameters, max_shard_size=shard_size)
    assert read_config(tmp_path) == config
    loaded = load_parameters(tmp_path, config, dtype=dtype)
    assert_same(loaded, parameters)
    assert {array.dtype for _, array in flatten(loaded)} == {np.dtype(dtype)}
    assert (tmp_path / INDEX).exists() == (shard_size is not None)


def test_place_and_progress(folder):
    seen, steps = {}, []

    def place(name, array):
        seen[name] = array.shape
        owner = array if array.base is None else array.base
        assert type(owner) is np.ndarray and owner.flags.owndata and array.flags.writeable, "fresh memory, no map"
        return name

    tree = load_parameters(folder, GPT2, place, progress=lambda done, total: steps.append((done, total)))
    assert seen == shapes(GPT2)
    assert dict(flatten(tree)) == {name: name for name in seen}
    total = sum(4 * np.prod(shape) for shape in seen.values())
    assert steps[-1] == (total, total) and steps == sorted(steps)


def test_never_the_model_twice(tmp_path):
    config = small_model(5000, 8, 64, 4, 2, Dense(256))
    parameters = random_parameters(config)
    save_folder(tmp_path, config, parameters, dtype="float16")
    largest = 4 * 5000 * 64
    tracemalloc.start()
    load_parameters(tmp_path, config, lambda name, array: None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * largest, "one tensor and its conversion, not the sum of all"


@pytest.mark.parametrize("stored", [np.float16, np.float64])
def test_stored_dtypes(folder, stored):
    rewrite(folder, lambda tensors: tensors.update({name: array.astype(stored) for name, array in tensors.items()}))
    expected = random_parameters(GPT2)
    for name, array in flatten(load_parameters(folder, GPT2)):
        np.testing.assert_array_equal(array, dict(flatten(expected))[name].astype(stored).astype(np.float32))


def test_without_the_prefix(folder):
    def strip(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)

    rewrite(folder, strip)
    assert_same(load_parameters(folder, GPT2), random_parameters(GPT2))


def test_buffers_are_passed_over(folder):
    mask = np.tril(np.ones((1, 1, 8, 8), np.uint8))
    rewrite(folder, lambda t: t.update({"transformer.h.1.attn.bias": mask, "h.0.attn.masked_bias": mask[0, 0, 0, :1]}))
    assert_same(load_parameters(folder, GPT2), random_parameters(GPT2))


def test_square_kernels_are_not_turned(folder):
    """h.0.mlp.c_fc is [8, 8] here, so that no shape would show a transpose too many or too few."""
    raw = load_file(folder / WEIGHTS)["transformer.h.0.mlp.c_fc.weight"]
    assert raw.shape == (8, 8) and not np.array_equal(raw, raw.T)
    np.testing.assert_array_equal(load_parameters(folder, GPT2)["blocks"][0]["ffn"]["up"]["kernel"], raw)


def test_a_name_map_without_its_transpose_is_caught(tmp_path, monkeypatch):
    """On square kernels only the values can tell; this shows that they do."""
    from transformer_lab.checkpoints.tensor_names import TensorNames

    parameters = random_parameters(LLAMA)
    save_folder(tmp_path, LLAMA, parameters)
    monkeypatch.setattr(TensorNames, "stored", lambda self, config, right=TensorNames.stored: {
        name: type(form)(form.parts, transposed=form.transposed and "ffn" not in name)
        for name, form in right(self, config).items()
    })  # fmt: skip
    with pytest.raises(AssertionError, match=r"ffn\.\w+\.kernel"):
        assert_same(load_parameters(tmp_path, LLAMA), parameters)


def test_tied_head_stored_too(folder):
    """Equal: the head is redundant. Different: transformers takes the head, so the model is not tied."""
    head = np.random.default_rng(5).standard_normal((20, 8), dtype=np.float32)
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"]}))
    assert read_config(folder).tied_head
    assert_same(load_parameters(folder, GPT2), random_parameters(GPT2))
    rewrite(folder, lambda t: t.update({"lm_head.weight": head}))
    config = read_config(folder)
    assert not config.tied_head
    np.testing.assert_array_equal(load_parameters(folder, config)["head"]["kernel"], head.T)
    refused(folder, "lm_head.weight", "wte.weight", "tie_word_embeddings", config=GPT2)


def test_tied_with_the_head_alone(folder):
    rewrite(folder, lambda t: t.update({"lm_head.weight": t.pop("transformer.wte.weight")}))
    assert_same(load_parameters(folder, read_config(folder)), random_parameters(GPT2))


def test_untied_needs_a_head(folder):
    edit_json(folder / "config.json", tie_word_embeddings=False)
    refused(folder, "Missing: lm_head.weight [20, 8]")


def test_everything_wrong_is_said_at_once(folder):
    def spoil(tensors):
        del tensors["transformer.h.0.ln_1.bias"]
        tensors["transformer.wpe.weight"] = np.zeros((9, 8), np.float32)
        tensors["transformer.h.1.mlp.c_fc.weight"] = np.zeros((8, 8), np.int8)
        tensors["score.weight\x1b"] = np.zeros((2, 8), np.float32)

    rewrite(folder, spoil)
    refused(
        folder,
        "Wrong shape: transformer.wpe.weight is [9, 8], not [8, 8].",
        "Wrong dtype: transformer.h.1.mlp.c_fc.weight is I8, not F64 or F32 or F16 or BF16.",
        "Missing: h.0.ln_1.bias [8].",
        "Unexpected: 'score.weight\\x1b' [2, 8].",
    )


def test_many_problems_are_counted(folder):
    edit_json(folder / "config.json", n_layer=10_000)
    assert "and 119968 more" in refused(folder, "Missing: h.2.ln_1.weight [8]")


def test_a_config_for_other_weights_costs_nothing(folder):
    edit_json(folder / "config.json", n_embd=999_936, n_layer=12, n_head=12, vocab_size=9_000_000)
    tracemalloc.start()
    refused(folder, "Wrong shape: transformer.wte.weight is [20, 8], not [9000000, 999936]")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_a_transposed_head_or_kernel_is_named(folder):
    rewrite(
        folder, lambda t: t.update({"transformer.h.0.attn.c_attn.weight": t["transformer.h.0.attn.c_attn.weight"].T})
    )
    refused(folder, "transformer.h.0.attn.c_attn.weight is [24, 8], not [8, 24]")


def test_a_name_given_with_and_without_prefix(folder):
    rewrite(folder, lambda t: t.update({"wpe.weight": t["transformer.wpe.weight"]}))
    refused(folder, "both", "'wpe.weight'", "'transformer.wpe.weight'", WEIGHTS)


def test_truncated_weights(folder):
    data = (folder / WEIGHTS).read_bytes()
    for size in (0, 7, 8, 100, len(data) // 2, len(data) - 1):
        (folder / WEIGHTS).write_bytes(data[:size])
        refused(folder, WEIGHTS)


def test_non_finite_values_load(folder):
    def spoil(tensors):
        tensors["transformer.wpe.weight"][0, :3] = [np.nan, np.inf, -np.inf]

    rewrite(folder, spoil)
    got = load_parameters(folder, GPT2)["embed"]["position"][0, :3]
    np.testing.assert_array_equal(got, [np.nan, np.inf, -np.inf])


def test_only_float_parameters(folder):
    with pytest.raises(ConfigurationError, match="float16"):
        load_parameters(folder, GPT2, dtype=np.float16)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.bin", "x.pt", "x.pth", "x.ckpt", "x.pkl"])
def test_pickles_are_refused(folder, name):
    (folder / WEIGHTS).unlink()
    (folder / name).touch()
    refused(folder, name, "pickle", "from_pretrained(folder).save_pretrained(new_folder)")


def test_no_weights(folder):
    (folder / WEIGHTS).rename(folder / "weights.safetensors")
    (folder / "more.safetensors").write_bytes((folder / "weights.safetensors").read_bytes())
    refused(folder, WEIGHTS, INDEX, "weights.safetensors", "more.safetensors", "rename the one that is meant")
    (folder / "weights.safetensors").unlink()
    (folder / "more.safetensors").unlink()
    refused(folder, WEIGHTS, INDEX)


def test_a_single_file_of_another_name(folder):
    (folder / WEIGHTS).rename(folder / "weights.safetensors")
    assert_same(load_parameters(folder, GPT2), random_parameters(GPT2))
    assert inspect_folder(folder).loads
    source = folder / "weights.safetensors"
    assert load_model(source).folder == folder, "and by its path"
    (folder / WEIGHTS).write_bytes(source.read_bytes())
    with pytest.raises(InputFileError, match=r"weights\.safetensors is not all of the model.*model\.safetensors"):
        load_model(source)


def test_the_prefix_of_a_compiled_model(folder):
    rewrite(folder, lambda t: [t.update({f"_orig_mod.{name}": t.pop(name)}) for name in list(t)])
    assert_same(load_parameters(folder, GPT2), random_parameters(GPT2))
    assert inspect_folder(folder).loads


@pytest.mark.parametrize("stem", ["model", "pytorch_model", "model.safetensors"])
def test_shards_without_an_index(sharded, stem):
    (sharded / INDEX).unlink()
    for path in sharded.glob("model-*"):
        path.rename(path.with_name(path.name.replace("model-", f"{stem}-")))
    assert_same(load_parameters(sharded, GPT2), random_parameters(GPT2))
    (sharded / "consolidated.safetensors").write_bytes(b"x")
    (sharded / "other-00001-of-00001.safetensors.txt").write_bytes(b"x")
    assert_same(load_parameters(sharded, GPT2), random_parameters(GPT2))
    next(sharded.glob(f"{stem}-00002-*")).unlink()
    message = refused(sharded, INDEX, f"'{stem}-00002-of-", "Fetch")
    assert f"{stem}-00001-of-" not in message


def test_shards_of_two_models_without_an_index(sharded):
    (sharded / INDEX).unlink()
    shutil.copy(next(sharded.glob("model-00001-*")), sharded / "other-00001-of-00001.safetensors")
    refused(sharded, INDEX, "'model' in ", "'other' in 1 files")


@pytest.mark.parametrize("kind", ["pipe", "folder", "broken link"])
def test_something_else_in_place_of_the_weights(folder, kind):
    path = folder / WEIGHTS
    path.unlink()
    {"pipe": os.mkfifo, "folder": os.mkdir, "broken link": lambda path: path.symlink_to("no")}[kind](path)
    refused(folder, WEIGHTS, kind.split()[-1])


def test_links_to_files_load_as_in_the_cache_of_the_hub(folder, tmp_path):
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in folder.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert_same(load_parameters(snapshot, read_config(snapshot)), random_parameters(GPT2))


def test_the_single_file_wins_over_an_index(sharded):
    save_folder(sharded.parent / "other", GPT2, random_parameters(GPT2, seed=1))
    shutil.copy(sharded.parent / "other" / WEIGHTS, sharded)
    assert_same(load_parameters(sharded, GPT2), random_parameters(GPT2, seed=1))


@pytest.mark.parametrize(
    "file",
    ["../model.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..\\x.safetensors", "C:x.safetensors",
     "x\0.safetensors", "", "..", "model.bin", "config.json", 3, None, ["x.safetensors"], "x" * 5000],
)  # fmt: skip
def test_an_index_that_names_something_else(sharded, file):
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["transformer.wte.weight"] = file
    (sharded / INDEX).write_text(json.dumps(index))
    refused(sharded, INDEX, "'transformer.wte.weight'")


def test_an_index_that_names_a_missing_shard(sharded):
    next(sharded.glob("model-00002*")).unlink()
    refused(sharded, INDEX, "model-00002-of-")
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"] |= {f"t{i}": f"gone{i}.safetensors" for i in range(100)}
    (sharded / INDEX).write_text(json.dumps(index))
    refused(sharded, INDEX, "and 93 more")


def test_an_index_that_does_not_agree_with_the_shards(sharded):
    index = json.loads((sharded / INDEX).read_text())
    first, *_, last = sorted(set(index["weight_map"].values()))
    (sharded / INDEX).write_text(json.dumps({"weight_map": index["weight_map"] | {"extra": first}}))
    refused(sharded, INDEX, f"'extra' in {first}")
    moved = {name: last if file == first else file for name, file in index["weight_map"].items()} | {"x": first}
    (sharded / INDEX).write_text(json.dumps({"weight_map": moved}))
    refused(sharded, INDEX, f"in {last}")


def test_a_tensor_in_two_shards(sharded):
    files = sorted(sharded.glob("model-*"))
    tensors = load_file(files[1]) | load_file(files[0])
    save_file(tensors, files[1])
    refused(sharded, "both hold the tensor", files[0].name, files[1].name)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": []}', '{"weight_map": 3}', "[" * 99_999,
             '{"weight_map": {"a": "b.safetensors", "a": "c.safetensors"}}'],
)  # fmt: skip
def test_an_unusable_index(sharded, text):
    (sharded / INDEX).write_text(text)
    refused(sharded, INDEX)


def test_an_index_that_is_a_pipe(sharded):
    (sharded / INDEX).unlink()
    os.mkfifo(sharded / INDEX)
    refused(sharded, INDEX, "pipe")


def test_metadata_is_tolerated(folder):
    header = {"__metadata__": {"format": "np", "x": "y" * 10_000}}
    write_raw(folder / WEIGHTS, header)
    refused(folder, "Missing")


def test_loading_needs_numpy_alone(folder):
    """No framework, no hub, not even safetensors: bfloat16 too is read by hand."""
    save_folder(folder, GPT2, random_parameters(GPT2), dtype="bfloat16")
    script = (
        "import sys; from transformer_lab.checkpoints import *; folder = sys.argv[1]\n"
        "load_parameters(folder, read_config(folder)); inspect_folder(folder)\n"
        "print([name for name in 'torch jax ml_dtypes huggingface_hub safetensors'.split() if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
