"""One step of training a mixture of experts, worked out otherwise: loops in float64 and central differences.

Of the project's code only the forward pass of the whole model is used, without a gradient and without pieces.
"""

from functools import cache

import numpy as np
from small_models import small_model
from tolerances import FINITE_DIFFERENCE, OPTIMIZER

from transformer_lab.config import component
from transformer_lab.language_model.placing import rotary_tables
from transformer_lab.model.init import initialise
from transformer_lab.model.parameters import nest, shapes
from transformer_lab.model.state import is_state
from transformer_lab.training.optimizer import AdamW
from transformer_lab.training.step import TrainingStep, weighted_loss

VOCABULARY, LENGTH, ROWS, EXPERTS = 31, 7, 6, 4
RATE, DECAY, STEP = 0.01, 0.5, 1e-6
IDLE = EXPERTS - 1  # of the last layer: its bias is so low that nobody goes there
DRAW = np.random.default_rng(5)
IDS = DRAW.integers(0, VOCABULARY, (ROWS, LENGTH + 1))
WEIGHTS = np.ones((ROWS, LENGTH))
WEIGHTS[1, 4:] = WEIGHTS[4, 1:] = 0.0  # padding, of unequal pieces


def model(*ffns):
    """(the configuration, its parameters in float64): a small decoder with these networks, the last with a balancer."""
    config = small_model(VOCABULARY, LENGTH, 8, len(ffns), 2, ffns[0])
    blocks = tuple(type(b)(**{**vars(b), "ffn": ffn}) for b, ffn in zip(config.blocks, ffns, strict=True))
    config = type(config)(**{**vars(config), "blocks": blocks})
    draw, arrays = np.random.default_rng(2), {}
    for name, array in initialise(config):
        arrays[name] = array.astype(np.float64) + draw.normal(size=array.shape) * (0.4 if ".ffn." in name else 0.1)
        if is_state(shapes(config)[name]):
            arrays[name] = draw.normal(size=array.shape) * 0.02
    arrays[f"blocks.{len(ffns) - 1}.ffn.balancer.bias"][IDLE] = -100.0
    return config, arrays


def layers_of(config):
    return {layer: block.ffn for layer, block in enumerate(config.blocks) if hasattr(block.ffn, "router")}


def passed(config, arrays):
    """(the mean loss of the text, {layer: logits of its router}) of all rows at once."""
    ops, seen = component("backend", "numpy", precision="float64", ops="manual"), {}

    def look(name, x):
        if name.endswith("router.logits"):
            seen[int(name.split(".")[1])] = x
        return x

    tree = nest(arrays) | {"rotary": rotary_tables(config, ops)}
    return weighted_loss(ops, config, tree, IDS, WEIGHTS / WEIGHTS.sum(), look), seen


def chosen(ffn, arrays, layer, logits):
    """(probabilities, the experts of each token): the k largest of softmax plus bias."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    p = powers / powers.sum(-1, keepdims=True)
    bias = arrays.get(f"blocks.{layer}.ffn.balancer.bias", 0.0)
    return p, np.argsort(-(p + bias), axis=-1, kind="stable")[..., : ffn.router.k]


def counts(ids, rows=range(ROWS)):
    """Tokens of each expert, padding left out."""
    load = np.zeros(EXPERTS)
    for row in rows:
        for token in range(LENGTH):
            if WEIGHTS[row, token]:
                load[ids[row, token]] += 1
    return load


def minimised(config, arrays, pieces):
    """The text's loss, and of each layer by itself E sum f P and the mean of logsumexp^2, with their coefficients."""
    total, seen = passed(config, arrays)
    for layer, ffn in layers_of(config).items():
        logits = seen[layer]
        p, ids = chosen(ffn, arrays, layer, logits)
        sizes = {"step": ROWS, "piece": ROWS // pieces, "sequence": 1}[ffn.balance_scope]
        for rows in np.arange(ROWS).reshape(-1, sizes):
            tokens = WEIGHTS[rows].sum()
            f, mean = counts(ids, rows) / (ffn.router.k * tokens), np.zeros(EXPERTS)
            for row in rows:
                mean += (WEIGHTS[row][:, None] * p[row]).sum(0) / tokens
            total += ffn.balance_loss * EXPERTS * (f * mean).sum() * tokens / WEIGHTS.sum()
        z = np.log(np.exp(logits).sum(-1)) ** 2
        total += ffn.z_loss * (z * WEIGHTS).sum() / WEIGHTS.sum()
    return total


def places(config, arrays):
    """{name: some of its places}: of everything learned, more of routed arrays, and of each expert one."""
    draw, found = np.random.default_rng(1), {}
    for name, array in arrays.items():
        if ".experts." in name:
            each = array[0].size
            found[name] = [expert * each + int(draw.integers(each)) for expert in range(EXPERTS)]
        elif not is_state(shapes(config)[name]):
            found[name] = draw.permutation(array.size)[: 6 if "router" in name else 1].tolist()
    return found


@cache
def gradients(ffns, pieces):
    """{name: {place: the central difference}}; the code that is judged has no part in it."""
    config, arrays = model(*ffns)
    found = {}
    for name, own in places(config, arrays).items():
        found[name] = {}
        for place in own:
            ends = []
            for step in (STEP, -STEP):
                moved = arrays[name].copy()
                moved.reshape(-1)[place] += step
                ends.append(minimised(config, arrays | {name: moved}, pieces))
            found[name][place] = (ends[0] - ends[1]) / (2 * STEP)
    return found


@cache
def loads(ffns):
    config, arrays = model(*ffns)
    _, seen = passed(config, arrays)
    return {layer: counts(chosen(ffn, arrays, layer, seen[layer])[1]) for layer, ffn in layers_of(config).items()}


def decays(name):
    """Matrices do, stacked ones too; norms and biases do not, those of stacked experts too."""
    return name.endswith((".kernel", ".gate", "embed.token", "embed.position"))


def judge_step(ffns, pieces, backend="numpy"):
    """A step from moments that are not 0: gradients, moments, weights, loads and biases, each by hand."""
    expected = gradients(ffns, pieces)
    config, arrays = model(*ffns)
    rule = AdamW(learning_rate=RATE, weight_decay=DECAY, clip_norm=None)
    ops = component("backend", backend, precision="float64")
    training = TrainingStep(ops, config, arrays, rule)
    draw = np.random.default_rng(3)
    begun = {name: (draw.normal(size=x.shape) * 0.01, draw.random(x.shape) * 0.01) for name, x in arrays.items()}
    begun = {name: both for name, both in begun.items() if name in training.params}
    for number, moment in enumerate(("first", "second")):
        training.moments[moment] = {name: ops.asarray(both[number].copy()) for name, both in begun.items()}
    form = (pieces, ROWS // pieces)
    loss, _ = training.run(IDS.reshape(*form, -1), WEIGHTS.reshape(*form, -1), 1, 1.0)
    np.testing.assert_allclose(loss, passed(config, arrays)[0], rtol=1e-12)
    after = training.trees()
    for name, (m, v) in begun.items():
        gradient = (after["first"][name] - rule.beta_1 * m) / (1.0 - rule.beta_1)
        largest = max(np.abs(gradient).max(), max(map(abs, expected[name].values())), 0.01)
        for place, difference in expected[name].items():
            found = gradient.reshape(-1)[place]
            assert abs(found - difference) < FINITE_DIFFERENCE * largest, (name, place, found, difference)
        first = rule.beta_1 * m + (1.0 - rule.beta_1) * gradient
        second = rule.beta_2 * v + (1.0 - rule.beta_2) * gradient**2
        np.testing.assert_allclose(after["second"][name], second, rtol=1e-9, atol=OPTIMIZER, err_msg=name)
        change = first / (1.0 - rule.beta_1) / (np.sqrt(second / (1.0 - rule.beta_2)) + rule.epsilon)
        right = arrays[name] - RATE * (change + (DECAY * arrays[name] if decays(name) else 0.0))
        np.testing.assert_allclose(after["params"][name], right, rtol=0, atol=OPTIMIZER, err_msg=name)
    for layer, load in loads(ffns).items():
        np.testing.assert_array_equal(training.told[layer]["load"], load)
        assert training.told[layer]["tokens"] == WEIGHTS.sum()
        name = f"blocks.{layer}.ffn.balancer.bias"
        if name in training.states:
            right = arrays[name] + ffns[layer].balancer.rate * np.sign(load.mean() - load)
            np.testing.assert_allclose(after["params"][name], right, rtol=0, atol=OPTIMIZER, err_msg=name)
