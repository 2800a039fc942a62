"""save_folder: what it writes, and that a save which fails leaves everything as it was."""

import builtins
import errno
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import transformers
from checkpoint_cases import GPT2, LLAMA, assert_same, random_parameters
from reference_models import save_llama
from safetensors import safe_open
from small_models import small_model

import transformer_lab as lab
from transformer_lab.checkpoints import Original, load_parameters, read_config, read_original, save_folder
from transformer_lab.errors import ConfigurationError, InputFileError, UnavailableError
from transformer_lab.ffn.dense import Dense
from transformer_lab.model.parameters import flatten, nest, shapes


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_metadata_and_names(tmp_path):
    save_folder(tmp_path, GPT2, random_parameters(GPT2))
    assert names(tmp_path) == ["config.json", "model.safetensors"]
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        assert len(list(file.keys())) == 2 + 12 * 2 + 2
        assert all(name.startswith("transformer.") for name in file.keys())  # noqa: SIM118  # not a dict
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["model_type"] == "gpt2" and fields["dtype"] == "float32"
    assert oct((tmp_path / "model.safetensors").stat().st_mode & 0o777) == oct(0o666 & ~umask())


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_flat_names_and_trees_are_the_same(tmp_path, config):
    parameters = random_parameters(config)
    save_folder(tmp_path / "a", config, parameters)
    save_folder(tmp_path / "b", config, dict(flatten(parameters)))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_transposed_views_are_written_as_they_read(tmp_path):
    """load_parameters hands out transposed views; saved again, they must give the same file."""
    save_folder(tmp_path / "a", LLAMA, random_parameters(LLAMA))
    loaded = load_parameters(tmp_path / "a", LLAMA)
    kernel = loaded["blocks"][0]["ffn"]["up"]["kernel"]
    assert not kernel.flags.c_contiguous
    save_folder(tmp_path / "b", LLAMA, loaded)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes(tmp_path, dtype):
    parameters = random_parameters(GPT2)
    save_folder(tmp_path, GPT2, parameters, dtype=dtype)
    loaded = dict(flatten(load_parameters(tmp_path, GPT2)))
    bits = {"float16": 11, "bfloat16": 8, "float64": 53}[dtype]
    for name, array in flatten(parameters):
        np.testing.assert_allclose(loaded[name], array, rtol=2.0**-bits, atol=1e-7)
    assert (dtype == "float64") == np.array_equal(loaded["embed.token"], parameters["embed"]["token"])


def test_shards_stay_below_the_limit(tmp_path):
    save_folder(tmp_path, GPT2, random_parameters(GPT2), max_shard_size=1500)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    sizes = []
    for file in sorted(set(index["weight_map"].values())):
        with safe_open(tmp_path / file, "np") as handle:
            sizes.append(sum(4 * handle.get_tensor(name).size for name in handle.keys()))  # noqa: SIM118
            assert all(index["weight_map"][name] == file for name in handle.keys())  # noqa: SIM118
    assert max(sizes) <= 1500 and len(sizes) > 2
    assert index["metadata"]["total_size"] == sum(sizes) == 4 * sum(np.prod(s) for s in shapes(GPT2).values())


def test_saving_over_another_shape_of_the_same_folder(tmp_path):
    """Old shards, an old index or an old single file must not shadow the new ones; other files stay."""
    (tmp_path / "tokenizer.json").write_text("{}")
    for number, limit in enumerate((2000, None, 1000, 3000)):
        parameters = random_parameters(GPT2, seed=number)
        save_folder(tmp_path, GPT2, parameters, max_shard_size=limit)
        assert_same(load_parameters(tmp_path, GPT2), parameters)
        shards = [name for name in names(tmp_path) if name.startswith("model-")]
        assert all(name.endswith(f"-of-{len(shards):05d}.safetensors") for name in shards)
        assert ("model.safetensors" in names(tmp_path)) == (limit is None) == (not shards)
    assert (tmp_path / "tokenizer.json").read_text() == "{}"


class Disk:
    """Fails after `space` bytes, as a full disk does."""

    def __init__(self, monkeypatch, space, error):
        self.space, self.error, self.open = space, error, builtins.open
        monkeypatch.setattr(builtins, "open", self)

    def __call__(self, path, mode="r", *rest, **more):
        handle = self.open(path, mode, *rest, **more)
        if "x" not in mode and "w" not in mode:
            return handle
        write = handle.write

        def limited(data):
            self.space -= len(data)
            if self.space < 0:
                raise self.error
            return write(data)

        class File:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                handle.close()

            def __getattr__(self, name):
                return limited if name == "write" else getattr(handle, name)

        return File()


@pytest.mark.parametrize("limit", [None, 2000])
@pytest.mark.parametrize("space", [0, 10, 3000, 6000])
@pytest.mark.parametrize(
    "error, expected",
    [(OSError(errno.ENOSPC, "No space left on device"), UnavailableError), (KeyboardInterrupt(), KeyboardInterrupt)],
    ids=["full", "interrupted"],
)
def test_a_failed_save_changes_nothing(tmp_path, monkeypatch, space, limit, error, expected):
    save_folder(tmp_path / "old", GPT2, random_parameters(GPT2), max_shard_size=limit)
    before = contents(tmp_path / "old")
    with monkeypatch.context() as patch, pytest.raises(expected) as caught:
        Disk(patch, space, error)
        save_folder(tmp_path / "old", GPT2, random_parameters(GPT2, seed=1))
    assert contents(tmp_path / "old") == before
    if expected is UnavailableError:
        assert "no space left" in str(caught.value) and str(tmp_path) in str(caught.value)
    with monkeypatch.context() as patch, pytest.raises(expected):
        Disk(patch, space, error)
        save_folder(tmp_path / "new", GPT2, random_parameters(GPT2))
    assert not (tmp_path / "new").exists()


def test_the_disk_of_the_test_above_has_room_for_a_save(tmp_path, monkeypatch):
    Disk(monkeypatch, 10**6, OSError())
    save_folder(tmp_path, GPT2, random_parameters(GPT2))
    assert names(tmp_path) == ["config.json", "model.safetensors"]


def test_an_array_that_fails_late_leaves_nothing(tmp_path):
    parameters = dict(flatten(random_parameters(GPT2)))
    parameters["final_norm.bias"] = parameters["final_norm.bias"] * np.float32(1e6)
    with pytest.raises(ConfigurationError, match=r"transformer\.ln_f\.bias holds .* too large for F16"):
        save_folder(tmp_path / "new", GPT2, parameters, dtype="float16")
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_one(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputFileError, match="cannot be saved in"):
            save_folder(folder, GPT2, random_parameters(GPT2))
    with pytest.raises(InputFileError, match=r"nul\\x00 holds a null character"):
        save_folder("nul\0", GPT2, random_parameters(GPT2))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_in_the_way_is_seen_before_anything_is_replaced(tmp_path, name):
    save_folder(tmp_path, GPT2, random_parameters(GPT2))
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    before = names(tmp_path)
    other = ({"config.json", "model.safetensors"} - {name}).pop()
    data = (tmp_path / other).read_bytes()
    with pytest.raises(InputFileError, match=rf"{name} in it is a folder"):
        save_folder(tmp_path, GPT2, random_parameters(GPT2, seed=1))
    assert names(tmp_path) == before and (tmp_path / other).read_bytes() == data


def test_a_link_is_replaced_and_its_target_left_alone(tmp_path):
    """As in the cache of the hub, whose blobs must never be written to."""
    (tmp_path / "blob").write_text("precious")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.safetensors").symlink_to(tmp_path / "blob")
    save_folder(tmp_path / "m", GPT2, random_parameters(GPT2))
    assert (tmp_path / "blob").read_text() == "precious"
    assert read_config(tmp_path / "m") == GPT2


def test_wrong_arguments(tmp_path):
    parameters = random_parameters(GPT2)
    with pytest.raises(ConfigurationError, match=r"'int8'.*float32, float16, bfloat16"):
        save_folder(tmp_path / "x", GPT2, parameters, dtype="int8")
    with pytest.raises(ConfigurationError, match="max_shard_size is 0"):
        save_folder(tmp_path / "x", GPT2, parameters, max_shard_size=0)
    flat = dict(flatten(parameters))
    flat["more"] = flat.pop("embed.token")
    flat["embed.position"] = flat["embed.position"][1:]
    with pytest.raises(ConfigurationError, match=r"token is missing, more is not .*position is \[7, 8\], not \[8, 8\]"):
        save_folder(tmp_path / "x", GPT2, flat)
    assert not (tmp_path / "x").exists()


def test_an_untied_gpt2(tmp_path):
    config = small_model(20, 8, 8, 1, 2, Dense(8), tied_head=False)
    parameters = random_parameters(config)
    save_folder(tmp_path, config, parameters)
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        np.testing.assert_array_equal(file.get_tensor("lm_head.weight"), parameters["head"]["kernel"].T)
    assert_same(load_parameters(tmp_path, read_config(tmp_path)), parameters)


def test_several_ids_that_end_a_text(tmp_path):
    config = replace(LLAMA, end_of_text_id=3)
    original = Original({"model_type": "llama", "eos_token_id": [3, 5]})
    save_folder(tmp_path, config, random_parameters(LLAMA), original=original)
    assert read_original(tmp_path).end_of_text_ids == (3, 5)
    assert read_config(tmp_path) == config
    save_folder(tmp_path, config, random_parameters(LLAMA))
    assert read_original(tmp_path).end_of_text_ids == (3,)


def test_what_the_folder_said_beside_the_weights_is_kept(tmp_path):
    save_llama(tmp_path / "a", seed=1, vocab_size=50, attention_dropout=0.1, eos_token_id=[3, 5])
    own = json.loads((tmp_path / "a" / "config.json").read_text()) | {"note": "of their own", "torch_dtype": "float16"}
    (tmp_path / "a" / "config.json").write_text(json.dumps(own))
    generation = {"eos_token_id": [4, 5], "temperature": 0.6, "do_sample": True, "unheard": {"of": 1}}
    (tmp_path / "a" / "generation_config.json").write_text(json.dumps(generation))
    model = lab.load_model(tmp_path / "a")
    assert model.end_of_text_ids == (4, 5)
    model.save(tmp_path / "b")
    saved = json.loads((tmp_path / "b" / "config.json").read_text())
    assert {name: saved[name] for name in own.keys() - {"torch_dtype", "dtype"}}.items() >= {
        "note": "of their own",
        "attention_dropout": 0.1,
        "eos_token_id": [3, 5],
    }.items()
    assert saved["dtype"] == "float32" and "torch_dtype" not in saved
    assert json.loads((tmp_path / "b" / "generation_config.json").read_text()) == generation
    # Another model's way to generate does not stay behind.
    lab.load_model("storybook").save(tmp_path / "b")
    assert not (tmp_path / "b" / "generation_config.json").exists()


def test_fields_that_no_longer_fit_are_not_kept(tmp_path):
    """Where two fields say the same, the original's could contradict what was changed."""
    config = small_model(20, 8, 8, 1, 2, Dense(8))
    for original in ({"hidden_size": 16}, {"sliding_window": 2}, {"model_type": "llama", "note": 1}):
        save_folder(tmp_path, config, random_parameters(config), original=Original({"model_type": "gpt2"} | original))
        assert read_config(tmp_path) == config and not original.keys() & {
            *json.loads((tmp_path / "config.json").read_text())
        } - {"model_type"}


@pytest.mark.parametrize("ends", [2, [2, 3], None])
@pytest.mark.parametrize(
    "generation", [None, {}, {"eos_token_id": [4, 5]}, {"eos_token_id": None}, {"top_k": 3}], ids=str
)
def test_which_tokens_end_a_text_as_in_transformers(ends, generation, tmp_path):
    save_llama(tmp_path, seed=1, vocab_size=50)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": ends}))
    (tmp_path / "generation_config.json").unlink()
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.eos_token_id
    expected = tuple(theirs if isinstance(theirs, list) else [] if theirs is None else [theirs])
    assert read_original(tmp_path).end_of_text_ids == expected


@pytest.mark.parametrize("generation", ["[1]", "{", '{"eos_token_id": "x"}', '{"eos_token_id": [1.5]}'])
def test_a_damaged_generation_config(generation, tmp_path):
    save_llama(tmp_path, seed=1, vocab_size=50)
    (tmp_path / "generation_config.json").write_text(generation)
    with pytest.raises(InputFileError, match=r"generation_config\.json"):
        lab.load_model(tmp_path)


def test_suggested_sampling():
    asked = {"do_sample": True, "temperature": 0.6, "top_p": 1.0, "top_k": 50, "repetition_penalty": True}
    assert Original(generation=asked).suggested_sampling() == {"temperature": 0.6, "top_k": 50}
    for generation in (None, {}, asked | {"do_sample": False}):
        assert Original(generation=generation).suggested_sampling() == {}


def test_nest_and_flatten_agree():
    flat = dict(flatten(random_parameters(GPT2)))
    assert dict(flatten(nest(flat))).keys() == flat.keys() == shapes(GPT2).keys()
