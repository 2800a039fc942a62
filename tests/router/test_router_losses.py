"""What routers add to the loss of training by themselves, and what they see otherwise in it."""

import numpy as np
import pytest
from reference_layers import D, E
from scipy.stats import norm
from small_models import small_model

from transformer_lab.config import component
from transformer_lab.errors import ConfigurationError
from transformer_lab.ffn.experts import Experts
from transformer_lab.ffn.losses import squared_variation
from transformer_lab.ffn.moe import MixtureOfExperts
from transformer_lab.model.init import initialise
from transformer_lab.model.parameters import nest
from transformer_lab.model.tokens import tokens_of
from transformer_lab.router.noisy_top_k import NoisyTopK
from transformer_lab.router.switch import Switch
from transformer_lab.training.optimizer import AdamW
from transformer_lab.training.step import TrainingStep

BACKENDS = ("numpy", "torch", "jax")
B, T = 2, 9
REAL = np.array([[True] * 9, [True] * 6 + [False] * 3])
SHARE = REAL / 20.0  # a piece with three quarters of its step


def shares(router, seed=3):
    """A pass of a layer in training: its parameters by dotted name, x and noise."""
    draw = np.random.default_rng(seed)
    layer = MixtureOfExperts(router, Experts(E, 12))
    arrays = {name: draw.normal(size=shape) * 0.6 for name, shape in layer.shapes(D).items()}
    return layer, arrays, draw.normal(size=(B, T, D)), draw.normal(size=(B, T, E))


def loss_of(ops, layer, x, noise):
    """A function of the parameters alone: the router's own loss."""

    def run(params):
        seen = {}

        def look(name, value):
            seen[name] = value
            return value

        tokens = tokens_of(ops, ops.asarray(np.zeros((B, T), int)), ops.asarray(np.zeros(B, int)))
        layer(ops, nest(params), x, look, tokens._replace(noise=noise))
        return layer.router.training_loss(ops, seen, ops.asarray(SHARE))

    return run


def by_hand(router, arrays, x, noise):
    """Equations 3 to 11 of 1701.06538, a token and an expert at a time, with scipy's distribution."""
    importance, load = np.zeros(E), np.zeros(E)
    for row, drawn, real in zip(x.reshape(-1, D), noise.reshape(-1, E), REAL.ravel(), strict=True):
        if not real:
            continue
        clean, spread = row @ arrays["router.gate"], np.log1p(np.exp(row @ arrays["router.noise.gate"]))
        h = clean + drawn * spread
        best = np.argsort(-h)[: router.k]
        importance[best] += np.exp(h[best]) / np.exp(h[best]).sum()
        for i in range(E):
            others = np.sort(np.delete(h, i))[::-1]
            load[i] += norm.cdf((clean[i] - others[router.k - 1]) / spread[i])
    one, two = (np.var(sums) / np.mean(sums) ** 2 for sums in (importance, load))
    return 0.75 * (router.importance_loss * one + router.load_loss * two)


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("backend", BACKENDS)
def test_losses_of_noisy_top_k_are_those_of_the_paper(backend, k):
    router = NoisyTopK(k, importance_loss=0.3, load_loss=0.2)
    layer, arrays, x, noise = shares(router)
    ops = component("backend", backend, precision="float64")
    with ops.scope():
        params = {name: ops.asarray(array) for name, array in arrays.items()}
        found = ops.to_numpy(loss_of(ops, layer, ops.asarray(x), ops.asarray(noise))(params))
    assert found == pytest.approx(by_hand(router, arrays, x, noise), rel=1e-12)
    assert found > 0.01


@pytest.mark.parametrize("backend", BACKENDS)
def test_their_gradients_are_those_of_differences(backend):
    layer, arrays, x, noise = shares(NoisyTopK(2, importance_loss=0.3, load_loss=0.2))
    ops = component("backend", backend, precision="float64")
    with ops.scope():
        run = loss_of(ops, layer, ops.asarray(x), ops.asarray(noise))
        params = {name: ops.asarray(array) for name, array in arrays.items()}
        _, gradients = ops.value_and_grad(run)(params)
        gradients = {name: ops.to_numpy(gradient) for name, gradient in gradients.items()}
    draw = np.random.default_rng(8)
    for name in ("router.gate", "router.noise.gate"):
        way = draw.normal(size=arrays[name].shape)
        ends = [by_hand(layer.router, arrays | {name: arrays[name] + step * way}, x, noise) for step in (1e-6, -1e-6)]
        assert (gradients[name] * way).sum() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6), name
        assert np.abs(gradients[name]).max() > 1e-4
    assert all(not gradient.any() for name, gradient in gradients.items() if "router" not in name)


def test_what_a_load_is():
    """How often an expert is chosen if its own noise is drawn anew, and that of the others stays: drawn 4,000 times."""
    router = NoisyTopK(2)
    layer, arrays, x, noise = shares(router)
    ops, seen = component("backend", "numpy", precision="float64"), {}
    tokens = tokens_of(ops, np.zeros((B, T), int), np.zeros(B, int))._replace(noise=noise)
    layer(ops, nest(arrays), x, lambda name, value: seen.setdefault(name, value), tokens)
    chosen = (seen["router.expert_ids"][..., None] == np.arange(E)).any(-2)
    likely = router._likely(ops, seen, chosen)
    draw, often = np.random.default_rng(0), np.zeros((B, T, E))
    for expert in range(E):
        h = np.repeat(seen["router.logits"][None], 4000, axis=0)
        again = draw.normal(size=(4000, B, T)) * seen["router.spread"][..., expert]
        h[..., expert] = seen["router.clean"][..., expert] + again
        often[..., expert] = (h[..., expert] >= np.sort(h, axis=-1)[..., -2]).mean(0)
    assert np.abs(likely - often).max() < 4.5 * 0.5 / 4000**0.5
    assert 0.2 < likely.mean() < 0.3


def test_all_experts_alike_and_no_tokens_cost_nothing():
    ops = component("backend", "numpy", precision="float64")
    assert squared_variation(ops, np.ones((B, T, E)), SHARE) == 0.0
    assert squared_variation(ops, np.zeros((B, T, E)), SHARE) == 0.75 * 1.0
    assert squared_variation(ops, np.ones((B, T, E)), np.zeros((B, T))) == 0.0
    # Who are all chosen are chosen whatever is drawn.
    layer, arrays, x, noise = shares(NoisyTopK(E, importance_loss=0.0, load_loss=1.0))
    assert loss_of(ops, layer, x, noise)(arrays) == 0.0


def trained(router, backend, pieces):
    """(losses, parameters) after three steps of two layers, in some of whose rows a part is padding."""
    config = small_model(61, 12, 32, 2, 4, MixtureOfExperts(router, Experts(4, 24)))
    ops = component("backend", backend, precision="float64")
    arrays = {
        name: (array * (20.0 if name.endswith(".gate") else 1.0)).astype(float) for name, array in initialise(config, 0)
    }
    training, draw = TrainingStep(ops, config, arrays, AdamW(), noise_seed=0), np.random.default_rng(5)
    weights = np.ones((4, 12), np.float32)
    weights[2:, 7:] = 0.0
    found = []
    for step in (1, 2, 3):
        ids = draw.integers(0, 61, (4, 13))
        found.append(training.run(ids.reshape(pieces, -1, 13), weights.reshape(pieces, -1, 12), step, 1.0))
    return np.array(found), training.trees()["params"]


TRAINED = {"losses": NoisyTopK(2, importance_loss=0.1, load_loss=0.1), "jitter": Switch(jitter=0.3)}
WITHOUT = {"losses": NoisyTopK(2, importance_loss=0.0, load_loss=0.0), "jitter": Switch(jitter=0.0)}


@pytest.mark.parametrize("kind", TRAINED)
def test_training_is_the_same_on_three_backends(kind):
    expected, params = trained(TRAINED[kind], "numpy", 2)
    for backend in ("torch", "jax"):
        found, others = trained(TRAINED[kind], backend, 2)
        np.testing.assert_allclose(found, expected, rtol=1e-9)
        assert all(np.allclose(others[name], params[name], rtol=0, atol=1e-9) for name in params)
    assert np.abs(trained(WITHOUT[kind], "numpy", 2)[0] - expected).max() > 1e-4


def test_losses_and_gradients_have_the_same_bits_in_exact_mode():
    layer, arrays, x, noise = shares(NoisyTopK(2, importance_loss=0.3, load_loss=0.2))
    found = []
    for backend in BACKENDS:
        ops = component("backend", backend, precision="exact")
        with ops.scope():
            given = [ops.asarray(array.astype(np.float32)) for array in (x, noise)]
            params = {name: ops.asarray(array.astype(np.float32)) for name, array in arrays.items()}
            loss, gradients = ops.value_and_grad(loss_of(ops, layer, *given))(params)
            found.append(b"".join(ops.to_numpy(part).tobytes() for part in (loss, *gradients.values())))
    assert found[0] == found[1] == found[2]


def test_jitter_is_for_the_router_alone():
    """Its logits are those of x times 1 + jitter (2 u - 1); the experts get x as it is; outside training nothing."""
    layer, arrays, x, _ = shares(Switch(jitter=0.25))
    ops, drawn = component("backend", "numpy", precision="float64"), np.random.default_rng(1).uniform(size=(B, T, D))
    seen = {}

    def run(noise):
        seen.clear()
        tokens = tokens_of(ops, np.zeros((B, T), int), np.zeros(B, int))._replace(noise=noise)
        layer(ops, nest(arrays), x, lambda name, value: seen.setdefault(name, value), tokens)
        return dict(seen)

    plain, shaken = run(None), run(drawn)
    np.testing.assert_allclose(plain["router.logits"], x @ arrays["router.gate"], rtol=1e-12)
    right = x * np.where(drawn < 0.5, 1.0 - 0.25 * (1.0 - 2.0 * drawn), 1.0 + 0.25 * (2.0 * drawn - 1.0))
    np.testing.assert_allclose(shaken["router.logits"], right @ arrays["router.gate"], rtol=1e-9, atol=1e-12)
    same = (plain["router.expert_ids"] == shaken["router.expert_ids"])[..., 0]
    assert 0 < same.sum() < same.size
    np.testing.assert_allclose(plain["experts.out"][same], shaken["experts.out"][same], rtol=1e-9, atol=1e-12)
    assert layer.router.noise_size(D, E) == D
    assert Switch(jitter=0.0).noise_size(D, E) == 0


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), True, "much"])
def test_what_no_coefficient_is(value):
    for make, name in (
        (lambda: Switch(jitter=value), "jitter"),
        (lambda: NoisyTopK(importance_loss=value), "importance_loss"),
        (lambda: NoisyTopK(load_loss=value), "load_loss"),
    ):
        with pytest.raises(ConfigurationError, match=rf"ffn\.router\.{name} is .*must be a number"):
            make()
