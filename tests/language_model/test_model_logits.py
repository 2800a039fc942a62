"""Logits and loss against transformers in float64, on random models of many shapes; and that the check can fail."""

import json

import numpy as np
import pytest
import torch
from reference_models import BACKENDS, GPT2, OPS, deviations, random_ids, reference_logits, save_gpt2, save_llama
from tolerances import LOGITS_FLOAT32, LOGITS_FLOAT64

import transformer_lab as lab
from transformer_lab.backends.plain import manual

CASES = {
    "plain": (save_gpt2, {}),
    "inner_gelu_epsilon": (
        save_gpt2,
        {"n_inner": 40, "activation_function": "gelu", "layer_norm_epsilon": 1e-3, "n_embd": 24, "n_head": 2},
    ),
    "relu_unscaled_square": (
        save_gpt2,
        {"activation_function": "relu", "scale_attn_weights": False, "n_inner": 32, "initializer_range": 0.1},
    ),
    "silu_by_layer": (
        save_gpt2,
        {"activation_function": "silu", "scale_attn_by_inverse_layer_idx": True, "n_layer": 3},
    ),
    "upcast_two_buckets": (save_gpt2, {"reorder_and_upcast_attn": True, "n_positions": 70, "n_embd": 40, "n_head": 5}),
    "untied_odd_heads": (save_gpt2, {"tie_word_embeddings": False, "n_embd": 21, "n_head": 3, "vocab_size": 53}),
    "smallest": (save_gpt2, {"n_embd": 4, "n_head": 1, "n_layer": 1, "n_positions": 1, "n_inner": 1, "vocab_size": 2}),
    "llama_grouped": (save_llama, {"tie_word_embeddings": True}),
    "llama_untied_biases": (
        save_llama,
        {
            "tie_word_embeddings": False,
            "attention_bias": True,
            "mlp_bias": True,
            "head_dim": 6,
            "num_key_value_heads": 1,
            "rms_norm_eps": 1e-3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
    ),
}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """name -> (folder, the model of transformers in float64); each is made once."""
    made = {}

    def make(name):
        if name not in made:
            save, fields = CASES[name]
            folder = tmp_path_factory.mktemp(name)
            made[name] = folder, save(folder, seed=len(made), **fields)
        return made[name]

    return make


ON_BOTH_OPS = [
    (name, backend, ops)
    for name in CASES
    for backend in BACKENDS
    for ops in OPS
    if (backend, ops) != ("jax", "manual") or name in ("plain", "llama_grouped")  # each costs a compilation
]


@pytest.mark.parametrize(("name", "backend", "ops"), ON_BOTH_OPS)
def test_logits_in_float32(case, name, backend, ops):
    folder, reference = case(name)
    model = lab.load_model(folder, backend, ops=ops)
    vocab_size, context = model.config.vocab_size, model.config.context_length
    for length in sorted({1, min(2, context), min(7, context), context}):
        ids = random_ids(length, vocab_size, length)
        logits = model.logits(ids)
        assert logits.dtype == np.float32 and logits.shape == (1, length, vocab_size)
        assert deviations(logits, reference_logits(reference, ids)) < LOGITS_FLOAT32
    if backend != "jax" or (name, ops) == ("plain", "fused"):
        ids = random_ids((3, min(7, context)), vocab_size)
        assert deviations(model.logits(ids.tolist()), reference_logits(reference, ids)) < LOGITS_FLOAT32


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["plain", "inner_gelu_epsilon"])
def test_logits_in_float64(case, name, backend):
    folder, reference = case(name)
    model = lab.load_model(folder, backend, precision="float64")
    ids = random_ids(model.config.context_length, model.config.vocab_size)
    logits = model.logits(ids)
    assert logits.dtype == np.float64
    assert deviations(logits, reference_logits(reference, ids)) < LOGITS_FLOAT64


@pytest.mark.parametrize("backend", BACKENDS)
def test_loss(case, backend):
    folder, reference = case("plain")
    single, double = (lab.load_model(folder, backend, precision=precision) for precision in ("float32", "float64"))
    for shape in (2, 9, (3, 24)):
        ids = random_ids(shape, GPT2["vocab_size"])
        labels = torch.as_tensor(np.atleast_2d(ids))
        with torch.no_grad():
            expected = reference(labels, labels=labels).loss.item()  # of logits rounded to float32
        assert isinstance(double.loss(ids), float)
        assert double.loss(ids) == pytest.approx(expected, rel=LOGITS_FLOAT32)
        assert double.loss(ids) == pytest.approx(cross_entropy(reference, labels.numpy()), rel=LOGITS_FLOAT64)
        assert single.loss(ids) == pytest.approx(expected, rel=LOGITS_FLOAT32)
    ids = random_ids((1, 25), GPT2["vocab_size"])  # one more than the context: the last one is only predicted
    assert double.loss(ids) == pytest.approx(cross_entropy(reference, ids), rel=LOGITS_FLOAT64)


def cross_entropy(reference, ids):
    rows = torch.as_tensor(reference_logits(reference, ids[:, :-1]))
    return torch.nn.functional.cross_entropy(rows.flatten(0, 1), torch.as_tensor(ids[:, 1:]).flatten()).item()


def test_llama_in_float64_is_the_same_on_all_backends(case):
    folder, _ = case("llama_grouped")
    ids = random_ids(24, 101)
    logits = [lab.load_model(folder, backend, precision="float64", ops="manual").logits(ids) for backend in BACKENDS]
    for other in logits[1:]:
        assert deviations(other, logits[0]) < LOGITS_FLOAT64


# --- The check can fail ---------------------------------------------------------------------------------------------


def wrong(case, tmp_path, name, **config):
    """How far a model is from the reference if fields of its config.json are changed."""
    folder, reference = case(name)
    fields = json.loads((folder / "config.json").read_text())
    assert all(key in fields and fields[key] != value for key, value in config.items())
    (tmp_path / "config.json").write_text(json.dumps(fields | config))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    model = lab.load_model(tmp_path, "numpy")
    ids = random_ids(model.config.context_length, model.config.vocab_size)
    return deviations(model.logits(ids), reference_logits(reference, ids))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("plain", {"activation_function": "gelu"}),  # erf in place of tanh
        ("plain", {"layer_norm_epsilon": 1e-6}),
        ("plain", {"scale_attn_weights": False}),
        ("plain", {"n_head": 2}),
        ("silu_by_layer", {"scale_attn_by_inverse_layer_idx": False}),
        ("silu_by_layer", {"activation_function": "relu"}),
        ("llama_grouped", {"rms_norm_eps": 1e-5}),
    ],
    ids=str,
)
def test_wrong_fields_are_seen(case, tmp_path, name, config):
    assert wrong(case, tmp_path, name, **config) > 2 * LOGITS_FLOAT32


def test_a_transposed_square_kernel_is_seen(case):
    folder, reference = case("relu_unscaled_square")
    model = lab.load_model(folder, "numpy", ops="manual")
    kernels = model.params["blocks"][0]["ffn"]["up"]
    kernels["kernel"] = np.ascontiguousarray(kernels["kernel"].T)
    ids = random_ids(9, GPT2["vocab_size"])
    assert deviations(model.logits(ids), reference_logits(reference, ids)) > 0.1


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_mask_off_by_one_is_seen(case, monkeypatch, shift):
    folder, reference = case("plain")
    visible_keys = manual.visible_keys

    def shifted(ops, start, *sizes):
        visible = visible_keys(ops, start + shift, *sizes)
        visible[:, :, 0] = True  # no row without any key
        return visible

    monkeypatch.setattr(manual, "visible_keys", shifted)
    model = lab.load_model(folder, "numpy", ops="manual")
    ids = random_ids(9, GPT2["vocab_size"])
    assert deviations(model.logits(ids), reference_logits(reference, ids)) > 0.1


def test_positions_off_by_one_are_seen(case):
    folder, reference = case("plain")
    model = lab.load_model(folder, "numpy")
    model.params["embed"]["position"] = np.roll(model.params["embed"]["position"], 1, axis=0)
    ids = random_ids(9, GPT2["vocab_size"])
    assert deviations(model.logits(ids), reference_logits(reference, ids)) > 0.1
