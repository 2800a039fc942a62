"""Parts put together: what they declare, what they refuse, how they are changed."""

import math
from dataclasses import replace

import numpy as np
import pytest
from small_models import changed, small_model

from transformer_lab.attention.softmax import SoftmaxAttention
from transformer_lab.block.parallel import Parallel
from transformer_lab.block.sequential import Sequential
from transformer_lab.config import component
from transformer_lab.errors import ConfigurationError
from transformer_lab.ffn.dense import Dense
from transformer_lab.language_model import assemble, with_parts
from transformer_lab.model.axes import axis_names
from transformer_lab.model.init import initialise
from transformer_lab.model.parameters import count, shapes
from transformer_lab.norm.layer_norm import LayerNorm
from transformer_lab.norm.rms_norm import RMSNorm
from transformer_lab.position.alibi import Alibi
from transformer_lab.position.learned import Learned
from transformer_lab.position.none import NoPosition
from transformer_lab.position.rotary import Rotary
from transformer_lab.position.rotary_scaling import Linear, Llama3, LongRope, Yarn

SMALL = small_model(20, 8, 16, 2, 4, Dense(24))


def test_every_axis_of_a_kernel_has_a_name():
    for config in (SMALL, with_parts(SMALL, position=Rotary(), norm=RMSNorm(), block=Parallel)):
        for name, shape in shapes(config).items():
            if name.endswith(".kernel"):
                assert None not in axis_names(shape), name
    found = {name: axis_names(shape) for name, shape in shapes(SMALL).items()}
    assert found["embed.token"] == ("vocab", "embed") and found["embed.position"] == (None, "embed")
    assert found["blocks.1.attn.qkv.kernel"] == ("embed", "qkv")
    assert found["blocks.1.attn.out.kernel"] == ("heads", "embed")
    assert found["blocks.0.ffn.up.kernel"] == ("embed", "ffn") and found["blocks.0.ffn.down.kernel"] == ("ffn", "embed")
    assert found["blocks.0.norm_1.weight"] == (None,) or found["blocks.0.norm_1.weight"] == ("embed",)


def test_parts_are_changed_in_every_layer():
    turned = with_parts(SMALL, position=Rotary(500.0))
    assert turned.position is None and [part.base for part in turned.rotaries] == [500.0]
    assert turned.rotaries[0].size == 4, "a rotary position knows how much it turns"
    back = with_parts(turned, position=Learned())
    assert back == SMALL
    assert with_parts(SMALL, position=NoPosition()).position is None
    assert with_parts(SMALL, position=NoPosition()).rotaries == ()
    normal = with_parts(SMALL, norm=RMSNorm())
    assert {type(block.norm) for block in normal.blocks} == {RMSNorm} == {type(normal.norm)}
    assert isinstance(with_parts(SMALL, block=Parallel).blocks[1], Parallel)
    assert with_parts(SMALL) == SMALL
    named = with_parts(SMALL, position="rotary", norm="rms_norm", block="parallel")
    assert named == with_parts(SMALL, position=Rotary(), norm=RMSNorm(), block=Parallel)


def test_norms_without_parameters_may_be_anywhere():
    bare = LayerNorm(weight=False, bias=False)
    config = replace(with_parts(SMALL, norm=bare, attention={"norm": bare}), embedding_norm=bare)
    arrays = dict(initialise(config))
    assert not any("norm" in name for name in arrays)
    found = [assemble(config, arrays, component("backend", name)).logits([1, 2, 3]) for name in ("numpy", "torch")]
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_each_head_may_have_a_norm_of_its_own():
    parts = {"norm": LayerNorm(), "norm_over": "each_head", "num_kv_heads": 2}
    config = with_parts(SMALL, attention=parts)
    found = {name: shape for name, shape in shapes(config).items() if name.startswith("blocks.0.attn.k_norm")}
    assert found == {"blocks.0.attn.k_norm.weight": (2, 4), "blocks.0.attn.k_norm.bias": (2, 4)}
    draw = np.random.default_rng(0)
    arrays = {name: array + 0.3 * draw.standard_normal(array.shape) for name, array in initialise(config)}

    def queries(config, arrays):
        return assemble(config, arrays, component("backend", "numpy", precision="float64")).record(
            [1, 2, 3], "blocks.0.attn.q"
        )["blocks.0.attn.q"]

    shared = with_parts(SMALL, attention=parts | {"norm_over": "head"})
    for head in range(4):  # as if all heads had the weights of this one
        of_one = dict(arrays)
        for name in list(of_one):
            if "q_norm" in name or "k_norm" in name:
                of_one[name] = arrays[name][head % len(arrays[name])]
        np.testing.assert_allclose(queries(config, arrays)[:, head], queries(shared, of_one)[:, head], rtol=1e-12)
    swapped = arrays | {"blocks.0.attn.q_norm.bias": np.roll(arrays["blocks.0.attn.q_norm.bias"], 1, axis=0)}
    assert np.abs(queries(config, swapped) - queries(config, arrays)).min(axis=(0, 2)).max() > 1e-3


def test_what_was_filled_in_follows():
    wide = with_parts(with_parts(SMALL, position=Rotary()), attention={"head_size": 8})
    attention = wide.blocks[0].attention
    assert (attention.head_size, attention.position.size, attention.scale) == (8, 8, 1 / math.sqrt(8))
    own = with_parts(changed(SMALL, scale=0.3), attention={"head_size": 8, "num_heads": 2})
    assert own.blocks[0].attention.scale == 0.3, "what was chosen stays"
    assert own.blocks[0].attention.num_kv_heads == 2


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"ffn": {"sise": 3}}, r"no setting ffn\.sise.*ffn\.size"),
        ({"attention": {"windw": 3}}, r"no setting attention\.windw.*attention\.window"),
        ({"attention": {"window": 0}}, r"attention\.window is 0"),
        ({"attention": {"window": "3"}}, r"attention\.window is '3'"),
        ({"attention": {"num_kv_heads": 3}}, "num_heads 4 is not a multiple of num_kv_heads 3"),
        ({"attention": {"cap": -1.0}}, r"attention\.cap is -1\.0"),
        ({"attention": {"norm_over": "token"}}, r"attention\.norm_over is 'token'"),
        ({"attention": {"norm": "rms_norm"}}, "attention.norm is 'rms_norm'; it must be a part"),
        ({"attention": {"position": "rotary"}}, "attention.position is 'rotary'; it must be a part"),
        ({"norm": "rms_nrom"}, r"There is no norm=rms_nrom\. Did you mean norm=rms_norm"),
        ({"norm": LayerNorm}, "norm is .*LayerNorm.*class"),
        ({"norm": {"epsilon": 1e-3}}, "norm is .*no part: it lacks shapes"),
        ({"position": Alibi}, "position is .*class"),
        ({"position": 3}, "position is 3, which is no part: it lacks in_attention"),
        ({"ffn": 5}, "ffn is 5, which is no part"),
        ({"block": 5}, "block is 5, which is no part"),
    ],
)
def test_a_wrong_change_is_named(parts, words):
    with pytest.raises(ConfigurationError, match=words):
        with_parts(SMALL, **parts)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: SoftmaxAttention(2, 5, position=Rotary()), "head_size 5 is odd"),
        (lambda: SoftmaxAttention(2, 4, position=Rotary(size=6)), "position.size is 6, more than head_size, 4"),
        (lambda: Rotary(size=3), "position.size is 3"),
        (lambda: Rotary(size=10**400), "position.size is"),
        (lambda: Rotary(size=4, scaling=Rotary()), "position.scaling is Rotary"),
        (lambda: Rotary(base=10**400), "position.base is"),
        (lambda: Yarn(2.0, 8, fast=1e308), "scaling.fast is"),
        (lambda: Linear(2.0, length=0.0), "scaling.length is 0.0"),
        (lambda: Learned(skipped=-1), "position.skipped is -1"),
        (lambda: Rotary(base=0.0), "position.base is 0.0"),
        (lambda: Rotary(pairs="thirds"), "position.pairs is 'thirds'"),
        (lambda: Rotary(size=8, scaling=LongRope((1.0, 2.0))), "divisors are 2; there are 4"),
        (lambda: Rotary(base=1.0, size=4, scaling=Yarn(2.0, 8)), "position.base is 1.0"),
        (lambda: Linear(0.0), "scaling.factor is 0.0"),
        (lambda: Llama3(8.0, 4.0, 1.0, 100), "low is 4.0, which is not below high"),
        (lambda: LayerNorm(epsilon=-1.0), "norm.epsilon is -1.0"),
        (lambda: RMSNorm(epsilon=float("nan")), "norm.epsilon is nan"),
        (lambda: Sequential(None, None, None, "before and after"), "block.norms is 'before and after'"),
        (lambda: replace(SMALL, blocks=()), "num_layers is 0"),
        (lambda: replace(SMALL, embedding_scale=0.0), "embedding_scale is 0.0"),
        (lambda: replace(SMALL, logits_cap=True), "logits_cap is true"),
    ],
)
def test_parts_refuse_what_makes_no_decoder(build, words):
    with pytest.raises(ConfigurationError, match=words):
        build()


def test_slopes_of_alibi_are_those_of_the_paper():
    """Section 3: for 8 heads 1/2 ... 1/256; for a number between two powers every second of the next is taken."""
    np.testing.assert_array_equal(Alibi().slopes(8), 2.0 ** -np.arange(1.0, 9.0))
    np.testing.assert_allclose(Alibi().slopes(6), [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])
    assert Alibi().slopes(1).tolist() == [2**-8]


def test_counts():
    tied = count(SMALL)
    assert count(replace(SMALL, tied_head=False)) == tied + 16 * 20
    assert count(replace(SMALL, head_bias=True)) == tied + 20
    assert count(with_parts(SMALL, attention={"num_kv_heads": 2})) == tied - 2 * (16 + 1) * 2 * 2 * 4
