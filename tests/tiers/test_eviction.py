"""Which block goes: the same rule in memory and in the index, against the obvious way to look for the lowest."""

import random

import pytest

from tests.tiers.blocks import key
from transformer_lab.tiers.eviction import FrequentlyUsed, LeastRecentlyUsed
from transformer_lab.tiers.index import Index
from transformer_lab.tiers.order import Order


class Obvious:
    """Looks at all blocks each time."""

    def __init__(self, rule):
        self.rule, self.blocks, self.clock, self.age = rule, {}, 0, 0

    def used(self, one):
        self.clock += 1
        uses = self.blocks[one][2] + 1 if one in self.blocks else 1
        self.blocks[one] = (self.rule.rank(uses, self.age), self.clock, uses)

    def forget(self, one):
        self.blocks.pop(one, None)

    def pop(self):
        first = min(self.blocks, key=lambda one: self.blocks[one])
        self.age = max(self.age, self.blocks.pop(first)[0])
        return first


@pytest.mark.parametrize("rule", [LeastRecentlyUsed(), FrequentlyUsed()])
@pytest.mark.parametrize("seed", range(3))
def test_memory_and_index_agree_with_the_obvious_way(tmp_path, rule, seed):
    noise = random.Random(seed)
    obvious, order, index = Obvious(rule), Order(rule), Index(tmp_path, rule)
    popped = 0
    with index.transaction():
        for _ in range(1500):
            one, what = key(noise.randrange(12)), noise.random()
            if what < 0.8:
                if one not in obvious.blocks:
                    index.insert(one, b"", 0, 0)
                else:
                    index.use(one)
                obvious.used(one)
                order.used(one)
            elif what < 0.9:
                obvious.forget(one)
                order.forget(one)
                index.remove(one)
            elif obvious.blocks:
                wanted = obvious.pop()
                assert order.pop() == index.first_to_go() == wanted
                index.remove(wanted)
                popped += 1
        assert popped > 100 and len(order._heap) <= 2 * 12 + 65 and index.keys() == set(obvious.blocks)
    index.close()


def test_what_was_used_often_but_long_ago_goes_at_some_time():
    order = Order(FrequentlyUsed())
    for _ in range(5):
        order.used(key(0))
    gone = []
    for number in range(1, 40):
        order.used(key(number))
        order.used(key(number + 1000))
        gone.append(order.pop())
    assert key(0) in gone and gone.index(key(0)) > 3


def test_none_to_pop():
    with pytest.raises(IndexError):
        Order(LeastRecentlyUsed()).pop()
