"""The three verdicts: what was not judged is never called sound, a defect has one place, and what is sound is sound.

The cases are those in which an earlier version was wrong, each with a small model.
"""

import ml_dtypes
import numpy as np
import pytest
import transformers
from injected_bugs import GPT2_SHAPE, LLAMA_SHAPE
from reference_models import save_gpt2, save_llama
from small_models import changed

import transformer_lab as lab
from transformer_lab.backends.plain import manual
from transformer_lab.comparison.judging.training_loss import parameters_of
from transformer_lab.comparison.participants.dumped import Dumped
from transformer_lab.comparison.participants.participant import Function
from transformer_lab.comparison.participants.transformers import Transformers
from transformer_lab.config import component
from transformer_lab.language_model import assemble

IDS = np.random.default_rng(3).integers(0, 101, 16).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("gpt2")
    save_gpt2(found, **GPT2_SHAPE)
    return found


def verdict_on(folder, participant, precision="float32"):
    """One participant alone beside the truth; NumPy in float32 is there as a sound neighbour."""
    found = lab.compare(folder, IDS, ["numpy"], exact=False, gradients=False, new_tokens=0, participants=[participant])
    assert found.sound == (found.status == "sound")
    return found


def numpy_with(folder, operation=None, wrong=None, precision="float32", **fields):
    """Our model on NumPy, by the plain operations; one of them, or fields of its configuration, may be wrong."""
    sound = lab.load_model(folder)
    ops = component("backend", "numpy", precision=precision, ops="manual")
    if operation is not None:
        right = getattr(ops, operation)
        setattr(ops, operation, lambda *arguments, **named: wrong(ops, right, *arguments, **named))
    return assemble(changed(sound.config, **fields), parameters_of(sound), ops)


# --- too little is shown (B1) -----------------------------------------------------------------------------------------


def no_mask(ops, right, query, key, value, start, scale, window=None, tap=manual.identity):
    """Every key is visible to every query."""
    return right(query, key, value, start + key.shape[2], scale, window, tap)


def no_scale(ops, right, query, key, value, start, scale, window=None, tap=manual.identity):
    return right(query, key, value, start, 1.0, window, tap)


BUGS = {"no causal mask": no_mask, "no 1/sqrt(N)": no_scale}
SHOWN = {"logits": ("logits",), "logits and the embedding": ("embed", "logits")}


@pytest.mark.parametrize("shown", SHOWN)
@pytest.mark.parametrize("precision", ["bfloat16", "int8", "float32", "float64", "exact"])
@pytest.mark.parametrize("bug", BUGS)
def test_a_real_bug_behind_too_few_taps_is_never_sound(folder, bug, precision, shown):
    model = numpy_with(folder, "attention", BUGS[bug])
    found = verdict_on(folder, Function("theirs", lambda ids: keep(model, ids, SHOWN[shown]), precision))
    assert found.status in ("defect", "not judged"), found.verdict
    rows = [row for row in found.table if row["participant"] == "theirs" and row["tap"] == "logits"]
    assert not rows[0]["nearest"] or found.status == "defect"


def keep(model, ids, names):
    taps = model.record(ids)
    return {name: taps[name] for name in names}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("bug", BUGS)
def test_in_16_bits_too(folder, bug, dtype):
    """What a Function shows in 16 bits is widened; whoever computes in float16 is held to the bounds of bfloat16."""
    model = numpy_with(folder, "attention", BUGS[bug])
    theirs = Function("theirs", lambda ids: {"logits": model.logits(ids).astype(dtype)}, "bfloat16")
    assert verdict_on(folder, theirs).status in ("defect", "not judged")


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_dump_of_zeros_is_not_sound(folder, tmp_path, dtype):
    np.savez(tmp_path / "theirs.npz", token_ids=np.array(IDS), logits=np.zeros((len(IDS), 101), dtype))
    found = verdict_on(folder, Dumped(tmp_path / "theirs.npz"))
    assert found.status == "defect", found.verdict
    assert "logits on theirs.npz" in found.verdict


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_said_in_words(folder, value):
    theirs = Function("theirs", lambda ids: {"logits": np.full((len(ids), 101), value, np.float32)})
    found = verdict_on(folder, theirs)
    assert found.status == "defect"
    assert found.verdict.startswith("A defect at or before logits on theirs: it is not finite, and the truth is.")
    alone = lab.compare(folder, IDS, [], exact=False, gradients=False, new_tokens=0, participants=[theirs])
    assert alone.status == "defect"
    assert alone.verdict.startswith("A defect at or before logits on theirs: they are not finite, and the truth is.")


def test_lists_of_different_lengths_are_no_array(folder):
    theirs = Function("theirs", lambda ids: {"logits": [[1.0], [1.0, 2.0]]})
    with pytest.raises(lab.ConfigurationError, match="theirs shows logits as something that is no array"):
        verdict_on(folder, theirs)


@pytest.mark.parametrize("precision", ["bfloat16", "int8", "exact"])
def test_right_logits_alone_are_not_judged(folder, precision):
    """Nothing is wrong with them, and nothing is known of them: it says what to show."""
    model = lab.load_model(folder, "torch", precision)
    found = verdict_on(folder, Function("theirs", lambda ids: {"logits": model.logits(ids)}, precision))
    assert found.status == "not judged", found.verdict
    assert found.verdict.startswith("Not judged: logits on theirs: too little is shown before it; show blocks.2.")
    assert found.to_dict()["verdict"]["status"] == "not judged" and found.first_divergence is None
    (row,) = (row for row in found.table if row["participant"] == "theirs")
    assert row["unjudged"] and row["ratio"] is None and row["largest_likely"] is None and row["nearest"] is False


def test_nothing_shown_is_not_judged(folder):
    found = verdict_on(folder, Function("theirs", lambda ids: {}))
    assert found.status == "not judged" and "theirs shows no tap" in found.verdict
    model = lab.load_model(folder)
    found = verdict_on(folder, Function("theirs", lambda ids: keep(model, ids, ["embed", "blocks.0.norm_1"])))
    assert found.status == "not judged" and "theirs does not show logits" in found.verdict


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_in_few_bits_too_a_bug_is_found_where_queries_and_keys_are_shown(folder, bug, precision):
    backend = component("backend", "torch", precision=precision, ops="manual")
    right = backend.attention
    backend.attention = lambda *arguments, **named: BUGS[bug](backend, right, *arguments, **named)
    found = lab.compare(folder, IDS, [backend], exact=False, gradients=False, new_tokens=0)
    assert found.status == "defect"
    assert found.first_divergence.tap == "blocks.0.attn.scores"


# --- sound is sound (B2, B3, B10) -------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [save_gpt2, save_llama])
def test_transformers_in_bfloat16_with_weights_of_float32(tmp_path, save):
    save(tmp_path)
    ids = [i % 100 for i in IDS]
    found = lab.compare(
        tmp_path, ids, ["numpy"], exact=False, gradients=False, new_tokens=0,
        participants=[Transformers(tmp_path, "bfloat16")],
    )  # fmt: skip
    assert found.sound, found.verdict
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="bfloat16")
    wrong = next(module for name, module in model.named_modules() if name.endswith(("ln_1", "input_layernorm")))
    for name in ("eps", "variance_epsilon"):
        if hasattr(wrong, name):
            setattr(wrong, name, 1e-1)
    found = lab.compare(
        tmp_path, ids, ["numpy"], exact=False, gradients=False, new_tokens=0, participants=[Transformers(model=model)]
    )
    assert found.status == "defect" and found.first_divergence.tap == "blocks.0.norm_1"


def test_the_gradient_of_silu_where_weights_are_large(tmp_path):
    """exp of some 350 overflows in float32."""
    model = save_llama(tmp_path, **{**LLAMA_SHAPE, "num_hidden_layers": 1})
    with_large = model.state_dict()
    for tensor in with_large.values():
        tensor.mul_(8.0)
    model.save_pretrained(tmp_path)
    found = lab.compare(tmp_path, IDS[:6], ["numpy", "torch", "jax"], ops="manual", exact=False, new_tokens=0)
    assert found.sound, found.verdict
    steps = [row for row in found.to_dict()["gradients"] if row["ratio"] is not None]
    assert {row["participant"] for row in steps} == {"numpy float32", "torch float32", "jax float32"}


def test_what_is_zero_everywhere_is_judged(tmp_path):
    """Projections that begin at 0, as many initialise them: the bound of nothing but zeros is about flushing alone."""
    model = save_gpt2(tmp_path, **GPT2_SHAPE)
    for name, tensor in model.state_dict().items():
        if "c_proj" in name:
            tensor.zero_()
    model.save_pretrained(tmp_path)
    found = lab.compare(tmp_path, IDS, ["numpy", "torch"], exact=False, gradients=False, new_tokens=0)
    assert found.sound, found.verdict


def finite_mask(taps):
    for name in taps:
        if name.endswith("scores"):
            taps[name] = np.where(np.isneginf(taps[name]), np.float32(-1e4), taps[name])
    return taps


def test_a_finite_mask_is_a_mask(folder):
    model = lab.load_model(folder, ops="manual")
    found = verdict_on(folder, Function("theirs", lambda ids: finite_mask(model.record(ids))))
    assert found.sound, found.verdict
    weak = lab.load_model(folder, ops="manual")

    def too_weak(ids):
        taps = weak.record(ids)
        return {
            name: np.where(np.isneginf(x), np.float32(-1.0), x) if name.endswith("scores") else x
            for name, x in taps.items()
        }

    found = verdict_on(folder, Function("theirs", too_weak))
    assert found.status == "defect" and found.first_divergence.tap == "blocks.0.attn.scores"


# --- one place, and words for what it looks like (B4, B10) ------------------------------------------------------------


def test_where_hidden_states_alone_are_shown_one_place_is_named(folder):
    """Epsilon 1e-6 for 1e-5, in float64, so that there is no doubt."""
    model = numpy_with(folder, precision="float64", norm_epsilon=1e-6)
    names = ["embed", *(f"blocks.{layer}.resid_post" for layer in range(3)), "logits"]
    theirs = Function("theirs", lambda ids: keep(model, ids, names), "float64")
    found = verdict_on(folder, theirs)
    assert found.status == "defect", found.verdict
    assert found.verdict.count("A defect") == 1
    assert "what lies between embed and blocks.0.resid_post on theirs" in found.verdict
    assert "nothing before it does" in found.verdict and "at or before" not in found.verdict
    assert found.to_dict()["verdict"]["tap"] == "blocks.0.resid_post"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_in_fewer_bits_one_place_or_none(folder, precision):
    model = numpy_with(folder, norm_epsilon=1e-6)
    names = ["embed", *(f"blocks.{layer}.resid_post" for layer in range(3)), "logits"]
    found = verdict_on(folder, Function("theirs", lambda ids: keep(model, ids, names), precision))
    assert found.verdict.count("A defect") <= 1
    assert found.status != "sound"


def test_logits_that_are_off_by_one_number_for_each_row(folder):
    model = lab.load_model(folder, ops="manual")

    def shifted(ids):
        taps = model.record(ids)
        taps["logits"] = taps["logits"] - taps["logits"].max(axis=-1, keepdims=True)
        return taps

    found = verdict_on(folder, Function("theirs", shifted))
    assert found.status == "defect"
    assert "A defect: logits on theirs" in found.verdict
    assert "off by one number for each row, which changes no probability" in found.verdict


def test_not_a_number_is_said(folder):
    model = lab.load_model(folder, ops="manual")

    def broken(ids):
        taps = model.record(ids)
        taps["blocks.1.ffn.act"][0, 2, 3] = np.nan
        return taps

    found = verdict_on(folder, Function("theirs", broken))
    assert found.status == "defect"
    assert found.first_divergence.tap == "blocks.1.ffn.act" and found.first_divergence.position == (0, 2, 3)
    assert "It holds NaN." in found.verdict


def test_not_a_number_from_there_on_has_one_place(folder):
    def nan(ops, right, x):
        return right(x) * np.float32(np.nan)

    model = numpy_with(folder, "gelu_tanh", nan)
    with np.errstate(invalid="ignore"):
        found = verdict_on(folder, Function("theirs", model.record))
    assert found.status == "defect" and found.first_divergence.tap == "blocks.0.ffn.act"
    assert "It holds NaN." in found.verdict and found.verdict.count("A defect") == 1
