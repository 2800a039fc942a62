"""LoRA adapters in peft's layout, judged by the formula of arXiv 2106.09685 in float64: W + scaling * B A."""

import json
import math

import numpy as np
import pytest
from checkpoint_cases import GPT2, LLAMA, assert_same, edit_json, random_parameters
from safetensors.numpy import load_file, save_file

import transformer_lab as lab
from transformer_lab.checkpoints import inspect_folder, load_parameters, read_config, save_folder, weights_sha256
from transformer_lab.errors import InputFileError
from transformer_lab.model.parameters import flatten
from transformer_lab.sources import ModelFiles, model_files

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What peft 0.21 writes beside the fields that the tests set.
FIELDS = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "peft_version": "0.21.2", "auto_mapping": None, "revision": None,
    "bias": "none", "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True, "lora_dropout": 0.1,
    "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {}, "use_dora": False, "use_rslora": False,
    "lora_bias": False, "layers_to_transform": None, "layers_pattern": None, "megatron_config": None,
    "megatron_core": "megatron.core", "qalora_group_size": 16, "use_qalora": False, "loftq_config": {},
    "ensure_weight_tying": False, "target_parameters": None, "exclude_modules": None, "layer_replication": None,
}  # fmt: skip
RANK, ALPHA = 3, 5
GPT2_MODULES = ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_proj", "transformer.h.1.mlp.c_fc"]
LLAMA_MODULES = [
    "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj", "model.layers.1.self_attn.o_proj",
    "model.layers.1.mlp.down_proj", "lm_head",
]  # fmt: skip
CASES = {"gpt2": (GPT2, GPT2_MODULES), "llama": (LLAMA, LLAMA_MODULES)}


def write_adapter(folder, base, modules, **changes):
    """An adapter for the maps `modules` of the model in `base`; returns the base's tensors merged by the formula."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(7)
    tensors = load_file(base / "model.safetensors")
    conv1d = json.loads((base / "config.json").read_text())["model_type"] == "gpt2"  # [in, out]
    scaling = ALPHA / (math.sqrt(RANK) if changes.get("use_rslora") else RANK)
    factors = {}
    for module in modules:
        kernel = tensors[f"{module}.weight"].astype(np.float64)
        rows, columns = kernel.shape[::-1] if conv1d else kernel.shape
        a, b = rng.standard_normal((RANK, columns), np.float32), rng.standard_normal((rows, RANK), np.float32)
        factors |= {f"base_model.model.{module}.lora_A.weight": a, f"base_model.model.{module}.lora_B.weight": b}
        product = scaling * (b.astype(np.float64) @ a.astype(np.float64))
        tensors[f"{module}.weight"] = kernel + (product.T if conv1d else product)
    save_file(factors, folder / WEIGHTS)
    targets = sorted({module.rpartition(".")[2] for module in modules})
    fields = {"r": RANK, "lora_alpha": ALPHA, "target_modules": targets, "base_model_name_or_path": str(base)}
    (folder / CONFIG).write_text(json.dumps(FIELDS | fields | changes))
    return tensors


@pytest.fixture(params=sorted(CASES))
def case(request, tmp_path):
    config, modules = CASES[request.param]
    save_folder(tmp_path / "base", config, random_parameters(config))
    return config, modules, tmp_path


def merged(tensors, folder, config):
    """The parameters of a folder that holds the merged tensors in float64."""
    save_folder(folder, config, random_parameters(config))
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rslora", [False, True])
def test_it_is_added_to_the_weights(case, rslora, dtype):
    config, modules, folder = case
    tensors = write_adapter(folder / "adapter", folder / "base", modules, use_rslora=rslora)
    expected = load_parameters(merged(tensors, folder / "merged", config), config, dtype=np.float64)
    got = load_parameters(folder / "base", config, dtype=dtype, adapter=folder / "adapter")
    plain = load_parameters(folder / "base", config, dtype=np.float64)
    tolerance = 2**-24 if dtype == np.float32 else 2**-50  # one rounding
    for (name, ours), (_, right), (_, before) in zip(*(flatten(x) for x in (got, expected, plain)), strict=True):
        np.testing.assert_allclose(ours, right, rtol=tolerance, atol=tolerance, err_msg=name)
        if not np.array_equal(right, before):
            assert np.abs(right - before).max() > 0.1
    assert sum(not np.array_equal(a, b) for (_, a), (_, b) in zip(flatten(got), flatten(plain), strict=True))


def test_where_the_base_lies(case):
    """Beside the adapter, or where adapter_config.json says; the sum of all files tells which weights were used."""
    config, modules, folder = case
    tensors = write_adapter(folder / "adapter", folder / "base", modules)
    assert model_files(folder / "base") == ModelFiles(folder / "base", None)
    assert model_files(folder / "adapter") == ModelFiles(folder / "base", folder / "adapter")
    away = lab.load_model(folder / "adapter")
    write_adapter(folder / "base", folder / "base", modules, base_model_name_or_path="owner/elsewhere")
    assert model_files(str(folder / "base")) == ModelFiles(folder / "base", folder / "base")
    beside = lab.load_model(folder / "base")
    right = lab.load_model(merged(tensors, folder / "merged", config)).logits([1, 2, 3])
    for model in (away, beside):
        np.testing.assert_allclose(model.logits([1, 2, 3]), right, rtol=1e-5, atol=1e-5)
        assert model.weights_sha256() != weights_sha256(folder / "merged")
    beside.save(folder / "saved")
    assert not (folder / "saved" / CONFIG).exists()
    np.testing.assert_array_equal(lab.load_model(folder / "saved").logits([1, 2, 3]), beside.logits([1, 2, 3]))


@pytest.mark.parametrize("name", [WEIGHTS, "adapter_model.bin"])
def test_weights_of_an_adapter_alone_are_not_passed_over(case, name):
    _, modules, folder = case
    write_adapter(folder / "base", folder / "base", modules)
    (folder / "base" / WEIGHTS).rename(folder / "base" / name)
    (folder / "base" / CONFIG).unlink()
    with pytest.raises(InputFileError, match=f"base holds the weights of an adapter without {CONFIG}"):
        lab.load_model(folder / "base")
    assert CONFIG in inspect_folder(folder / "base").problems[0]
    with pytest.raises(InputFileError, match=CONFIG):
        weights_sha256(folder / "base")


def test_the_fingerprint_holds_the_scaling(case):
    _, modules, folder = case
    write_adapter(folder / "base", folder / "base", modules)
    before = weights_sha256(folder / "base")
    edit_json(folder / "base" / CONFIG, lora_alpha=6)
    assert weights_sha256(folder / "base") != before


def test_inspection_tells_of_it(case):
    config, modules, folder = case
    write_adapter(folder / "base", folder / "base", modules)
    found = inspect_folder(folder / "base")
    assert found.loads and found.adapter == str(folder / "base")
    edit_json(folder / "base" / CONFIG, r=4)
    found = inspect_folder(folder / "base")
    assert not found.loads and WEIGHTS in found.problems[0]
    assert read_config(folder / "base") == config


def test_names_without_the_prefix_of_the_family(case):
    config, modules, folder = case
    write_adapter(folder / "adapter", folder / "base", modules)
    expected = load_parameters(folder / "base", config, adapter=folder / "adapter")
    for prefix in ("transformer.", "model."):
        factors = load_file(folder / "adapter" / WEIGHTS)
        save_file(
            {name.replace(f"base_model.model.{prefix}", "base_model.model."): array for name, array in factors.items()},
            folder / "adapter" / WEIGHTS,
        )
    assert_same(load_parameters(folder / "base", config, adapter=folder / "adapter"), expected)


def refused(folder, *words):
    with pytest.raises(InputFileError) as caught:
        load_parameters(folder / "base", read_config(folder / "base"), adapter=folder / "adapter")
    for word in words:
        assert word in str(caught.value)
    assert str(folder / "adapter") in str(caught.value) and len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "field, value",
    [("use_dora", True), ("bias", "all"), ("bias", None), ("modules_to_save", ["lm_head"]), ("rank_pattern", {"x": 2}),
     ("alpha_pattern", {"x": 2}), ("lora_bias", True), ("init_lora_weights", "pissa"), ("init_lora_weights", 1.5),
     ("layer_replication", [[0, 1]]), ("peft_type", "IA3"), ("peft_type", None), ("target_parameters", ["x"]),
     ("trainable_token_indices", [1]), ("a_variant_of_tomorrow", True), ("r", 0), ("r", "3"), ("lora_alpha", None),
     ("use_rslora", 1), ("target_modules", ["other"]), ("target_modules", [1]), ("target_modules", {})],
)  # fmt: skip
def test_whatever_is_not_plain_lora_is_refused_by_name(case, field, value):
    _, modules, folder = case
    write_adapter(folder / "adapter", folder / "base", modules, **{field: value})
    refused(folder, field)


@pytest.mark.parametrize(
    "field, value",
    [("init_lora_weights", "gaussian"), ("fan_in_fan_out", True), ("target_modules", "all-linear"), ("bias", "none"),
     ("target_modules", "(a+)+$"), ("target_modules", None), ("lora_alpha", 2.5), ("eva_config", {})],
)  # fmt: skip
def test_what_changes_nothing_is_taken(case, field, value):
    config, modules, folder = case
    write_adapter(folder / "adapter", folder / "base", modules, **{field: value})
    load_parameters(folder / "base", config, adapter=folder / "adapter")


def change_factors(change):
    def damage(folder):
        factors = load_file(folder / WEIGHTS)
        change(factors, next(name for name in factors if name.endswith("lora_A.weight")))
        save_file(factors, folder / WEIGHTS)

    return damage


@pytest.mark.parametrize(
    "damage, words",
    [
        (change_factors(lambda t, a: t.pop(a)), ("one of the two factors",)),
        (change_factors(lambda t, a: t.update({a: t[a][:2]})), ("lora_A.weight", "as r is 3")),
        (change_factors(lambda t, a: t.update({a: t[a][:, :-1].copy()})), ("lora_A.weight", "as r is 3")),
        (change_factors(lambda t, a: t.update({a: t[a].astype(np.int8)})), ("lora_A.weight", "I8")),
        (change_factors(lambda t, a: t.update({"base_model.model.x.lora_magnitude_vector": t[a]})), ("magnitude",)),
        (change_factors(lambda t, a: t.update({"x.lora_A.weight": t[a]})), ("'x.lora_A.weight'", "merge_and_unload")),
        (lambda folder: (folder / WEIGHTS).unlink(), (WEIGHTS,)),
        (lambda folder: (folder / WEIGHTS).rename(folder / "adapter_model.bin"), ("adapter_model.bin", "pickle")),
        (lambda folder: (folder / CONFIG).write_text("[]"), (CONFIG,)),
    ],
)
def test_files_that_are_no_adapter_for_this_model(case, damage, words):
    _, modules, folder = case
    write_adapter(folder / "adapter", folder / "base", modules)
    damage(folder / "adapter")
    refused(folder, *words)


@pytest.mark.parametrize("module", ["model.embed_tokens", "model.layers.9.self_attn.q_proj", "model.norm"])
def test_a_module_that_is_no_linear_map(tmp_path, module):
    save_folder(tmp_path / "base", LLAMA, random_parameters(LLAMA))
    write_adapter(tmp_path / "adapter", tmp_path / "base", ["lm_head"])
    factors = load_file(tmp_path / "adapter" / WEIGHTS)
    save_file({name.replace("lm_head", module): array for name, array in factors.items()},
              tmp_path / "adapter" / WEIGHTS)  # fmt: skip
    edit_json(tmp_path / "adapter" / CONFIG, target_modules=None)
    refused(tmp_path, repr(module), "no linear map")


def test_a_tied_head_is_no_map_of_its_own(tmp_path):
    save_folder(tmp_path / "base", GPT2, random_parameters(GPT2))
    write_adapter(tmp_path / "adapter", tmp_path / "base", GPT2_MODULES[:1])
    factors = load_file(tmp_path / "adapter" / WEIGHTS)
    save_file({name.replace(GPT2_MODULES[0], "lm_head"): array for name, array in factors.items()},
              tmp_path / "adapter" / WEIGHTS)  # fmt: skip
    edit_json(tmp_path / "adapter" / CONFIG, target_modules=None)
    refused(tmp_path, "'lm_head'", "tied head")


@pytest.mark.parametrize(
    "base, words",
    [(None, "base_model_name_or_path"), ("", "base_model_name_or_path"), (["x"], "base_model_name_or_path"),
     ("./not-there", "does not exist"), ("no such name", "There is no model"), ("~nobody-there/x", "home folder")],
)  # fmt: skip
def test_a_base_that_is_not_there(case, base, words):
    _, modules, folder = case
    write_adapter(folder / "adapter", folder / "base", modules, base_model_name_or_path=base)
    with pytest.raises(lab.LabError, match=words) as caught:
        lab.load_model(folder / "adapter")
    assert str(folder / "adapter") in str(caught.value) and CONFIG in str(caught.value)


def test_an_adapter_of_an_adapter(case):
    _, modules, folder = case
    write_adapter(folder / "first", folder / "base", modules)
    write_adapter(folder / "second", folder / "base", modules, base_model_name_or_path=str(folder / "first"))
    with pytest.raises(InputFileError, match="an adapter itself"):
        lab.load_model(folder / "second")


def test_transformers_takes_no_part_with_it(case):
    pytest.importorskip("transformers")
    from transformer_lab.comparison.participants.transformers import Transformers

    _, modules, folder = case
    write_adapter(folder / "adapter", folder / "base", modules)
    with pytest.raises(lab.ConfigurationError, match="LoRA adapter"):
        Transformers(folder / "adapter")
