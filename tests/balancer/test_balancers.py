"""Balancers: a step by hand, pieces, and whether a router that prefers two experts is brought to use all of them."""

import numpy as np
import pytest

import transformer_lab as lab
from transformer_lab.balancer.adaptive_l1 import AdaptiveL1
from transformer_lab.balancer.histogram import EDGES, below, quantile
from transformer_lab.balancer.quantile import Quantile
from transformer_lab.balancer.sign_bias import SignBias
from transformer_lab.balancer.smebu import SMEBU
from transformer_lab.balancer.threshold import Threshold
from transformer_lab.config import component, names
from transformer_lab.router.mixtral import Mixtral

BACKENDS = ("numpy", "torch", "jax")
LOAD = np.array([1.0, 0.5, 0.25, 0.25])  # of two slots; the mean is 0.5
SIGNS = np.array([-1.0, 0.0, 1.0, 1.0])
TANH = np.tanh(2.0 * (0.5 - LOAD) / 0.5)


def moved(backend, balancer, state, **found):
    ops = component("backend", backend, precision="float64")
    arrays = [{name: ops.asarray(np.asarray(x, float)) for name, x in tree.items()} for tree in (state, found)]
    with ops.scope():
        return {name: ops.to_numpy(x) for name, x in balancer.moved(ops, *arrays).items()}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_is_what_the_formula_says(backend):
    bias = np.array([0.1, -0.2, 0.3, 0.0])
    found = moved(backend, SignBias(0.01), {"bias": bias}, load=LOAD)["bias"]
    np.testing.assert_allclose(found, bias + 0.01 * SIGNS, rtol=1e-14)
    found = moved(backend, SignBias(0.01, centred=True), {"bias": bias}, load=LOAD)["bias"]
    np.testing.assert_allclose(found, bias + 0.01 * (SIGNS - 0.25), rtol=1e-14)
    momentum = np.array([0.01, 0.0, -0.01, 0.0])
    found = moved(backend, SMEBU(0.01, 2.0, 0.5), {"bias": bias, "momentum": momentum}, load=LOAD)
    expected = 0.5 * momentum + 0.5 * 0.01 * (TANH - TANH.mean())
    np.testing.assert_allclose(found["momentum"], expected, rtol=1e-13)
    np.testing.assert_allclose(found["bias"], bias + expected, rtol=1e-13)
    for kept, change in ((2.5, 1.0), (1.5, -1.0), (2.0, 0.0)):
        assert moved(backend, AdaptiveL1(2), {"steps": [3.0]}, kept=kept * 8, tokens=8)["steps"] == [3.0 + change]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_quantile_is_read_off_between_the_edges(backend):
    """Against numpy.quantile: as near as the edges lie to each other there."""
    ops = component("backend", backend, precision="float64")
    values = np.random.default_rng(3).normal(0.2, 0.1, (4, 500, 3)) * np.array([1.0, 0.5, 2.0])
    middle = np.quantile(values, 0.5, axis=(0, 1))
    share = np.full((4, 500), 1 / 2000)
    with ops.scope():
        parts = [
            below(ops, *map(ops.asarray, (values[rows], middle, share[rows]))) for rows in (slice(0, 1), slice(1, 4))
        ]
        whole = below(ops, *map(ops.asarray, (values, middle, share)))
        np.testing.assert_allclose(ops.to_numpy(parts[0] + parts[1]), ops.to_numpy(whole), rtol=1e-12)  # they add up
        for part in (0.1, 0.45, 0.5, 0.75):
            found = ops.to_numpy(quantile(ops, whole, ops.asarray(middle), part * 2000))
            expected = np.quantile(values, part, axis=(0, 1))
            gap = np.diff(EDGES)[np.clip(np.searchsorted(EDGES, expected - middle) - 1, 0, len(EDGES) - 2)]
            assert (np.abs(found - expected) <= gap).all()


BIASED = [SignBias(0.004), SignBias(0.004, centred=True), SMEBU(0.02), Quantile(0.5)]


@pytest.mark.parametrize("balancer", BIASED, ids=["sign", "centred", "smebu", "quantile"])
def test_a_router_that_prefers_two_experts_comes_to_use_all(balancer):
    """Logits of 8 experts with a strong preference, 2,000 new tokens a step, nothing learned but the bias."""
    ops, router, draw = component("backend", "numpy", precision="float64"), Mixtral(2), np.random.default_rng(1)
    state = {name: np.zeros(shape) for name, shape in balancer.states(8).items()}
    preference, share = np.array([1.5, 1.0, 0.5, 0.0, 0.0, 0.0, -0.5, -1.0]), np.full((1, 2000), 1 / 2000)
    worst = []
    for _ in range(200):
        logits = draw.normal(size=(1, 2000, 8)) + preference
        ids = router.choose(ops, {}, logits, state, None)
        load = np.bincount(ids.ravel(), minlength=8).astype(float)
        worst.append(load.max() / load.mean() - 1.0)
        _, asked = balancer.training_terms(
            ops, router, state, {"router.logits": logits, "router.expert_ids": ids}, share
        )
        state = balancer.moved(ops, state, {"load": load} | asked)
    assert worst[0] > 1.0
    assert np.mean(worst[-20:]) < 0.15
    if not isinstance(balancer, SignBias) or balancer.centred:
        assert abs(state["bias"].mean()) < 1e-9


def test_a_threshold_lets_each_expert_have_its_part():
    ops, draw, balancer = (
        component("backend", "numpy", precision="float64"),
        np.random.default_rng(2),
        Threshold(2, 0.1),
    )
    state = {name: np.zeros(shape) for name, shape in balancer.states(8).items()}
    preference, share = np.array([1.5, 1.0, 0.5, 0.0, 0.0, 0.0, -0.5, -1.0]), np.full((1, 2000), 1 / 2000)
    for _ in range(60):
        logits = draw.normal(size=(1, 2000, 8)) + preference
        load = (ops.softmax(logits) > state["threshold"]).mean(axis=(0, 1))
        _, asked = balancer.training_terms(ops, Mixtral(2), state, {"router.logits": logits}, share)
        state = balancer.moved(ops, state, asked | {"tokens": 2000.0})
    np.testing.assert_allclose(load, 0.25, atol=0.05)


def test_the_coefficient_of_l1_grows_until_experts_are_sparse_enough():
    """Gates are a row of numbers that L1 pushes down: the mean number of active experts comes to k and stays there."""
    ops, draw = component("backend", "numpy", precision="float64"), np.random.default_rng(4)
    balancer = AdaptiveL1(k=2, first=1e-4)
    state, logits, counts = {"steps": np.zeros(1)}, draw.normal(0.5, 1.0, (1, 200, 8)), []
    share = np.full((1, 200), 1 / 200)
    for _ in range(300):

        def penalty(params, state=state):
            gates = ops.relu(params["logits"])
            taps = {"router.weights": gates, "router.kept": params["logits"] > 0.0}
            return balancer.training_terms(ops, None, state, taps, share)[0]

        gradient = ops.value_and_grad(penalty)({"logits": logits})[1]["logits"]
        logits = logits - 20.0 * gradient + 0.01 * (np.maximum(logits, 0.0) < 0.3) * (logits > -0.1)
        counts.append((logits > 0.0).sum(-1).mean())
        state = balancer.moved(ops, state, {"kept": np.asarray(200 * counts[-1]), "tokens": 200.0})
    assert counts[0] > 4.0
    assert counts[-1] < counts[0] - 1.0
    assert state["steps"][0] > 10


@pytest.mark.parametrize("name", names("balancer"))
def test_each_choice_is_built_and_its_state_is_a_state(name):
    balancer = component("balancer", name)
    router = {"threshold": "threshold", "sparsity": "remoe"}.get(balancer.moves)
    model = lab.load_model("storybook", weights="random", ffn="moe", router=router, balancer=name)
    assert model.config.blocks[0].ffn.balancer == balancer
    for state, shape in balancer.states(8).items():
        value = model.params["blocks"][0]["ffn"]["balancer"][state]
        assert value.shape == tuple(shape)
        assert not value.any()


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (SignBias, {"rate": 0.0}, r"balancer\.rate is 0\.0; it must be a positive number\."),
        (SMEBU, {"beta": 1.0}, r"balancer\.beta is 1\.0; it must be at least 0 and below 1\."),
        (Quantile, {"rate": 1.5}, r"balancer\.rate is 1\.5; it must be above 0 and at most 1\."),
        (AdaptiveL1, {"factor": 1.0}, r"balancer\.factor is 1\.0; it must be above 1\."),
        (AdaptiveL1, {"k": 0}, r"balancer\.k is 0; it must be a whole number from 1 to"),
        (Threshold, {"rate": 0}, r"balancer\.rate is 0; it must be above 0 and at most 1\."),
    ],
)
def test_wrong_numbers_are_refused(kind, fields, message):
    with pytest.raises(lab.ConfigurationError, match=message):
        kind(**fields)


def test_a_balancer_needs_a_mixture():
    with pytest.raises(lab.ConfigurationError, match="balancer cannot be chosen: Dense has no field of that name"):
        lab.load_model("storybook", weights="random", balancer="sign_bias")
