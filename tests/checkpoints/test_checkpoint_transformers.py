"""Against transformers, on random small models: what it saves loads here, what is saved here loads there.

The logits are compared between transformers and transformers, before and after the way through our files: equal bits.
"""

import json
import random

import numpy as np
import pytest
from checkpoint_cases import assert_same, edit_json
from safetensors.numpy import load_file, save_file

from transformer_lab import load_model
from transformer_lab.checkpoints import load_parameters, read_config, save_folder
from transformer_lab.errors import InputFileError
from transformer_lab.model.parameters import flatten

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(autouse=True, scope="module")
def quiet():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def random_gpt2(seed, **changes):
    choose = random.Random(seed)
    heads = choose.choice([1, 2, 3])
    fields = {
        "vocab_size": choose.randint(11, 60),
        "n_positions": choose.randint(9, 20),
        "n_embd": heads * choose.choice([4, 8]),
        "n_layer": choose.randint(1, 3),
        "n_head": heads,
        "n_inner": choose.choice([None, 5, 24]),
        "activation_function": choose.choice(["gelu_new", "gelu", "relu", "silu", "swish"]),
        "layer_norm_epsilon": choose.choice([1e-5, 1e-3]),
        "scale_attn_weights": choose.choice([True, False]),
        "scale_attn_by_inverse_layer_idx": choose.choice([True, False]),
        "tie_word_embeddings": choose.choice([True, False]),
        "bos_token_id": choose.choice([None, 3]),
        "eos_token_id": choose.choice([None, 4, [5, 6]]),
    }
    torch.manual_seed(seed)
    return shaken(transformers.GPT2LMHeadModel(transformers.GPT2Config(**fields | changes)))


def random_llama(seed, **changes):
    choose = random.Random(seed)
    fields = {
        "vocab_size": choose.randint(11, 60),
        "max_position_embeddings": choose.randint(9, 20),
        "hidden_size": choose.choice([8, 16]),
        "intermediate_size": choose.choice([8, 12]),
        "num_hidden_layers": choose.randint(1, 3),
        "num_attention_heads": 4,
        "num_key_value_heads": choose.choice([1, 2, 4]),
        "head_dim": choose.choice([4, 6]),
        "hidden_act": choose.choice(["silu", "gelu", "relu"]),
        "rms_norm_eps": choose.choice([1e-6, 1e-3]),
        "attention_bias": choose.choice([True, False]),
        "mlp_bias": choose.choice([True, False]),
        "tie_word_embeddings": choose.choice([True, False]),
        "rope_parameters": {"rope_type": "default", "rope_theta": choose.choice([10000.0, 500.0])},
    }
    torch.manual_seed(seed)
    return shaken(transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields | changes)))


def shaken(model):
    """Biases and norms start as zeros and ones, which would hide a mistake."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(torch.arange(9)[None] % model.config.vocab_size).logits


def assert_round_trip(model, folder, dtype="float32", **save_options):
    model.save_pretrained(folder / "theirs", **save_options)
    config = read_config(folder / "theirs")
    parameters = load_parameters(folder / "theirs", config)
    save_folder(folder / "ours", config, parameters, dtype=dtype)
    assert read_config(folder / "ours") == config
    loaded, info = type(model).from_pretrained(folder / "ours", output_loading_info=True)
    assert not any(info.values()), info
    assert torch.equal(logits(loaded), logits(model))
    theirs = {}
    for path in (folder / "theirs").glob("*.safetensors"):
        theirs |= load_file(path)
    ours = load_file(folder / "ours" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)
    return config, parameters


@pytest.mark.parametrize("seed", range(8))
def test_gpt2_round_trip(tmp_path, seed):
    model = random_gpt2(seed)
    config, parameters = assert_round_trip(model, tmp_path)
    state = model.state_dict()
    last = config.num_layers - 1
    for ours, theirs in {
        "attn.qkv.kernel": "attn.c_attn.weight",
        "attn.out.kernel": "attn.c_proj.weight",
        "attn.out.bias": "attn.c_proj.bias",
        "ffn.up.kernel": "mlp.c_fc.weight",
        "ffn.down.kernel": "mlp.c_proj.weight",
        "norm_2.bias": "ln_2.bias",
    }.items():
        mine = dict(flatten(parameters))[f"blocks.{last}.{ours}"]
        np.testing.assert_array_equal(mine, state[f"transformer.h.{last}.{theirs}"].numpy())
    if not config.tied_head:
        np.testing.assert_array_equal(parameters["head"]["kernel"].T, state["lm_head.weight"].numpy())


@pytest.mark.parametrize("name", ["gelu_pytorch_tanh", "gelu_new"])
def test_names_of_one_activation(tmp_path, name):
    """Two names of one function, whose rounding differs in torch; the first is written as the second."""
    model = random_gpt2(0, activation_function=name)
    model.save_pretrained(tmp_path / "theirs")
    config = read_config(tmp_path / "theirs")
    assert config.blocks[0].ffn.activation == "gelu_tanh"
    save_folder(tmp_path / "ours", config, load_parameters(tmp_path / "theirs", config))
    loaded = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-5 if name != "gelu_new" else 0)


@pytest.mark.parametrize("seed", range(8))
def test_llama_round_trip(tmp_path, seed):
    model = random_llama(seed)
    config, parameters = assert_round_trip(model, tmp_path)
    attention = model.model.layers[-1].self_attn
    qkv = parameters["blocks"][-1]["attn"]["qkv"]["kernel"]
    ours = config.blocks[-1].attention
    queries, keys = ours.num_heads * ours.head_size, ours.num_kv_heads * ours.head_size
    np.testing.assert_array_equal(qkv[:, :queries], attention.q_proj.weight.detach().numpy().T)
    np.testing.assert_array_equal(qkv[:, queries : queries + keys], attention.k_proj.weight.detach().numpy().T)
    np.testing.assert_array_equal(qkv[:, queries + keys :], attention.v_proj.weight.detach().numpy().T)


def test_square_conv1d_kernels_are_in_out(tmp_path):
    """x @ kernel + bias must be what Conv1D computes, on a kernel whose transpose has the same shape."""
    model = random_gpt2(0, n_embd=8, n_head=2, n_inner=8)
    model.save_pretrained(tmp_path)
    up = load_parameters(tmp_path, read_config(tmp_path))["blocks"][0]["ffn"]["up"]
    x = np.random.default_rng(0).standard_normal((3, 8), dtype=np.float32)
    with torch.no_grad():
        expected = model.transformer.h[0].mlp.c_fc(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(x @ up["kernel"] + up["bias"], expected, atol=1e-6)
    assert np.abs(x @ up["kernel"].T + up["bias"] - expected).max() > 0.1, "and this can fail"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("make", [random_gpt2, random_llama])
def test_dtypes(tmp_path, make, dtype):
    """Stored in another dtype there, read here; and from float32 rounded here as torch rounds."""
    model = make(1)
    model.save_pretrained(tmp_path / "full")
    config = read_config(tmp_path / "full")
    save_folder(tmp_path / "ours", config, load_parameters(tmp_path / "full", config), dtype=dtype)
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_parameters(tmp_path / name, config) for name in ("ours", "theirs"))
    assert_same(ours, theirs)
    loaded = type(model).from_pretrained(tmp_path / "ours")
    assert loaded.dtype == getattr(torch, dtype)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))


BUFFERS = [
    "model.rotary_emb.inv_freq",
    "model.rotary_emb.original_inv_freq",
    "model.layers.0.self_attn.rotary_emb.inv_freq",
    "model.layers.1.self_attn.rotary_emb.cos_cached",
]


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_buffers_that_older_versions_saved(tmp_path, prefix):
    """transformers passes over them, whatever they hold."""
    model = random_llama(0, num_hidden_layers=2)
    model.save_pretrained(tmp_path)
    config = read_config(tmp_path)
    expected = load_parameters(tmp_path, config)
    path = tmp_path / "model.safetensors"
    extra = {name.replace("model.", prefix, 1): np.full(3, 7, np.float32) for name in BUFFERS}
    save_file(load_file(path) | extra, path, {"format": "pt"})
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(model)), "what transformers does"
    assert_same(load_parameters(tmp_path, config), expected)


@pytest.mark.parametrize("hidden", [10, 14])
def test_a_head_size_beside_a_width_that_is_no_multiple_of_the_heads(tmp_path, hidden):
    """transformers 4 reads such a config.json, version 5 refuses it, but computes with one that is built by hand."""
    model = random_llama(0, hidden_size=16, head_dim=6)
    model.save_pretrained(tmp_path)
    fields = model.config
    fields.hidden_size = hidden
    torch.manual_seed(0)
    model = shaken(transformers.LlamaForCausalLM(fields))
    edit_json(tmp_path / "config.json", hidden_size=hidden)
    save_file({name: x.contiguous().numpy() for name, x in model.state_dict().items()}, tmp_path / "model.safetensors")
    ours = load_model(tmp_path)
    ids = torch.arange(9) % model.config.vocab_size
    np.testing.assert_allclose(ours.logits(ids.numpy()), logits(model).numpy(), rtol=1e-4, atol=1e-4)
    edit_json(tmp_path / "config.json", head_dim=None)
    with pytest.raises(InputFileError, match=r"'hidden_size'.*num_attention_heads"):
        read_config(tmp_path)


@pytest.mark.parametrize("make", [random_gpt2, random_llama])
def test_sharded_there(tmp_path, make):
    model = make(2, tie_word_embeddings=True)
    assert_round_trip(model, tmp_path, max_shard_size="1KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()


@pytest.mark.parametrize("make", [random_gpt2, random_llama])
def test_sharded_here(tmp_path, make):
    model = make(2)
    model.save_pretrained(tmp_path / "theirs")
    config = read_config(tmp_path / "theirs")
    parameters = load_parameters(tmp_path / "theirs", config)
    save_folder(tmp_path / "ours", config, parameters, max_shard_size=2000)
    loaded, info = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()) and torch.equal(logits(loaded), logits(model))


def test_base_model_without_prefix(tmp_path):
    for model in (random_gpt2(3, tie_word_embeddings=True), random_llama(3, tie_word_embeddings=True)):
        model.base_model.save_pretrained(tmp_path / "base")
        model.save_pretrained(tmp_path / "full")
        config = read_config(tmp_path / "full")
        assert read_config(tmp_path / "base") == config
        assert not any(
            name.startswith(("transformer.", "model.")) for name in load_file(tmp_path / "base" / "model.safetensors")
        )
        assert_same(load_parameters(tmp_path / "base", config), load_parameters(tmp_path / "full", config))


def test_tied_in_the_config_but_a_head_of_its_own(tmp_path):
    """transformers uses the head that is stored; so must we, or the logits would differ."""
    model = random_gpt2(4, tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", tie_word_embeddings=True)
    loaded = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(model)), "what transformers does"
    config = read_config(tmp_path)
    assert not config.tied_head
    head = load_parameters(tmp_path, config)["head"]["kernel"]
    np.testing.assert_array_equal(head.T, model.lm_head.weight.detach().numpy())


@pytest.mark.parametrize("make", [random_gpt2, random_llama])
def test_config_from_a_minimal_file_is_the_same_as_theirs(tmp_path, make):
    model = make(5)
    model.save_pretrained(tmp_path)
    full = read_config(tmp_path)
    default = type(model.config)().to_dict()
    fields = json.loads((tmp_path / "config.json").read_text())
    minimal = {key: value for key, value in fields.items() if key == "model_type" or value != default.get(key)}
    (tmp_path / "config.json").write_text(json.dumps(minimal))
    assert read_config(tmp_path) == full
