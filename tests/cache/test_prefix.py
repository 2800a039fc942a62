"""The cache of beginnings: what is found, what is not, and the mistakes that others made with theirs."""

from dataclasses import replace

import numpy as np
import pytest
from cache_models import BACKENDS, LEARNED, ROTARY, VOCABULARY, arrays_of, fed, ids, model, uncached
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from transformer_lab.block.mixture_of_depths import MixtureOfDepths
from transformer_lab.cache import paged, prefix
from transformer_lab.cache.blocks import Blocks
from transformer_lab.cache.contiguous import Contiguous
from transformer_lab.cache.paged import Paged
from transformer_lab.cache.prefix import Node, Prefix
from transformer_lab.errors import ConfigurationError
from transformer_lab.language_model.request import Request

SIZE = 4


def cached(config=ROTARY, **more):
    return model(config, Prefix(SIZE), **more)


def right(built, prompts, after=None):
    """Whether every logit is that of an uncached pass, bit for bit."""
    after = after or [ids(77 + row, 3) for row in range(len(prompts))]
    return bool((fed(built, prompts, after) == uncached(built, prompts, after)).all())


def found_by(built, prompts, after=None):
    """How many tokens of these prompts were there; whatever was not right is an error."""
    counts = built.engine.memory.counts
    before = counts.found
    assert right(built, prompts, after)
    return counts.found - before


def test_what_is_found():
    built, text = cached(), ids(1, 30)
    assert found_by(built, [text[:15]]) == 0
    assert found_by(built, [text[:15]]) == 12
    assert found_by(built, [text[:12]]) == 8  # one token is always left to be computed
    assert found_by(built, [text[:13]]) == 12
    assert found_by(built, [text]) == 12
    assert found_by(built, [text]) == 28
    assert found_by(built, [text[:9] + ids(2, 9)]) == 8
    assert found_by(built, [ids(3, 20)]) == 0
    assert found_by(built, [text[4:]]) == 0  # the same tokens at other positions
    assert found_by(built, [text[:2]]) == 0


def test_a_hit_and_a_miss_in_one_batch():
    built, text = cached(), ids(1, 22)
    assert found_by(built, [text]) == 0
    assert found_by(built, [ids(5, 21), text, ids(6, 2), text[:9] + ids(7, 3)]) == 20 + 8
    assert found_by(built, [text, text]) == 40  # two rows hold the same blocks


def test_what_was_decoded():
    """In exact mode it has the bits that a prompt would have; elsewhere it is kept on demand."""
    text, more = ids(1, 10), ids(2, 12)
    whole = [*text, *more, *ids(3, 2)]
    assert found_by(cached(), [text], [more]) == 0
    for built, expected in (
        (cached(), 20),
        (model(ROTARY, Prefix(SIZE), precision="float32"), 8),
        (model(ROTARY, Prefix(SIZE, decoded=True), precision="float32"), 20),
    ):
        fed(built, [text], [more])
        built.engine.begin([whole], 1).end()
        assert built.engine.memory.counts.found == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_passes_whether_found_or_not(backend):
    """In float32 too: the passes of a prompt are cut at the same places, so products have the same shapes."""
    built, text = model(LEARNED, Prefix(SIZE), backend, "float32"), ids(1, 30)
    first, second = (fed(built, [text], [ids(2, 4)]) for _ in range(2))
    assert built.engine.memory.counts.found == 28
    assert (first == second).all()


def test_the_pool_forgets_what_was_used_longest_ago():
    built = model(ROTARY, Prefix(SIZE, kept_tokens=64), precision="float32")
    first, counts = ids(1, 17), built.engine.memory.counts
    for seed in range(2, 12):
        built.generate(ids(seed, 17), 2)
        built.generate(first, 2)
    assert counts.found == 9 * 16  # from the second time on: it was always the last
    assert counts.forgotten > 0 and built.engine.memory.blocks.count <= 64 // SIZE + 12
    for seed in range(20, 32):
        built.generate(ids(seed, 17), 2)
    before = counts.found
    built.generate(first, 2)
    assert counts.found == before
    assert counts.kept - counts.forgotten == built.engine.memory.blocks.kept * SIZE


def test_other_weights_are_another_text():
    built, text = cached(), ids(1, 22)
    assert right(built, [text])
    built.replace_weights(arrays_of(ROTARY, seed=5))
    assert found_by(built, [text]) == 0


def test_a_text_that_is_given_up_gives_its_blocks_back():
    built = model(ROTARY, Prefix(SIZE), precision="float32")
    decoding = iter(built._decoding(Request(ids(1, 9), 8)))
    next(decoding)
    assert built.engine.memory.blocks.held == 3
    decoding.close()
    assert built.engine.memory.blocks.held == 0 and built.engine.memory.blocks.kept == 2


def test_a_mistake_while_a_prompt_runs_gives_its_blocks_back(monkeypatch):
    built = model(ROTARY, Prefix(SIZE), precision="float32")

    def failing(*arguments):
        raise KeyboardInterrupt

    right_one = built.engine.extend
    monkeypatch.setattr(built.engine, "extend", failing)
    with pytest.raises(KeyboardInterrupt):
        built.engine.begin([ids(1, 9)], 4)
    assert built.engine.memory.blocks.held == built.engine.memory.blocks.kept == 0
    monkeypatch.setattr(built.engine, "extend", right_one)
    assert (
        built.generate(ids(1, 9), 8).token_ids
        == model(ROTARY, Contiguous(), precision="float32").generate(ids(1, 9), 8).token_ids
    )


def test_what_cannot_be_shared_is_refused():
    first = ROTARY.blocks[0]
    chooser = replace(ROTARY, blocks=(first, MixtureOfDepths(first.attention, first.ffn, first.norm)))
    for policy, cure in ((Paged(), "Use cache=contiguous"), (Prefix(), "Use cache=contiguous")):
        with pytest.raises(ConfigurationError, match=cure):
            model(chooser, policy)
    with pytest.raises(ConfigurationError, match=r"hold 4 tokens .* cache.most_tokens is 4"):
        model(ROTARY, Paged(SIZE, most_tokens=4), precision="float32").generate(ids(1, 9), 4)
    for fields in ({"block": 0}, {"block": 2.5}, {"kept_tokens": "many"}, {"decoded": "yes"}):
        with pytest.raises(ConfigurationError, match=next(iter(fields))):
            Prefix(**fields)


TEXTS = st.lists(st.integers(0, 1), min_size=1, max_size=14)


class Machine(RuleBasedStateMachine):
    """Texts over few tokens, so that they share beginnings, begun and ended in any order over one pool."""

    def __init__(self):
        super().__init__()
        self.built = model(ROTARY, Prefix(SIZE, kept_tokens=40), precision="float64")
        self.plain = model(ROTARY, Contiguous(), precision="float64")
        self.under_way = []

    @rule(
        rows=st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=14), min_size=1, max_size=2),
        decode=st.integers(0, 5),
    )
    def begin(self, rows, decode):
        if len(self.under_way) > 3:
            return
        sequences = self.built.engine.begin(rows, 6)
        for _ in range(decode):
            sequences.feed([1] * len(rows))
        self.check(sequences)
        self.under_way.append(sequences)

    @rule(data=st.data())
    def go_on(self, data):
        if self.under_way:
            sequences = data.draw(st.sampled_from(self.under_way))
            if len(sequences.rows[0]) < sequences.capacity and max(map(len, sequences.rows)) < sequences.capacity:
                sequences.feed([data.draw(st.integers(0, 1)) for _ in sequences.rows])
                self.check(sequences)

    @rule(data=st.data())
    def end(self, data):
        if self.under_way:
            self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1))).end()

    def check(self, sequences):
        for row, logits in zip(sequences.rows, sequences.logits, strict=True):
            np.testing.assert_allclose(logits, self.plain.logits(row)[0, -1], rtol=0, atol=1e-9)

    @invariant()
    def the_tree_and_the_blocks_agree(self):
        pool = self.built.engine.memory
        held = {block for sequences in self.under_way for table in sequences.cache.tables for block in table}
        assert held == set(pool.blocks._holders)
        for block, node in pool._known.items():
            assert node.block == block and node.parent.children[node.ids] is node
        assert all(pool.is_known(block) for block in pool.blocks._kept)


class TestPrefix(Machine.TestCase):
    settings = settings(max_examples=15, stateful_step_count=20, deadline=None)


# --- mistakes that others made ----------------------------------------------------------------------------------------


def by_hash_alone(monkeypatch):
    """A block is found by a hash of its tokens, and hashes meet."""

    class Hashed(dict):
        def get(self, key, default=None):
            return super().get(sum(key) % 2, default)

        def __setitem__(self, key, value):
            super().__setitem__(sum(key) % 2, value)

        def __getitem__(self, key):
            return super().__getitem__(sum(key) % 2)

        def __contains__(self, key):
            return super().__contains__(sum(key) % 2)

        def __delitem__(self, key):
            super().pop(sum(key) % 2, None)

    right_one = Node.__init__

    def made(self, *given, **named):
        right_one(self, *given, **named)
        self.children = Hashed()

    monkeypatch.setattr(Node, "__init__", made)


def without_its_parents(monkeypatch):
    """A block is known by its own tokens, not by those before it."""

    def longest(self, tokens):
        found = []
        for first in range(0, len(tokens) - self.size, self.size):
            part = tuple(tokens[first : first + self.size])
            block = next((node.block for node in self._known.values() if node.ids == part), None)
            if block is None:
                break
            found.append(block)
        return found

    monkeypatch.setattr(prefix.PrefixPool, "longest", longest)


def weights_forgotten(monkeypatch):
    from transformer_lab.generation.engine import Engine

    right_one = Engine.take

    def take(self, params):
        memory = self.__dict__.get("memory")
        right_one(self, params)
        self.memory = memory or self.memory

    monkeypatch.setattr(Engine, "take", take)


def phantom_hits(monkeypatch):
    """A block that was given away is still known."""
    monkeypatch.setattr(prefix.PrefixPool, "forgotten", lambda self, block: None)


def freed_while_shared(monkeypatch):
    """The first who ends frees what another one still reads."""

    def let_go(self, blocks, keep=lambda block: False):
        for block in blocks:
            if self._holders.pop(block, None):
                self._free.insert(0, block)

    monkeypatch.setattr(Blocks, "let_go", let_go)


def length_of_the_other(monkeypatch):
    """How much of the first row is known is taken for all."""
    right_one = prefix.PrefixRows.__init__

    def made(self, *given):
        right_one(self, *given)
        self.known = [self.known[0]] * len(self.known)

    monkeypatch.setattr(prefix.PrefixRows, "__init__", made)


def half_a_block(monkeypatch):
    """A block is remembered before it is full."""

    def remember(self, tokens, table):
        padded = [*tokens, *[0] * (-len(tokens) % self.size)]
        right_one(self, padded, table)

    right_one = prefix.PrefixPool.remember
    monkeypatch.setattr(prefix.PrefixPool, "remember", remember)


def table_of_the_first_row(monkeypatch):
    """A hit in a batch is read by another row's table."""
    right_one = paged.PagedRows.layers

    def layers(self, lengths):
        found = right_one(self, lengths)
        if len(self.tables) > 1:
            first = self.pool.ops.asarray(np.tile(self._placed[:1], (len(self.tables), 1)))
            found = [layer._replace(table=first) for layer in found]
        return found

    monkeypatch.setattr(paged.PagedRows, "layers", layers)


def padding_written(monkeypatch):
    """Padding goes to the block that its position falls into."""
    right_one = paged.PagedLayer._slots
    monkeypatch.setattr(
        paged.PagedLayer, "_slots", lambda self, ops, tokens: right_one(self, ops, tokens._replace(real=None))
    )


MISTAKES = [
    by_hash_alone,
    without_its_parents,
    weights_forgotten,
    phantom_hits,
    freed_while_shared,
    length_of_the_other,
    half_a_block,
    table_of_the_first_row,
    padding_written,
]


def sessions(built):
    """What would show each of them: several sessions over one pool, each judged by one pass."""
    text, twin = ids(1, 22), [*ids(1, 22)[:4], *ids(2, 18)]
    yield right(built, [text])
    yield right(built, [twin])
    yield right(built, [[*ids(8, 4), *text[4:20]], text[:14]])
    yield right(built, [[*text[:4], *text[8:22]]])
    yield right(built, [[*text, *ids(77, 3), 0, 0, 0, 0, 0]])
    yield right(built, [[*text[:20], 0], [*text[:9], 0, 0, 0, 0]])
    first, second = built.engine.begin([text], 6), built.engine.begin([text[:14]], 6)
    first.end()
    third = built.engine.begin([ids(12, 22)], 6)
    second.feed([3])
    yield bool((second.logits[0] == built.logits([*text[:14], 3])[0, -1]).all())
    second.end()
    third.end()
    for seed in range(30, 42):
        yield right(built, [ids(seed, 22)])
    yield right(built, [text, ids(50, 2), twin[:9]])
    built.replace_weights(arrays_of(ROTARY, seed=5))
    yield right(built, [text])


def test_sessions_are_right():
    assert all(sessions(model(ROTARY, Prefix(SIZE, kept_tokens=80))))


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake.__name__ for mistake in MISTAKES])
def test_mistakes_are_noticed(mistake, monkeypatch):
    mistake(monkeypatch)
    try:
        seen = all(sessions(model(ROTARY, Prefix(SIZE, kept_tokens=80))))
    except (KeyError, IndexError, ValueError, AssertionError):
        seen = False
    assert not seen


def test_the_vocabulary_is_large_enough_for_texts_that_differ():
    assert len({tuple(ids(seed, 4)) for seed in range(60)}) == 60 and VOCABULARY > 30
