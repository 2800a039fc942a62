"""Training a mixture of depths: its gate moves, and what it is asked for beside the text."""

from dataclasses import replace
from functools import partial

import numpy as np
from small_models import small_model
from test_training_step import batches, begin
from tolerances import LOSS_CURVE

from transformer_lab.block.mixture_of_depths import MixtureOfDepths
from transformer_lab.config import component
from transformer_lab.ffn.dense import Dense
from transformer_lab.language_model import with_parts


def config(capacity=0.25, selection_loss=0.1):
    block = partial(MixtureOfDepths, capacity=capacity, selection_loss=selection_loss)
    return with_parts(small_model(97, 16, 32, 2, 4, Dense(64)), block=block)


def test_the_selection_loss_is_the_cross_entropy_of_the_choice():
    ops, draw = component("backend", "numpy", precision="float64"), np.random.default_rng(0)
    scores, share = draw.normal(size=(2, 5)) * 3, np.array([[0.1] * 5, [0.25, 0.25, 0.0, 0.0, 0.0]])
    chosen = draw.uniform(size=(2, 5)) < 0.5
    more, told = (
        config().blocks[0].training_terms(ops, {}, {"router.scores": scores, "router.chosen": chosen}, share, None)
    )
    probability = 1.0 / (1.0 + np.exp(-scores))
    right = -np.log(np.where(chosen, probability, 1.0 - probability))
    np.testing.assert_allclose(told["selection"], (right * share).sum(), rtol=1e-12)
    np.testing.assert_allclose(more, 0.1 * (right * share).sum(), rtol=1e-12)
    real = share > 0
    assert (told["tokens"], told["chosen"]) == (7, (chosen & real).sum())
    assert told["agreeing"] == ((probability > 0.5) == chosen)[real].sum()


def trained(backend, pieces=1, steps=4, selection_loss=0.1, **options):
    training = begin(backend, "float64", config(selection_loss=selection_loss), **options)
    losses = []
    for step, (ids, _) in enumerate(batches(steps, 1, 4), 1):
        weights = np.ones((4, 16))
        weights[1, 9:] = 0.0
        split = ids.reshape(pieces, 4 // pieces, 17), weights.reshape(pieces, 4 // pieces, 16)
        losses.append(training.run(*split, step, 1.0))
    return np.array(losses), training


def test_three_backends_train_alike_in_any_number_of_pieces():
    expected, one = trained("numpy")
    start = begin("numpy", "float64", config())
    for layer in (0, 1):
        name = f"blocks.{layer}.router.gate"
        assert np.abs(one.trees()["params"][name] - start.trees()["params"][name]).max() > 1e-3
        assert one.told[layer]["tokens"] == 57 and one.told[layer]["chosen"] == 3 * 4 + 3
    for backend, pieces in (("numpy", 4), ("torch", 1), ("jax", 2)):
        found, training = trained(backend, pieces)
        np.testing.assert_allclose(found, expected, rtol=0, atol=LOSS_CURVE["float64"])
        for name, array in one.trees()["params"].items():
            np.testing.assert_allclose(training.trees()["params"][name], array, rtol=0, atol=1e-11, err_msg=name)


def test_training_moves_the_gate_and_the_selection_loss_teaches_the_rules_to_agree():
    """Without it the gate moves too, because it stands before what the block gives; but nothing tells it where 0 is."""
    found = {}
    for selection_loss in (0.0, 1.0):
        training = begin("jax", "float64", config(selection_loss=selection_loss), learning_rate=1e-2)
        gates = [training.trees()["params"]["blocks.0.router.gate"]]
        losses = [training.run(ids, weights, step, 1.0)[0] for step, (ids, weights) in enumerate(batches(100, 1, 8), 1)]
        gates.append(training.trees()["params"]["blocks.0.router.gate"])
        assert losses[-1] < losses[0] - 2.0 and np.abs(gates[1] - gates[0]).max() > 0.01
        found[selection_loss] = np.mean([training.told[layer]["selection"] for layer in (0, 1)])
    assert found[0.0] > 0.6 and found[1.0] < 0.5  # log 2 of a gate that says nothing


def test_a_mixture_of_experts_may_stand_in_another_layer():
    blocks = config().blocks
    dense = small_model(97, 16, 32, 2, 4, component("ffn", "moe")).blocks[0]
    training = begin("numpy", "float64", replace(config(), blocks=(blocks[0], dense)))
    ids = np.random.default_rng(0).integers(0, 97, (2, 2, 17))
    training.run(ids, np.ones((2, 2, 16)), 1, 1.0)
    assert training.told[1]["load"].sum() == 2 * 64 and training.told[0]["chosen"] == 4 * 4
