"""config.json to ModelConfig and back: each field honoured or refused by name."""

import json

import pytest
from checkpoint_cases import GPT2, LLAMA
from small_models import small_model

from transformer_lab.checkpoints import families, read_config, read_original, to_hf
from transformer_lab.checkpoints.config_fields import Fields
from transformer_lab.errors import InputFileError
from transformer_lab.ffn.dense import Dense
from transformer_lab.position.rotary_scaling import Linear, Llama3, Yarn

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 1024}


def config_from(folder, fields):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(fields if isinstance(fields, str) else json.dumps(fields))
    return read_config(folder)


def gpt2(folder, **changes):
    return config_from(folder, {"model_type": "gpt2"} | changes)


def llama(folder, **changes):
    return config_from(folder, {"model_type": "llama"} | changes)


# What the tests look at, by short names.
SEEN = {
    "ffn": lambda config: config.blocks[0].ffn,
    "epsilon": lambda config: {config.norm.epsilon, config.blocks[-1].norm.epsilon},
    "scales": lambda config: [config.blocks[layer].attention.scale for layer in (0, 1)],
    "base": lambda config: config.rotaries[0].base,
    "scaling": lambda config: config.rotaries[0].scaling,
    "turned": lambda config: config.rotaries[0].size,
    "kv_heads": lambda config: config.blocks[0].attention.num_kv_heads,
    "head_size": lambda config: config.blocks[0].attention.head_size,
    "biases": lambda config: (config.blocks[0].attention.qkv_bias, config.blocks[0].attention.out_bias),
}


def seen(config, name):
    return SEEN[name](config) if name in SEEN else getattr(config, name)


def test_absent_fields_have_the_defaults_of_transformers(tmp_path):
    assert gpt2(tmp_path) == small_model(
        50257, 1024, 768, 12, 12, Dense(3072), end_of_text_id=50256, begin_of_text_id=50256
    )
    assert llama(tmp_path) == small_model(
        vocab_size=32000,
        context_length=2048,
        hidden_size=4096,
        num_layers=32,
        num_heads=32,
        ffn=Dense(11008, "silu", gated=True, bias=False),
        position="rotary",
        norm="rms_norm",
        norm_epsilon=1e-6,
        attention_bias=False,
        tied_head=False,
        end_of_text_id=2,
        begin_of_text_id=1,
    )


def test_the_defaults_agree_with_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    for defaults in (transformers.GPT2Config(), transformers.LlamaConfig()):
        full = config_from(tmp_path, defaults.to_dict() | {"model_type": defaults.model_type})
        assert full == config_from(tmp_path, {"model_type": defaults.model_type})


HONOURED = [
    ("n_inner", None, "ffn", Dense(3072)),
    ("n_inner", 100, "ffn", Dense(100)),
    ("activation_function", "gelu_new", "ffn", Dense(3072, "gelu_tanh")),
    ("activation_function", "gelu_pytorch_tanh", "ffn", Dense(3072, "gelu_tanh")),
    ("activation_function", "gelu", "ffn", Dense(3072, "gelu_erf")),
    ("activation_function", "relu", "ffn", Dense(3072, "relu")),
    ("activation_function", "silu", "ffn", Dense(3072, "silu")),
    ("activation_function", "swish", "ffn", Dense(3072, "silu")),
    ("layer_norm_epsilon", 1e-3, "epsilon", {1e-3}),
    ("layer_norm_epsilon", 1, "epsilon", {1.0}),
    ("scale_attn_weights", False, "scales", [1.0, 1.0]),
    ("scale_attn_by_inverse_layer_idx", True, "scales", [0.125, 0.0625]),
    ("reorder_and_upcast_attn", True, "scales", [0.125, 0.125]),
    ("tie_word_embeddings", False, "tied_head", False),
    ("n_positions", 77, "context_length", 77),
    ("max_position_embeddings", 77, "context_length", 77),
    ("num_hidden_layers", 3, "num_layers", 3),
    ("n_ctx", 77, "context_length", 1024),
    ("bos_token_id", None, "begin_of_text_id", None),
    ("eos_token_id", None, "end_of_text_id", None),
    ("eos_token_id", 5, "end_of_text_id", 5),
    ("eos_token_id", [7, 8], "end_of_text_id", 7),
    ("eos_token_id", [], "end_of_text_id", None),
    ("eos_token_id", -1, "end_of_text_id", None),
    ("eos_token_id", 60000, "end_of_text_id", None),
    ("attn_pdrop", 0.9, "num_layers", 12),
    ("quantization_config", None, "num_layers", 12),
    ("sliding_window", None, "num_layers", 12),
    ("sliding_window", 1024, "num_layers", 12),
    ("layer_types", ["full_attention"] * 12, "num_layers", 12),
    ("some_unknown_field", {"x": [1]}, "num_layers", 12),
]


@pytest.mark.parametrize("field, value, ours, expected", HONOURED)
def test_gpt2_field_is_honoured(tmp_path, field, value, ours, expected):
    assert seen(gpt2(tmp_path, **{field: value}), ours) == expected


REFUSED = [
    *((field, value) for field in ("n_layer", "n_embd", "n_head", "n_positions", "vocab_size")
      for value in ("12", True, 12.5, 12.0, 10**9, -1, 0, None, [12], {}, float("nan"), 10**4000)),
    *(("n_inner", value) for value in ("12", True, 12.5, -1, 0, 10**30, [])),
    *(("layer_norm_epsilon", value) for value in ("1e-5", True, 0, -1.0, None, float("nan"), float("inf"), 10**400)),
    *(("activation_function", value) for value in ("tanh", "gelu_fast", None, 3, ["relu"], "../relu", "quick_gelu")),
    *((field, value) for value in (1, 0, "true", None, [])
      for field in ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings",
                    "reorder_and_upcast_attn", "add_cross_attention")),
    ("add_cross_attention", True),
    ("n_head", 7),
    ("hidden_size", "768"),
    ("quantization_config", {"bits": 4}),
    ("per_layer_config", {"0": {"n_head": 4}}),
    ("is_causal", False),
    ("sliding_window", 100),
    ("sliding_window", "100"),
    ("layer_types", ["sliding_attention"]),
    ("eos_token_id", "50256"),
    ("eos_token_id", 1.5),
    ("eos_token_id", True),
    ("eos_token_id", [1, "2"]),
    ("bos_token_id", {}),
]  # fmt: skip


@pytest.mark.parametrize("field, value", REFUSED)
def test_gpt2_field_is_refused_by_name(tmp_path, field, value):
    with pytest.raises(InputFileError) as caught:
        gpt2(tmp_path, **{field: value})
    names = {field, {"hidden_size": "n_embd", "n_head": "n_embd"}.get(field, field)}
    assert str(tmp_path / "config.json") in str(caught.value)
    assert any(repr(name) in str(caught.value) for name in names), caught.value
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_choices_are_named(tmp_path):
    with pytest.raises(InputFileError, match=r"gelu_new.*gelu_pytorch_tanh.*relu.*silu.*swish"):
        gpt2(tmp_path, activation_function="tanh")


def test_two_names_of_one_field_must_agree(tmp_path):
    assert gpt2(tmp_path, n_embd=24, hidden_size=24).hidden_size == 24
    with pytest.raises(InputFileError, match=r"'hidden_size' is 48, but 'n_embd'.*differs"):
        gpt2(tmp_path, n_embd=24, hidden_size=48)


@pytest.mark.parametrize(
    "changes, ours, expected",
    [
        ({"rope_theta": 500000.0}, "base", 500000.0),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 7.5}}, "base", 7.5),
        ({"rope_parameters": {"rope_theta": 7.5}, "rope_theta": 9.0}, "base", 7.5),
        ({"rope_parameters": {"rope_type": "default"}, "rope_theta": 9.0}, "base", 9.0),
        ({"rope_scaling": None, "rope_theta": 9}, "base", 9.0),
        ({"rope_scaling": {"type": "default", "rope_theta": 5.0}}, "base", 5.0),
        ({"num_key_value_heads": 8}, "kv_heads", 8),
        ({"num_key_value_heads": None}, "kv_heads", 32),
        ({"head_dim": 64}, "head_size", 64),
        ({"head_dim": None}, "head_size", 128),
        ({"attention_bias": True}, "biases", (True, True)),
        ({"mlp_bias": True}, "ffn", Dense(11008, "silu", gated=True, bias=True)),
        ({"hidden_act": "gelu"}, "ffn", Dense(11008, "gelu_erf", gated=True, bias=False)),
        ({"rms_norm_eps": 1e-5}, "epsilon", {1e-5}),
        ({"tie_word_embeddings": True}, "tied_head", True),
        ({"pretraining_tp": 2}, "num_layers", 32),
        ({"partial_rotary_factor": 1.0}, "turned", 128),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "scaling", Linear(2.0)),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "scaling", None),
        ({"rope_scaling": LLAMA3}, "scaling", Llama3(8.0, 1.0, 4.0, 1024)),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
            "scaling",
            Yarn(4.0, 2048, length=1.1386294361119891),
        ),
    ],
)
def test_llama_field_is_honoured(tmp_path, changes, ours, expected):
    assert seen(llama(tmp_path, **changes), ours) == expected


@pytest.mark.parametrize(
    "changes, name",
    [
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling.low_freq_factor"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, "low is 4.0, which is not below high"),
        ({"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 0}}, "original_max_position_embeddings"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling.factor"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor"),
        ({"rope_scaling": {"type": "ntk"}}, "rope_scaling.rope_type"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope_scaling.short_factor"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0]}}, "divisors are 1"),
        ({"rope_parameters": {"rope_type": "default", "mrope_section": [1]}}, "rope_parameters.mrope_section"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "position.base is 1.0"),
        ({"rope_parameters": {"rope_type": ["x"]}}, "rope_parameters.rope_type"),
        ({"rope_parameters": {"rope_theta": "1"}}, "rope_parameters.rope_theta"),
        ({"rope_parameters": {"rope_theta": 1.0, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"partial_rotary_factor": 0.5}, "turn whole heads"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 1e-320}}, "scaling.fast is"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 1}}, "at least 2"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0, "short_factor": [10**400] * 64}}, "short_factor"),
        ({"partial_rotary_factor": 2.0}, "partial_rotary_factor"),
        ({"rope_parameters": [1]}, "rope_parameters"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 5.0}}}, "rope_parameters"),
        ({"rope_theta": None}, "rope_theta"),
        ({"rope_theta": -1}, "rope_theta"),
        ({"num_key_value_heads": 5}, "num_key_value_heads"),
        ({"num_key_value_heads": 0}, "num_key_value_heads"),
        ({"head_dim": 33}, "head_dim"),
        ({"hidden_size": 100}, "hidden_size"),
        ({"hidden_act": "tanh"}, "hidden_act"),
        ({"attention_bias": 1}, "attention_bias"),
        ({"quantization_config": {}}, "quantization_config"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ],
)
def test_llama_field_is_refused_by_name(tmp_path, changes, name):
    with pytest.raises(InputFileError, match=name) as caught:
        llama(tmp_path, **changes)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON.*line 1"),
        ("[1, 2]", "JSON object"),
        ("null", "null; a JSON object"),
        ('"' + "x" * 500 + '"', "JSON object"),
        ("[" * 100_000, "nested"),
        ('{"n_layer": ' + "1" * 5000 + "}", "digits"),
        ('{"model_type": "gpt2", "x": [' + "[]," * 600_000 + "[]]}", "values"),
        ("{}", "'model_type' is missing.*gpt2.*llama"),
        ('{"model_type": "mamba"}', "'model_type' is 'mamba'.*gpt2.*llama"),
        ('{"model_type": null}', "'model_type' is null.*gpt2.*llama"),
        ('{"model_type": ["gpt2"]}', "'model_type'"),
        ('{"model_type": {"a": 1}}', "'model_type'"),
    ],
)
def test_unusable_config(tmp_path, text, words):
    with pytest.raises(InputFileError, match=words) as caught:
        config_from(tmp_path, text)
    assert str(tmp_path / "config.json") in str(caught.value) and len(str(caught.value)) < 500


def test_config_that_is_not_text_or_too_large(tmp_path):
    (tmp_path / "config.json").write_bytes(b'{"model_type": "\xff"}')
    with pytest.raises(InputFileError, match="UTF-8"):
        read_config(tmp_path)
    with open(tmp_path / "config.json", "wb") as handle:
        handle.truncate(10**10)  # sparse
    with pytest.raises(InputFileError, match="larger than"):
        read_config(tmp_path)


def test_byte_order_mark_is_skipped(tmp_path):
    (tmp_path / "config.json").write_bytes(b'\xef\xbb\xbf{"model_type": "gpt2"}')
    assert read_config(tmp_path).num_layers == 12


@pytest.mark.parametrize("name", ["hub", "config_file", "os", "gpt2.py", ".gpt2", "../gpt2", "__init__", "", "gpt2.re"])
def test_model_type_imports_nothing_else(tmp_path, name, monkeypatch):
    monkeypatch.setattr(families.importlib, "import_module", lambda name: pytest.fail(f"imported {name}"))
    with pytest.raises(InputFileError, match="model_type"):
        config_from(tmp_path, {"model_type": name})


def test_missing_folder_and_file(tmp_path):
    with pytest.raises(InputFileError, match=r"no_such does not exist.*config\.json.*model\.safetensors"):
        read_config(tmp_path / "no_such")
    with pytest.raises(InputFileError, match=r"has no config\.json"):
        read_config(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputFileError, match=r"file is a file; give the folder"):
        read_config(tmp_path / "file")
    (tmp_path / "model.pt").touch()
    with pytest.raises(InputFileError, match=r"model\.pt.*pickle.*save_pretrained"):
        read_config(tmp_path / "model.pt")
    (tmp_path / "config.json").mkdir()
    with pytest.raises(InputFileError, match=r"config\.json is a folder"):
        read_config(tmp_path)
    with pytest.raises(InputFileError):
        read_config("nul\0")
    with pytest.raises(InputFileError):
        read_config("x" * 5000)


def test_end_of_text_ids(tmp_path):
    gpt2(tmp_path, vocab_size=10, eos_token_id=[3, 50, 4, -1])
    assert read_original(tmp_path).end_of_text_ids == (3, 4)
    llama(tmp_path)
    assert read_original(tmp_path).end_of_text_ids == (2,)


@pytest.mark.parametrize("config", [GPT2, LLAMA])
def test_round_trip(tmp_path, config):
    assert config_from(tmp_path, to_hf(config)) == config


def test_what_no_other_family_holds_is_ours():
    for changes in ({"norm": "rms_norm"}, {"num_kv_heads": 2}):
        config = small_model(20, 8, 8, 1, 4, Dense(8), **changes)
        fields = to_hf(config)
        assert fields["model_type"] == "transformer_lab"
        assert read(fields) == config


def read(fields):
    return families.find(fields["model_type"]).config_from(Fields("config.json", json.loads(json.dumps(fields))))
