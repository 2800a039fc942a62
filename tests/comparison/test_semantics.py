"""What differs between configurations: by hand, and those of transformers against ours of the same model."""

from dataclasses import dataclass

import numpy as np
import pytest
import transformers
from small_models import changed, small_model

from transformer_lab.checkpoints import to_hf
from transformer_lab.comparison.judging.semantics import differences, transformers_fields
from transformer_lab.errors import InputFileError
from transformer_lab.ffn.dense import Dense

GPT2 = small_model(vocab_size=50, context_length=16, hidden_size=8, num_layers=2, num_heads=2, ffn=Dense(32))
LLAMA = small_model(
    vocab_size=50,
    context_length=16,
    hidden_size=8,
    num_layers=2,
    num_heads=2,
    ffn=Dense(20, activation="silu", gated=True, bias=False),
    num_kv_heads=1,
    position="rotary",
    norm="rms_norm",
    attention_bias=False,
    tied_head=False,
)
KINDS = {"gpt2": (GPT2, transformers.GPT2Config), "llama": (LLAMA, transformers.LlamaConfig)}


def theirs(kind, **changes):
    config, build = KINDS[kind]
    return build(**to_hf(config) | changes)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_differs_from_transformers_reading_of_the_same_model(kind):
    config = KINDS[kind][0]
    for given in (theirs(kind), theirs(kind).to_dict(), to_hf(config)):
        assert differences({"ours": config, "transformers": transformers_fields(given)}) == []
        assert transformers_fields(given)["ffn"] == "Dense", "and much was compared"


CHANGES = [
    ("gpt2", {"layer_norm_epsilon": 1e-6}, "norm.epsilon", "1e-05", "1e-06"),
    ("gpt2", {"activation_function": "gelu"}, "ffn.activation", "gelu_tanh", "gelu_erf"),
    ("gpt2", {"activation_function": "quick_gelu"}, "ffn.activation", "gelu_tanh", "quick_gelu"),
    ("gpt2", {"scale_attn_weights": False}, "attention.scale", "0.5", "1.0"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "attention.scale", "0.5", "0.5, 0.25"),
    ("gpt2", {"tie_word_embeddings": False}, "tied_head", "yes", "no"),
    ("gpt2", {"n_inner": 24}, "ffn.size", "32", "24"),
    ("gpt2", {"n_positions": 12}, "context_length", "16", "12"),
    ("gpt2", {"eos_token_id": 3}, "end_of_text_id", "none", "3"),
    ("llama", {"rms_norm_eps": 1e-6}, "norm.epsilon", "1e-05", "1e-06"),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "position.base", "10000.0", "500000.0"),
    ("llama", {"hidden_act": "relu"}, "ffn.activation", "silu", "relu"),
    ("llama", {"hidden_act": "mish"}, "ffn.activation", "silu", "mish"),
    ("llama", {"num_key_value_heads": 2}, "attention.num_kv_heads", "1", "2"),
    ("llama", {"mlp_bias": True}, "ffn.bias", "no", "yes"),
]


@pytest.mark.parametrize(("kind", "change", "field", "ours", "other"), CHANGES, ids=lambda part: str(part)[:60])
def test_a_change_in_transformers_configuration_shows_up(kind, change, field, ours, other):
    found = differences({"torch float32": KINDS[kind][0], "transformers": transformers_fields(theirs(kind, **change))})
    assert found == [{"field": field, "values": {"torch float32": ours, "transformers": other}}]


def test_names_that_mean_the_same_function_are_no_difference():
    for name in ("gelu_new", "gelu_pytorch_tanh", "gelu_accurate"):
        assert differences({"a": GPT2, "b": transformers_fields(theirs("gpt2", activation_function=name))}) == []


def test_what_is_not_said_is_no_difference():
    said = {"norm.epsilon": 1e-6, "tie_rule": "the higher id", "ffn.activation": "gelu_erf", "position": "Learned"}
    found = differences({"a": GPT2, "dump": said, "function": None, "empty": {}, "b": {"tie_rule": "the lower id"}})
    assert found == [
        {"field": "norm.epsilon", "values": {"a": "1e-05", "dump": "1e-06"}},
        {"field": "ffn.activation", "values": {"a": "gelu_tanh", "dump": "gelu_erf"}},
        {"field": "tie_rule", "values": {"dump": "the higher id", "b": "the lower id"}},
    ]
    assert differences({}) == differences({"a": None}) == differences({"a": GPT2}) == []
    unknown = transformers.MptConfig()
    assert transformers_fields(unknown) == transformers_fields({}) == transformers_fields({"model_type": 5}) == {}


def test_every_participant_that_says_it_is_listed():
    other = changed(GPT2, norm_epsilon=1e-6)
    (found,) = differences({"a": GPT2, "b": other, "c": {"norm.epsilon": np.float64(1e-5)}})
    assert found["values"] == {"a": "1e-05", "b": "1e-06", "c": "1e-05"}


def test_numbers_are_compared_by_value():
    assert differences({"a": GPT2, "b": {"position.skipped": 0, "norm.epsilon": np.float64(1e-5)}}) == []
    (found,) = differences({"a": GPT2, "b": {"norm.epsilon": np.float32(1e-5)}})
    assert found["field"] == "norm.epsilon", "an epsilon that went through float32 is another one"


def test_components_and_nested_mappings():
    @dataclass(frozen=True)
    class Other:
        size: int = 32
        experts: tuple[int, ...] = (1, 2)

    found = differences({"a": GPT2, "b": changed(GPT2, ffn=Other()), "c": {"ffn": {"size": 32, "experts": [1, 3]}}})
    assert found == [
        {"field": "ffn", "values": {"a": "Dense", "b": "Other"}},
        {"field": "ffn.experts", "values": {"b": "1, 2", "c": "1, 3"}},
    ]


def test_a_configuration_that_this_decoder_cannot_have_is_refused_by_name():
    with pytest.raises(InputFileError, match="add_cross_attention"):
        transformers_fields(theirs("gpt2", add_cross_attention=True))
