"""LanguageModel.save: packed kernels are unpacked, the same bits come back, and transformers loads it."""

import json

import numpy as np
import pytest
import transformers
from reference_models import BACKENDS, OPS, deviations, random_ids, reference_logits, save_gpt2, save_llama
from safetensors.numpy import load_file
from tolerances import LOGITS_FLOAT32

import transformer_lab as lab


def assert_same_tensors(one, other):
    one, other = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


@pytest.mark.parametrize("ops", OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_saved_as_it_was_read(plain, tmp_path, backend, ops):
    folder = plain[0]
    model = lab.load_model(folder, backend, ops=ops)
    model.save(tmp_path / "saved")
    assert_same_tensors(folder, tmp_path / "saved")
    before, after = (transformers.GPT2LMHeadModel.from_pretrained(path) for path in (folder, tmp_path / "saved"))
    ids = random_ids(9, 270)
    np.testing.assert_array_equal(reference_logits(after, ids), reference_logits(before, ids))
    again = lab.load_model(tmp_path / "saved")
    assert again.config == model.config
    assert again.tokenizer.encode("the cat") == model.tokenizer.encode("the cat")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")("the cat")["input_ids"] == (
        model.tokenizer.encode("the cat")
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("save", [save_gpt2, save_llama])
def test_untied_head_and_odd_sizes(tmp_path, backend, save):
    fields = {"vocab_size": 53, "tie_word_embeddings": False}
    fields |= {"n_embd": 21, "n_head": 3, "n_inner": 5} if save is save_gpt2 else {"intermediate_size": 7}
    save(tmp_path / "theirs", **fields)
    model = lab.load_model(tmp_path / "theirs", backend)
    model.save(str(tmp_path / "ours"))
    assert_same_tensors(tmp_path / "theirs", tmp_path / "ours")
    assert lab.load_model(tmp_path / "ours").tokenizer is None


def test_over_its_own_folder(tmp_path):
    """What is saved was read into memory of its own, so the files can be replaced."""
    save_gpt2(tmp_path)
    model = lab.load_model(tmp_path)
    logits = model.logits([1, 2, 3])
    model.save(tmp_path)
    np.testing.assert_array_equal(model.logits([1, 2, 3]), logits)
    np.testing.assert_array_equal(lab.load_model(tmp_path).logits([1, 2, 3]), logits)


def test_float64_is_stored_as_float32(plain, tmp_path):
    lab.load_model(plain[0], "jax", precision="float64").save(tmp_path)
    assert_same_tensors(plain[0], tmp_path)


def test_not_over_a_file(plain, tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(lab.InputFileError, match=r"cannot be saved in .*taken"):
        lab.load_model(plain[0]).save(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


# --- Random weights -------------------------------------------------------------------------------------------------


@pytest.fixture
def shape_only(tmp_path):
    fields = {"model_type": "gpt2", "vocab_size": 101, "n_positions": 24, "n_embd": 32, "n_layer": 2, "n_head": 4}
    (tmp_path / "config.json").write_text(json.dumps(fields | {"bos_token_id": None, "eos_token_id": None}))
    return tmp_path


def test_random_weights_are_the_same_on_all_backends(shape_only, tmp_path):
    for backend in BACKENDS:
        model = lab.load_model(shape_only, backend, weights="random", seed=3)
        assert model.folder is None and model.weights_sha256() is None
        model.save(tmp_path / backend)
        assert_same_tensors(tmp_path / "numpy", tmp_path / backend)
    weights = load_file(tmp_path / "numpy" / "model.safetensors")
    assert weights["transformer.wte.weight"].std() == pytest.approx(0.02, rel=0.1)
    assert weights["transformer.h.0.mlp.c_proj.weight"].std() == pytest.approx(0.01, rel=0.1)  # 0.02 / sqrt(2 * 2)
    other = lab.load_model(shape_only, weights="random", seed=4)
    assert np.abs(other.logits([1, 2]) - model.logits([1, 2])).max() > 0.01
    reference = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "torch").double().eval()
    ids = random_ids(20, 101)
    for backend in BACKENDS:
        logits = lab.load_model(shape_only, backend, weights="random", seed=3).logits(ids)
        assert deviations(logits, reference_logits(reference, ids)) < LOGITS_FLOAT32


def test_the_feed_forward_network_can_be_changed(shape_only, tmp_path):
    model = lab.load_model(shape_only, weights="random", ffn={"size": 10, "activation": "relu"})
    assert (model.config.blocks[0].ffn.size, model.config.blocks[-1].ffn.activation) == (10, "relu")
    model.save(tmp_path / "saved")
    fields = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (fields["n_inner"], fields["activation_function"]) == (10, "relu")


def test_what_can_be_read_of_a_model(shape_only, plain):
    model = lab.load_model(shape_only, weights="random")
    block = 4 * 32 * 32 + 4 * 32 + 2 * 4 * 32 * 32 + 5 * 32 + 4 * 32  # attention, feed-forward, two norms
    assert model.parameters_count == model.active_parameters_count == (101 + 24) * 32 + 2 * block + 2 * 32
    loaded = lab.load_model(plain[0])
    assert loaded.source == str(plain[0]) and loaded.folder == plain[0] and loaded.load_seconds > 0
    assert len(loaded.weights_sha256()) == 64
    assert loaded.config.vocab_size == 270 and loaded.config.context_length == 24 and loaded.backend.name == "numpy"


def test_progress(plain, shape_only):
    for folder, weights in ((plain[0], "pretrained"), (shape_only, "random")):
        calls = []
        lab.load_model(folder, weights=weights, progress=lambda *call, calls=calls: calls.append(call))
        assert {what for what, _, _ in calls} == {"weights"}
        done = [done for _, done, _ in calls]
        assert done == sorted(done) and calls[-1][1] == calls[-1][2]
