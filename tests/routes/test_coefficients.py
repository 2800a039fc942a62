"""What others call the balance loss, by their own formulas on the same routes, and what their coefficients are here."""

import numpy as np
import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func as of_mixtral
from transformers.models.olmoe.modeling_olmoe import load_balancing_loss_func as of_olmoe

import transformer_lab as lab
from transformer_lab.config import component
from transformer_lab.ffn.losses import balance, used
from transformer_lab.routes.coefficients import CONVENTIONS, at_uniform, balance_loss

ROWS, TOKENS, EXPERTS = 3, 40, 16


def routes(layers, k, lean=1.0, seed=0):
    """logits [L, B, T, E], probabilities, ids [L, B, T, k]; every layer leans its own way."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(layers, ROWS, TOKENS, EXPERTS)) + lean * draw.normal(size=(layers, 1, 1, EXPERTS))
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return logits, probabilities, np.argsort(-logits, axis=-1, kind="stable")[..., :k]


def ours(probabilities, ids, scope="step"):
    """[L], by the code that trains."""
    ops, share = component("backend", "numpy", precision="float64"), np.full((ROWS, TOKENS), 1 / (ROWS * TOKENS))
    return np.array(
        [
            float(balance(ops, used(ops, chosen, None, share, EXPERTS), p, share, scope))
            for p, chosen in zip(probabilities, ids, strict=True)
        ]
    )


def slots_of_each(chosen):
    return np.bincount(chosen.reshape(-1), minlength=EXPERTS)


def maxtext(probabilities, ids):
    """Of each layer the mean over sequences and experts of (tokens of the expert / T) times its mean probability, times
    E squared; of these the mean over layers (MaxText, layers/moe.py and train.py)."""
    found = []
    for p, chosen in zip(probabilities, ids, strict=True):
        density = np.stack([slots_of_each(row) / TOKENS for row in chosen])
        found.append(np.mean(density * p.mean(axis=1)) * EXPERTS**2)
    return np.mean(found)


def olmo_core(probabilities, ids):
    """E / (tokens k) times the product of slots and mean probabilities, layers added (OLMo-core, nn/moe/loss.py)."""
    tokens, k = ROWS * TOKENS, ids.shape[-1]
    means = probabilities.reshape(len(ids), -1, EXPERTS).mean(axis=1)
    products = [slots_of_each(chosen) @ mean for mean, chosen in zip(means, ids, strict=True)]
    return EXPERTS / (tokens * k) * sum(products)


def megablocks(probabilities, ids):
    """The same dot product over the experts of all layers, over their number, too (megablocks, layers/moe.py)."""
    return olmo_core(probabilities, ids) / len(ids)


def levanter(probabilities, ids):
    """Slots over all slots, times E / k, times the mean probability; layers added (levanter, models/mixtral.py)."""
    k = ids.shape[-1]
    return sum(
        np.sum(slots_of_each(chosen) / chosen.size * EXPERTS / k * p.reshape(-1, EXPERTS).mean(axis=0))
        for p, chosen in zip(probabilities, ids, strict=True)
    )


FORMULAS = {"maxtext": maxtext, "olmo-core": olmo_core, "megablocks": megablocks, "levanter": levanter}


def transformers(logits, k, function=of_mixtral):
    gates = tuple(torch.tensor(layer.reshape(-1, EXPERTS), dtype=torch.float64) for layer in logits)
    return float(function(gates, EXPERTS, k))


@pytest.mark.parametrize("k", [1, 2, 8])
@pytest.mark.parametrize("framework", FORMULAS)
def test_a_translated_coefficient_weighs_the_same(framework, k):
    """coefficient times their loss is our coefficient times ours, on routes that are not uniform."""
    _, probabilities, ids = routes(3, k)
    theirs = 0.01 * FORMULAS[framework](probabilities, ids)
    scope = "sequence" if framework == "maxtext" else "step"
    found = balance_loss(0.01, framework, k, 3) * ours(probabilities, ids, scope).sum()
    assert found == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("k", [1, 2, 8])
@pytest.mark.parametrize("function", [of_mixtral, of_olmoe])
def test_transformers_with_one_layer_or_layers_that_are_alike(function, k):
    logits, probabilities, ids = routes(1, k)
    logits, probabilities, ids = (np.concatenate([x] * 4) for x in (logits, probabilities, ids))
    for layers in (1, 4):
        found = balance_loss(0.01, "transformers", k, layers) * ours(probabilities[:layers], ids[:layers]).sum()
        # transformers counts in float32
        assert found == pytest.approx(0.01 * transformers(logits[:layers], k, function), rel=1e-6)


def test_in_transformers_layers_that_lean_apart_cancel():
    """It takes one mean over all layers: two that each send half of the tokens to wrong experts look even."""
    lean = np.where(np.arange(EXPERTS) < 8, 2.0, -2.0)
    logits = np.random.default_rng(1).normal(size=(2, ROWS, TOKENS, EXPERTS)) + np.stack([lean, -lean])[:, None, None]
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    ids = np.argsort(-logits, axis=-1)[..., :2]
    assert transformers(logits, 2) / 2 < 1.05 < 1.8 < ours(probabilities, ids).min()


@pytest.mark.parametrize("framework", CONVENTIONS)
def test_at_uniform_use(framework):
    """k = 8: 8 in transformers and MaxText, 1 in OLMo-core and megablocks, 1/8 in levanter, for one layer."""
    k, layers = 8, 2
    ids = (np.arange(ROWS * TOKENS)[:, None] * k + np.arange(k)) % EXPERTS
    ids = np.broadcast_to(ids.reshape(ROWS, TOKENS, k), (layers, ROWS, TOKENS, k))
    probabilities = np.full((layers, ROWS, TOKENS, EXPERTS), 1 / EXPERTS)
    if framework == "transformers":  # small leanings towards the chosen, so that they are the largest
        logits = np.zeros((layers, ROWS, TOKENS, EXPERTS))
        np.put_along_axis(logits, ids, 1e-6, axis=-1)
        found = transformers(logits, k)
    else:
        found = FORMULAS[framework](probabilities, ids)
    assert found == pytest.approx(at_uniform(framework, k, layers), rel=1e-6)
    expected = {"transformers": 8, "maxtext": 8, "olmo-core": 1, "megablocks": 1, "levanter": 0.125}[framework]
    assert at_uniform(framework, k, 1) == expected
    assert ours(probabilities, ids).tolist() == pytest.approx([1.0, 1.0])
    assert balance_loss(0.01, framework, k, layers) == pytest.approx(0.01 * at_uniform(framework, k, layers) / layers)


def test_mistakes():
    with pytest.raises(lab.ConfigurationError, match="choose one of transformers, maxtext"):
        balance_loss(0.01, "jax", 2, 1)
    with pytest.raises(lab.ConfigurationError, match="k is 0"):
        at_uniform("maxtext", 0, 1)
