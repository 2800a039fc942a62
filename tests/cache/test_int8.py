"""Eight bits: what is read again is as near as it is said to be, on every backend, and whatever stands beside it."""

import numpy as np
import pytest
from cache_models import (
    BACKENDS,
    CONFIGS,
    LEARNED,
    ROTARY,
    decoded,
    fed,
    ids,
    model,
    require_bad_vectors_to_stay_so,
    uncached,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from transformer_lab.cache import int8
from transformer_lab.cache.contiguous import Contiguous
from transformer_lab.cache.int8 import Int8, Int8Rows
from transformer_lab.config import component
from transformer_lab.errors import InputFileError

OPS = {backend: component("backend", backend) for backend in BACKENDS}
FINITE = st.floats(-(2.0**120), 2.0**120, width=32)
PROMPTS, AFTER = [ids(1, 17), ids(2, 3)], [ids(3, 9), ids(4, 9)]
DRAWN = np.random.default_rng(0).standard_normal((2, 3, 5, 8)).astype(np.float32) * [[[[1.0]]], [[[30.0]]]]


def within(ops, x):
    x = np.asarray(x, np.float32)
    return bool((np.abs(decoded(Int8Rows, ops, x) - x) <= Int8().rounding(x)).all())


@settings(max_examples=300, deadline=None)
@given(arrays.arrays(np.float32, (1, 2, 3, 4), elements=FINITE))
def test_each_number_is_within_its_bound(x):
    assert within(OPS["numpy"], x)
    assert (decoded(Int8Rows, OPS["numpy"], x)[np.abs(x).max(-1) == 0.0] == 0.0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_bound_holds_on_every_backend(backend):
    draw = np.random.default_rng(1)
    x = draw.standard_normal((3, 4, 50, 64)).astype(np.float32) * 10.0 ** draw.integers(-30, 30, (3, 4, 50, 1))
    assert within(OPS[backend], x) and within(OPS[backend], np.zeros((1, 1, 2, 4)))
    error = np.abs(decoded(Int8Rows, OPS[backend], x) - x.astype(np.float32)) / np.abs(x).max(-1, keepdims=True)
    assert 0.9 / 254 < error.max() <= Int8().epsilon  # it is no bound that nothing comes near to


def test_the_same_bits_in_exact_mode_in_any_pieces():
    expected = fed(model(ROTARY, Int8()), PROMPTS, AFTER)
    for backend in BACKENDS[1:]:
        assert (fed(model(ROTARY, Int8(), backend), PROMPTS, AFTER) == expected).all()
    alone = fed(model(ROTARY, Int8()), PROMPTS[:1], AFTER[:1])
    assert (alone == expected[:1]).all()
    by_one = fed(model(ROTARY, Int8()), [PROMPTS[0][:1]], [[*PROMPTS[0][1:], *AFTER[0]]])
    assert (by_one[:, 16:] == alone).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_scales_with_the_scores_are_the_same_up_to_rounding(name, backend):
    """One token multiplies scores and pattern by the scales, a longer pass keys and values: compared in float64."""
    expected = fed(model(CONFIGS[name], Int8(), precision="exact"), PROMPTS, AFTER)
    found = fed(model(CONFIGS[name], Int8(), backend, "float64"), PROMPTS, AFTER)
    off = fed(model(CONFIGS[name], Contiguous(), precision="exact"), PROMPTS, AFTER) - expected
    assert 0.0 < np.abs(off).max() < 0.1 * np.abs(expected).std()
    assert np.abs(found - expected).max() < 0.2 * np.abs(off).max()


def test_bytes():
    def held(policy):
        cache = policy.allocate(OPS["numpy"], CONFIGS["learned"], 1, 32)
        return sum(array.nbytes for layer in cache for stored in layer for array in stored)

    assert held(Int8()) / held(Contiguous()) == (4 + 4) / 16  # of heads of 4 numbers
    shape = (1, 12, 10, 64)
    assert sum(a.nbytes for a in Int8Rows.empty(OPS["numpy"], shape)) <= 0.3 * np.zeros(shape, np.float32).nbytes


def test_what_is_not_finite_stays_so(recwarn):
    require_bad_vectors_to_stay_so(Int8Rows)
    built = model(LEARNED, Int8(), precision="float32")
    built.params["blocks"][0]["attn"]["qkv"]["kernel"][0, 20] = np.nan
    with pytest.raises(InputFileError, match="not finite"), np.errstate(invalid="ignore"):
        built.generate(ids(1, 4), 4)


# --- mistakes ---------------------------------------------------------------------------------------------------------


def replaced(monkeypatch, change):
    right_one = Int8Rows.encode.__func__
    monkeypatch.setattr(Int8Rows, "encode", classmethod(lambda cls, ops, x: change(right_one, cls, ops, x)))


def neighbours_scale(right_one, cls, ops, x):
    values, scales = right_one(cls, ops, x)
    return cls(values, np.roll(scales, 1, axis=2))


def one_scale_for_a_head(right_one, cls, ops, x):
    scales = np.broadcast_to(np.abs(x).max((-2, -1), keepdims=True) / np.float32(127), (*x.shape[:-1], 1))
    return cls(np.rint(x / scales).astype(np.int8), scales)


def truncated(right_one, cls, ops, x):
    scales = right_one(cls, ops, x).scales
    return cls(np.trunc(x / scales).astype(np.int8), scales)


def wrapped(right_one, cls, ops, x):
    scales = np.abs(x).max(-1, keepdims=True) / np.float32(127.9)
    return cls(np.rint(x / scales).astype(np.int64).astype(np.int8), scales)


@pytest.mark.parametrize("change", [neighbours_scale, one_scale_for_a_head, truncated, wrapped])
def test_mistakes_in_storing_are_noticed(change, monkeypatch):
    x = np.concatenate([DRAWN, 1000.0 * DRAWN[:, :, :1]], axis=2)
    assert within(OPS["numpy"], x)
    replaced(monkeypatch, change)
    assert not within(OPS["numpy"], x)


def test_a_scale_of_zero_is_noticed(monkeypatch):
    monkeypatch.setattr(int8, "LARGEST", 127)
    replaced(
        monkeypatch,
        lambda right_one, cls, ops, x: cls(
            (x / (np.abs(x).max(-1, keepdims=True) / np.float32(127))).astype(np.int8),
            np.abs(x).max(-1, keepdims=True) / np.float32(127),
        ),
    )
    with pytest.raises(RuntimeWarning, match="invalid value"):
        within(OPS["numpy"], np.zeros((1, 1, 2, 4)))


@pytest.mark.parametrize(
    "swapped", [lambda a, b: (b, a), lambda a, b: (a, 1.0 + 0.0 * b), lambda a, b: (a[:, :, ::-1], b)]
)
def test_scales_at_the_wrong_place_are_noticed(swapped, monkeypatch):
    right_one = Int8Rows.seen.__func__

    def seen(cls, ops, keys, values, tokens):
        found = right_one(cls, ops, keys, values, tokens)
        return found if found.scales is None else found._replace(scales=swapped(*found.scales))

    expected = uncached(model(ROTARY, Int8(), precision="float64"), PROMPTS, AFTER)
    right_off = np.abs(fed(model(ROTARY, Int8(), precision="float64"), PROMPTS, AFTER) - expected).max()
    monkeypatch.setattr(Int8Rows, "seen", classmethod(seen))
    off = np.abs(fed(model(ROTARY, Int8(), precision="float64"), PROMPTS, AFTER) - expected).max()
    assert off > 5.0 * right_off
