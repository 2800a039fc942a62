"""The training step: the same losses on every backend, pieces of a batch, bfloat16, and a network of one's own."""

import numpy as np
import pytest
from small_models import small_model
from tolerances import LOSS_CURVE

import transformer_lab as lab
from transformer_lab.config import component
from transformer_lab.ffn.dense import Dense
from transformer_lab.model.init import initialise
from transformer_lab.training.optimizer import AdamW
from transformer_lab.training.schedule import Cosine
from transformer_lab.training.step import TrainingStep

GPT2 = small_model(97, 16, 128, 4, 4, Dense(256))
LLAMA = small_model(
    97,
    16,
    128,
    4,
    4,
    Dense(192, "silu", gated=True, bias=False),
    num_kv_heads=2,
    position="rotary",
    norm="rms_norm",
    attention_bias=False,
    tied_head=False,
)


def begin(backend, precision, config=GPT2, average_decay=None, ops="fused", **optimizer):
    dtype = np.float64 if precision == "float64" else np.float32
    arrays = {name: array.astype(dtype) for name, array in initialise(config, 0)}
    ops = component("backend", backend, precision=precision, ops=ops)
    return TrainingStep(ops, config, arrays, AdamW(**optimizer), average_decay)


def batches(steps, pieces=1, rows=3, length=16):
    draw = np.random.default_rng(5)
    text = np.cumsum(draw.integers(0, 3, 4000)) % 97
    for _ in range(steps):
        starts = draw.integers(0, len(text) - length - 1, pieces * rows)
        ids = np.stack([text[start : start + length + 1] for start in starts])
        yield ids.reshape(pieces, rows, -1), np.ones((pieces, rows, length), np.float32)


def losses(training, steps, **shape):
    schedule = Cosine(5, 0.1)
    return np.array(
        [
            training.run(ids, weights, step, schedule.share(step, steps))[0]
            for step, (ids, weights) in enumerate(batches(steps, **shape), 1)
        ]
    )


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_torch_and_jax_have_one_loss_curve(precision):
    """4 layers of width 128, a learning rate of 1e-3, 100 steps."""
    found = {name: losses(begin(name, precision), 100) for name in ("torch", "jax")}
    assert np.abs(found["torch"] - found["jax"]).max() <= LOSS_CURVE[precision]
    assert found["jax"][-1] < found["jax"][0] - 1.0  # and it learns


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
@pytest.mark.parametrize("ops", ["fused", "manual"])
def test_numpy_joins_them(config, ops):
    found = {name: losses(begin(name, "float64", config, ops=ops), 8) for name in ("numpy", "torch", "jax")}
    for name in ("torch", "jax"):
        assert np.abs(found["numpy"] - found[name]).max() <= LOSS_CURVE["float64"]


def test_another_epsilon_leaves_the_curve():
    """So that the comparison above can fail."""
    found = losses(begin("jax", "float64", epsilon=1e-6), 20) - losses(begin("jax", "float64"), 20)
    assert np.abs(found).max() > LOSS_CURVE["float64"]


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_pieces_add_up_to_the_batch(name):
    whole, pieces = begin(name, "float64"), begin(name, "float64")
    for step, (ids, weights) in enumerate(batches(3, pieces=3, rows=2), 1):
        weights[1, 0, 4:] = 0.0  # padding, and so pieces of unequal weight
        expected = whole.run(ids.reshape(1, 6, -1), weights.reshape(1, 6, -1), step, 1.0)
        assert pieces.run(ids, weights, step, 1.0) == pytest.approx(expected, abs=LOSS_CURVE["float64"])


def test_weights_of_zero_are_not_seen():
    ids, weights = next(batches(1))
    weights[0, :, 9:] = 0.0
    changed = ids.copy()
    changed[0, :, 10:] = 1
    assert begin("jax", "float64").run(ids, weights, 1, 1.0) == begin("jax", "float64").run(changed, weights, 1, 1.0)


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_bfloat16_computes_in_16_bits_and_keeps_32(name):
    low, whole = begin(name, "bfloat16"), begin(name, "float32")
    difference = np.abs(losses(low, 30) - losses(whole, 30)).max()
    assert 1e-6 < difference < 0.05  # other products, the same course
    kernel = low.trees()["params"]["blocks.0.attn.qkv.kernel"]
    assert kernel.dtype == np.float32
    assert (kernel.view(np.uint32) & 0xFFFF).any()  # no bfloat16 would have these bits


def test_the_average_follows_the_weights():
    training = begin("torch", "float64", average_decay=0.9)
    averages = {name: array.copy() for name, array in training.trees()["params"].items()}
    for step, (ids, weights) in enumerate(batches(12), 1):
        training.run(ids, weights, step, 1.0)
        decay = min(0.9, (1 + step) / (10 + step))
        params = training.trees()["params"]
        averages = {name: decay * averages[name] + (1 - decay) * params[name] for name in params}
    found = training.trees()["average"]
    assert max(np.abs(found[name] - averages[name]).max() for name in found) < 1e-12


def test_every_parameter_moves():
    training = begin("jax", "float32", LLAMA)
    before = training.trees()["params"]
    losses(training, 2)
    after = training.trees()["params"]
    assert [name for name in before if np.array_equal(before[name], after[name])] == []


@pytest.mark.parametrize(("name", "precision"), [("torch", "exact"), ("jax", "int8")])
def test_precisions_without_gradients_are_refused(name, precision):
    with pytest.raises(lab.ConfigurationError, match="float32, float64, bfloat16"):
        begin(name, precision)
