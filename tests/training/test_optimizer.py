"""AdamW, clipping, schedules and the average of weights against torch's, in float64."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from tolerances import OPTIMIZER

import transformer_lab as lab
from transformer_lab.config import component
from transformer_lab.training.optimizer import AdamW, global_norm, moving_average
from transformer_lab.training.schedule import Constant, Cosine, Linear, WarmupStableDecay

BACKENDS = ("numpy", "torch", "jax")
DECAY = {"num_decay_steps": 40, "decay_type": "linear", "warmup_type": "linear"}


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


def shares_of_transformers(name, steps, **more):
    """For the steps 1 ... steps; transformers counts them from 0."""
    import transformers

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    judge = getattr(transformers, f"get_{name}")(optimizer, **more)
    shares = []
    for _ in range(steps):
        shares.append(judge.get_last_lr()[0])
        optimizer.step()
        judge.step()
    return shares


@pytest.mark.parametrize("warmup", [0, 10])
@pytest.mark.parametrize(
    ("ours", "name", "more"),
    [
        (Constant, "constant_schedule_with_warmup", {}),
        (Cosine, "cosine_schedule_with_warmup", {"num_training_steps": 100}),
        (Linear, "linear_schedule_with_warmup", {"num_training_steps": 100}),
        (partial(WarmupStableDecay, decay_share=0.4), "wsd_schedule", {"num_training_steps": 100, **DECAY}),
    ],
)
def test_schedules_are_those_of_transformers(ours, name, more, warmup):
    """But for the warm-up, where transformers gives the first step no rate at all, and ours is one step ahead."""
    theirs = shares_of_transformers(name, 100, num_warmup_steps=warmup, **more)
    shares = [ours(warmup, 0.0).share(step, 100) for step in range(1, 101)]
    assert shares[warmup:] == pytest.approx(theirs[warmup:], abs=1e-12)
    assert shares[:warmup] == pytest.approx(theirs[1 : warmup + 1], abs=1e-12)


def test_shapes_of_the_schedules():
    assert [Constant(4).share(step, 8) for step in (1, 2, 4, 5, 8)] == [0.25, 0.5, 1, 1, 1]
    stable = WarmupStableDecay(10, final_share=0.0, decay_share=0.5)
    assert [stable.share(step, 100) for step in (10, 51, 76, 100, 101)] == pytest.approx([1, 1, 0.5, 0.02, 0])
    assert Cosine(10, 0.1).share(111, 110) == pytest.approx(0.1)  # one step after the last
    assert Linear(0, 0.2).share(2, 2) == pytest.approx(0.6)
    assert Cosine(0, 0.1).share(500, 100) == pytest.approx(0.1)  # a run that goes on beyond its end


def test_the_decay_is_a_share_of_the_whole_run():
    ten = [WarmupStableDecay(2, 0.0, 0.4).share(step, 10) for step in range(1, 11)]
    assert ten == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    short = [WarmupStableDecay(8, 0.0, 0.4).share(step, 10) for step in (7, 8, 9, 10)]
    assert short == pytest.approx([7 / 8, 1, 1, 0.5])  # the warm-up leaves it two steps


@pytest.mark.parametrize("schedule", [Constant(0), Cosine(0, 0.0), Linear(0, 0.0), WarmupStableDecay(0, 0.0, 0.3)])
@pytest.mark.parametrize("warmup", [0, 1, 3])
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_every_step_learns(schedule, warmup, steps):
    schedule = replace(schedule, warmup_steps=warmup)
    assert all(schedule.share(step, steps) > 0 for step in range(1, steps + 1))
    assert warmup or schedule.share(1, steps) == 1


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
