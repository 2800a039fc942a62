"""Folders of our own: any model made of parts, saved and read; parts from outside; hostile files."""

import json
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from small_models import small_model, with_attention

import transformer_lab as lab
from transformer_lab.attention.softmax import SoftmaxAttention
from transformer_lab.block.parallel import Parallel
from transformer_lab.block.sequential import Sequential
from transformer_lab.checkpoints import inspect_folder, read_config, to_hf
from transformer_lab.checkpoints.config_file import family_for
from transformer_lab.config import component
from transformer_lab.errors import ConfigurationError, InputFileError
from transformer_lab.ffn.dense import Dense
from transformer_lab.ffn.packed import Packed
from transformer_lab.language_model import assemble
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.init import initialise
from transformer_lab.norm.layer_norm import LayerNorm
from transformer_lab.norm.rms_norm import RMSNorm
from transformer_lab.position.alibi import Alibi
from transformer_lab.position.rotary import Rotary
from transformer_lab.position.rotary_scaling import LongRope

BACKENDS = ("numpy", "torch", "jax")


@dataclass(frozen=True)
class Outside:
    """A network of somebody else."""

    taps: ClassVar[tuple[str, ...]] = ("act",)

    size: int
    powers: tuple[int, ...] = (2, 3)

    def shapes(self, hidden_size):
        return {"up.kernel": (hidden_size, self.size), "down.kernel": (self.size, hidden_size)}

    def __call__(self, ops, params, x, tap):
        up = ops.linear(x, params["up"]["kernel"])
        return ops.linear(tap("act", sum(up**power for power in self.powers)), params["down"]["kernel"])


def strange():
    """Nothing in it is what the layer before has."""
    norm = RMSNorm(1e-6, from_one=True)
    long = Rotary(5000.0, 4, "neighbours", LongRope((1.0, 1.5), 1.1))
    first = SoftmaxAttention(4, 4, 2, long, window=5, norm=LayerNorm(bias=False), norm_over="all_heads")
    own = {"norm": norm, "norm_over": "each_head"}
    second = SoftmaxAttention(4, 8, 2, position=Alibi(), cap=20.0, clip=3.0, sinks=True, qkv_bias=False, **own)
    third = SoftmaxAttention(2, 8, position=Rotary(), scale=0.3, norm=RMSNorm())
    blocks = (
        Sequential(first, Packed(12), norm, "around", residual_scale=0.5),
        Parallel(second, Dense(9, "relu"), norm),
        Parallel(second, Dense(9, "relu"), norm),
        Sequential(third, Dense(7, gated=True, bias=False), norm, "after"),
    )
    more = {"embedding_scale": 2.0, "embedding_norm": norm, "tied_head": False, "head_bias": True, "logits_cap": 9.0}
    return ModelConfig(31, 24, 16, blocks, LayerNorm(), end_of_text_id=4, **more)


def model_of(config, backend="numpy", precision="float32", seed=1):
    draw = np.random.default_rng(seed)
    arrays = {name: array + draw.standard_normal(array.shape) * 0.2 for name, array in initialise(config)}
    return assemble(config, arrays, component("backend", backend, precision=precision))


IDS = np.arange(17) % 31


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_strange_model_is_saved_and_read(backend, tmp_path):
    config = strange()
    model = model_of(config, backend)
    model.save(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["model_type"] == "transformer_lab" and [block["layers"] for block in fields["blocks"]] == [1, 2, 1]
    assert "_target_" not in json.dumps(fields)
    assert read_config(tmp_path) == config
    again = lab.load_model(tmp_path, backend)
    np.testing.assert_array_equal(again.logits(IDS), model.logits(IDS))
    assert inspect_folder(tmp_path).loads


def test_a_strange_model_is_the_same_everywhere():
    models = [model_of(strange(), backend, "exact") for backend in BACKENDS]
    expected = models[0].logits(IDS)
    truth = model_of(strange(), precision="float64")
    assert np.abs(expected - truth.logits(IDS)).max() < 1e-5 * truth.logits(IDS).std()
    for model in models:
        np.testing.assert_array_equal(model.logits(IDS), expected)
        # token by token over a cache, and behind its windows
        found = model.generate(IDS[:3].tolist(), max_new_tokens=12)
        assert found.token_ids == models[0].generate(IDS[:3].tolist(), max_new_tokens=12).token_ids


def test_over_a_cache_the_same_text_as_without():
    from transformer_lab.cache.none import NoCache

    config = replace(strange(), end_of_text_id=None)
    cached, plain = model_of(config), model_of(config)
    plain.policy = NoCache()
    kept = cached.generate([3, 1, 2], max_new_tokens=20)
    assert kept.token_ids == plain.generate([3, 1, 2], max_new_tokens=20).token_ids


def test_a_strange_model_is_judged(tmp_path):
    model_of(strange()).save(tmp_path)
    report = lab.compare(tmp_path, IDS.tolist(), ("numpy", "jax"), exact=False, new_tokens=0)
    assert report.status == "sound", report.verdict


def test_every_other_family_is_preferred():
    assert family_for(small_model(20, 8, 8, 1, 2, Dense(8)))[1]["model_type"] == "gpt2"
    windowed = small_model(20, 8, 8, 2, 2, Dense(8, "silu", True, False), position="rotary", norm="rms_norm",
                           attention_bias=False)  # fmt: skip
    assert to_hf(windowed)["model_type"] == "llama"
    windowed = replace(windowed, blocks=tuple(with_attention(block, window=3) for block in windowed.blocks))
    assert to_hf(windowed)["model_type"] in ("ministral", "mistral")
    assert to_hf(windowed, "mistral")["model_type"] == "mistral"
    assert to_hf(windowed, "gpt2")["model_type"] != "gpt2"


def test_a_part_from_outside_is_given_again(tmp_path):
    part = Outside(12)
    model = lab.load_model("storybook", weights="random", ffn=part)
    model.save(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["blocks"][0]["ffn"]["part"] == "outside"
    with pytest.raises(ConfigurationError, match=r"test_own_family\.Outside, as its ffn.*--config-dir FOLDER ffn=NAME"):
        lab.load_model(tmp_path)
    with pytest.raises(ConfigurationError, match=r"test_own_family\.Outside"):
        lab.load_model(tmp_path, ffn=Dense(12))
    with pytest.raises(ConfigurationError, match=r"ffn\.size is 13; the model was saved with 12"):
        lab.load_model(tmp_path, ffn=Outside(13))
    again = lab.load_model(tmp_path, ffn=part)
    np.testing.assert_array_equal(again.logits(IDS), model.logits(IDS))
    seen = inspect_folder(tmp_path)
    assert not seen.loads and "from outside" in seen.problems[0]


@dataclass(frozen=True)
class OutsideNorm:
    epsilon: float = 1e-4

    def shapes(self, size):
        return {"weight": (size,)}

    def __call__(self, ops, params, x):
        return ops.rms_norm(x, params["weight"], self.epsilon)


@dataclass(frozen=True)
class OutsidePosition(Rotary):
    """Rotary, by another name."""


@dataclass(frozen=True)
class OutsideTable:
    """Added to the embedding."""

    in_attention: ClassVar[bool] = False

    def shape(self, context_length, hidden_size):
        return (context_length, hidden_size)

    def __call__(self, ops, table, positions):
        return ops.embed(table, positions)


@dataclass(frozen=True)
class OutsideAttention(SoftmaxAttention):
    """Softmax attention, by another name."""


@dataclass(frozen=True)
class OutsideBlock(Sequential):
    """A sequential block, by another name."""


OUTSIDERS = {
    "norm": OutsideNorm(),
    "position": OutsidePosition(),
    "table": OutsideTable(),
    "attention": OutsideAttention(4, 16),
    "block": OutsideBlock,
}


@pytest.mark.parametrize("name", OUTSIDERS)
def test_every_kind_of_part_may_come_from_outside(name, tmp_path):
    given = {"position" if name == "table" else name: OUTSIDERS[name]}
    model = lab.load_model("storybook", weights="random", **given)
    model.save(tmp_path)
    with pytest.raises(ConfigurationError, match=r"part from outside, test_own_family\.Outside"):
        lab.load_model(tmp_path)
    again = lab.load_model(tmp_path, **given)
    assert again.config == model.config
    np.testing.assert_array_equal(again.logits(IDS), model.logits(IDS))
    assert again.generate([1, 2], max_new_tokens=3).token_ids == model.generate([1, 2], max_new_tokens=3).token_ids


LEARNED = {"part": "position/learned", "skipped": 0}
ROTARY = {"part": "position/rotary", "base": 1e4, "size": None, "pairs": "halves", "scaling": None}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.update(blocks=[]), "num_layers is 0"),
        (lambda f: f.update(blocks={}), "'blocks'"),
        (lambda f: f.update(blocks=[5]), "'blocks'"),
        (lambda f: f["blocks"][0].update(layers=10**9), "'blocks'"),
        (lambda f: f["blocks"][0].update(layers=True), "'blocks'"),
        (lambda f: f["blocks"][0].update(part="os/path"), "blocks is .*expected a part of the group block"),
        (lambda f: f["blocks"][0].update(part="block/../ffn"), "no part of this version"),
        (lambda f: f["blocks"][0].update(part="block/sequential/Any"), "no part of this version"),
        (lambda f: f["blocks"][0].update(part=["block"]), "expected a part of the group block"),
        (lambda f: f["blocks"][0].pop("part"), "expected a part of the group block"),
        (lambda f: f["blocks"][0].update(norms="beside"), "block.norms is 'beside'"),
        (lambda f: f["blocks"][0]["attention"].update(num_heads="4"), "num_heads is '4'"),
        (lambda f: f["blocks"][0]["attention"].update(windows=3), "no setting blocks.attention.windows"),
        (lambda f: f["blocks"][0]["attention"].pop("num_heads"), "blocks.attention.num_heads is missing"),
        (lambda f: f["blocks"][0]["ffn"].update(size=-1), "ffn.size"),
        (lambda f: f["blocks"][0].update(ffn=nested(40)), "parts within parts"),
        (lambda f: f["blocks"][0].update(ffn={"part": "outside"}), "without the name of its class"),
        (lambda f: f["blocks"][0]["norm"].update(epsilon=0), "epsilon is 0"),
        (lambda f: f.update(position=0.5), "position is 0.5; expected a part of the group position"),
        (lambda f: f.update(norm={"part": "ffn/dense", "size": 3}), "norm is .*expected a part of the group norm"),
        (lambda f: f.update(embedding_scale={"part": "ffn/dense", "size": 3}), "no part belongs there"),
        (lambda f: f["blocks"][0].update(norm=None), "a block without norm"),
        (lambda f: f["blocks"][0].pop("ffn"), "a block without ffn"),
        (lambda f: f["blocks"][0]["attention"].update(position=LEARNED), "position is Learned"),
        (lambda f: f.update(position=ROTARY), "position is Rotary"),
        (lambda f: f.update(hidden_size=0), "hidden_size is 0"),
        (lambda f: f.pop("vocab_size"), "vocab_size"),
        (lambda f: f.update(eos_token_id="x"), "eos_token_id"),
        (lambda f: f.update(tied_head="yes"), "tied_head is 'yes'"),
    ],
)
def test_a_damaged_config_is_refused_by_name(change, words, tmp_path, monkeypatch):
    model_of(strange()).save(tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))
    with pytest.raises(InputFileError, match=words) as caught:
        lab.load_model(tmp_path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 600


def objects(value, path=()):
    """(way to it, object) of every object in a value as JSON has it."""
    if isinstance(value, dict):
        yield path, value
    for key, own in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from objects(own, (*path, key))


def test_every_field_that_is_absent_is_refused_by_its_name(tmp_path):
    """Whatever is taken away from a saved model, at whatever depth: nothing has a default."""
    model_of(strange()).save(tmp_path)
    path = tmp_path / "config.json"
    whole = path.read_text()
    places = [(way, key) for way, own in objects(json.loads(whole)) for key in own]
    apart = {"architectures", "dtype", "model_type"}  # said of every family's folder, and no field of the model
    assert len(places) > 80
    for way, key in places:
        if key in apart:
            continue
        fields = json.loads(whole)
        holder = fields
        for step in way:
            holder = holder[step]
        del holder[key]
        path.write_text(json.dumps(fields))
        with pytest.raises(InputFileError) as caught:
            read_config(tmp_path)
        named = {"part": "a part of the group", "layers": "`layers`"}.get(key, key)
        assert named in str(caught.value), (way, key, str(caught.value))


def nested(depth):
    return {"part": "ffn/dense", "ffn": nested(depth - 1)} if depth else 1


def test_no_code_comes_in_with_a_folder(tmp_path):
    """Neither a module beside the folder nor one that could be imported."""
    model_of(strange()).save(tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    for part in ("evil", "ffn/evil", "outside", "antigravity", "ffn/dense/os", "model/config/ModelConfig"):
        fields["blocks"][0]["ffn"] = {"part": part, "class": "antigravity.Network"}
        path.write_text(json.dumps(fields))
        with pytest.raises((InputFileError, ConfigurationError)):
            lab.load_model(tmp_path)
    import sys

    assert "antigravity" not in sys.modules and "evil" not in sys.modules
