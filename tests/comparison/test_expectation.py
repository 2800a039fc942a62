"""The decoder cut at its taps: fed with a run's own taps it says that run again, and what is not shown is filled in."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import random_arrays

from transformer_lab.backends.readings.bounded.bounds import UNITS
from transformer_lab.comparison.judging.examination import examine
from transformer_lab.comparison.judging.expectation import Expectation
from transformer_lab.comparison.participants.own_model import OwnModel
from transformer_lab.comparison.reporting.verdict import unlike_others
from transformer_lab.config import component
from transformer_lab.ffn.dense import ACTIVATIONS, Dense
from transformer_lab.language_model import assemble
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.decoder import tap_names

GPT2 = ModelConfig(vocab_size=37, context_length=12, hidden_size=16, num_layers=3, num_heads=4, ffn=Dense(size=40))
LLAMA = replace(
    GPT2,
    num_kv_heads=2,
    ffn=Dense(size=24, activation="silu", gated=True, bias=False),
    position="rotary",
    norm="rms_norm",
    norm_epsilon=1e-6,
    attention_bias=False,
    tied_head=False,
)
FAMILIES = {"gpt2": GPT2, "llama": LLAMA}
IDS = np.random.default_rng(0).integers(0, 37, 12)

# What somebody shows, and the tap at which a mistake in the attention or in the feed-forward network of block 1 is then
# seen first.
SHOWN = {
    "no scores": (lambda tap: "scores" not in tap, "blocks.1.attn.out", "blocks.1.ffn.act"),
    "no attention": (lambda tap: ".attn." not in tap, "blocks.1.resid_mid", "blocks.1.ffn.act"),
    "ends of blocks": (lambda tap: "blocks" not in tap or "post" in tap, "blocks.1.resid_post", "blocks.1.resid_post"),
    "the last block": (lambda tap: "blocks" not in tap or "blocks.2" in tap, "blocks.2.norm_1", "blocks.2.norm_1"),
    "logits": (lambda tap: tap == "logits", "logits", "logits"),
}


def model_of(config, seed=0, size=0.2, backend="numpy", precision="float64", ops="manual"):
    built = backend if not isinstance(backend, str) else component("backend", backend, precision=precision, ops=ops)
    return assemble(config, random_arrays(config, seed, size), built)


class Shy:
    """A participant that shows some of what another one shows."""

    kind, version, device, config = "backend", None, None, None

    def __init__(self, model, shows):
        self.of, self.shows = OwnModel(model), shows
        self.name, self.precision = self.of.name, self.of.precision

    def taps(self, token_ids):
        return ((name, value) for name, value in self.of.taps(token_ids) if self.shows(name))


@st.composite
def configurations(draw):
    gated = draw(st.booleans())
    kv_heads = draw(st.sampled_from([1, 2, 4]))
    return ModelConfig(
        vocab_size=37,
        context_length=12,
        hidden_size=16,
        num_layers=draw(st.integers(1, 3)),
        num_heads=4,
        num_kv_heads=kv_heads,
        head_size=draw(st.sampled_from([4, 6])),
        ffn=Dense(24, draw(st.sampled_from(ACTIVATIONS)), gated, draw(st.booleans())),
        position=draw(st.sampled_from(["learned", "rotary"])),
        norm=draw(st.sampled_from(["layer_norm", "rms_norm"])),
        attention_scale=draw(st.booleans()),
        attention_scale_by_layer=draw(st.booleans()),
        attention_bias=draw(st.booleans()),
        tied_head=draw(st.booleans()),
    )


@settings(max_examples=25, deadline=None)
@given(configurations(), st.integers(0, 2**32 - 1), st.sampled_from([0.05, 0.3]))
def test_fed_with_the_truth_it_says_the_truth(config, seed, size):
    model = model_of(config, seed, size)
    ids = np.random.default_rng(seed).integers(0, config.vocab_size, 1 + seed % config.context_length)
    taps = model.record(ids)
    assert list(taps) == tap_names(config)
    seeing, blind = (Expectation(model.backend, config, model.params, ids, UNITS["float64"]) for _ in range(2))
    for name, value in taps.items():
        for expectation in (seeing, blind):
            expected, error = expectation.of(name)
            assert expected.shape == error.shape == value.shape
            hidden = np.isinf(value)
            np.testing.assert_array_equal(expected[hidden], value[hidden])
            assert (error[hidden] == 0.0).all()
            apart = np.abs(np.where(hidden, 0.0, expected) - np.where(hidden, 0.0, value))
            largest = np.abs(value[~hidden]).max()
            assert apart.max() <= (1e-12 if expectation is seeing else 1e-11) * largest, name
            assert (apart <= error).all(), name
        seeing.see(name, value)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("shown", SHOWN)
@pytest.mark.parametrize("family", FAMILIES)
def test_sound_models_that_show_little_are_sound(family, shown, backend):
    """Of calm weights and of wild ones, where nearly nothing is known of what was not shown."""
    config = FAMILIES[family]
    for seed, size in enumerate([0.02, 0.2, 1.0, 5.0]):
        participant = Shy(model_of(config, seed, size, backend, "float32", "fused"), SHOWN[shown][0])
        found = examine(participant, OwnModel(model_of(config, seed, size)), [IDS, IDS[:1]])
        assert list(found.taps) == [name for name in tap_names(config) if name in found.taps]
        assert found.first_divergence() is None, (size, found.first_divergence())
        assert all(np.isfinite(finding.worst.bound) for finding in found.taps.values())


def wrong_in_block_1(operation, calls_before, wrong):
    """NumPy's plain operations, one call of one of them with a mistake."""
    ops = component("backend", "numpy", precision="float32", ops="manual")
    right, calls = getattr(ops, operation), []

    def replaced(*arguments):
        calls.append(1)
        result = right(*arguments)
        return wrong(result) if len(calls) == calls_before + 1 else result

    setattr(ops, operation, replaced)
    return ops


@pytest.mark.parametrize("shown", SHOWN)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_defect_is_put_at_the_first_shown_tap_after_it(family, shown):
    """By its bound, or, where that is vague because too little was shown, by what others show."""
    config = FAMILIES[family]
    shows, attention, feed_forward = SHOWN[shown]
    truth = OwnModel(model_of(config, size=0.1))
    sound, shy = (
        examine(participant, truth, [IDS])
        for participant in (
            OwnModel(model_of(config, size=0.1, backend="torch", precision="float32")),
            Shy(model_of(config, size=0.1, precision="float32"), shows),
        )
    )
    assert unlike_others([sound, shy], tap_names(config)) == []
    for operation, tap in (("attention", attention), (config.ffn.activation, feed_forward)):
        ops = wrong_in_block_1(operation, 1, lambda x: x * np.float32(1.25))
        found = examine(Shy(model_of(config, size=0.1, backend=ops), shows), truth, [IDS])
        first = found.first_divergence()
        if shown in ("the last block", "logits"):
            assert first is None and found.taps[tap].vague
            (said,) = unlike_others([sound, found], tap_names(config))
            assert said.startswith(f"A defect at or before {tap} on numpy float32: ")
            continue
        assert first is not None and first.tap == tap, (operation, first)
        assert first.ratio > 2.0
        assert np.isclose(first.ratio, abs(first.value - first.expected) / first.bound)
        assert not found.taps[tap].vague


@pytest.mark.parametrize("shown", SHOWN)
def test_bounds_are_wider_where_less_is_shown(shown):
    config = LLAMA
    model = model_of(config)
    taps = model.record(IDS)
    seeing, some = (Expectation(model.backend, config, model.params, IDS, UNITS["float32"]) for _ in range(2))
    shows = SHOWN[shown][0]
    wider = 0
    for name, value in taps.items():
        everything = seeing.of(name).error
        seeing.see(name, value)
        if shows(name):
            error = some.of(name).error
            assert (error >= everything * (1.0 - 1e-3)).all(), name
            wider += bool((error > (1.0 + 1e-6) * everything).any())
            some.see(name, value)
    assert wider >= (1 if shown in ("the last block", "logits") else 3)


def test_nothing_of_the_blocks_before_is_kept():
    """Only one block's taps are held at a time, however long the model."""
    model = model_of(GPT2)
    expectation = Expectation(model.backend, GPT2, model.params, IDS, UNITS["float32"])
    for name, value in model.record(IDS).items():
        expectation.of(name)
        expectation.see(name, value)
        assert len(expectation.known) <= 13
        if name.endswith("resid_post"):
            assert not expectation.known
