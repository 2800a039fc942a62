"""Blocks of a pool against a plain model of them: nothing is given twice, nothing is lost."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from transformer_lab.cache.blocks import SCRATCH, Blocks


class Machine(RuleBasedStateMachine):
    """held: holder -> its blocks. kept: the blocks that may be asked for again, the oldest first."""

    def __init__(self):
        super().__init__()
        self.lost = []
        self.blocks, self.count = Blocks(forgotten=self.lost.append), 0
        self.held, self.kept, self.next = {}, [], 0

    @rule(more=st.integers(1, 4))
    def add(self, more):
        self.blocks.add(more)
        self.count += more

    def in_use(self):
        return [block for table in self.held.values() for block in table]

    @precondition(lambda self: len(set(self.in_use())) < self.count)
    @rule(near=st.integers(0, 20), data=st.data())
    def take(self, near, data):
        free = set(range(1, self.count + 1)) - set(self.in_use()) - set(self.kept)
        before = len(self.lost)
        block = self.blocks.take(near)
        if near in free:
            assert block == near
        elif free:
            assert block == min(free)
        else:
            assert block == self.kept.pop(0) and self.lost[before:] == [block]
        assert block != SCRATCH and block not in self.in_use()
        holder = data.draw(st.sampled_from([*self.held, self.next]))
        self.next += holder == self.next
        self.held.setdefault(holder, []).append(block)

    @precondition(lambda self: self.kept or any(self.held.values()))
    @rule(data=st.data())
    def share(self, data):
        block = data.draw(st.sampled_from(sorted({*self.in_use(), *self.kept})))
        self.blocks.share(block)
        if block in self.kept:
            self.kept.remove(block)
        self.held[self.next] = [block]
        self.next += 1

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def let_go(self, data):
        holder = data.draw(st.sampled_from(sorted(self.held)))
        table = self.held.pop(holder)
        wanted = data.draw(st.sets(st.sampled_from(table))) if table else set()
        self.blocks.let_go(table, wanted.__contains__)
        self.kept += [block for block in dict.fromkeys(table) if block in wanted and block not in self.in_use()]

    @invariant()
    def counts(self):
        held = len(set(self.in_use()))
        assert (self.blocks.held, self.blocks.kept) == (held, len(self.kept))
        assert self.blocks.free == self.count - held - len(self.kept)


class TestBlocks(Machine.TestCase):
    settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_nothing_is_left():
    with pytest.raises(KeyError):
        Blocks().take(1)
