"""The taps of our models, fed in every way: the same as `record` shows, in the order of the computation."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_models import random_arrays
from small_models import changed, small_model

from transformer_lab.comparison.judging.examination import examine
from transformer_lab.comparison.participants.own_model import Feeding, OwnModel
from transformer_lab.config import component
from transformer_lab.ffn.dense import Dense
from transformer_lab.language_model import assemble
from transformer_lab.model.decoder import tap_names

GPT2 = small_model(
    vocab_size=37,
    context_length=12,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    ffn=Dense(size=40),
    attention_scale_by_layer=True,
)
LLAMA = small_model(
    vocab_size=37,
    context_length=12,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    ffn=Dense(size=24, activation="silu", gated=True, bias=False),
    position="rotary",
    norm="rms_norm",
    attention_scale_by_layer=True,
    attention_bias=False,
    tied_head=False,
)
IDS = np.random.default_rng(1).integers(0, 37, 11)
FEEDINGS = {
    "whole": Feeding(),
    "pieces": Feeding(pieces=3),
    "single": Feeding(single=4),
    "batch": Feeding(beside=(0, 0)),
    "unequal": Feeding(pieces=2, single=4, beside=(5, -3)),
    "uncompiled": Feeding(compiled=False),
    "all at once": Feeding(pieces=2, single=2, beside=(-1,), compiled=False),
}


@pytest.fixture(scope="module")
def models():
    made = {}

    def get(config, backend, precision, ops="manual"):
        key = config, backend, precision, ops
        if key not in made:
            arrays = random_arrays(config, 4, 0.4)
            made[key] = assemble(config, arrays, component("backend", backend, precision=precision, ops=ops))
        return made[key]

    return get


@pytest.mark.parametrize("feeding", FEEDINGS)
@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_in_exact_mode_every_way_shows_what_record_shows(config, backend, feeding, models):
    model = models(config, backend, "exact")
    expected = models(config, "numpy", "exact").record(IDS)
    taps = list(OwnModel(model, FEEDINGS[feeding]).taps(IDS))
    assert [name for name, _ in taps] == tap_names(config)
    for name, value in taps:
        assert value.dtype == np.float32 and value.shape == expected[name].shape, name
        assert value.tobytes() == expected[name].tobytes(), name


def test_in_exact_mode_jax_shows_it_too(models):
    """One way alone: programs of exact mode compile for long."""
    config = changed(LLAMA, num_layers=1)
    model = models(config, "jax", "exact")
    expected = models(config, "numpy", "exact").record(IDS)
    participant = OwnModel(model)
    before = model.backend.certificate.roundings
    taps = list(participant.taps(IDS))
    assert [name for name, _ in taps] == tap_names(config)  # JAX hands out dictionaries in the order of the alphabet
    for name, value in taps:
        assert value.tobytes() == expected[name].tobytes(), name
    counted = sum(roundings for roundings, _ in participant.certificate.values())
    assert counted == model.backend.certificate.roundings - before > 0


@pytest.mark.parametrize("feeding", FEEDINGS)
@pytest.mark.parametrize("ops", ["manual", "fused"])
@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_in_float32_every_way_is_within_the_bounds(backend, ops, feeding, models):
    model = models(GPT2, backend, "float32", ops)
    truth = models(GPT2, "numpy", "float64")
    expected, true = model.record(IDS), truth.record(IDS)
    shown = []

    def look_on(prompt, name, value):
        shown.append(name)
        assert value.shape == expected[name].shape
        hidden = np.isinf(true[name])
        np.testing.assert_array_equal(np.isinf(value), hidden)
        found, recorded = (np.where(hidden, 0.0, x) for x in (value, expected[name]))
        assert np.abs(found - recorded).max() <= 1e-5 * np.abs(recorded).max(), name

    examined = examine(OwnModel(model, FEEDINGS[feeding]), OwnModel(truth), [IDS], look_on)
    assert shown == list(expected) == list(examined.taps)
    assert examined.first_divergence() is None and examined.first_implausible() is None
    assert all(finding.worst.ratio <= 1.0 and finding.unjudged is None for finding in examined.taps.values())
    assert set(examined.hidden) == set(tap_names(GPT2)) - set(expected)


@pytest.mark.parametrize("feeding", FEEDINGS)
def test_the_certificate_adds_up_and_is_the_same_on_every_backend(feeding, models):
    found = {}
    for backend in ("numpy", "torch"):
        model = models(LLAMA, backend, "exact")
        participant = OwnModel(model, FEEDINGS[feeding])
        for _ in range(2):  # the second run counts from 0 again
            before = model.backend.certificate.roundings, model.backend.certificate.doubtful
            list(participant.taps(IDS))
            after = model.backend.certificate.roundings, model.backend.certificate.doubtful
            sums = tuple(map(sum, zip(*participant.certificate.values(), strict=True)))
            assert sums == (after[0] - before[0], after[1] - before[1])
        found[backend] = participant.certificate
        assert set(participant.certificate) <= set(tap_names(LLAMA))
    assert found["numpy"] == found["torch"]


def test_the_certificate_counts_a_rounding_for_each_element(models):
    """Of what is rounded: residual additions are not, nor is a row of the embedding."""
    config = LLAMA
    participant = OwnModel(models(config, "numpy", "exact"))
    taps = dict(participant.taps(IDS))
    for name in ("blocks.0.norm_1", "blocks.1.norm_2", "blocks.1.attn.pattern", "blocks.0.ffn.out", "logits"):
        assert participant.certificate[name][0] == taps[name].size
    assert not {"embed", "blocks.0.resid_mid", "blocks.1.resid_post"} & set(participant.certificate)


def test_the_other_rows_of_a_batch_hold_other_tokens(models):
    (piece,) = OwnModel(models(GPT2, "numpy", "float32"), Feeding(beside=(0, 0)))._pieces(IDS)
    assert piece.ids.shape == (3, len(IDS))
    np.testing.assert_array_equal(piece.ids[1], IDS)
    assert all((piece.ids[row] != piece.ids[other]).any() for row in range(3) for other in range(row))


def test_rows_of_unequal_lengths_are_padded_and_go_on_where_each_of_them_is(models):
    """A context of 12, and 8 tokens of ours: the longer row comes to its end and stays there."""
    ids = IDS[:8]
    pieces = OwnModel(models(GPT2, "numpy", "float32"), Feeding(pieces=2, single=2, beside=(5, -2)))._pieces(ids)
    assert [piece.start.tolist() for piece in pieces] == [[0, 0, 0], [8, 3, 1], [11, 6, 4], [11, 7, 5]]
    assert [piece.ids.shape for piece in pieces] == [(3, 8), (3, 3), (3, 1), (3, 1)]
    assert [piece.tokens for piece in pieces] == [3, 3, 1, 1]
    assert [piece.reach for piece in pieces] == [8, 11, 12, 12]
    np.testing.assert_array_equal(np.concatenate([piece.ids[1, : piece.tokens] for piece in pieces]), ids)
    assert not pieces[0].ids[1, 3:].any() and not pieces[0].ids[2, 1:].any()  # padding is no token of the row
    full = OwnModel(models(GPT2, "numpy", "float32"), Feeding(single=4, beside=(5, -3)))._pieces(np.arange(12))
    assert [piece.start.tolist() for piece in full] == [[0, 0, 0], [11, 8, 5], [11, 9, 6], [11, 10, 7], [11, 11, 8]]


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 12))
def test_cuts_are_pieces_one_after_the_other(length, pieces, single):
    cuts = Feeding(pieces=pieces, single=single).cuts(length)
    assert cuts[0][0] == 0 and cuts[-1][1] == length
    assert all(first < end for first, end in cuts)  # none is empty
    assert all(end == first for (_, end), (first, _) in pairwise(cuts))
    alone = min(single, length - 1)
    assert all(end - first == 1 for first, end in cuts[len(cuts) - alone :])
    rest = cuts[: len(cuts) - alone]
    assert len(rest) == min(pieces, length - alone)
    lengths = [end - first for first, end in rest]
    assert max(lengths) - min(lengths) <= 1  # as equal as can be


def test_cuts_of_the_usual_ways():
    assert Feeding().cuts(11) == [(0, 11)]
    assert Feeding(pieces=3).cuts(11) == [(0, 3), (3, 7), (7, 11)]
    assert Feeding(single=3).cuts(11) == [(0, 8), (8, 9), (9, 10), (10, 11)]
    assert Feeding(single=8).cuts(1) == [(0, 1)]
