"""A function as a participant: what it may return, what it is refused for, and in which order its taps come.

The names and shapes of taps are those that the judge meets when it runs the decoder: what has no place there is
refused by it.
"""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from random_models import random_arrays
from small_models import small_model

from transformer_lab.comparison.judging.examination import examine
from transformer_lab.comparison.participants.own_model import OwnModel
from transformer_lab.comparison.participants.participant import Function
from transformer_lab.config import component
from transformer_lab.errors import ConfigurationError
from transformer_lab.ffn.dense import Dense
from transformer_lab.language_model import assemble

IDS = np.arange(5)
CONFIG = small_model(
    vocab_size=11, context_length=8, hidden_size=12, num_layers=11, num_heads=6, num_kv_heads=2, ffn=Dense(7)
)
# By hand, from the table in docs/taps.md.
BLOCK = {
    "norm_1": (5, 12),
    "attn.q": (6, 5, 2),
    "attn.k": (2, 5, 2),
    "attn.v": (2, 5, 2),
    "attn.scores": (6, 5, 5),
    "attn.pattern": (6, 5, 5),
    "attn.out": (5, 12),
    "resid_mid": (5, 12),
    "norm_2": (5, 12),
    "ffn.pre": (5, 7),
    "ffn.act": (5, 7),
    "ffn.out": (5, 12),
    "resid_post": (5, 12),
}
SHAPES = {
    "embed": (5, 12),
    **{f"blocks.{layer}.{name}": shape for layer in range(11) for name, shape in BLOCK.items()},
    "final_norm": (5, 12),
    "logits": (5, 11),
}


def shown(run, **options):
    return list(Function("mine", run, **options).taps(IDS))


@pytest.fixture(scope="module")
def truth():
    ops = component("backend", "numpy", precision="float64", ops="manual")
    return OwnModel(assemble(CONFIG, random_arrays(CONFIG, 0, 0.3), ops))


def judged(truth, run, **options):
    """The examination, and {tap: the array that the judge was shown}, in the order in which it met them."""
    seen = {}
    participant = Function("mine", run, **options)
    found = examine(participant, truth, [IDS], lambda prompt, name, value: seen.update({name: value}))
    return found, seen


def test_every_tap_with_and_without_a_batch_axis_in_the_order_of_the_computation(truth):
    names = list(SHAPES)
    np.random.default_rng(0).shuffle(names)
    arrays = {name: np.full(SHAPES[name], place, np.float32) for place, name in enumerate(names)}
    assert names != list(SHAPES)  # block 10 comes after block 9, which sorting texts would not do
    for given in (arrays, {name: array[None] for name, array in arrays.items()}):
        examination, found = judged(truth, lambda ids, given=given: given)
        assert list(found) == list(SHAPES) == examination.order == list(examination.taps)
        assert examination.hidden == []
        for name, array in found.items():
            assert array.shape == (1, *SHAPES[name]) and array.dtype == np.float32
            np.testing.assert_array_equal(array[0], arrays[name])


def test_block_by_block_so_that_one_block_is_held():
    names = [name for name in SHAPES if name not in ("embed", "logits", "final_norm")]
    np.random.default_rng(1).shuffle(names)
    found = [name for name, _ in shown(lambda ids: {name: np.zeros(SHAPES[name]) for name in (*names, "embed")})]
    assert found[0] == "embed"
    blocks = [int(name.split(".")[1]) for name in found[1:]]
    assert blocks == sorted(blocks) and len(set(blocks)) == 11


def test_it_is_given_whole_numbers_and_may_show_little(truth):
    def run(ids):
        assert ids.shape == (5,) and ids.dtype == np.int64
        return {"logits": np.zeros((5, 11)) + ids[:, None]}

    ((name, array),) = shown(run)
    assert name == "logits" and array.dtype == np.float64
    np.testing.assert_array_equal(array[:, 3], [0, 1, 2, 3, 4])
    assert shown(lambda ids: {}) == []
    examination, found = judged(truth, run)
    assert list(found) == ["logits"] and examination.hidden == list(SHAPES)[:-1]
    assert judged(truth, lambda ids: {})[0].hidden == list(SHAPES)


def test_arrays_of_every_framework():
    exact = np.array([[1.5, -2.0, 0.25] * 4] * 5)  # a number of few bits is the same in every format
    for array, dtype in (
        (exact, np.float64),
        (exact.astype(">f4"), np.float32),
        (exact.astype(np.float16), np.float32),
        (exact.astype(ml_dtypes.bfloat16), np.float32),
        (exact.tolist(), np.float64),
        (jnp.asarray(exact, jnp.float32), np.float32),
        (jnp.asarray(exact, jnp.bfloat16), np.float32),
        (torch.tensor(exact), np.float64),
        (torch.tensor(exact, requires_grad=True), np.float64),
        (torch.tensor(exact, dtype=torch.bfloat16), np.float32),
        (torch.tensor(exact, dtype=torch.float16), np.float32),
    ):
        ((_, found),) = shown(lambda ids, array=array: {"embed": array})
        assert found.dtype == dtype and found.dtype.isnative
        np.testing.assert_array_equal(found, exact)


def test_scores_keep_their_infinities():
    scores = np.where(np.tri(5), 1.0, -np.inf) * np.ones((6, 1, 1))
    ((_, found),) = shown(lambda ids: {"blocks.0.attn.scores": scores})
    np.testing.assert_array_equal(found, scores)


def test_choices_stay_whole_numbers():
    for array in (np.arange(5), np.arange(5, dtype=np.uint8), np.arange(5) > 2, torch.arange(5)):
        ((_, found),) = shown(lambda ids, array=array: {"blocks.0.ffn.chosen": array})
        assert found.dtype.kind in "iub"
        np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize(
    ("name", "offered"),
    [
        ("blocks.0.atn.out", "is 'blocks.0.attn.out' meant?"),
        ("block.0.norm_1", "is 'blocks.0.norm_1' meant?"),
        ("blocks.0.logits", "is 'blocks.0."),
        ("blocks.3.ffn.prex", "is 'blocks.3.ffn.pre' meant?"),
        ("blocks.11.norm_1", "is 'blocks.1"),
        ("logit", "is 'logits' meant?"),
        ("zzzzzzzz", "(docs/taps.md)"),
        (3, "shows 3, which is no tap"),
    ],
)
def test_a_name_that_is_no_tap_of_this_model(truth, name, offered):
    with pytest.raises(ConfigurationError) as error:
        judged(truth, lambda ids: {name: np.zeros((5, 12))})
    assert str(error.value).startswith(f"mine shows {name!r}") and offered in str(error.value)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("embed", (12, 5), "[1, 5, 12]"),
        ("embed", (4, 12), "[1, 5, 12]"),
        ("embed", (2, 5, 12), "[1, 5, 12]"),
        ("embed", (12,), "[1, 5, 12]"),
        ("blocks.0.attn.q", (5, 6, 2), "[1, 6, 5, 2]"),
        ("blocks.0.attn.q", (5,), "[1, 6, 5, 2]"),
        ("blocks.0.attn.k", (6, 5, 2), "[1, 2, 5, 2]"),
        ("blocks.0.attn.pattern", (1, 6, 5, 4), "[1, 6, 5, 5]"),
        ("blocks.0.ffn.pre", (5, 12), "[1, 5, 7]"),
        ("logits", (4, 11), "[1, 5, 11]"),
    ],
)
def test_a_shape_that_does_not_fit(truth, name, shape, expected):
    with pytest.raises(ConfigurationError) as error:
        judged(truth, lambda ids: {name: np.zeros(shape)})
    assert f"mine shows {name} as {list(shape)}; expected is {expected}" in str(error.value)


@pytest.mark.parametrize("array", [np.zeros((5, 12), complex), np.full((5, 12), "a"), "text"])
def test_what_holds_no_real_numbers(array):
    with pytest.raises(ConfigurationError, match=r"mine shows embed as .*; numbers are expected"):
        shown(lambda ids: {"embed": array})


def test_other_mistakes():
    with pytest.raises(ConfigurationError, match="mine returned ndarray; a dictionary"):
        shown(lambda ids: np.zeros((5, 11)))
    with pytest.raises(ConfigurationError, match="The precision of mine is 'fp32'; choose one of float32"):
        shown(lambda ids: {}, precision="fp32")
