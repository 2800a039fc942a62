"""Every family against transformers, on random small models: what it computes, what it writes, what is read back."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from family_models import CASES, save_family  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402
from tolerances import LOGITS_FLOAT32  # noqa: E402

import transformer_lab as lab  # noqa: E402
from transformer_lab.checkpoints import families  # noqa: E402
from transformer_lab.checkpoints.config_fields import Fields  # noqa: E402

BACKENDS = ("numpy", "torch", "jax")
IDS = np.random.default_rng(3).integers(0, 101, (2, 21))


@pytest.fixture(scope="module", params=CASES)
def saved(request, tmp_path_factory):
    """(title, folder, transformers' model in float32, its logits of IDS)."""
    folder = tmp_path_factory.mktemp("family")
    model = save_family(request.param, folder)
    return request.param, folder, model, logits(model)


def logits(model):
    with torch.no_grad():
        return model(torch.as_tensor(IDS)).logits.double().numpy()


def apart(found, expected):
    return np.abs(found - expected).max() / expected.std()


def test_every_family_is_here():
    here = {title.partition(",")[0].split()[0] for title in CASES}
    assert here == set(families.names()) - {"gpt2", families.OURS}


@pytest.mark.parametrize("kind", sorted({kind for kind, _ in CASES.values()}))
def test_the_defaults_agree_with_transformers(kind):
    defaults = getattr(transformers, f"{kind}Config")()
    family = families.find(defaults.model_type)
    absent = family.config_from(Fields("config.json", {"model_type": defaults.model_type}))
    assert family.config_from(Fields("config.json", defaults.to_dict())) == absent


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits(saved, backend):
    _, folder, _, expected = saved
    assert expected.std() > 0.1
    assert apart(lab.load_model(folder, backend).logits(IDS), expected) < LOGITS_FLOAT32


def test_greedy_text_over_a_cache(saved):
    _, folder, model, _ = saved
    prompt = IDS[0, :5].tolist()
    rest = model.config.max_position_embeddings if hasattr(model.config, "max_position_embeddings") else 48
    count = min(rest, lab.load_model(folder).config.context_length) - len(prompt)
    with torch.no_grad():
        expected = list(prompt)
        for _ in range(count):  # without a cache: the slow and obvious way
            expected.append(int(model(torch.as_tensor([expected])).logits[0, -1].argmax()))
    for backend in BACKENDS:
        found = lab.load_model(folder, backend).generate(prompt, max_new_tokens=count)
        assert found.token_ids == expected[len(prompt) :], backend


def test_exact_bits(saved):
    _, folder, _, expected = saved
    found = [lab.load_model(folder, backend, "exact").logits(IDS[:1, :9]) for backend in BACKENDS]
    assert apart(found[0], expected[:1, :9]) < LOGITS_FLOAT32
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_saved_back(saved, tmp_path):
    """Both are read by transformers: where weights lie in memory may cost the last bit of a sum."""
    _, folder, model, _ = saved
    lab.load_model(folder, "torch").save(tmp_path)
    first, again = (
        transformers.AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
        for path in (folder, tmp_path)
    )
    assert type(again) is type(model)
    held = again.state_dict()
    assert all(torch.equal(held[name], tensor) for name, tensor in model.state_dict().items())
    np.testing.assert_array_equal(logits(again), logits(first))
    theirs, ours = (load_file(path / "model.safetensors") for path in (folder, tmp_path))
    assert {name: array.tobytes() for name, array in ours.items()} == {
        name: array.tobytes() for name, array in theirs.items()
    }


def test_written_anew(saved, tmp_path):
    """Without the fields of the original, from the parts alone."""
    title, folder, model, expected = saved
    loaded = lab.load_model(folder, "torch")
    from transformer_lab.checkpoints import to_hf

    kind = title.partition(",")[0].split()[0]
    fields = to_hf(loaded.config, kind)
    assert fields["model_type"] == kind
    assert families.find(kind).config_from(Fields("config.json", fields)) == loaded.config
    theirs = transformers.AutoConfig.for_model(**fields)
    theirs._attn_implementation = "eager"
    again = transformers.AutoModelForCausalLM.from_config(theirs, attn_implementation="eager").eval()
    again.load_state_dict(model.state_dict())
    assert apart(logits(again), expected) < LOGITS_FLOAT32


def test_tap_by_tap_beside_transformers(saved):
    from transformer_lab.comparison.participants.transformers import Transformers

    _, folder, _, _ = saved
    report = lab.compare(
        folder, IDS[0].tolist(), ("numpy",), participants=[Transformers(folder)], exact=False, new_tokens=0
    )
    assert report.status == "sound", report.verdict
    shown = {row["tap"] for row in report.table if row["participant"].startswith("transformers")}
    assert {"embed", "final_norm", "logits", "blocks.0.norm_1", "blocks.1.attn.out", "blocks.1.ffn.out"} <= shown | {
        "blocks.0.norm_1"
    }


@pytest.mark.parametrize(
    ("title", "change", "words"),
    [
        ("gemma3_text", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_parameters"),
        ("gemma3_text", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling"),
        ("gpt_neox", {"head_dim": 16}, "head_dim"),
        ("mistral", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("olmo", {"clip_qkv": -8.0}, "clip_qkv"),
        ("phi", {"qk_layernorm": "yes"}, "qk_layernorm"),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types"),
        ("smollm3", {"no_rope_layers": [1, 0, 2, 1]}, "no_rope_layers"),
        ("gpt_neo", {"attention_layers": ["global"]}, "attention_types"),
        ("gptj", {"rotary_dim": 5}, "rotary_dim"),
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "apply_residual"),
        ("falcon", {"alibi": True}, "alibi"),
        ("falcon", {"parallel_attn": False}, "parallel_attn"),
        ("falcon", {"num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn"),
        ("falcon", {"multi_query": False, "num_kv_heads": 2}, "num_kv_heads"),
        ("granite", {"residual_multiplier": 0}, "residual_multiplier"),
        ("mistral", {"sliding_window": 0}, "sliding_window"),
    ],
)
def test_what_changes_the_result_is_refused_by_name(title, change, words, tmp_path):
    save_family(title, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(lab.InputFileError, match=words):
        lab.load_model(tmp_path)


@pytest.mark.parametrize(
    ("title", "change"),
    [
        ("gpt_neox", {"partial_rotary_factor": 0.5}),
        ("gpt_neo", {"attention_types": [[["local"], 2]]}),
        ("gemma", {"hidden_act": "gelu"}),
    ],
)
def test_what_transformers_passes_over_is_passed_over(title, change, tmp_path):
    save_family(title, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert apart(lab.load_model(tmp_path).logits(IDS), logits(theirs)) < LOGITS_FLOAT32
