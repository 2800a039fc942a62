"""The tiers together: a get gives the right bytes or nothing, whatever came before; and no block is lost sight of."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.tiers.blocks import BYTES, FILE, Gate, arrays, file_of, key, right, same, soon, tokens
from transformer_lab.errors import ConfigurationError
from transformer_lab.tiers import cold as cold_module
from transformer_lab.tiers.eviction import FrequentlyUsed, LeastRecentlyUsed
from transformer_lab.tiers.ledger import INERT_LOOKUPS
from transformer_lab.tiers.tiers import Tiers

NUMBERS = st.integers(0, 7)


class Machine(RuleBasedStateMachine):
    """Against a dictionary: what was put last under each key; and what a flush must have brought to the files.

    A key comes with two lists of tokens, so collisions are as frequent as anything else.
    """

    @initialize(
        policy=st.sampled_from([LeastRecentlyUsed, FrequentlyUsed]),
        warm=st.sampled_from([0, BYTES - 1, 3 * BYTES]),
        cold=st.sampled_from([FILE, 4 * FILE, 100 * FILE]),
    )
    def start(self, policy, warm, cold):
        self.folder = tempfile.TemporaryDirectory()
        self.choice = warm, Path(self.folder.name), cold, policy
        self.put_last, self.harmed = {}, set()
        self.tiers = Tiers(*self.choice)

    @rule(number=NUMBERS, other=st.booleans())
    def put(self, number, other):
        given = arrays(number, other)
        self.tiers.put(key(number), tokens(number, other), given)
        for array in given.values():
            array[:] = 0  # the caller's arrays are the caller's
        self.put_last[number] = other

    @rule(number=NUMBERS, other=st.booleans())
    def get(self, number, other):
        found = self.tiers.get(key(number), tokens(number, other))
        assert found is None or (right(found, number, other) and number in self.put_last)

    @rule(numbers=st.lists(NUMBERS, max_size=4), other=st.booleans())
    def prefetch(self, numbers, other):
        self.tiers.prefetch([(key(number), tokens(number, other)) for number in numbers])

    @rule()
    def flush(self):
        self.tiers.flush()
        self.all_is_found()

    @rule()
    def restart(self):
        self.tiers.close()
        assert self.tiers.check() == []
        assert all(tier.resident.blocks == 0 for tier in (self.tiers.ledger.warm, self.tiers.ledger.queue))
        self.tiers = Tiers(*self.choice)
        self.all_is_found()

    @rule(number=NUMBERS, at=st.integers(0, 200))
    def damage(self, number, at):
        self.tiers.flush()
        path = file_of(Path(self.folder.name), number)
        if path.exists():
            content = bytearray(path.read_bytes())
            content[at] ^= 4
            path.write_bytes(content)
            self.harmed.add(number)

    @rule(number=NUMBERS)
    def remove(self, number):
        self.tiers.flush()
        file_of(Path(self.folder.name), number).unlink(missing_ok=True)
        self.harmed.add(number)

    @rule()
    def lose_the_index(self):
        self.tiers.close()
        (Path(self.folder.name) / "index.sqlite").unlink()
        self.tiers = Tiers(*self.choice)
        self.all_is_found()

    @invariant()
    def laws(self):
        if hasattr(self, "tiers"):
            assert self.tiers.check() == []
            ledger = self.tiers.ledger
            assert ledger.warm.resident.bytes <= self.choice[0] and ledger.cold.resident.bytes <= self.choice[2]

    def all_is_found(self):
        """With room for everything, what was never damaged has to be there, as it was put last."""
        if self.choice[2] < 100 * FILE:
            return
        for number, other in self.put_last.items():
            if number not in self.harmed:
                assert right(self.tiers.get(key(number), tokens(number, other)), number, other)

    def teardown(self):
        if hasattr(self, "tiers"):
            self.tiers.close()
            assert self.tiers._cold.off is None
            on_disk = sum(path.stat().st_size for path in self.choice[1].glob("*.block"))
            assert on_disk <= self.choice[2]
            self.folder.cleanup()


Machine.TestCase.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
TestMachine = Machine.TestCase


@pytest.mark.parametrize("warm", [0, 2 * BYTES, 50 * BYTES])
@pytest.mark.parametrize("policy", [LeastRecentlyUsed, FrequentlyUsed])
def test_what_was_flushed_is_found_after_a_restart(tmp_path, warm, policy):
    with Tiers(warm, tmp_path, 100 * FILE, policy) as tiers:
        for number in range(5):
            tiers.put(key(number), tokens(number), arrays(number))
    with Tiers(warm, tmp_path, 100 * FILE, policy) as again:
        for number in range(5):
            found = again.get(key(number), tokens(number))
            assert right(found, number) and found.tier == "cold"
        assert again.ledger.promotions == (5 if warm else 0) and again.check() == []
        assert again.get(key(4), tokens(4)).tier == ("warm" if warm else "cold")
        assert again.ledger.hit_rate == 1.0 and again.ledger.lookups == 6


def test_a_block_is_answered_by_the_queue_while_it_is_written_and_counted_there(tmp_path, monkeypatch):
    gate = Gate(cold_module.write_file)
    monkeypatch.setattr(cold_module, "write_file", gate)
    tiers = Tiers(BYTES, tmp_path, 9 * FILE)
    for number in range(3):
        tiers.put(key(number), tokens(number), arrays(number))
    assert gate.came.wait(20)
    found = tiers.get(key(0), tokens(0))
    assert right(found, 0) and found.tier == "queue" and tiers.get(key(0), tokens(0)).tier == "warm"
    assert tiers.contains(key(1)) and tiers.get(key(1), tokens(1, True)) is None
    ledger = tiers.ledger
    assert (ledger.lookups, ledger.misses, ledger.queue.hits.blocks, ledger.warm.hits.blocks) == (3, 1, 1, 1)
    assert ledger.hit_rate == 2 / 3 and ledger.queue.collisions == 1 and tiers.check() == []
    tiers.put(key(1), tokens(1, True), arrays(1, True))  # takes the place of what waits under its key
    gate.opened.set()
    tiers.close()
    assert tiers.check() == [] and ledger.demotions == ledger.queue.put.blocks
    with Tiers(0, tmp_path, 9 * FILE) as again:
        assert right(again.get(key(0), tokens(0)), 0) and right(again.get(key(1), tokens(1, True)), 1, True)
        assert again.get(key(1), tokens(1)) is None and again.ledger.cold.collisions == 1


@pytest.mark.parametrize("size", [BYTES - 1, BYTES, BYTES + 1])
def test_a_block_as_large_as_the_budget(tmp_path, size):
    with Tiers(size, tmp_path, FILE) as tiers:
        tiers.put(key(0), tokens(0), arrays(0))
        tiers.flush()
        assert tiers.get(key(0), tokens(0)).tier == ("cold" if size < BYTES else "warm")
        tiers.put(key(1), tokens(1), arrays(1))
        tiers.flush()
        assert right(tiers.get(key(1), tokens(1)), 1) and tiers.get(key(0), tokens(0)) is None
        tiers.put(key(2), tokens(2), {"keys": np.ones(10_000)})  # larger than both
        tiers.flush()
        assert tiers.get(key(2), tokens(2)) is None and tiers.ledger.queue.evicted["too large"].blocks == 1
        assert tiers.check() == []


def test_a_block_larger_than_warm_takes_the_place_of_the_smaller_one_under_its_key(tmp_path):
    with Tiers(BYTES, tmp_path, 100 * FILE) as tiers:
        tiers.put(key(0), tokens(0), arrays(0))
        large = {"keys": np.ones(1000)}
        tiers.put(key(0), tokens(0, True), large)
        tiers.flush()
        found = tiers.get(key(0), tokens(0, True))
        assert found.tier == "cold" and same(found.arrays, large) and tiers.get(key(0), tokens(0)) is None
        assert tiers.check() == []


def test_without_any_tier_everything_is_a_miss():
    with Tiers(0) as tiers:
        tiers.put(key(0), tokens(0), arrays(0))
        tiers.prefetch([(key(0), tokens(0))])
        tiers.flush()
        assert tiers.get(key(0), tokens(0)) is None and not tiers.contains(key(0)) and tiers.check() == []
        assert (tiers.ledger.lookups, tiers.ledger.misses) == (1, 1)


def test_prefetch_brings_blocks_to_warm_and_is_no_lookup(tmp_path):
    with Tiers(0, tmp_path, 9 * FILE) as tiers:
        for number in range(3):
            tiers.put(key(number), tokens(number), arrays(number))
    with Tiers(9 * BYTES, tmp_path, 9 * FILE) as tiers:
        tiers.prefetch([(key(number), tokens(number)) for number in (0, 1, 2, 7)])
        assert soon(lambda: tiers.ledger.warm.resident.blocks == 3) and tiers.ledger.lookups == 0
        assert all(tiers.get(key(number), tokens(number)).tier == "warm" for number in range(3))
        assert tiers.ledger.prefetched == tiers.ledger.promotions == 3 and tiers.check() == []


def test_contains_counts_nothing(tmp_path):
    with Tiers(BYTES, tmp_path, 9 * FILE) as tiers:
        for number in range(3):
            tiers.put(key(number), tokens(number), arrays(number))
        tiers.flush()
        assert [tiers.contains(key(number)) for number in range(4)] == [True, True, True, False]
        assert tiers.ledger.lookups == tiers.ledger.cold.lookups == tiers.ledger.warm.lookups == 0


def test_the_inert_alarm_rings_and_stops_with_a_hit(tmp_path):
    tiers = Tiers(BYTES)
    for number in range(64):
        assert tiers.ledger.inert() == []
        tiers.put(key(number), tokens(number), arrays(number))
    for _ in range(INERT_LOOKUPS):  # one long text that is new is no alarm
        assert tiers.ledger.inert() == []
        tiers.get(key(999), tokens(999))
    assert tiers.ledger.inert() == ["warm"]
    tiers.get(key(63), tokens(63))
    assert tiers.ledger.inert() == []
    tiers.close()


def test_what_is_asked_for_wrongly_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="A tier of -1 bytes"):
        Tiers(-1)
    tiers = Tiers(BYTES)
    with pytest.raises(ConfigurationError, match="has 3 bytes; expected 32"):
        tiers.put(b"key", tokens(0), arrays(0))
    tiers.close()
    tiers.close()
    for late in (
        lambda: tiers.put(key(0), [], arrays(0)),
        lambda: tiers.get(key(0), []),
        lambda: tiers.prefetch([(key(0), [])]),
    ):
        with pytest.raises(ConfigurationError, match="These tiers are closed"):
            late()


def test_blocks_are_read_only(tmp_path):
    with Tiers(BYTES, tmp_path, 9 * FILE) as tiers:
        tiers.put(key(0), tokens(0), arrays(0))
        tiers.put(key(1), tokens(1), arrays(1))
        tiers.flush()
        for number, tier in ((1, "warm"), (0, "cold")):
            found = tiers.get(key(number), tokens(number))
            assert found.tier == tier
            with pytest.raises(ValueError, match="read-only"):
                found.arrays["keys"][0, 0] = 1
