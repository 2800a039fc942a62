"""No false alarm: 204 random models, of few shapes, on every backend; and what the bounds say is not far too much."""

import numpy as np
import pytest
from random_models import random_arrays
from small_models import small_model

from transformer_lab.comparison.judging.examination import examine
from transformer_lab.comparison.participants.own_model import OwnModel
from transformer_lab.config import component
from transformer_lab.ffn.dense import Dense
from transformer_lab.language_model import assemble

SEEDS = 17
SHAPES = {
    "gpt2": small_model(
        vocab_size=101, context_length=24, hidden_size=32, num_layers=2, num_heads=4, ffn=Dense(size=128)
    ),
    "llama": small_model(
        vocab_size=101,
        context_length=24,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        ffn=Dense(size=48, activation="silu", gated=True, bias=False),
        position="rotary",
        norm="rms_norm",
        norm_epsilon=1e-6,
        attention_bias=False,
        tied_head=False,
    ),
}


def arrays_of(config, seed):
    """Weights of a size that differs from model to model: calm ones, and ones whose scores and activations are wild."""
    return random_arrays(config, seed, 10.0 ** np.random.default_rng(seed).uniform(-2.0, 0.0))


@pytest.mark.parametrize("ops", ["fused", "manual"])
@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_sound_models_stay_below_every_bound(shape, backend, ops):
    config = SHAPES[shape]
    arrays = arrays_of(config, 0)
    truth = OwnModel(assemble(config, arrays, component("backend", "numpy", precision="float64", ops="manual")))
    participant = OwnModel(assemble(config, arrays, component("backend", backend, precision="float32", ops=ops)))
    largest = []
    for seed in range(SEEDS):
        for model in (truth.model, participant.model):
            model.replace_weights(arrays_of(config, seed))
        ids = np.random.default_rng(seed).integers(0, config.vocab_size, config.context_length)
        found = examine(participant, truth, [ids])
        assert found.first_divergence() is None
        largest.append(found.worst().ratio)
    assert min(largest) > 0.05  # a bound that nothing comes near would let everything pass


@pytest.mark.parametrize("precision", ["float64", "bfloat16", "int8"])
@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_other_precisions_stay_below_their_bounds(shape, backend, precision):
    """XLA makes one operation of an int8 product's scales and the addition to the stream, if no bias is between."""
    config = SHAPES[shape]
    arrays = arrays_of(config, 0)
    truth = OwnModel(assemble(config, arrays, component("backend", "numpy", precision="float64", ops="manual")))
    participant = OwnModel(assemble(config, arrays, component("backend", backend, precision=precision)))
    for seed in range(5):
        for model in (truth.model, participant.model):
            model.replace_weights(arrays_of(config, seed))
        ids = np.random.default_rng(seed).integers(0, config.vocab_size, config.context_length)
        found = examine(participant, truth, [ids])
        assert found.first_divergence() is None
        assert found.worst().ratio > 0.0
