"""Recording: names, shapes and values of the taps, against transformers; and patching with a tap."""

import re

import numpy as np
import pytest
import torch
from reference_models import BACKENDS, OPS, deviations, random_ids, reference_logits, save_llama
from tolerances import LOGITS_FLOAT32

import transformer_lab as lab
from transformer_lab.model.decoder import forward, tap_names

IDS = random_ids((2, 9), 270)
B, T, D, H, N, F, V = 2, 9, 32, 4, 8, 128, 270
SHAPES = {
    "embed": (B, T, D),
    "norm_1": (B, T, D),
    "attn.q": (B, H, T, N),
    "attn.k": (B, H, T, N),
    "attn.v": (B, H, T, N),
    "attn.scores": (B, H, T, T),
    "attn.pattern": (B, H, T, T),
    "attn.out": (B, T, D),
    "resid_mid": (B, T, D),
    "norm_2": (B, T, D),
    "ffn.pre": (B, T, F),
    "ffn.act": (B, T, F),
    "ffn.out": (B, T, D),
    "resid_post": (B, T, D),
    "final_norm": (B, T, D),
    "logits": (B, T, V),
}
HIDDEN_BY_FUSED = {"numpy": ["scores", "pattern"], "torch": ["scores", "pattern"], "jax": []}


@pytest.mark.parametrize("ops", OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_tap_against_transformers(plain, backend, ops):
    folder, reference = plain
    model = lab.load_model(folder, backend, ops=ops)
    taps = model.record(IDS)
    hidden = [name for name in tap_names(model.config) if name.endswith(tuple(HIDDEN_BY_FUSED[backend]))]
    expected_names = [name for name in tap_names(model.config) if ops == "manual" or name not in hidden]
    assert list(taps) == expected_names, "in the order of the computation"
    assert {re.sub(r"blocks\.\d+\.", "", name): taps[name].shape for name in taps}.items() <= SHAPES.items()
    with torch.no_grad():
        output = reference(torch.as_tensor(IDS), output_hidden_states=True, output_attentions=True)
    states = [state.numpy() for state in output.hidden_states]  # the last one is normalised
    pairs = {"embed": states[0], "blocks.0.resid_post": states[1], "final_norm": states[2]}
    pairs["logits"] = output.logits.numpy()
    if "blocks.0.attn.pattern" in taps:
        pairs |= {f"blocks.{layer}.attn.pattern": output.attentions[layer].numpy() for layer in (0, 1)}
    for name, expected in pairs.items():
        assert deviations(taps[name], expected) < LOGITS_FLOAT32, name
    for layer in (0, 1):
        block, before = f"blocks.{layer}.", taps["blocks.0.resid_post" if layer else "embed"]
        np.testing.assert_allclose(taps[block + "resid_mid"], before + taps[block + "attn.out"], atol=1e-5)
        after = taps[block + "resid_mid"] + taps[block + "ffn.out"]
        np.testing.assert_allclose(taps[block + "resid_post"], after, atol=1e-5)
        if block + "attn.scores" in taps:
            scores, pattern = taps[block + "attn.scores"], taps[block + "attn.pattern"]
            assert (np.isneginf(scores) == np.triu(np.ones((T, T), bool), 1)).all()
            powers = np.exp(scores - scores.max(-1, keepdims=True))
            np.testing.assert_allclose(pattern, powers / powers.sum(-1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(taps["logits"], model.logits(IDS), atol=LOGITS_FLOAT32 * taps["logits"].std())


@pytest.mark.parametrize("backend", BACKENDS)
def test_chosen_taps(plain, backend):
    model = lab.load_model(plain[0], backend)
    one = model.record(IDS[0], "blocks.1.ffn.act")
    assert list(one) == ["blocks.1.ffn.act"] and one["blocks.1.ffn.act"].shape == (1, T, F)
    some = model.record(IDS[0], ["logits", "embed", "logits"])
    assert list(some) == ["embed", "logits"]
    assert model.record(IDS[0], []) == {}
    # Copies: what is done to them changes no model, and the next recording does not change them.
    logits = some["logits"].copy()
    some["embed"][:] = 7.0
    model.record(IDS[1], ["logits", "embed"])
    np.testing.assert_array_equal(some["logits"], logits)
    np.testing.assert_allclose(model.logits(IDS[0]), logits, atol=1e-4)


def test_copies_of_parameters_too(plain):
    """A tap may be a view of something that lives longer; writing into what was recorded must not reach it."""
    model = lab.load_model(plain[0], "numpy", ops="manual")
    before = model.logits(IDS)
    for array in model.record(IDS).values():
        array[...] = 1e9
    np.testing.assert_array_equal(model.logits(IDS), before)


def test_float64(plain):
    taps = lab.load_model(plain[0], "jax", precision="float64").record(IDS[0])
    assert {array.dtype for array in taps.values()} == {np.dtype(np.float64)}


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_a_tap_inside_a_fused_operation_is_refused(plain, backend):
    model = lab.load_model(plain[0], backend)
    with pytest.raises(lab.ConfigurationError, match=r"blocks\.0\.attn\.pattern lies inside a fused .* ops='manual'"):
        model.record(IDS, ["embed", "blocks.0.attn.pattern"])


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("blocks.1.atn.q", "'blocks.1.attn.q'"),
        ("logit", "'logits'"),
        ("blocks.2.resid_post", "'blocks.[01].resid_post'"),
    ],
)
def test_an_unknown_tap_is_answered_with_the_nearest(plain, name, near):
    model = lab.load_model(plain[0])
    with pytest.raises(lab.ConfigurationError, match=rf"There is no tap '{re.escape(name)}'; did you mean {near}\?"):
        model.record(IDS, [name])
    for nothing_like_it in ("qqqq", 3, None):
        with pytest.raises(lab.ConfigurationError, match=r"There is no tap '?\w+'?\.$"):
            model.record(IDS, [nothing_like_it])


def test_llama_taps(tmp_path):
    reference = save_llama(tmp_path)
    model = lab.load_model(tmp_path, ops="manual")
    taps = model.record(random_ids(5, 101))
    assert taps["blocks.1.attn.q"].shape == (1, 4, 5, 8) and taps["blocks.1.attn.v"].shape == (1, 2, 5, 8)
    assert taps["blocks.0.ffn.pre"].shape == taps["blocks.0.ffn.act"].shape == (1, 5, 48)
    assert deviations(taps["logits"], reference_logits(reference, random_ids(5, 101))) < LOGITS_FLOAT32


@pytest.mark.parametrize("backend", BACKENDS)
def test_patching(plain, backend):
    """A tap that returns something else: without the attention of layer 0, as transformers does with zero weights."""
    folder, reference = plain
    model = lab.load_model(folder, backend)

    def tap(name, x):
        return x * 0.0 if name == "blocks.0.attn.out" else x

    ids, start = model.backend.asarray(IDS), model.backend.asarray(np.zeros(2, np.int64))
    patched = model.backend.compile(
        lambda params, ids, start: forward(model.backend, model.config, params, ids, start, tap=tap)[0]
    )
    logits = model.backend.to_numpy(patched(model.params, ids, start))
    projection = reference.transformer.h[0].attn.c_proj
    saved = projection.weight.data.clone(), projection.bias.data.clone()
    try:
        projection.weight.data.zero_()
        projection.bias.data.zero_()
        expected = reference_logits(reference, IDS)
    finally:
        projection.weight.data, projection.bias.data = saved
    assert deviations(logits, expected) < LOGITS_FLOAT32
    assert deviations(model.logits(IDS), expected) > 0.01
