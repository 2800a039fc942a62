"""Warm and cold together: a get gives the right bytes or nothing, whatever came before."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.tiers.blocks import BYTES, arrays, key, same, tokens
from transformer_lab.errors import ConfigurationError
from transformer_lab.tiers import tiers as tiers_module
from transformer_lab.tiers.eviction import FrequentlyUsed, LeastRecentlyUsed
from transformer_lab.tiers.ledger import Ledger
from transformer_lab.tiers.tiers import Tiers
from transformer_lab.tiers.warm import Warm

NUMBERS = st.integers(0, 7)


class Machine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.start()

    def start(self):
        self.tiers = Tiers(3 * BYTES, Path(self.folder.name), 6 * BYTES, FrequentlyUsed)

    @rule(number=NUMBERS, other=st.booleans())
    def put(self, number, other):
        given = arrays(number, other)
        self.tiers.put(key(number), tokens(number, other), given)
        for array in given.values():
            array[:] = 0  # the caller's arrays are the caller's

    @rule(number=NUMBERS, other=st.booleans())
    def get(self, number, other):
        found = self.tiers.get(key(number), tokens(number, other))
        assert found is None or same(found, arrays(number, other))

    @rule(number=NUMBERS)
    def prefetch(self, number):
        self.tiers.prefetch([(key(number), tokens(number))])

    @rule()
    def restart(self):
        self.tiers.close()
        assert self.tiers.ledger.check() == []
        self.start()

    @rule(number=NUMBERS, at=st.integers(0, 200))
    def damage(self, number, at):
        path = Path(self.folder.name) / f"{key(number).hex()}.block"
        self.tiers.flush()
        if path.exists():
            content = bytearray(path.read_bytes())
            content[at] ^= 4
            path.write_bytes(content)

    @invariant()
    def laws(self):
        with self.tiers._change:
            assert self.tiers.ledger.check() == []
            assert self.tiers.ledger.warm.resident.blocks == len(self.tiers._warm.keys())
            assert self.tiers.ledger.warm.resident.bytes <= 3 * BYTES

    def teardown(self):
        self.tiers.close()
        self.folder.cleanup()


Machine.TestCase.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
TestMachine = Machine.TestCase


@pytest.mark.parametrize("warm", [0, 2 * BYTES])
def test_what_was_flushed_is_found_after_a_restart(tmp_path, warm):
    tiers = Tiers(warm, tmp_path, 100 * BYTES)
    for number in range(5):
        tiers.put(key(number), tokens(number), arrays(number))
    tiers.close()
    again = Tiers(warm, tmp_path, 100 * BYTES)
    assert all(same(again.get(key(number), tokens(number)), arrays(number)) for number in range(5))
    assert again.ledger.promotions == (5 if warm else 0) and again.ledger.check() == []
    again.close()


def test_a_writer_that_shared_the_callers_array_would_be_noticed(tmp_path, monkeypatch):
    from transformer_lab.tiers.block import Block

    monkeypatch.setattr(tiers_module, "owned", lambda ids, given: Block(tuple(ids), given))
    tiers, given = Tiers(9 * BYTES), arrays(0)
    tiers.put(key(0), tokens(0), given)
    given["keys"][:] = 0
    assert not same(tiers.get(key(0), tokens(0)), arrays(0))


def test_an_evicted_block_that_is_still_counted_breaks_a_law(monkeypatch):
    ledger = Ledger()
    warm = Warm(9 * BYTES, LeastRecentlyUsed(), ledger.warm)
    from transformer_lab.tiers.block import owned

    warm.put(key(0), owned(tokens(0), arrays(0)))
    assert ledger.check() == []
    warm._blocks.pop(key(0))
    ledger.warm.evicted["budget"].add(4, BYTES)
    assert "warm: 1 blocks came in, but 1 were evicted and 1 are there." in ledger.check()
    ledger.promotions += 1
    assert any("promotions" in law for law in ledger.check())


def test_the_inert_alarm_rings_and_stops_with_a_hit(tmp_path):
    tiers = Tiers(BYTES)
    tiers.get(key(999), tokens(999))
    for number in range(64):
        assert tiers.ledger.inert() == []
        tiers.put(key(number), tokens(number), arrays(number))
    assert tiers.ledger.inert() == ["warm"]
    tiers.get(key(63), tokens(63))
    assert tiers.ledger.inert() == []


def test_one_warning_and_the_run_goes_on(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(RuntimeWarning, match="switched off"):
        tiers = Tiers(BYTES, tmp_path / "file", BYTES)
    tiers.put(key(0), tokens(0), arrays(0))
    assert same(tiers.get(key(0), tokens(0)), arrays(0))
    tiers.close()


def test_a_negative_budget_is_refused():
    with pytest.raises(ConfigurationError, match="A tier of -1 bytes"):
        Tiers(-1)


CHILD = """
import sys, itertools
from pathlib import Path
from tests.tiers.blocks import *
from transformer_lab.tiers.tiers import Tiers
tiers = Tiers(0, Path(sys.argv[1]), 40 * BYTES)
print("ready", flush=True)
for number in itertools.count():
    tiers.put(key(number % 100), tokens(number % 100), arrays(number % 100))
"""


def killed_then_right(folder, moment):
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"ready\n"
    time.sleep(moment)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    tiers = Tiers(0, folder, 40 * BYTES)
    for number in range(100):
        found = tiers.get(key(number), tokens(number))
        assert found is None or same(found, arrays(number))
    assert tiers.ledger.cold.damaged == 0 and tiers.ledger.check() == []
    tiers.put(key(500), tokens(500), arrays(500))
    tiers.flush()
    assert same(tiers.get(key(500), tokens(500)), arrays(500))
    tiers.close()


def test_killed_at_thirty_moments(tmp_path):
    for moment in range(30):
        killed_then_right(tmp_path, 0.0031 * moment)


@pytest.mark.full
def test_killed_at_two_hundred_moments(tmp_path):
    for moment in range(200):
        killed_then_right(tmp_path, 0.0007 * moment)
