"""`lab.verify_cache`: sound caches keep their promise, planted mistakes break it, the numbers are those of scipy."""

import io
import json
import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from cache_models import BACKENDS, CONFIGS, LEARNED, ROTARY, ids, model
from rich.console import Console
from scipy.special import rel_entr, softmax
from small_models import small_model

import transformer_lab as lab
from transformer_lab.block.mixture_of_depths import MixtureOfDepths
from transformer_lab.cache.contiguous import Contiguous, ContiguousLayer
from transformer_lab.cache.growing import Growing
from transformer_lab.cache.int8 import Int8, Int8Rows
from transformer_lab.cache.none import NoCache
from transformer_lab.cache.paged import Paged
from transformer_lab.cache.prefix import Prefix, PrefixPool
from transformer_lab.cache.tiered import Tiered, TieredPool
from transformer_lab.cache.window import Window
from transformer_lab.cli import main
from transformer_lab.contracts.console import print_contract
from transformer_lab.contracts.fed import fed, uncached
from transformer_lab.contracts.statistics import interval
from transformer_lab.errors import ConfigurationError
from transformer_lab.ffn.dense import Dense
from transformer_lab.model.config import ModelConfig

TEXTS = [ids(1, 40), ids(2, 13), ids(3, 22)]
SOUND = {
    "contiguous": Contiguous(),
    "growing": Growing(4),
    "paged": Paged(4),
    "prefix": Prefix(4),
    "tiered": Tiered(4),
    "int8 below": Tiered(4, below="int8"),
    "window": Window(),
    "int8": Int8(),
}


def report_of(policy, config=ROTARY, backend="numpy", precision="float32", texts=TEXTS, **more):
    return lab.verify_cache(model(config, Contiguous(), backend, precision), policy, texts, **more)


@pytest.mark.parametrize("policy", SOUND)
@pytest.mark.parametrize("name", ["learned", "two windows and none", "sinks and a cap"])
def test_a_sound_cache_keeps_its_promise(policy, name):
    found = report_of(SOUND[policy], CONFIGS[name])
    assert found.holds, found.verdict
    json.dumps(found.to_dict())


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("policy", ["paged", "prefix", "tiered", "int8 below", "int8"])
def test_on_other_backends(policy, backend):
    assert report_of(SOUND[policy], backend=backend, texts=[ids(1, 14), ids(2, 9)]).holds


def test_in_other_precisions():
    for precision in ("float64", "exact"):
        assert report_of(Int8(), precision=precision).holds
        assert report_of(Prefix(4), precision=precision).holds


def test_a_lossy_one_is_measured_and_judged_on_demand():
    found = report_of(Window(size=6))
    assert found.status == "measured" and not found.holds and "another computation: KL" in found.verdict
    kl = found.to_dict()["numbers"]["kl"]
    assert report_of(Window(size=6), most_kl=100.0).holds
    broken = report_of(Window(size=6), most_kl=kl / 10)
    assert broken.status == "broken" and "farther off than it may be" in broken.verdict


def test_the_numbers():
    built = model(ROTARY, Window(size=6), precision="float32")
    prompts = [20, 6, 11]
    cached = [fed(built, [text], [prompt]).logits[0] for text, prompt in zip(TEXTS, prompts, strict=True)]
    whole = [uncached(built, text, prompt) for text, prompt in zip(TEXTS, prompts, strict=True)]
    targets = [np.array(text[prompt:]) for text, prompt in zip(TEXTS, prompts, strict=True)]
    found = report_of(Window(size=6)).to_dict()["numbers"]
    p, q = (softmax(np.concatenate(rows).astype(float), axis=1) for rows in (whole, cached))
    divergence = rel_entr(p, q).sum(axis=1)
    assert found["tokens"] == len(p) == 21 + 8 + 12
    assert found["kl"] == pytest.approx(divergence.mean()) and found["kl_max"] == pytest.approx(divergence.max())
    assert found["top_1"] == (p.argmax(1) == q.argmax(1)).mean()
    losses = []
    for rows in (whole, cached):
        pairs = zip(rows, targets, strict=True)
        chosen = [softmax(row[:-1].astype(float), axis=1)[np.arange(len(t)), t] for row, t in pairs]
        losses.append(-np.log(np.concatenate(chosen)))
    assert found["perplexity"] == pytest.approx([np.exp(loss.mean()) for loss in losses])
    assert found["loss_increase"] == pytest.approx((losses[1] - losses[0]).mean())
    assert found["kl_interval"] is None  # 41 tokens are less than two blocks


def test_intervals_cover_the_mean():
    """Of a series whose neighbours hang together: in most of many draws, and not nearly so often without blocks."""
    draw, covered, width = np.random.default_rng(0), 0, []
    for _ in range(100):
        noise = draw.standard_normal(409)
        series = np.convolve(noise, np.ones(10) / 10, "valid")
        low, high = interval(series)
        covered += low <= 0.0 <= high
        width.append(high - low)
    assert 85 <= covered <= 100
    independent = 2 * 1.96 * series.std() / np.sqrt(len(series))
    assert np.mean(width) > 1.8 * independent
    assert interval(np.ones(400)) == (1.0, 1.0) and interval(np.ones(63)) is None


def test_long_texts_are_cut_into_windows():
    found = report_of(Contiguous(), texts=[ids(1, 150)]).to_dict()
    assert found["texts"] == 3 and found["numbers"]["tokens"] == 33 + 33 + 12


def test_what_cannot_be_verified():
    first = ROTARY.blocks[0]
    competing = ModelConfig(
        ROTARY.vocab_size, 64, 16, (MixtureOfDepths(first.attention, first.ffn, first.norm),), ROTARY.norm
    )
    found = report_of(Contiguous(), competing)
    assert found.status == "not judged" and "Places are given out" in found.verdict
    for options, message in (
        ({"policy": NoCache()}, "cache=none keeps nothing"),
        ({"policy": "contiguos"}, "Did you mean cache=contiguous"),
        ({"policy": Contiguous(), "texts": [[5]]}, "No text has two tokens"),
        ({"policy": Contiguous(), "texts": "a text"}, "no tokenizer"),
        ({"policy": Contiguous(), "texts": [[5, 400]]}, "400"),
        ({"policy": Contiguous(), "prefill": 1.0}, "prefill is 1.0"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            report_of(**options)


# --- promises that are broken -----------------------------------------------------------------------------------------


class Wrong(Contiguous):
    """Contiguous, with a mistake in how tokens are written."""

    def layer(self, ops, attention, batch, capacity):
        return WrongLayer(*super().layer(ops, attention, batch, capacity))


class WrongLayer(ContiguousLayer):
    mistake: ClassVar = None

    def update(self, ops, fresh, tokens):
        layer, seen = ContiguousLayer.update(self, ops, *type(self).mistake(ops, fresh, tokens))
        return WrongLayer(*layer), seen


def first_token_lost(ops, fresh, tokens):
    gone = ops.cast((tokens.positions > 0)[:, None, :, None], fresh.key.dtype)
    return fresh._replace(key=fresh.key * gone, value=fresh.value * gone), tokens


def rows_swapped(ops, fresh, tokens):
    return fresh._replace(value=ops.xp.flip(fresh.value, axis=0)), tokens


def one_late(ops, fresh, tokens):
    late = tokens.start + ops.cast(tokens.start > 0, tokens.start.dtype)
    return fresh, tokens._replace(start=ops.xp.clip(late, None, 63 - fresh.key.shape[2]))


def eleven_bits(ops, fresh, tokens):
    return fresh._replace(key=(fresh.key + 4096.0 * fresh.key) - 4096.0 * fresh.key), tokens


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        (first_token_lost, "text alone"),
        (rows_swapped, r"in a batch differ"),
        (one_late, "text alone"),
        (eleven_bits, "attn.*is off by|text alone"),
    ],
)
def test_an_exact_promise_is_broken(mistake, said, monkeypatch):
    monkeypatch.setattr(WrongLayer, "mistake", staticmethod(mistake))
    found = report_of(Wrong(), LEARNED)
    assert found.status == "broken"
    assert re.search(said, found.verdict), found.verdict


def test_a_promise_that_is_broken_the_second_time(monkeypatch):
    """Only who comes back meets what was remembered wrongly."""
    right = PrefixPool.remember
    monkeypatch.setattr(PrefixPool, "remember", lambda self, text, table: right(self, text, [*table[1:], table[0]]))
    found = report_of(Prefix(4))
    assert found.status == "broken" and "of a text that came before differ" in found.verdict
    assert "of a text alone" not in found.verdict


@pytest.mark.parametrize(
    ("below", "said"), [("whole", "kept below the device, differ"), ("int8", "a stored number is")]
)
@pytest.mark.parametrize("precision", ["float32", "exact"])
def test_a_promise_that_is_broken_by_what_comes_from_below(below, said, precision, monkeypatch):
    right = TieredPool._write
    monkeypatch.setattr(
        TieredPool, "_write", lambda self, blocks, arrays: right(self, blocks, arrays[:1] * len(arrays))
    )
    found = report_of(Tiered(4, below=below), precision=precision)
    assert found.status == "broken" and said in found.verdict and "that came before differ" not in found.verdict


def test_what_was_not_met_is_not_judged():
    """No prompt of these fills a block; a cold tier alone, and prompts that do."""
    for policy in (Prefix(32), Tiered(32), Tiered(32, below="int8")):
        found = report_of(policy)
        assert found.status == "not judged" and "smaller cache.block" in found.verdict
    assert report_of(Prefix(16)).to_dict()["found"] == {"again": 16}
    assert report_of(Tiered(4)).to_dict()["found"] == {"again": 28, "below": 28}
    assert report_of(Tiered(4, warm_bytes=0)).to_dict()["found"] == {"again": 28}


def test_a_bounded_promise_is_broken(monkeypatch):
    right = Int8Rows.encode.__func__

    def neighbours_scale(cls, ops, x):
        values, scales = right(cls, ops, x)
        return cls(values, ops.xp.roll(scales, 1, axis=1))

    monkeypatch.setattr(Int8Rows, "encode", classmethod(neighbours_scale))
    found = report_of(Int8())
    assert found.status == "broken" and "a stored number is off by" in found.verdict


def test_what_is_read_is_judged_beside_what_is_stored(monkeypatch):
    """Stored rightly, and read with the scales of the neighbouring token."""
    right = Int8Rows.seen.__func__

    def seen(cls, ops, keys, values, tokens):
        return right(cls, ops, keys._replace(scales=ops.xp.roll(keys.scales, 1, axis=2)), values, tokens)

    monkeypatch.setattr(Int8Rows, "seen", classmethod(seen))
    found = report_of(Int8())
    assert found.status == "broken" and "a stored number is off by" in found.verdict


def test_a_promise_that_is_too_good():
    @dataclass(frozen=True)
    class Better(Int8):
        epsilon: ClassVar[float] = 1e-3

    found = report_of(Better())
    assert found.status == "broken" and "of its vector, more than 0.001" in found.verdict


def late(ops, fresh, tokens):
    """What comes behind position 120 is lost."""
    there = ops.cast((tokens.positions < 120)[:, None, :, None], fresh.key.dtype)
    return fresh._replace(key=fresh.key * there, value=fresh.value * there), tokens


LONG = small_model(40, 200, 16, 2, 4, Dense(32))


def test_what_goes_wrong_late_is_found(monkeypatch):
    monkeypatch.setattr(WrongLayer, "mistake", staticmethod(late))
    found = report_of(Wrong(), LONG, texts=[ids(1, 190)])
    assert found.status == "broken" and "text alone" in found.verdict and "one pass explains" in found.verdict
    assert report_of(Contiguous(), LONG, texts=[ids(1, 190)]).holds


def keys_lost(ops, fresh, tokens):
    return fresh._replace(key=fresh.key * (0.0 if fresh.key.shape[2] == 1 else 1.0)), tokens


def values_less(ops, fresh, tokens):
    return fresh._replace(value=fresh.value * 0.9), tokens


def not_a_number(ops, fresh, tokens):
    return fresh._replace(value=fresh.value * np.nan), tokens


@pytest.mark.parametrize("mistake", [keys_lost, values_less, rows_swapped, late, not_a_number])
def test_what_is_in_the_cache_is_measured(mistake, monkeypatch):
    """Of a bounded one: its own account of what it does is not asked."""

    @dataclass(frozen=True)
    class WrongInt8(Int8):
        def layer(self, ops, attention, batch, capacity):
            return WrongLayer(*super().layer(ops, attention, batch, capacity))

    monkeypatch.setattr(WrongLayer, "mistake", staticmethod(mistake))
    with np.errstate(invalid="ignore"):
        found = report_of(WrongInt8(), LONG, texts=[ids(1, 190)])
    assert found.status == "broken" and "a stored number is off by" in found.verdict
    print_contract(found.to_dict(), Console(file=io.StringIO()))


def test_a_contract_that_there_is_not():
    class Odd(Contiguous):
        contract = "Exact"

    with pytest.raises(ConfigurationError, match=r"contract is 'Exact'; choose one of exact, bounded, lossy"):
        report_of(Odd())
    with pytest.raises(ConfigurationError, match="most_kl"):
        report_of(Contiguous(), most_kl=float("nan"))


# --- the job ----------------------------------------------------------------------------------------------------------


def test_the_job(tmp_path, capsys):
    text = "prompt=The old woman opened the door and asked the king for bread, and he gave it to her."
    for number, (words, code, said) in enumerate(
        (
            (["cache=int8"], 0, "The cache keeps its promise (bounded)."),
            (["cache=window", "cache.size=4"], 0, "another computation"),
            (["cache=window", "cache.size=4", "job.most_kl=1e-6"], 5, "farther off"),
            (["cache=window", "cache.size=4", "job.most_kl=1e-6", "job.exit_zero=true"], 0, "farther off"),
            (["block=mixture_of_depths", "model.weights=random"], 6, "Not judged."),
            (["cache=none"], 2, ""),
        )
    ):
        folder = tmp_path / str(number)
        assert main(["job=verify_cache", text, *words, f"hydra.run.dir={folder}"]) == code
        out, err = capsys.readouterr()
        assert said in out.replace("\n", " ")
        if code == 2:
            assert "it is what the others are judged by" in err
        else:
            output = json.loads((folder / "result.json").read_text())["output"]
            assert said in output["verdict"] and output["cache"]["policy"]


def test_an_interval_holds_its_estimate_where_the_ends_of_a_text_are_otherwise():
    """68 tokens, of which the last few alone are wrong: blocks that seldom reach the ends leave them out."""
    values = np.zeros(68)
    values[-9:] = 1.0
    low, high = interval(values)
    assert low <= values.mean() <= high
    draws = [interval(np.roll(values, shift)) for shift in range(68)]
    assert np.ptp([low for low, _ in draws]) < 0.05 and np.ptp([high for _, high in draws]) < 0.05


@pytest.mark.parametrize("row", [0, -1])
@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1], [ids(seed, 30) for seed in range(4)]])
def test_no_rows_length_serves_for_all(row, texts, monkeypatch):
    """What is seen ends where the first, or the last, row ends."""

    def of_one_row(ops, start, tokens, capacity):
        return min(int(ops.to_numpy(start)[row]) + tokens, capacity)

    monkeypatch.setattr("transformer_lab.cache.contiguous.filled", of_one_row)
    found = report_of(Contiguous(), texts=texts)
    assert found.status == "broken" and "in a batch differ" in found.verdict
