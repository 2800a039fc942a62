"""Whatever changes a block's numbers changes its key; the sampler of recomputation is deterministic."""

from dataclasses import fields, replace

import numpy as np
import pytest

from transformer_lab.tiers.key import Provenance, first_key, named_key, next_key
from transformer_lab.tiers.shadow import Shadow

PROVENANCE = Provenance("w", "c", "b", "o", "p")


@pytest.mark.parametrize("field", [field.name for field in fields(Provenance)])
def test_every_field_of_the_provenance_is_in_the_key(field):
    assert first_key(PROVENANCE) != first_key(replace(PROVENANCE, **{field: "another"}))


def test_tokens_boundaries_and_what_came_before_are_in_the_key():
    start = first_key(PROVENANCE)
    keys = [
        next_key(start, [1, 2], [2]),
        next_key(start, [1, 2], [1, 1]),
        next_key(start, [1, 3], [2]),
        next_key(start, [1], [2, 2]),
        next_key(next_key(start, [1], [1]), [1, 2], [2]),
        start,
        named_key(start, "expert 1"),
        named_key(start, "expert 2"),
        named_key(first_key(replace(PROVENANCE, weights="v")), "expert 1"),
    ]
    assert len(set(keys)) == len(keys) and {len(key) for key in keys} == {32}


def test_no_two_lists_of_texts_serialise_alike():
    assert first_key(Provenance("ab", "c", "", "", "")) != first_key(Provenance("a", "bc", "", "", ""))


def test_the_sampler_is_deterministic_and_takes_its_share():
    shadow = Shadow(0.25, seed=1)
    chosen = [shadow.chosen(number) for number in range(4000)]
    assert chosen == [Shadow(0.25, seed=1).chosen(number) for number in range(4000)]
    assert 800 < sum(chosen) < 1200
    assert chosen != [Shadow(0.25, seed=2).chosen(number) for number in range(4000)]


def test_outcomes_are_recorded_and_a_broken_contract_is_said():
    one, off = {"keys": np.ones(3, np.float32)}, {"keys": np.full(3, 1.5, np.float32)}
    exact, near = Shadow(1.0), Shadow(1.0, bounds={"cold": 0.5})
    assert exact.record("warm", one, one) and not exact.record("warm", one, off) and near.record("cold", one, off)
    assert not near.record("warm", one, off)  # another tier's contract
    for bad in (np.nan, np.inf):
        assert not near.record("cold", one, {"keys": np.full(3, bad, np.float32)})
    infinite = {"keys": np.full(3, np.inf, np.float32)}
    assert not near.record("cold", infinite, {"keys": np.array([np.inf, 1, 1], np.float32)})
    assert not near.record("cold", one, {"keys": np.ones(3)}) and not near.record("cold", one, {"values": one["keys"]})
    outcome = exact.outcomes["warm"]
    assert (outcome.checked, outcome.agreed, outcome.largest) == (2, 1, 0.5)
