"""The ring: what the window sees, at its edges, after padding, after going back; and where it was wrong elsewhere."""

from dataclasses import replace

import numpy as np
import pytest
from cache_models import BACKENDS, CONFIGS, ROTARY, fed, ids, model, uncached, with_attention
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_lab.cache import window
from transformer_lab.cache.layer import NOWHERE
from transformer_lab.cache.window import RingLayer, Window
from transformer_lab.errors import ConfigurationError

W = 5
ONE, TWO = with_attention(ROTARY, {"window": W}), CONFIGS["two windows and none"]


def right(built, prompts, after):
    return bool((fed(built, prompts, after) == uncached(built, prompts, after)).all())


@pytest.mark.parametrize("length", [1, W - 1, W, W + 1, W + 2, 2 * W + 3])
def test_at_the_edges_of_the_window(length):
    for config in (ONE, TWO):
        built = model(config, Window())
        assert right(built, [ids(1, length)], [ids(2, 2 * W + 3)])
        assert right(built, [ids(1, length), ids(3, 1), ids(4, 13)], [ids(5, 8), ids(6, 8), ids(7, 8)])


def test_what_it_holds():
    built = model(TWO, Window(slack=2), precision="float32")
    sequences = built.engine.begin([ids(1, 20), ids(2, 3)], 20)
    sizes = [layer[0].shape[2] if isinstance(layer, RingLayer) else layer.capacity for layer in sequences.cache]
    assert sizes == [5 + 2, 40, 9 + 2]
    ops = built.backend
    places = sequences.cache[0]._places(ops, np.array([19, 2]))
    assert sorted(places[0]) == list(range(13, 20)) and sorted(places[1]) == [0, 1, 2, *[NOWHERE] * 4]


def gone_back(built, prompt, drafts, more):
    """The logits after `more`, that take the place of drafts which were fed one by one."""
    sequences = built.engine.begin([prompt], 24)
    for token in drafts:
        sequences.feed([token])
    for row in sequences.rows:
        del row[len(prompt) :]
    rows = []
    for token in more:
        sequences.feed([token])
        rows.append(np.array(sequences.logits[0]))
    return np.stack(rows)


@pytest.mark.parametrize("backend", BACKENDS)
def test_taking_back_as_many_as_the_slack(backend):
    prompt, more = ids(1, 13), ids(3, 7)
    built = model(TWO, Window(slack=3), backend)
    expected = uncached(built, [prompt], [more])[0, 1:]
    assert (gone_back(built, prompt, ids(2, 3), more) == expected).all()
    if backend == "numpy":
        assert (gone_back(built, prompt, ids(2, 6), more) != expected).any()  # more are lost, and it shows


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_size_of_its_own_is_a_narrower_window(backend):
    """The judge is a model whose own windows are as narrow."""
    prompts, after = [ids(1, 11), ids(2, 3)], [ids(3, 9), ids(4, 9)]
    for config, narrower in (
        (ROTARY, with_attention(ROTARY, {"window": 6})),
        (TWO, with_attention(TWO, {"window": 5}, {"window": 6}, {"window": 6})),
        (CONFIGS["alibi"], with_attention(CONFIGS["alibi"], {"window": 6})),
    ):
        found = fed(model(config, Window(size=6), backend), prompts, after)
        assert (found == uncached(model(narrower, Window(), "numpy"), prompts, after)).all()
    assert Window(size=6).contract == "lossy" and Window().contract == "exact"


def test_wrong_sizes():
    for fields in ({"slack": 0}, {"slack": "some"}, {"size": 0}, {"size": 2.5}):
        with pytest.raises(ConfigurationError, match=f"cache.{next(iter(fields))}"):
            Window(**fields)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_passes(data):
    """Pieces of any lengths, rows of any lengths, back by no more than the slack: against one pass over each row."""
    built = PLAIN if data.draw(st.booleans()) else SLACK
    slack = built.engine.policy.slack
    sizes = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))
    rows = [ids(data.draw(st.integers(0, 99)), size) for size in sizes]
    sequences = built.engine.begin(rows, 30)
    for _ in range(data.draw(st.integers(0, 6))):
        back = data.draw(st.integers(0, min(slack - 1, *(len(row) - 1 for row in sequences.rows))))
        for row in sequences.rows:
            del row[len(row) - back :]
        pieces = [ids(data.draw(st.integers(0, 99)), data.draw(st.integers(1, 3))) for _ in rows]
        starts = [len(row) for row in sequences.rows]
        for row, piece in zip(sequences.rows, pieces, strict=True):
            row += piece
        sequences._run(pieces, starts)
        for row, logits in zip(sequences.rows, sequences.logits, strict=True):
            np.testing.assert_allclose(logits, built.logits(row)[0, -1], rtol=0, atol=1e-9)


PLAIN = model(TWO, Window(), precision="float64")
SLACK = model(TWO, Window(slack=4), precision="float64")


# --- mistakes ---------------------------------------------------------------------------------------------------------


def off_by_one(monkeypatch):
    """The ring is as large as the window less one."""
    right_one = Window.layer

    def layer(self, ops, attention, batch, capacity):
        if attention.window is None:
            return right_one(self, ops, attention, batch, capacity)
        return right_one(self, ops, replace(attention, window=attention.window - 2), batch, capacity)._replace(
            narrow=None
        )

    monkeypatch.setattr(Window, "layer", layer)


def smallest_window_for_all(monkeypatch):
    right_one = Window.layer

    def layer(self, ops, attention, batch, capacity):
        return right_one(self, ops, replace(attention, window=W), batch, capacity)

    monkeypatch.setattr(Window, "layer", layer)


def padding_enters(monkeypatch):
    monkeypatch.setattr(window, "last_place", lambda ops, tokens: tokens.start + tokens.positions.shape[1] - 1)


def one_late(monkeypatch):
    right_one = RingLayer._places
    monkeypatch.setattr(RingLayer, "_places", lambda self, ops, last: right_one(self, ops, last + 1))


def first_row_for_all(monkeypatch):
    right_one = RingLayer._places

    def places(self, ops, last):
        return right_one(self, ops, last * 0 + last[0])

    monkeypatch.setattr(RingLayer, "_places", places)


def never_empty(monkeypatch):
    """Slots that hold nothing yet are taken for the first position."""
    right_one = RingLayer._places

    def places(self, ops, last):
        found = right_one(self, ops, last)
        return ops.xp.where(found == NOWHERE, 0, found)

    monkeypatch.setattr(RingLayer, "_places", places)


MISTAKES = [off_by_one, smallest_window_for_all, padding_enters, one_late, first_row_for_all, never_empty]


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake.__name__ for mistake in MISTAKES])
def test_mistakes_are_noticed(mistake, monkeypatch):
    mistake(monkeypatch)
    built = model(TWO, Window())
    try:
        seen = right(built, [ids(1, 14), ids(3, 1), ids(4, 2)], [ids(5, 8), ids(6, 8), ids(7, 8)])
    except (IndexError, RuntimeWarning):  # a key that is nowhere, a query that sees none
        seen = False
    assert not seen
