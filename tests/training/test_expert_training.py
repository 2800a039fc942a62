"""Training a mixture of experts: what is added to the loss, what is told, and the states beside the weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import small_model
from test_training_step import begin
from tolerances import LOSS_CURVE

import transformer_lab as lab
from transformer_lab.balancer.quantile import Quantile
from transformer_lab.balancer.sign_bias import SignBias
from transformer_lab.balancer.smebu import SMEBU
from transformer_lab.config import component
from transformer_lab.ffn.capacity import Capacity
from transformer_lab.ffn.dense import Dense
from transformer_lab.ffn.experts import Experts
from transformer_lab.ffn.losses import balance, used, z_loss
from transformer_lab.ffn.moe import MixtureOfExperts
from transformer_lab.model.init import initialise
from transformer_lab.model.parameters import shapes
from transformer_lab.model.state import is_state
from transformer_lab.router.mixtral import Mixtral
from transformer_lab.router.olmoe import OLMoE
from transformer_lab.training import step as step_module
from transformer_lab.training.pieces import summed

BACKENDS = ("numpy", "torch", "jax")
MOE = MixtureOfExperts(OLMoE(2), Experts(4, 24), balance_loss=0.02, z_loss=0.01, balancer=SignBias(0.01))


def config(ffn=MOE):
    return small_model(61, 12, 32, 2, 4, ffn)


def run(backend, ffn=MOE, pieces=1, steps=3, weights=None, precision="float64", **options):
    training = begin(backend, precision, config(ffn), **options)
    draw = np.random.default_rng(5)
    found = []
    for step in range(1, steps + 1):
        ids = draw.integers(0, 61, (8, 13)).reshape(pieces, 8 // pieces, 13)
        given = np.ones((8, 12)) if weights is None else weights
        found.append(training.run(ids, given.reshape(pieces, 8 // pieces, 12), step, 1.0))
    return np.array(found), training


def close(one, other, tolerance=1e-11):
    for name, array in one.items():
        np.testing.assert_allclose(array, other[name], rtol=0, atol=tolerance, err_msg=name)


PARTLY = np.ones((8, 12))
PARTLY[1, 5:] = PARTLY[6, 1:] = 0.0


@pytest.mark.parametrize("scope", ["step", "sequence"])
@pytest.mark.parametrize("balancer", [SignBias(0.01), SMEBU(0.01), Quantile(0.5)], ids=["sign", "smebu", "quantile"])
def test_three_backends_train_alike_in_any_number_of_pieces(balancer, scope):
    """Loss, norm, weights, states and what is told: the load is counted once for a step, whatever its pieces."""
    ffn = replace(MOE, balancer=balancer, balance_scope=scope)
    expected, one = run("numpy", ffn, weights=PARTLY)
    for backend, pieces in (("numpy", 4), ("torch", 1), ("torch", 8), ("jax", 2)):
        found, training = run(backend, ffn, pieces, weights=PARTLY)
        np.testing.assert_allclose(found, expected, rtol=0, atol=LOSS_CURVE["float64"])
        close(training.trees()["params"], one.trees()["params"])
        for layer in (0, 1):
            close(training.told[layer], one.told[layer])


def test_pieces_have_balance_losses_of_their_own_where_that_is_asked_for():
    ffn = replace(MOE, balance_scope="piece", balance_loss=1.0)
    norms = {pieces: run("numpy", ffn, pieces, steps=1)[0][0, 1] for pieces in (1, 2, 8)}
    assert abs(norms[1] - norms[2]) > 1e-6
    whole = run("numpy", replace(ffn, balance_scope="sequence"), 1, steps=1)[0][0, 1]
    np.testing.assert_allclose(norms[8], whole, rtol=1e-9)  # a piece of one row is a sequence


def slow_balance(ids, probabilities, real, experts, slots):
    """E sum_i f_i P_i over the tokens that are real."""
    count = [[0.0] * experts, [0.0] * experts]
    tokens = 0
    for row, token in np.argwhere(real):
        tokens += 1
        for slot in range(slots):
            count[0][ids[row, token, slot]] += 1.0
        for expert in range(experts):
            count[1][expert] += probabilities[row, token, expert]
    return experts * sum(f / (slots * tokens) * p / tokens for f, p in zip(*count, strict=True))


def test_the_balance_loss_is_one_where_all_is_uniform_and_padding_does_not_count():
    ops, draw = component("backend", "numpy", precision="float64"), np.random.default_rng(0)
    share = np.full((1, 8), 1 / 8)
    even = np.array([[[0, 1], [2, 3], [1, 2], [3, 0]] * 2])
    for slots in (1, 2):
        load = used(ops, even[..., :slots] if slots == 2 else np.arange(8)[None, :, None] % 4, None, share, 4)
        assert balance(ops, load, np.full((1, 8, 4), 0.25), share, "step") == 1.0
    logits = draw.normal(size=(3, 5, 4))
    probabilities, ids = ops.softmax(logits), ops.top_k(logits, 2)[1]
    real = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]], bool)
    share = real / real.sum()
    load = used(ops, ids, None, share, 4)
    found = balance(ops, load, probabilities, share, "piece")
    np.testing.assert_allclose(found, slow_balance(ids, probabilities, real, 4, 2), rtol=1e-12)
    rows = [slow_balance(ids[[row]], probabilities[[row]], real[[row]], 4, 2) for row in range(3)]
    expected = sum(value * real[row].sum() / real.sum() for row, value in enumerate(rows))
    np.testing.assert_allclose(balance(ops, load, probabilities, share, "sequence"), expected, rtol=1e-12)
    expected = (torch.logsumexp(torch.tensor(logits), -1).numpy()[real] ** 2).mean()
    np.testing.assert_allclose(z_loss(ops, logits, share), expected, rtol=1e-12)


def test_losses_of_layers_are_added_and_not_taken_of_all_layers_at_once():
    """Two layers that lean to opposite sides would cancel: each is told by itself, and both weigh in the loss."""
    _, training = run("numpy", steps=1)
    told = [training.told[layer]["balance"] for layer in (0, 1)]
    assert min(told) > 1.0
    both = begin("numpy", "float64", config())
    loss, ids = [], np.random.default_rng(5).integers(0, 61, (1, 8, 13))
    for coefficient in (0.0, 1.0):
        ffn = replace(MOE, balance_loss=coefficient, z_loss=0.0)
        total = []
        original = both.ops.value_and_grad

        def spied(function, extra=False, total=total, original=original):
            run_both = original(function, extra)

            def noting(*arguments):
                total.append(float(function(*arguments)[0]))
                return run_both(*arguments)

            return noting

        both.ops.value_and_grad = spied
        step = step_module.make_step(both.ops, config(ffn), both.optimizer)
        both.ops.value_and_grad = original
        weights = np.full((1, 8, 12), 1 / 96)
        rates = np.append(both.optimizer.rates(1, 1.0), 0.0)
        step(both.params, both.moments, None, both.states, both._constants, ids, weights, rates)
        loss.append(total[0])
    np.testing.assert_allclose(loss[1] - loss[0], sum(told), rtol=1e-9)


def test_a_state_is_neither_learned_nor_averaged_nor_decayed():
    _, training = run("torch", steps=4, average_decay=0.9, weight_decay=10.0, clip_norm=1e-9, learning_rate=0.01)
    trees = training.trees()
    states = {name for name, shape in shapes(config()).items() if is_state(shape)}
    assert states == {"blocks.0.ffn.balancer.bias", "blocks.1.ffn.balancer.bias"}
    for name in states:
        steps = np.rint(trees["params"][name] / 0.01)
        np.testing.assert_allclose(trees["params"][name], 0.01 * steps, atol=1e-12)  # whole steps, of nothing else
        assert np.abs(steps).max() >= 1
        assert (trees["average"][name] == trees["params"][name]).all()
        assert name not in trees["first"]
        assert name not in trees["second"]


def test_evaluation_leaves_the_states_alone():
    _, training = run("numpy")
    before = {name: array.copy() for name, array in training.states.items()}
    model = lab.load_model("storybook", weights="random", ffn="moe", balancer="sign_bias")
    own = [np.array(block["ffn"]["balancer"]["bias"]) for block in model.params["blocks"]]
    model.loss([3, 4, 5, 6])
    model.generate([3, 4], max_new_tokens=3)
    assert all(
        (block["ffn"]["balancer"]["bias"] == kept).all()
        for block, kept in zip(model.params["blocks"], own, strict=True)
    )
    assert all((training.states[name] == array).all() for name, array in before.items())


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_routed_array_moves_and_biases_of_experts_are_not_decayed(backend):
    ffn = replace(MOE, experts=Experts(4, 24, "gelu_tanh", gated=False, bias=True))
    names = [name for name in shapes(config(ffn)) if ".ffn." in name]
    begun = dict(initialise(config(ffn), 0))
    _, training = run(backend, ffn)
    after = training.trees()["params"]
    for name in names:
        per_expert = after[name] - begun[name]
        if ".experts." in name:
            assert (np.abs(per_expert).reshape(4, -1).max(axis=1) > 0).all(), name
        assert np.abs(per_expert).max() > 0, name
    frozen = begin(backend, "float64", config(ffn), learning_rate=0.1, weight_decay=1.0, clip_norm=1e-30)
    frozen.params = {name: frozen.ops.asarray(np.ones(shapes(config(ffn))[name])) for name in frozen.params}
    ids = np.random.default_rng(5).integers(0, 61, (1, 8, 13))
    frozen.optimizer = replace(frozen.optimizer, epsilon=1.0)
    frozen._step = frozen.ops.compile(step_module.make_step(frozen.ops, config(ffn), frozen.optimizer))
    frozen.run(ids, np.ones((1, 8, 12)), 1, 1.0)
    for name, array in frozen.trees()["params"].items():
        if name not in frozen.states:
            decayed = name.endswith((".kernel", ".gate", "embed.token", "embed.position"))
            np.testing.assert_allclose(array, 0.9 if decayed else 1.0, atol=1e-9, err_msg=name)


def test_an_expert_without_tokens_still_decays_and_its_moments_fade():
    ffn = MixtureOfExperts(Mixtral(1 + 1), Experts(4, 24), balancer=SignBias(0.01))
    training = begin("numpy", "float64", config(ffn), weight_decay=0.5, learning_rate=0.1)
    kernel = "blocks.0.ffn.experts.up.kernel"
    training.states["blocks.0.ffn.balancer.bias"][:] = [0.0, 0.0, 0.0, -100.0]  # nobody goes there
    training.moments["first"][kernel][3] = 1e-30
    before = training.params[kernel][3].copy()
    training.run(np.random.default_rng(5).integers(0, 61, (1, 8, 13)), np.ones((1, 8, 12)), 1, 1.0)
    assert training.told[0]["load"][3] == 0
    assert (training.moments["first"][kernel][3] == 0.9 * 1e-30).all()
    np.testing.assert_allclose(training.params[kernel][3], before * (1.0 - 0.1 * 0.5), rtol=1e-12)


def test_a_layer_without_a_balancer_does_not_stop_the_others():
    first = config(replace(MOE, balancer=None)).blocks[0]
    mixed = replace(config(), blocks=(first, config(Dense(24)).blocks[0], *config().blocks[:1]))
    training = begin("jax", "float64", mixed)
    training.run(np.random.default_rng(5).integers(0, 61, (2, 4, 13)), np.ones((2, 4, 12)), 1, 1.0)
    assert set(training.states) == {"blocks.2.ffn.balancer.bias"}
    assert np.abs(training.trees()["params"]["blocks.2.ffn.balancer.bias"]).max() > 0
    assert set(training.told) == {0, 2}


@pytest.mark.parametrize("backend", BACKENDS)
def test_capacity_drops_and_tells_so(backend):
    ffn = replace(MOE, capacity=Capacity(0.5, "token", "batch"))
    found, training = run(backend, ffn, weights=PARTLY)
    expected, one = run("numpy", ffn, weights=PARTLY)
    np.testing.assert_allclose(found, expected, rtol=0, atol=LOSS_CURVE["float64"])
    close(training.told[0], one.told[0])
    assert 0.4 * 2 * PARTLY.sum() < training.told[0]["kept"] <= 4 * np.ceil(0.5 * 2 * PARTLY.sum() / 4)


def test_a_step_that_is_not_finite_moves_no_state():
    training = begin("torch", "float32", config())
    training.params["embed.token"][:] = np.inf
    training.run(np.ones((1, 2, 13), int), np.ones((1, 2, 12), np.float32), 1, 1.0)
    assert not any(array.any() for array in training.states.values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_that_is_stored_goes_on_with_the_same_bits(backend, tmp_path):
    from transformer_lab.training import checkpoint

    ffn = replace(MOE, balancer=SMEBU(0.01))
    _, whole = run(backend, ffn, steps=4, precision="float32", average_decay=0.9)
    _, half = run(backend, ffn, steps=2, precision="float32", average_decay=0.9)
    facts = {"identity": {}, "surroundings": {}, "best": None, "loss": None, "evaluation": None}
    checkpoint.save(tmp_path, 2, config(ffn), half.trees(), facts, None)
    (found,) = checkpoint.found(tmp_path)
    later = begin(backend, "float32", config(ffn), average_decay=0.9)
    later.restore(checkpoint.load(found, config(ffn), np.float32))
    draw = np.random.default_rng(5)
    for step in range(1, 5):
        ids = draw.integers(0, 61, (8, 13))[None]
        if step > 2:
            later.run(ids, np.ones((1, 8, 12)), step, 1.0)
    for title, tree in whole.trees().items():
        for name, array in tree.items():
            assert array.tobytes() == later.trees()[title][name].tobytes(), (title, name)


def test_pieces_are_added_as_a_balanced_tree():
    """Told by numbers that are lost beside a large one: one after the other, but not two at once."""
    numbers = [2.0**53, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    expected = ((numbers[0] + numbers[1]) + (numbers[2] + numbers[3])) + (numbers[4] + numbers[5]) + numbers[6]
    assert expected != sum(numbers)
    for backend in BACKENDS:
        ops = component("backend", backend, precision="float64")
        with ops.scope():
            array = ops.asarray(np.array(numbers))
            found = summed(ops, lambda index, array=array: {"x": array[index]}, 7)
            assert float(ops.to_numpy(found["x"])) == expected
