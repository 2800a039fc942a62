"""Statistics of routes against slow loops, against what a training step tells, and the sums that must come out."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy import stats
from small_mixtures import built, ids, mixture, weights
from tolerances import MEASURE

import transformer_lab as lab
from transformer_lab.balancer.sign_bias import SignBias
from transformer_lab.config import component
from transformer_lab.ffn.capacity import Capacity
from transformer_lab.ffn.moe import mixtures
from transformer_lab.router.expert_choice import ExpertChoice
from transformer_lab.router.hash import Hash
from transformer_lab.router.mixtral import Mixtral
from transformer_lab.router.remoe import ReMoE
from transformer_lab.routes.layer import Layer, Routes, joined
from transformer_lab.routes.load import max_over_mean, normalised_entropy
from transformer_lab.routes.statistics import statistics
from transformer_lab.training.optimizer import AdamW
from transformer_lab.training.routing_metrics import loads_of, routing_numbers
from transformer_lab.training.step import TrainingStep

CASES = {
    "dropless": mixture(),
    "one": mixture(k=1),
    "biased": mixture(balancer=SignBias()),
    "capacity": mixture(capacity=Capacity(0.7)),
    "tight": mixture(experts=5, k=3, capacity=Capacity(0.5, order="choice")),
}


def recorded(ffn, length=23, layer=1):
    model = built(made=weights(ffn))
    found = Layer(model, layer)
    return model, found, found.routes(model.record(ids(length), found.taps))


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request):
    return (request.param, *recorded(CASES[request.param]))


def test_loads_and_drops_against_loops(case):
    _, _, _, routes = case
    found = statistics(routes)
    tokens, slots, experts = len(routes.ids), routes.ids.shape[1], routes.experts
    asked, load, together = [0] * experts, [0] * experts, [[0] * experts for _ in range(experts)]
    left_out = 0
    for token in range(tokens):
        mine = [int(routes.ids[token, slot]) for slot in range(slots) if routes.kept[token, slot]]
        left_out += not mine
        for slot in range(slots):
            asked[routes.ids[token, slot]] += 1
        for one in mine:
            load[one] += 1
            for other in mine:
                together[one][other] += 1
    assert (found.asked, found.load, found.together) == (asked, load, together)
    assert found.dropped_tokens == left_out / tokens
    assert found.dropped_slots == pytest.approx(1 - sum(load) / sum(asked), abs=MEASURE)
    assert found.dead == [expert for expert in range(experts) if not asked[expert]]


def test_sums_come_out(case):
    name, _, _, routes = case
    found = statistics(routes)
    drops = int((~routes.kept).sum())
    assert (drops > 0) == (name in ("capacity", "tight"))  # so that the sums below say something
    assert sum(found.load) == found.slots * found.tokens - drops
    assert sum(found.asked) == found.slots * found.tokens
    together = np.array(found.together)
    assert np.array_equal(together, together.T)
    assert np.diagonal(together).tolist() == found.load
    if not drops:  # each token of an expert has k - 1 others
        assert (together.sum(axis=1) == found.slots * np.array(found.load)).all()
    assert sum(found.importance) == pytest.approx(1.0, abs=MEASURE)


def test_losses_entropies_and_margins_against_other_formulas(case):
    name, model, layer, routes = case
    found = statistics(routes)
    logits = torch.tensor(routes.logits)
    probabilities = torch.softmax(logits, -1)
    assert found.z == pytest.approx(float((torch.logsumexp(logits, -1) ** 2).mean()), rel=MEASURE)
    entropies = stats.entropy(probabilities.numpy(), axis=1)
    assert found.gate_entropy == pytest.approx(float(entropies.mean()), rel=MEASURE)
    even = stats.entropy(found.asked) / math.log(found.experts)
    assert found.load_entropy == pytest.approx(even, rel=MEASURE)
    assert found.max_violation == pytest.approx(max(found.asked) / np.mean(found.asked) - 1, rel=MEASURE)
    share = np.array(found.asked) / sum(found.asked)
    balance = found.experts * float((torch.tensor(share) * probabilities.mean(0)).sum())
    assert found.balance_loss == pytest.approx(balance, rel=MEASURE)
    scores = routes.logits
    if name == "biased":
        scores = probabilities.numpy() + model.params["blocks"][1]["ffn"]["balancer"]["bias"]
    ordered = np.sort(scores, axis=1)[:, ::-1]
    k = found.slots
    np.testing.assert_allclose(routes.margins(), ordered[:, k - 1] - ordered[:, k], rtol=0, atol=MEASURE)
    assert found.margins["0.5"] == pytest.approx(float(np.median(routes.margins())), abs=MEASURE)
    assert layer.ffn is CASES[name]


def test_a_router_that_does_not_choose_by_scores_has_no_margins():
    class Alternating(Mixtral):
        def choose(self, ops, params, logits, state, tokens):
            return super().choose(ops, params, -logits, state, tokens)

    _, _, routes = recorded(replace(mixture(), router=Alternating(2)))
    assert routes.margins() is None and statistics(routes).margins is None
    _, _, routes = recorded(mixture(experts=2, k=2))
    assert routes.margins() is None  # nothing is left that could have been chosen


@pytest.mark.parametrize("router", [ReMoE(), ExpertChoice(2.0), Hash(2, 6)], ids=["remoe", "expert choice", "hash"])
def test_routers_without_scores_or_a_fixed_number_of_experts(router):
    """What a router leaves empty was not asked for, so nothing is dropped; and nothing is said of margins."""
    model, _, routes = recorded(replace(mixture(), router=router), layer=0)
    found = statistics(routes)
    kept = routes.kept.sum()
    assert found.margins is None and found.dropped_slots == found.dropped_tokens == 0.0
    assert found.asked == found.load and sum(found.load) == kept
    assert found.experts_per_token == pytest.approx(kept / 23)
    if isinstance(router, ExpertChoice):
        assert found.load == [8] * 6  # ceil(2 * 23 / 6), every expert the same
    if isinstance(router, Hash):
        assert found.experts_per_token == 2.0
    assert lab.routing(model, ids(23)).layers[0]["load"] != []


def test_padding_never_counts():
    model = built(made=weights())
    layer = Layer(model, 1)
    rows = np.stack([ids(9, 1), ids(9, 2)])
    real = np.arange(9) < np.array([[9], [4]])
    short = [model.record(row[:length], layer.taps) for row, length in zip(rows, (9, 4), strict=True)]
    expected = statistics(joined([layer.routes(taps) for taps in short])).to_dict()
    together = model.record(rows, layer.taps)
    found = statistics(layer.routes(together, real)).to_dict()
    for name, value in expected.items():
        if name == "together" or isinstance(value, int) or name in ("asked", "load", "dead"):
            assert found[name] == value, name
    assert found["z"] == pytest.approx(expected["z"], rel=1e-5)
    assert statistics(layer.routes(together)).tokens == 18  # and without saying so it would have counted


@pytest.mark.parametrize("name", ["dropless", "capacity"])
def test_a_training_step_tells_the_same(name):
    """One batch, whose last rows are padded: the numbers in metrics.jsonl are those of the recorded routes."""
    config, arrays = weights(CASES[name])
    arrays = {key: array.astype(np.float64) for key, array in arrays.items()}
    ops = component("backend", "numpy", precision="float64")
    training = TrainingStep(ops, config, dict(arrays), AdamW())
    rows = np.stack([ids(13, seed) for seed in range(4)])
    given = np.ones((4, 12))
    given[3, 7:] = 0.0
    training.run(rows[None], given[None], 1, 1.0)
    model = built(precision="float64", made=(config, arrays))
    layers = [Layer(model, number) for number in mixtures(config)]
    each = [
        [layer.routes(model.record(row[: int(mask.sum())], layer.taps)) for layer in layers]
        for row, mask in zip(rows, given, strict=True)
    ]
    found = [statistics(joined(routes)) for routes in zip(*each, strict=True)]
    numbers = routing_numbers(training.told)
    assert loads_of(training.told) == {"0": found[0].asked, "1": found[1].asked}
    for key, attribute in (("balance_loss", "balance_loss"), ("z", "z"), ("gate_entropy", "gate_entropy")):
        assert numbers[key] == pytest.approx(np.mean([getattr(one, attribute) for one in found]), rel=1e-9), key
    assert numbers["load_entropy"] == pytest.approx(np.mean([one.load_entropy for one in found]), rel=MEASURE)
    assert numbers["max_violation"] == max(one.max_violation for one in found)
    assert numbers["dead_experts"] == sum(len(one.dead) for one in found)
    dropped = 1 - sum(sum(one.load) for one in found) / sum(sum(one.asked) for one in found)
    assert numbers["dropped_slots"] == pytest.approx(dropped, abs=MEASURE)
    assert (dropped > 0) == (name == "capacity")


def test_what_tells_nothing_of_routes_is_passed_over():
    assert routing_numbers({}) == {}
    assert routing_numbers({0: {"mine": np.ones(3)}}) == {} == loads_of({0: {"mine": np.ones(3)}})


def test_loads_of_extremes():
    assert (max_over_mean(np.array([4, 4])), normalised_entropy(np.array([4, 4]))) == (1.0, 1.0)
    assert (max_over_mean(np.array([8, 0])), normalised_entropy(np.array([8, 0]))) == (2.0, 0.0)
    assert normalised_entropy(np.array([3])) == 1.0
    assert math.isnan(max_over_mean(np.zeros(2))) and math.isnan(normalised_entropy(np.zeros(2)))


def test_no_mixture_no_routes():
    with pytest.raises(lab.ConfigurationError, match="no layer in which a router chooses experts"):
        lab.routing("storybook", "The king", weights="random")


def test_expert_numbers_may_be_given_by_hand():
    """Three tokens of two slots: the second slot of the last was dropped."""
    kept = np.array([[True, True], [True, True], [True, False]])
    routes = Routes(
        np.zeros((3, 4)),
        np.full((3, 4), 0.25),
        np.array([[0, 1], [1, 2], [0, 1]]),
        np.ones((3, 2), bool),
        kept,
        np.ones((3, 2)),
        None,
    )
    found = statistics(routes, classes=["a", "b", "a"])
    assert found.asked == [2, 3, 1, 0] and found.load == [2, 2, 1, 0] and found.dead == [3]
    assert found.together == [[2, 1, 0, 0], [1, 2, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert found.max_over_mean == 2.0 and found.dropped_slots == pytest.approx(1 / 6) and found.dropped_tokens == 0.0
    assert found.by_class == {"a": {"tokens": 2, "asked": [2, 2, 0, 0]}, "b": {"tokens": 1, "asked": [0, 1, 1, 0]}}
    assert found.balance_loss == pytest.approx(1.0) and found.z == pytest.approx(math.log(4) ** 2)


@dataclass(frozen=True)
class Sparing(Mixtral):
    """Wants the second expert of every other token alone, and says so."""

    def kept(self, ops, logits, ids, state, tokens):
        slots = ops.xp.arange(ids.shape[-1], dtype=ids.dtype, device=ops.array_device)
        return (slots == 0)[None, None, :] | ((tokens.positions % 2) == 0)[..., None]


def test_what_a_capacity_takes_away_was_asked_for_whatever_the_router_leaves_out():
    """A router that leaves slots empty, with a capacity behind it: both are told apart, in records and in training."""
    crowded = replace(mixture(capacity=Capacity(0.1)), router=Sparing(2))
    roomy = replace(crowded, capacity=None)
    (_, _, few), (_, _, all_) = recorded(crowded, layer=0), recorded(roomy, layer=0)
    assert np.array_equal(few.asked, all_.asked) and np.array_equal(all_.asked, all_.kept)
    assert few.asked.sum() == 23 + 12 and few.kept.sum() < few.asked.sum() and not (few.kept & ~few.asked).any()
    assert statistics(few).asked == statistics(all_).asked
    assert statistics(few).dropped_slots == pytest.approx(1 - few.kept.sum() / 35)
    told = []
    for ffn in (crowded, roomy):
        config, arrays = weights(replace(ffn, balancer=SignBias()))
        ops = component("backend", "numpy", precision="float64")
        training = TrainingStep(ops, config, {key: array.astype(np.float64) for key, array in arrays.items()}, AdamW())
        training.run(ids(24)[None, None, :], np.ones((1, 1, 23)), 1, 1.0)
        told.append((training.told[0], training.trees()["params"]["blocks.0.ffn.balancer.bias"]))
    (clipped, moved), (free, moved_free) = told
    assert np.array_equal(clipped["load"], free["load"]) and clipped["kept"] < free["kept"] == 35
    assert clipped["balance"] == free["balance"] and np.array_equal(moved, moved_free)
    assert routing_numbers({0: clipped})["dropped_slots"] == pytest.approx(1 - clipped["kept"] / 35)
