"""AdamW, clipping, schedules and the average of weights against torch's, in float64."""

import math

import numpy as np
import pytest
import torch
from tolerances import OPTIMIZER

import transformer_lab as lab
from transformer_lab.config import component
from transformer_lab.training.optimizer import AdamW, global_norm, moving_average
from transformer_lab.training.schedule import Constant, Cosine, Linear, WarmupStableDecay

BACKENDS = ("numpy", "torch", "jax")


def run_ours(name, optimizer, start, gradients, shares):
    ops = component("backend", name, precision="float64")
    params = {key: ops.asarray(array) for key, array in start.items()}
    moments = optimizer.begin(ops, params)
    norms = []
    update = ops.compile(lambda p, g, m, rates: optimizer.update(ops, p, g, m, rates))
    for step, (gradient, share) in enumerate(zip(gradients, shares, strict=True), 1):
        given = {key: ops.asarray(array) for key, array in gradient.items()}
        params, moments, norm = update(params, given, moments, ops.asarray(optimizer.rates(step, share)))
        norms.append(float(ops.to_numpy(norm)))
    return {key: ops.to_numpy(array) for key, array in params.items()}, norms


def inputs():
    draw = np.random.default_rng(3)
    shapes = {"a.kernel": (5, 7), "a.bias": (7,), "norm.weight": (5,), "embed.token": (6, 5)}
    start = {key: draw.standard_normal(shape) for key, shape in shapes.items()}
    gradients = [{key: draw.standard_normal(shape) * 3 for key, shape in shapes.items()} for _ in range(7)]
    return start, gradients, np.linspace(1.0, 0.3, 7)


def distance(found, expected):
    return max(np.abs(found[key] - expected[key]).max() for key in expected)


@pytest.mark.parametrize("clip", [None, 2.0])
@pytest.mark.parametrize("name", BACKENDS)
def test_adamw_is_that_of_torch(name, clip):
    start, gradients, shares = inputs()
    tensors = {key: torch.tensor(array, requires_grad=True) for key, array in start.items()}
    groups = [
        {"params": [x for x in tensors.values() if x.ndim > 1], "weight_decay": 0.1},
        {"params": [x for x in tensors.values() if x.ndim == 1], "weight_decay": 0.0},
    ]
    judge = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8)
    expected_norms = []
    for gradient, share in zip(gradients, shares, strict=True):
        for key, tensor in tensors.items():
            tensor.grad = torch.tensor(gradient[key])
        expected_norms.append(float(torch.nn.utils.clip_grad_norm_(tensors.values(), clip or math.inf)))
        for group in judge.param_groups:
            group["lr"] = 0.01 * share
        judge.step()
    expected = {key: tensor.detach().numpy() for key, tensor in tensors.items()}
    found, norms = run_ours(name, AdamW(learning_rate=0.01, clip_norm=clip), start, gradients, shares)
    assert distance(found, expected) <= OPTIMIZER
    np.testing.assert_allclose(norms, expected_norms, rtol=OPTIMIZER)
    assert distance(start, expected) > 0.01  # it did move
    coupled, _ = run_ours(name, AdamW(learning_rate=0.01, clip_norm=clip, weight_decay=0.2), start, gradients, shares)
    assert distance(coupled, expected) > OPTIMIZER  # and another decay is seen


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, on the way
@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_gradients_that_are_not_finite_change_nothing(name, bad):
    start, gradients, shares = inputs()
    gradients = gradients[:1]
    gradients[0]["a.kernel"][1, 1] = bad
    found, norms = run_ours(name, AdamW(), start, gradients, shares[:1])
    assert not math.isfinite(norms[0])
    assert distance(found, start) == 0


def test_the_average_of_weights():
    average = {"w": np.array([1.0, 2.0])}
    found = moving_average(average, {"w": np.array([3.0, 6.0])}, 0.75)
    np.testing.assert_allclose(found["w"], [1.5, 3.0])
    assert average["w"].tolist() == [1.0, 2.0]


def test_cosine_and_linear_are_those_of_transformers():
    import transformers

    weight = torch.nn.Parameter(torch.zeros(1))
    for ours, theirs in (
        (Cosine(10, 0.0), transformers.get_cosine_schedule_with_warmup),
        (Linear(10, 0.0), transformers.get_linear_schedule_with_warmup),
    ):
        optimizer = torch.optim.SGD([weight], lr=1.0)
        judge = theirs(optimizer, num_warmup_steps=10, num_training_steps=100)
        for step in range(100):
            # theirs counts from 0 and gives the first step no rate at all; ours counts from 1
            assert ours.share(step, 100) == pytest.approx(judge.get_last_lr()[0], abs=1e-12) if step else True
            optimizer.step()
            judge.step()


def test_shapes_of_the_schedules():
    assert [Constant(4).share(step, 8) for step in (1, 2, 4, 5, 8)] == [0.25, 0.5, 1, 1, 1]
    stable = WarmupStableDecay(10, final_share=0.0, decay_share=0.5)
    assert [stable.share(step, 110) for step in (10, 60, 85, 110)] == pytest.approx([1, 1, 0.5, 0])
    assert Cosine(10, 0.1).share(110, 110) == pytest.approx(0.1)
    assert Linear(0, 0.2).share(1, 2) == pytest.approx(0.6)
    assert Cosine(0, 0.1).share(500, 100) == pytest.approx(0.1)  # a run that goes on beyond its end


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: AdamW(learning_rate=0.0), "learning_rate"),
        (lambda: AdamW(beta_1=1.0), "beta_1"),
        (lambda: AdamW(weight_decay=-1.0), "weight_decay"),
        (lambda: AdamW(clip_norm=0.0), "clip_norm"),
        (lambda: AdamW(epsilon=math.inf), "epsilon"),
        (lambda: Cosine(-1), "warmup_steps"),
        (lambda: Linear(0, 1.5), "final_share"),
        (lambda: WarmupStableDecay(0, 0.0, 0.0), "decay_share"),
    ],
)
def test_values_out_of_range(make, word):
    with pytest.raises(lab.ConfigurationError, match=word):
        make()


@pytest.mark.parametrize("name", BACKENDS)
def test_the_norm_does_not_depend_on_the_order_of_the_tree(name):
    """In float32 the order of a sum shows; a run that goes on reads its tree in another order."""
    draw = np.random.default_rng(0)
    gradients = {f"blocks.{i}.kernel": draw.standard_normal((9, 5)).astype(np.float32) for i in range(40)}
    ops = component("backend", name)
    norms = set()
    for _ in range(20):
        names = draw.permutation(list(gradients))
        norms.add(float(ops.to_numpy(global_norm(ops, {key: ops.asarray(gradients[key]) for key in names}))))
    assert len(norms) == 1
