"""A function as a participant: what it may return, what it is refused for, and in which order its taps come."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

from transformer_lab.comparison.participants.participant import Function, checked
from transformer_lab.errors import ConfigurationError
from transformer_lab.ffn.dense import Dense
from transformer_lab.model.config import ModelConfig

IDS = np.arange(5)
CONFIG = ModelConfig(
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


def shown(run, config=CONFIG, **options):
    return list(Function("mine", run, config=config, **options).taps(IDS))


@pytest.mark.parametrize("config", [CONFIG, None, {"norm_epsilon": 1e-6}])
def test_every_tap_with_and_without_a_batch_axis_in_the_order_of_the_computation(config):
    names = list(SHAPES)
    np.random.default_rng(0).shuffle(names)
    arrays = {name: np.full(SHAPES[name], place, np.float32) for place, name in enumerate(names)}
    assert names != list(SHAPES)  # block 10 comes after block 9, which sorting texts would not do
    for given in (arrays, {name: array[None] for name, array in arrays.items()}):
        found = shown(lambda ids, given=given: given, config)
        assert [name for name, _ in found] == list(SHAPES)
        for name, array in found:
            assert array.shape == (1, *SHAPES[name]) and array.dtype == np.float32
            np.testing.assert_array_equal(array[0], arrays[name])


def test_it_is_given_whole_numbers_and_may_show_little():
    def run(ids):
        assert ids.shape == (5,) and ids.dtype == np.int64
        return {"logits": np.zeros((5, 11)) + ids[:, None]}

    ((name, array),) = shown(run)
    assert name == "logits" and array.dtype == np.float64
    np.testing.assert_array_equal(array[0, :, 3], [0, 1, 2, 3, 4])
    assert shown(lambda ids: {}) == []


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
        np.testing.assert_array_equal(found[0], exact)


def test_scores_keep_their_infinities():
    scores = np.where(np.tri(5), 1.0, -np.inf) * np.ones((6, 1, 1))
    ((_, found),) = shown(lambda ids: {"blocks.0.attn.scores": scores})
    np.testing.assert_array_equal(found[0], scores)


@pytest.mark.parametrize("config", [CONFIG, None])
@pytest.mark.parametrize(
    ("name", "offered"),
    [
        ("blocks.0.atn.out", "is 'blocks.0.attn.out' meant?"),
        ("block.0.norm_1", "is 'blocks.0.norm_1' meant?"),
        ("blocks.0.logits", "is 'blocks.0."),
        ("logit", "is 'logits' meant?"),
        ("zzzzzzzz", "(docs/taps.md)"),
        (3, "shows 3, which is no tap"),
    ],
)
def test_a_name_that_is_no_tap(config, name, offered):
    with pytest.raises(ConfigurationError) as error:
        shown(lambda ids: {name: np.zeros((5, 12))}, config)
    assert str(error.value).startswith(f"mine shows {name!r}") and offered in str(error.value)


def test_a_tap_that_this_model_does_not_have():
    with pytest.raises(ConfigurationError, match=r"'blocks.3.ffn.prex', which is no tap; is 'blocks.3.ffn.pre' meant"):
        shown(lambda ids: {"blocks.3.ffn.prex": np.zeros((5, 7))})
    assert len(shown(lambda ids: {"blocks.3.ffn.prex": np.zeros((5, 7))}, None)) == 1  # a network of one's own
    with pytest.raises(ConfigurationError, match=r"'blocks.11.norm_1', which is no tap; is 'blocks.1\d?.norm_1' meant"):
        shown(lambda ids: {"blocks.11.norm_1": np.zeros((5, 12))})
    assert len(shown(lambda ids: {"blocks.11.norm_1": np.zeros((5, 12))}, None)) == 1


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("embed", (12, 5), "[1, 5, 12]"),
        ("embed", (2, 5, 12), "[1, 5, 12]"),
        ("embed", (12,), "[1, 5, 12]"),
        ("blocks.0.attn.q", (5, 6, 2), "[1, 6, 5, 2]"),
        ("blocks.0.attn.k", (6, 5, 2), "[1, 2, 5, 2]"),
        ("blocks.0.attn.pattern", (1, 6, 5, 4), "[1, 6, 5, 5]"),
        ("blocks.0.ffn.pre", (5, 12), "[1, 5, 7]"),
        ("logits", (4, 11), "[1, 5, 11]"),
    ],
)
def test_a_shape_that_does_not_fit(name, shape, expected):
    with pytest.raises(ConfigurationError) as error:
        shown(lambda ids: {name: np.zeros(shape)})
    given = list(shape)
    assert f"mine shows {name} as " in str(error.value) and f"expected is {expected}" in str(error.value)
    assert str(given) in str(error.value) or str([1, *given]) in str(error.value)


def test_without_a_configuration_the_axes_and_the_length_are_checked():
    with pytest.raises(ConfigurationError, match=r"as \[1, 4, 12\]; expected is \[1, 5, D\]"):
        shown(lambda ids: {"embed": np.zeros((4, 12))}, None)
    with pytest.raises(ConfigurationError, match=r"as \[5\]; expected is \[1, H, 5, N\]"):
        shown(lambda ids: {"blocks.0.attn.q": np.zeros(5)}, None)


@pytest.mark.parametrize("array", [np.zeros((5, 12), int), np.zeros((5, 12), complex), np.full((5, 12), "a"), "text"])
def test_what_holds_no_real_numbers(array):
    with pytest.raises(ConfigurationError, match=r"mine shows embed as .*; float32, float64"):
        shown(lambda ids: {"embed": array})


def test_other_mistakes():
    with pytest.raises(ConfigurationError, match="mine returned ndarray; a dictionary"):
        shown(lambda ids: np.zeros((5, 11)))
    with pytest.raises(ConfigurationError, match="The precision of mine is 'fp32'; choose one of float32"):
        shown(lambda ids: {}, precision="fp32")


def test_a_feed_forward_network_of_ones_own_shows_what_it_likes():
    class Router:
        taps = ("router", "pre")

    config = ModelConfig(vocab_size=11, context_length=8, hidden_size=12, num_layers=2, num_heads=6, ffn=Router())
    given = {
        "logits": (5, 11),
        "blocks.1.ffn.out": (5, 12),
        "blocks.1.ffn.pre": (5, 2, 9),
        "blocks.1.ffn.router": (5, 3),
    }
    found = shown(lambda ids: {name: np.zeros(shape) for name, shape in given.items()}, config)
    assert [(name, array.shape) for name, array in found][-1] == ("logits", (1, 5, 11))
    assert {name: array.shape for name, array in found}["blocks.1.ffn.router"] == (5, 3)
    assert [name for name, _ in found][-2] == "blocks.1.ffn.out"
    with pytest.raises(ConfigurationError, match="no tap"):
        checked("blocks.1.ffn.act", np.zeros((5, 9)), config, 5, "mine")
