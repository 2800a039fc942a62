"""Four bits: every position is read once, whole or in the nearest levels of its group, and rotation is undone."""

from types import SimpleNamespace

import numpy as np
import pytest
from cache_models import (
    BACKENDS,
    CONFIGS,
    CONTEXT,
    ROTARY,
    decoded,
    fed,
    ids,
    model,
    require_bad_vectors_to_stay_so,
    uncached,
    with_attention,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.linalg import block_diag
from scipy.linalg import hadamard as scipys

import transformer_lab as lab
from transformer_lab.cache import int4, window
from transformer_lab.cache.contiguous import Contiguous
from transformer_lab.cache.hadamard import hadamard, spread
from transformer_lab.cache.int4 import Int4, Int4Layer, Int4Rows, group
from transformer_lab.cache.layer import NOWHERE, Fresh
from transformer_lab.config import component
from transformer_lab.contracts.fed import fed as fed_rows
from transformer_lab.contracts.fed import held_bytes
from transformer_lab.contracts.fed import uncached as uncached_rows
from transformer_lab.contracts.statistics import statistics
from transformer_lab.errors import ConfigurationError
from transformer_lab.language_model.language_model import LanguageModel
from transformer_lab.model.tokens import tokens_of

OPS = {backend: component("backend", backend) for backend in BACKENDS}
WIDE = component("backend", "numpy", precision="float64")
FINITE = st.floats(-(2.0**120), 2.0**120, width=32)
PROMPTS, AFTER = [ids(1, 17), ids(2, 3)], [ids(3, 19), ids(4, 19)]
FLOAT64 = 1e-9
# How the levels are found in float32: step, quotient, product and sum, a rounding each, in units of the largest number.
ROUNDING = 2.0**-20


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 4, 6, 20, 64, 80, 96, 128])
def test_the_matrix_is_scipys_in_blocks_and_its_own_inverse(size):
    found, block = hadamard(size), scipys(spread(size)) / np.sqrt(spread(size))
    np.testing.assert_array_equal(found, block_diag(*[block] * (size // spread(size))))
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_allclose(found @ found, np.eye(size), rtol=0, atol=1e-14)


def test_how_many_share_a_step():
    assert [group(size) for size in (2, 6, 32, 64, 80, 96, 128)] == [2, 6, 32, 32, 20, 32, 32]


def within(ops, x):
    x = np.asarray(x, np.float32).astype(np.float64)
    grouped = x.reshape(*x.shape[:-1], -1, group(x.shape[-1]))
    steps = np.ptp(grouped, axis=-1, keepdims=True) / 15.0
    bound = 0.5 * steps + ROUNDING * np.abs(grouped).max(-1, keepdims=True) + 16.0 * 2.0**-126
    return bool((np.abs(decoded(Int4Rows, ops, x).reshape(grouped.shape) - grouped) <= bound).all())


@settings(max_examples=200, deadline=None)
@given(arrays.arrays(np.float32, (1, 2, 3, 8), elements=FINITE))
def test_each_number_goes_to_the_nearest_level(x):
    assert within(OPS["numpy"], x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_on_every_backend(backend):
    draw = np.random.default_rng(1)
    x = draw.standard_normal((2, 3, 50, 64)).astype(np.float32) * 10.0 ** draw.integers(-30, 30, (2, 3, 50, 1))
    assert within(OPS[backend], x) and within(OPS[backend], np.zeros((1, 1, 2, 4)))
    x[0, 0, 0, 5] *= 1e4
    assert within(OPS[backend], x)


def test_what_is_not_finite_stays_so():
    require_bad_vectors_to_stay_so(Int4Rows)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bytes(backend):
    attention = SimpleNamespace(num_kv_heads=12, head_size=64)
    ops = OPS[backend]
    four, whole = (held_bytes(ops, policy.layer(ops, attention, 1, 1024)) for policy in (Int4(), Contiguous()))
    ring = 65 * 64 * 4
    assert four == 2 * 12 * (1024 * (32 + 2 * 2 * 4) + ring)
    assert four < 0.26 * whole and four - 2 * 12 * ring < 0.19 * whole


# --- which position is read where -------------------------------------------------------------------------------------


def slowly_rounded(x):
    """Vectors [K, N], the levels of each group one after the other."""
    found = np.empty_like(x)
    size = group(x.shape[-1])
    for head in range(len(x)):
        for begin in range(0, x.shape[-1], size):
            some = x[head, begin : begin + size]
            levels = np.linspace(some.min(), some.max(), 16)
            found[head, begin : begin + size] = [levels[np.abs(levels - number).argmin()] for number in some]
    return found


def once_each(passes, recent, slack, seed=0):
    """Whether every query of these passes sees every position once: the new ones and `recent` before them whole, older
    ones in 4 bits. passes: for each the starts and the lengths of the rows; the rest of the longest is padding."""
    draw, rows = np.random.default_rng(seed), len(passes[0][0])
    attention = SimpleNamespace(num_kv_heads=2, head_size=12)
    layer = Int4(recent, slack).layer(WIDE, attention, rows, 64)
    turn = block_diag(*[scipys(4) / 2.0] * 3)
    truth = [{} for _ in range(rows)]
    for starts, lengths in passes:
        width = max(lengths)
        key, value = draw.standard_normal((2, rows, 2, width, 12))
        tokens = tokens_of(WIDE, np.zeros((rows, width), np.int64), np.array(starts), np.array(lengths), 64)
        layer, seen = layer.update(WIDE, Fresh(key, key, value), tokens)
        assert np.allclose(seen.rotation, turn)
        for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            for place in range(length):
                truth[row][start + place] = (key[row, :, place] @ turn, value[row, :, place] @ turn)
            places = np.arange(seen.keys.shape[2]) if seen.places is None else seen.places[row]
            for query in range(start, start + length):
                if sorted(places[places <= query]) != list(range(query + 1)):
                    return False
            for slot in np.flatnonzero(places < start + length) if length else ():
                place = places[slot]
                for found, expected in zip((seen.keys, seen.values), truth[row][place], strict=True):
                    expected = expected if place >= start - recent else slowly_rounded(expected)
                    if not np.allclose(found[row, :, slot], expected, rtol=0, atol=FLOAT64):
                        return False
    return True


UNEQUAL = [
    ([0, 0, 0], [20, 7, 1]),
    *[([20 + n, 7 + n, 1 + n], [1, 1, 1]) for n in range(12)],
    ([32, 19, 13], [5, 1, 0]),
]
LAST = [([37, 20, 13], [1, 1, 1]), ([38, 21, 14], [3, 3, 3])]


@pytest.mark.parametrize("recent", [1, 3, 5, 8, 64])
def test_a_position_is_read_once_whole_or_rounded(recent):
    assert once_each([*UNEQUAL, *LAST], recent, 1)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_in_any_passes(data):
    """Pieces and rows of any lengths, padding, back by no more than the slack."""
    recent, slack, rows = (data.draw(st.integers(1, most)) for most in (9, 4, 3))
    at, passes = [0] * rows, []
    for _ in range(data.draw(st.integers(1, 7))):
        # What the last pass brought may be taken back: what came before it is lost behind the slack.
        most = [min(slack, place, len(passes) and passes[-1][1][row]) for row, place in enumerate(at)]
        starts = [place - data.draw(st.integers(0, back)) for place, back in zip(at, most, strict=True)]
        lengths = [data.draw(st.integers(0, 7)) for _ in range(rows)]
        lengths[0] = max(1, lengths[0])
        passes.append((starts, lengths))
        at = [start + length for start, length in zip(starts, lengths, strict=True)]
    assert once_each(passes, recent, slack)


# --- a model ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_recent_is_what_an_uncached_pass_computes(name, backend):
    """A query that is turned and a result that is turned back."""
    expected = uncached(model(CONFIGS[name], Contiguous(), precision="float64"), PROMPTS, AFTER)
    found = fed(model(CONFIGS[name], Int4(recent=CONTEXT), backend, "float64"), PROMPTS, AFTER)
    assert np.abs(found - expected).max() < FLOAT64


class Undone(Int4Layer):
    """What is read, turned back before attention sees it."""

    def update(self, ops, fresh, tokens):
        layer, seen = Int4Layer.update(self, ops, fresh, tokens)
        keys, values = seen.keys @ seen.rotation, seen.values @ seen.rotation
        return Undone(*layer), seen._replace(keys=keys, values=values, rotation=None)


class UndoneInt4(Int4):
    def layer(self, ops, attention, batch, capacity):
        return Undone(*super().layer(ops, attention, batch, capacity))


@pytest.mark.parametrize("name", CONFIGS)
def test_turning_queries_is_turning_keys_back(name):
    built = model(CONFIGS[name], Int4(recent=5), precision="float64")
    expected = fed(model(CONFIGS[name], UndoneInt4(recent=5), precision="float64"), PROMPTS, AFTER)
    found = fed(built, PROMPTS, AFTER)
    assert np.abs(found - expected).max() < FLOAT64
    assert np.abs(found - uncached(built, PROMPTS, AFTER)).max() > 1e-4  # something was rounded


def test_the_same_bits_in_exact_mode():
    prompts, after = [ids(1, 7), ids(2, 2)], [ids(3, 4), ids(4, 4)]
    expected = fed(model(ROTARY, Int4(recent=3)), prompts, after)
    for backend in BACKENDS[1:]:
        assert (fed(model(ROTARY, Int4(recent=3), backend), prompts, after) == expected).all()
    assert (fed(model(ROTARY, Int4(recent=3)), prompts[:1], after[:1]) == expected[:1]).all()


def test_what_it_cannot_hold():
    odd = with_attention(CONFIGS["learned"], {"head_size": 3})
    with pytest.raises(ConfigurationError, match=r"head_size 3 is odd; .* Use cache=int8"):
        Int4().allocate(OPS["numpy"], odd, 1, 8)
    for fields in ({"recent": 0}, {"recent": 2.5}, {"slack": 0}):
        with pytest.raises(ConfigurationError, match=f"cache.{next(iter(fields))}"):
            Int4(**fields)
    assert Int4().contract == "lossy"


TALE = (
    "Once there was a miller who had a donkey, a cat and three daughters. When he grew old he called them to him and "
    "said: Whoever brings me the whitest flour gets the mill. The eldest went to the town, the second to the sea, "
    "but the youngest stayed at home and asked the old donkey, who knew every sack in the country. Go to the hill "
    "behind the wood, said the donkey, and wait until the moon comes up; then you will see what nobody has seen before."
)


def with_outliers(language_model, policy, factor):
    """The same function, with numbers of one place of each key and value that are `factor` times as large."""
    params = {**language_model.params, "blocks": []}
    for block, layer in zip(language_model.params["blocks"], language_model.config.blocks, strict=True):
        part, attn = layer.attention, {name: dict(x) for name, x in block["attn"].items()}
        qkv, out = (np.array(attn[name]["kernel"]) for name in ("qkv", "out"))
        bias, all_of = np.array(attn["qkv"]["bias"]), part.num_heads * part.head_size
        for head in range(part.num_heads):
            place = head * part.head_size + 11
            for array in (qkv, bias):
                array[..., place] /= factor
                array[..., [all_of + place, 2 * all_of + place]] *= factor
            out[place] /= factor
        attn["qkv"], attn["out"]["kernel"] = {"kernel": qkv, "bias": bias}, out
        params["blocks"].append({**block, "attn": attn})
    return LanguageModel(language_model.backend, language_model.config, params, language_model.tokenizer, policy)


def test_rotation_spreads_outliers(monkeypatch):
    """KL in nats of storybook with planted outliers, beside that with a matrix that turns nothing: a sixth.
    Without outliers the rotation gains nothing."""
    storybook = lab.load_model("storybook")
    text = storybook.tokenizer.encode(TALE)
    planted = with_outliers(storybook, Int4(recent=4), 64.0)
    whole = uncached_rows(planted, text, 16)
    assert np.abs(whole - uncached_rows(storybook, text, 16)).max() < 1e-3  # the same function

    def kl():
        found = fed_rows(planted, [text], [16]).logits[0]
        return statistics([found], [whole], [np.asarray(text[16:])])["kl"]

    turned = kl()
    monkeypatch.setattr(int4, "hadamard", lambda size: np.eye(size))
    assert 0.0 < turned < 0.5 * kl()


# --- mistakes ---------------------------------------------------------------------------------------------------------


def decoding(monkeypatch, change):
    right_one = Int4Rows.decode
    monkeypatch.setattr(Int4Rows, "decode", lambda self, ops: right_one(change(self), ops))


def swapped_nibbles(monkeypatch):
    decoding(monkeypatch, lambda rows: rows._replace(pairs=(rows.pairs << 4) | (rows.pairs >> 4)))


def neighbours_step(monkeypatch):
    decoding(monkeypatch, lambda rows: rows._replace(steps=np.roll(rows.steps, 1, axis=2)))


def another_groups_lowest(monkeypatch):
    decoding(monkeypatch, lambda rows: rows._replace(lowest=np.roll(rows.lowest, 1, axis=1)))


def truncated(monkeypatch):
    right_one = Int4Rows.encode.__func__

    def encode(cls, ops, x):
        grouped = x.reshape(*x.shape[:-1], -1, group(x.shape[-1]))
        return right_one(cls, ops, x - 0.499 * (np.ptp(grouped, -1, keepdims=True) / 15 + 0 * grouped).reshape(x.shape))

    monkeypatch.setattr(Int4Rows, "encode", classmethod(encode))


def turned_twice(monkeypatch):
    monkeypatch.setattr(int4, "hadamard", lambda size: hadamard(size) @ hadamard(size))


def showing(monkeypatch, change):
    right_one = Int4Layer.update

    def update(self, ops, fresh, tokens):
        layer, seen = right_one(self, ops, fresh, tokens)
        if seen.places is None:
            return layer, seen
        places = seen.places.copy()
        for row, border in enumerate(tokens.start - self.recent.shape[1]):
            change(places[row], int(border), seen.keys.shape[2])
        return layer, seen._replace(places=places)

    monkeypatch.setattr(Int4Layer, "update", update)


def in_both(monkeypatch):
    def change(places, border, slots):
        if 0 < border < slots and places[border] == NOWHERE:
            places[border] = border

    showing(monkeypatch, change)


def in_neither(monkeypatch):
    def change(places, border, slots):
        places[places == border - 1] = NOWHERE

    showing(monkeypatch, change)


def padding_enters(monkeypatch):
    monkeypatch.setattr(window, "last_place", lambda ops, tokens: tokens.start + tokens.positions.shape[1] - 1)


MISTAKES = [swapped_nibbles, neighbours_step, another_groups_lowest, truncated, turned_twice, in_both, in_neither]
MISTAKES += [padding_enters]


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake.__name__ for mistake in MISTAKES])
def test_mistakes_are_noticed(mistake, monkeypatch):
    mistake(monkeypatch)
    try:
        right = once_each([*UNEQUAL, *LAST], 3, 1)
    except (AssertionError, KeyError):  # another matrix, a position that never came
        right = False
    assert not right


@pytest.mark.parametrize("lost", ["keys", "values", "query"])
def test_a_rotation_on_one_side_is_noticed(lost, monkeypatch):
    right_one = Int4Layer.update

    def update(self, ops, fresh, tokens):
        layer, seen = right_one(self, ops, fresh, tokens)
        if lost == "query":
            return layer, seen._replace(rotation=None)
        return layer, seen._replace(**{lost: getattr(seen, lost) @ seen.rotation})

    built = model(ROTARY, Int4(recent=CONTEXT), precision="float64")
    expected = uncached(built, PROMPTS, AFTER)
    monkeypatch.setattr(Int4Layer, "update", update)
    assert np.abs(fed(built, PROMPTS, AFTER) - expected).max() > 1e-2
