"""The split of a difference: planted differences come out in the part that they belong to, and certificates hold."""

from dataclasses import replace

import numpy as np
import pytest
from small_mixtures import BACKENDS, built, ids, mixture, weights
from tolerances import MEASURE

import transformer_lab as lab
from transformer_lab.ffn.capacity import Capacity
from transformer_lab.router.expert_choice import ExpertChoice
from transformer_lab.router.olmoe import OLMoE
from transformer_lab.router.remoe import ReMoE

TEXTS = [ids(24, seed).tolist() for seed in range(3)]
MADE = weights(layers=3)


def noisy(name_ends, size, made=MADE):
    """The same weights, those whose names end so with noise of relative size."""
    config, arrays = made
    draw = np.random.default_rng(9)
    changed = {
        name: array * (1 + size * draw.normal(size=array.shape)).astype(array.dtype)
        if name.endswith(name_ends)
        else array
        for name, array in arrays.items()
    }
    return config, changed


def split(made, precision="float64", backend="numpy"):
    return lab.routing_split(built(precision=precision, made=MADE), built(backend, precision, made=made), TEXTS)


def test_the_parts_add_up_and_flips_are_those_of_a_loop():
    made = noisy("router.gate", 0.1)
    found = split(made).to_dict()
    kl = found["kl"]
    assert kl["experts"] + kl["weights"] + kl["arithmetic"] == pytest.approx(kl["total"], rel=1e-9)
    a, b = built(precision="float64", made=MADE), built(precision="float64", made=made)
    flips, tokens = {}, 0
    for number, text in enumerate(TEXTS):
        tokens += len(text)
        taps = [model.record(text) for model in (a, b)]
        for layer in range(3):
            ours, theirs = (one[f"blocks.{layer}.ffn.router.expert_ids"][0] for one in taps)
            for position in range(len(text)):
                one, other = sorted(ours[position].tolist()), sorted(theirs[position].tolist())
                if one != other:
                    flips[number, position, layer] = one, other
    assert found["tokens"] == tokens == 72
    shown = {(flip["text"], flip["position"], flip["layer"]): (flip["a"], flip["b"]) for flip in found["flips"]}
    assert shown == flips and len(flips) > 5
    for row in found["layers"]:
        assert row["flips"] == sum(layer == row["layer"] for _, _, layer in flips)


def test_another_gate_is_no_arithmetic():
    """On a's experts and weights nothing is left: what differed was the router alone."""
    found = split(noisy("router.gate", 0.1)).to_dict()
    kl, runs = found["kl"], found["runs"]
    assert kl["arithmetic"] < 1e-12 * kl["total"] and runs[2]["max_abs"] < 1e-12
    assert runs[0]["max_abs"] > runs[1]["max_abs"] > 1e-6  # with a's experts, weights are still b's own
    assert kl["experts"] > kl["weights"] > 0


def test_other_experts_are_all_arithmetic():
    """Noise in the last layer's experts moves no score, so nobody goes elsewhere."""
    config, arrays = MADE
    changed = {
        name: array * np.float32(1.01) if name.startswith("blocks.2.ffn.experts") else array
        for name, array in arrays.items()
    }
    found = split((config, changed)).to_dict()
    assert found["flips"] == [] and found["kl"]["total"] > 1e-9
    assert found["kl"]["arithmetic"] == pytest.approx(found["kl"]["total"], rel=1e-9)
    assert [row["error"] for row in found["layers"]] == [0.0, 0.0, 0.0]
    assert [row["certified"] for row in found["layers"]] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("size", [1e-3, 1e-2, 5e-2])
def test_what_is_certified_does_not_flip_by_itself(size):
    """Noise in everything but the gates: the larger it is, the fewer tokens are certified, and none of them flips."""
    made = noisy(("kernel", "embed.token"), size)
    found = split(made).to_dict()
    assert not any(flip["own"] and flip["certified"] for flip in found["flips"])
    assert all(flip["margin"] <= 2 * found["layers"][flip["layer"]]["error"] for flip in found["flips"] if flip["own"])
    share = [row["certified"] for row in found["layers"]]
    assert sum(share) - 2 - MEASURE <= found["certified"] <= min(share)
    if size == 1e-3:
        assert min(share) > 0.8
    if size == 5e-2:
        assert max(share) < 0.7 and any(flip["own"] for flip in found["flips"])


def test_inherited_flips_are_told_apart():
    """Only block 0's gate differs: every flip behind it is inherited, as b's later routers are a's own."""
    found = split(noisy("blocks.0.ffn.router.gate", 0.3)).to_dict()
    rows = found["layers"]
    assert rows[0]["own"] == rows[0]["flips"] > 5
    assert rows[1]["flips"] + rows[2]["flips"] > 2
    assert rows[1]["own"] == rows[2]["own"] == 0 and rows[1]["error"] < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_beside_float64_and_exact_beside_exact(backend):
    a = built(precision="float64", made=MADE)
    found = lab.routing_split(a, built(backend, "float32", made=MADE), TEXTS).to_dict()
    assert 0 < found["runs"][2]["max_abs"] < 1e-5
    assert all(row["error"] < 1e-5 and row["certified"] > 0.95 for row in found["layers"])
    same = lab.routing_split(built(precision="exact", made=MADE), built(backend, "exact", made=MADE), TEXTS[:1])
    assert [run["max_abs"] for run in same.to_dict()["runs"]] == [0.0, 0.0, 0.0]
    assert same.to_dict()["flips"] == []


def test_dropped_slots_are_part_of_the_route():
    """Under a capacity, b drops where its own gate says; forced, where a did."""
    made = weights(mixture(capacity=Capacity(0.7)), layers=2)
    a, b = (built(precision="float64", made=one) for one in (made, noisy("router.gate", 0.2, made)))
    found = lab.routing_split(a, b, TEXTS).to_dict()
    assert found["runs"][0]["max_abs"] > 1e-3 and found["runs"][2]["max_abs"] < 1e-12
    flips = 0
    for text in TEXTS:
        sets = []
        for model in (a, b):
            taps = model.record(text, ["blocks.0.ffn.router.expert_ids", "blocks.0.ffn.router.kept"])
            expert_ids, kept = (array[0] for array in taps.values())
            sets.append([{*one[used].tolist()} for one, used in zip(expert_ids, kept, strict=True)])
        flips += sum(one != other for one, other in zip(*sets, strict=True))
    assert found["layers"][0]["flips"] == flips > 5


@pytest.mark.parametrize("router", [ReMoE(), ExpertChoice(2.0)], ids=["remoe", "expert choice"])
def test_a_route_that_is_no_choice_of_k(router):
    """Which slots are used is the route, then: it is forced, and what is left is nothing."""
    made = weights(replace(mixture(), router=router), layers=2)
    a, b = (built(precision="float64", made=one) for one in (made, noisy("blocks.0.ffn.router.gate", 0.2, made)))
    found = lab.routing_split(a, b, TEXTS).to_dict()
    assert found["runs"][0]["max_abs"] > 1e-3 and found["runs"][2]["max_abs"] < 1e-12
    first, second = found["layers"]
    assert first["flips"] == first["own"] > 0 and second["own"] == 0
    assert found["certified"] is None and first["certified"] is None


def test_models_of_which_one_cannot_go_the_other_s_way():
    a = built(made=MADE)
    for other in (weights(layers=2), weights(mixture(experts=5), layers=3), weights(mixture(k=1), layers=3)):
        with pytest.raises(lab.ConfigurationError, match="Routes can be forced only where"):
            lab.routing_split(a, built(made=other), TEXTS)


def test_another_gate_function_is_in_the_weights():
    """OLMoE's weights are not renormalised: the experts are the same, and all of the difference is weights."""
    config, arrays = MADE
    blocks = [replace(block, ffn=replace(block.ffn, router=OLMoE(2))) for block in config.blocks]
    other = replace(config, blocks=tuple(blocks))
    found = lab.routing_split(built(precision="float64", made=MADE), built(precision="float64", made=(other, arrays)))
    assert found.to_dict()["layers"][0]["flips"] == 0
    assert found.to_dict()["kl"]["arithmetic"] < MEASURE < found.to_dict()["kl"]["total"]
