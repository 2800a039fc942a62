"""transformers as a participant: its internals are our taps, number by number, and a change is seen where it was made.

The taps of transformers are judged by our plain operations in float64, which were written from the same papers and
share no line with it.
"""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
import transformers
from reference_models import random_ids, save_gpt2, save_llama
from tolerances import TAPS_FLOAT64

import transformer_lab as lab
from transformer_lab.comparison.judging.semantics import differences
from transformer_lab.comparison.participants.participant import fitting
from transformer_lab.comparison.participants.transformers import Transformers
from transformer_lab.errors import ConfigurationError, InputFileError
from transformer_lab.model.decoder import tap_names

IDS = random_ids((11,), 101)
CASES = {
    "gpt2": (save_gpt2, {}),
    "gpt2, untied, scaled by layer": (
        save_gpt2,
        {"tie_word_embeddings": False, "scale_attn_by_inverse_layer_idx": True, "activation_function": "gelu"},
    ),
    "gpt2, unscaled, in another order": (
        save_gpt2,
        {"scale_attn_weights": False, "reorder_and_upcast_attn": True, "activation_function": "relu", "n_inner": 20},
    ),
    "llama, grouped queries": (save_llama, {}),
    "llama, tied, biases, one key head": (
        save_llama,
        {
            "tie_word_embeddings": True,
            "attention_bias": True,
            "mlp_bias": True,
            "num_key_value_heads": 1,
            "head_dim": 6,
            "hidden_act": "gelu",
        },
    ),
    "llama, another base": (
        save_llama,
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
            "rms_norm_eps": 1e-3,
            "num_key_value_heads": 4,
        },
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """(folder, transformers' model in float64, our taps in float64)"""
    save, fields = CASES[request.param]
    folder = tmp_path_factory.mktemp("model")
    model = save(folder, **fields)
    return folder, model, truth_of(folder)


def truth_of(folder):
    return lab.load_model(folder, backend="numpy", precision="float64", ops="manual").record(IDS)


def error(found, truth):
    """The largest difference, relative to the largest number of the tap; infinities must be the same."""
    finite = np.isfinite(truth)
    np.testing.assert_array_equal(found[~finite], truth[~finite])
    return np.abs(found[finite] - truth[finite]).max() / np.abs(truth[finite]).max()


def first_departure(participant, truth, tolerance=TAPS_FLOAT64):
    found = dict(participant.taps(IDS))
    return next((name for name in truth if not error(found[name], truth[name]) < tolerance), None)


def block_by_block(names):
    """Within a block they may come in any order: the judge asks for them by name."""
    places = [
        int(name.split(".")[1]) if name.startswith("blocks.") else -1 if name == "embed" else 99 for name in names
    ]
    return places == sorted(places)


def test_every_tap_in_float64(case):
    folder, model, truth = case
    config = lab.load_model(folder).config
    for participant in (Transformers(folder, "float64"), Transformers(model=model)):
        found = dict(participant.taps(IDS))
        assert sorted(found) == sorted(truth) and list(truth) == tap_names(config)
        assert block_by_block(found) and not block_by_block(reversed(list(found)))
        for name, array in found.items():
            assert array.dtype == np.float64 and array.shape == truth[name].shape
            assert np.shares_memory(fitting(array, name, truth[name].shape, participant), array)
            assert error(array, truth[name]) < TAPS_FLOAT64, name
        assert differences({"ours": config, "theirs": participant.config}) == []
        said = {
            "vocab_size",
            "tied_head",
            "num_layers",
            "norm.epsilon",
            "attention.scale",
            "position",
            "ffn.activation",
        }
        assert said <= {*participant.config}  # and much was compared
        assert (participant.name, participant.kind, participant.precision) == (
            "transformers float64",
            "transformers",
            "float64",
        )
        assert (participant.version, participant.device) == (transformers.__version__, "cpu")


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.1)])
def test_other_precisions(case, precision, tolerance):
    folder, _, truth = case
    participant = Transformers(folder, precision)
    found = dict(participant.taps(IDS))
    assert sorted(found) == sorted(truth)
    errors = {name: error(array, truth[name]) for name, array in found.items()}
    assert max(errors.values()) < tolerance
    assert errors["logits"] > {"float32": 1e-9, "bfloat16": 1e-4}[precision]  # it is not a better precision in disguise
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
    assert participant.precision == precision and participant.name == f"transformers {precision}"


def test_logits_are_those_of_transformers_alone(case):
    """Looking on changes nothing: the same bits as without hooks, as its attention was chosen by itself."""
    folder, _, _ = case
    with_eager = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        alone = with_eager(torch.tensor(IDS[None])).logits.numpy()
    np.testing.assert_array_equal(dict(Transformers(folder).taps(IDS))["logits"], alone)
    np.testing.assert_array_equal(dict(Transformers(model=with_eager).taps(IDS))["logits"], alone)


def test_the_model_stays_as_it_was(case):
    folder, _, _ = case
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").double().train()
    model.lm_head.eval()
    before = {name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    first = dict(Transformers(model=model).taps(IDS))
    assert model.config._attn_implementation == "sdpa"
    assert model.training and not model.lm_head.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert tensor.dtype == before[name].dtype and torch.equal(tensor, before[name])
    for name, array in Transformers(model=model).taps(IDS):
        np.testing.assert_array_equal(array, first[name])
    assert type(model).__name__ in ("GPT2LMHeadModel", "LlamaForCausalLM")


# --- a change is seen where it was made ------------------------------------------------------------------------------


def shift(parameter):
    with torch.no_grad():
        parameter[..., 3] += 1e-6


def biased(module):
    return lambda model: shift(model.get_submodule(module).bias)


def weighted(module):
    return lambda model: shift(model.get_submodule(module).weight)


def with_epsilon(module, name):
    return lambda model: setattr(model.get_submodule(module), name, 1.1e-5)


def with_base(model):
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq * (1 + 1e-6)


def with_scale(model):
    model.transformer.h[1].attn.scaling *= 1 + 1e-6


GPT2_CHANGES = {
    "transformer.wpe": (weighted("transformer.wpe"), "embed"),
    "ln_1": (biased("transformer.h.0.ln_1"), "blocks.0.norm_1"),
    "c_attn": (biased("transformer.h.1.attn.c_attn"), "blocks.1.attn.q"),
    "scale": (with_scale, "blocks.1.attn.scores"),
    "attn.c_proj": (biased("transformer.h.0.attn.c_proj"), "blocks.0.attn.out"),
    "ln_2": (biased("transformer.h.1.ln_2"), "blocks.1.norm_2"),
    "epsilon": (with_epsilon("transformer.h.1.ln_2", "eps"), "blocks.1.norm_2"),
    "c_fc": (biased("transformer.h.0.mlp.c_fc"), "blocks.0.ffn.pre"),
    "mlp.c_proj": (biased("transformer.h.1.mlp.c_proj"), "blocks.1.ffn.out"),
    "ln_f": (biased("transformer.ln_f"), "final_norm"),
}
LLAMA_CHANGES = {
    "embed_tokens": (weighted("model.embed_tokens"), "embed"),
    "input_layernorm": (weighted("model.layers.1.input_layernorm"), "blocks.1.norm_1"),
    "base": (with_base, "blocks.0.attn.q"),
    "q_proj": (weighted("model.layers.0.self_attn.q_proj"), "blocks.0.attn.q"),
    "k_proj": (weighted("model.layers.0.self_attn.k_proj"), "blocks.0.attn.k"),
    "v_proj": (weighted("model.layers.0.self_attn.v_proj"), "blocks.0.attn.v"),
    "o_proj": (weighted("model.layers.1.self_attn.o_proj"), "blocks.1.attn.out"),
    "epsilon": (with_epsilon("model.layers.0.post_attention_layernorm", "variance_epsilon"), "blocks.0.norm_2"),
    "gate_proj": (weighted("model.layers.1.mlp.gate_proj"), "blocks.1.ffn.pre"),
    "up_proj": (weighted("model.layers.1.mlp.up_proj"), "blocks.1.ffn.act"),
    "down_proj": (weighted("model.layers.0.mlp.down_proj"), "blocks.0.ffn.out"),
    "norm": (weighted("model.norm"), "final_norm"),
    "lm_head": (weighted("lm_head"), "logits"),
}
CHANGES = [(save_gpt2, *change) for change in GPT2_CHANGES.values()]
CHANGES += [(save_llama, *change) for change in LLAMA_CHANGES.values()]


@pytest.mark.parametrize(("save", "change", "tap"), CHANGES, ids=[*GPT2_CHANGES, *LLAMA_CHANGES])
def test_a_planted_change_appears_first_where_it_was_made(tmp_path, save, change, tap):
    model = save(tmp_path)
    truth = truth_of(tmp_path)
    assert first_departure(Transformers(model=model), truth) is None
    change(model)
    assert first_departure(Transformers(model=model), truth) == tap


def test_a_wrong_residual_and_a_wrong_mask_appear_too(tmp_path, monkeypatch):
    model = save_gpt2(tmp_path)
    truth = truth_of(tmp_path)
    kind = type(model.transformer.h[0])
    monkeypatch.setattr(
        kind,
        "forward",
        lambda self, x, *args, **kwargs: (
            x + self.mlp(self.ln_2(self.attn(self.ln_1(x), attention_mask=args[1], **kwargs)[0]))
        ),
    )
    assert first_departure(Transformers(model=model), truth) == "blocks.0.resid_mid"
    monkeypatch.undo()
    from transformers.models.gpt2 import modeling_gpt2

    eager = modeling_gpt2.eager_attention_forward

    def seeing_one_more(module, query, key, value, attention_mask, **options):
        return eager(module, query, key, value, torch.roll(attention_mask, 1, dims=-1), **options)

    monkeypatch.setattr(modeling_gpt2, "eager_attention_forward", seeing_one_more)
    scores = dict(Transformers(model=model).taps(IDS))["blocks.0.attn.scores"]
    assert (np.isfinite(scores) != np.isfinite(truth["blocks.0.attn.scores"])).any()


# --- what its configuration says, and what is refused ----------------------------------------------------------------


def test_the_configuration_of_a_built_model_is_read(tmp_path):
    ours = lab.load_model
    model = save_gpt2(tmp_path, layer_norm_epsilon=1e-6, activation_function="gelu")
    config = Transformers(model=model).config
    assert differences({"ours": ours(tmp_path).config, "theirs": config}) == []
    assert config["norm.epsilon"] == 1e-6 and config["ffn.activation"] == "gelu_erf"
    model.config.layer_norm_epsilon = 1e-3
    assert Transformers(model=model).config["norm.epsilon"] == 1e-3
    model.config.activation_function = "quick_gelu"  # which we have no word for: it keeps its own
    found = differences({"ours": ours(tmp_path).config, "theirs": Transformers(model=model).config})
    assert {row["field"]: row["values"]["theirs"] for row in found} == {
        "norm.epsilon": "0.001",
        "ffn.activation": "quick_gelu",
    }
    model.config.add_cross_attention = True  # and no field for this
    assert Transformers(model=model).config is None


def test_names_and_wrong_arguments(tmp_path):
    model = save_gpt2(tmp_path)
    assert Transformers(tmp_path, name="theirs").name == "theirs"
    for arguments in ({}, {"source": tmp_path, "model": model}):
        with pytest.raises(ConfigurationError, match="takes one of them"):
            Transformers(**arguments)
    with pytest.raises(ConfigurationError, match="cannot take part in exact here"):
        Transformers(tmp_path, "exact")
    with pytest.raises(ConfigurationError, match="cannot take part in float32 here"):
        Transformers(model=model, precision="float32")
    with pytest.raises(ConfigurationError, match="cannot take part in float16 here"):
        Transformers(model=model.half())
    with pytest.raises(
        ConfigurationError, match=r"The taps of a GPT2Model are not known here; those of transformers' .*gpt2, "
    ):
        Transformers(model=model.transformer)
    with pytest.raises(ConfigurationError, match="The taps of a Linear are not known here"):
        Transformers(model=torch.nn.Linear(2, 2))
    with pytest.raises(InputFileError, match="does not exist"):
        Transformers(tmp_path / "nowhere")
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputFileError, match="not a usable safetensors file"):
        Transformers(tmp_path)


def test_without_transformers_it_is_said_in_words():
    """In a process where the import fails, as it does where nothing is installed."""
    code = """
        import sys
        sys.modules["transformers"] = None
        import transformer_lab, transformer_lab.comparison.participants.participant
        try:
            import transformer_lab.comparison.participants.transformers
        except transformer_lab.UnavailableError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "A comparison with transformers needs transformers and PyTorch, which are not installed. "
        "Run: pip install 'transformer_lab[transformers]'\n"
    )
