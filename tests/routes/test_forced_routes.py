"""Patches of recorded taps: what is put in place of a tap is what goes on, on every backend and in exact mode."""

import numpy as np
import pytest
from small_mixtures import BACKENDS, built, ids, mixture, weights
from tolerances import LOGITS_FLOAT32

import transformer_lab as lab
from transformer_lab.ffn.capacity import Capacity

EXPERTS, WEIGHTS, KEPT = (f"blocks.0.ffn.router.{name}" for name in ("expert_ids", "weights", "kept"))


@pytest.mark.parametrize("precision", ["float32", "exact"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_forced_experts_are_those_that_compute(backend, precision):
    """Weights are worked out anew of the forced experts: here against a model whose gate chooses these by itself."""
    model, token_ids = built(backend, precision), ids(9)
    names = [EXPERTS, WEIGHTS, "blocks.0.ffn.router.logits", "blocks.0.ffn.experts.out", "logits"]
    plain = model.record(token_ids, names)
    other = (plain[EXPERTS] + 1) % 6
    found = model.record(token_ids, names, patches={EXPERTS: other})
    assert np.array_equal(found[EXPERTS], other)
    chosen = np.take_along_axis(plain["blocks.0.ffn.router.logits"].astype(np.float64), other, -1)
    expected = np.exp(chosen) / np.exp(chosen).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(found[WEIGHTS], expected, rtol=0, atol=1e-6)
    assert np.abs(found["logits"] - plain["logits"]).max() > 1e-3
    # Each slot's result is that of the expert named for it, wherever it stands.
    swapped = model.record(token_ids, names, patches={EXPERTS: plain[EXPERTS][..., ::-1].copy()})
    here, there = plain["blocks.0.ffn.experts.out"], swapped["blocks.0.ffn.experts.out"][..., ::-1, :]
    np.testing.assert_allclose(there, here, rtol=0, atol=1e-6 * np.abs(here).max())
    assert list(found) == list(plain)


@pytest.mark.parametrize("precision", ["float32", "exact"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_s_own_route_changes_no_bit(backend, precision):
    model, token_ids = built(backend, precision, made=weights(mixture(capacity=Capacity(0.8)))), ids(11)
    own = model.record(token_ids)
    again = model.record(token_ids, "logits", patches={name: own[name] for name in own if ".router." in name})
    assert np.array_equal(again["logits"], own["logits"])


def test_exact_mode_gives_the_same_bits_on_a_forced_route():
    token_ids = ids(9)
    forced = {EXPERTS: np.tile([4, 1], (1, 9, 1)), "blocks.1.ffn.router.expert_ids": np.tile([0, 3], (1, 9, 1))}
    found = [built(backend, "exact").record(token_ids, "logits", patches=forced)["logits"] for backend in BACKENDS]
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_taps_are_patched_too(backend):
    """The stream of another text from block 1 on gives that text's logits; kept slots that are taken away weigh 0."""
    model = built(backend, made=weights(mixture(capacity=Capacity(2.0))))
    one, other = ids(7, 1), ids(7, 2)
    patch = {"blocks.0.resid_post": model.record(other, "blocks.0.resid_post")["blocks.0.resid_post"]}
    found = model.record(one, "logits", patches=patch)["logits"]
    expected = model.logits(other)
    assert np.abs(found - expected).max() <= LOGITS_FLOAT32 * expected.std()
    nothing = model.record(one, [WEIGHTS], patches={KEPT: np.zeros((1, 7, 2), bool)})
    assert not nothing[WEIGHTS].any()


def test_what_cannot_be_patched_is_refused():
    model = built()
    with pytest.raises(lab.ConfigurationError, match="did you mean 'blocks"):
        model.record(ids(5), "logits", patches={"blocks.0.ffn.router.experts_ids": np.zeros((1, 5, 2), int)})
    for backend in BACKENDS:
        with pytest.raises(lab.ConfigurationError, match=r"has the shape \[1, 4, 2\]; this tap has \[1, 5, 2\]"):
            built(backend).record(ids(5), "logits", patches={EXPERTS: np.zeros((1, 4, 2), int)})
    for wrong in (np.full((1, 5, 2), 6), np.full((1, 5, 2), -1), np.zeros((1, 5, 2))):
        with pytest.raises(lab.ConfigurationError, match="whole ones from 0 to 5"):
            model.record(ids(5), "logits", patches={EXPERTS: wrong})
    scores = {"blocks.0.attn.scores": np.zeros((1, 4, 5, 5))}
    with pytest.raises(lab.ConfigurationError, match="inside a fused operation"):
        model.record(ids(5), "logits", patches=scores)
    plain = built(ops="manual")
    assert np.abs(plain.record(ids(5), "logits", patches=scores)["logits"] - plain.logits(ids(5))).max() > 1e-3


def test_each_set_of_names_is_compiled_once(monkeypatch):
    model, token_ids = built("jax"), ids(6)
    made, compile_ = [], model.backend.compile
    monkeypatch.setattr(model.backend, "compile", lambda run, **more: made.append(run) or compile_(run, **more))
    for shift in range(3):
        model.record(token_ids, "logits", patches={EXPERTS: np.full((1, 6, 2), [shift, shift + 1])})
        model.record(token_ids, "logits")
    assert len(made) == 2
