"""Experts that are fetched: the same bits as in memory, under the budget, and what happens when a file is gone."""

import gc
import json
import threading
from dataclasses import replace

import numpy as np
import pytest

import transformer_lab as lab
from transformer_lab.cli import main
from transformer_lab.ffn.moe import MixtureOfExperts
from transformer_lab.language_model.resident_experts import Residency, ResidentExperts
from transformer_lab.tiers.tiers import Tiers

TEXT = "Once upon a time there was a king"
KERNEL = 294_912  # bytes of one of 4 layers x 8 experts x 3 maps
ALL = 96 * KERNEL
PLACES = [("numpy", "float32"), ("torch", "float32"), ("numpy", "exact"), ("torch", "exact")]


def resident(folder, size, backend="numpy", precision="float32", **more):
    return lab.load_model(
        "storybook_moe",
        backend,
        precision,
        residency=Residency(size, folder, prefetch=more.pop("prefetch", False)),
        **more,
    )


def answers(model, tokens=6):
    made = model.generate(TEXT, max_new_tokens=tokens)
    return made.token_ids, model.logits(made.prompt_token_ids + made.token_ids).tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Written once; every later model finds its kernels there."""
    return tmp_path_factory.mktemp("experts")


@pytest.fixture(scope="module")
def whole():
    found = {}

    def of(backend, precision):
        if (backend, precision) not in found:
            found[backend, precision] = answers(lab.load_model("storybook_moe", backend, precision))
        return found[backend, precision]

    return of


@pytest.mark.parametrize(("backend", "precision"), PLACES)
@pytest.mark.parametrize("size", [1, 5 * KERNEL, 2 * ALL])
def test_the_same_bits_whatever_the_budget(folder, whole, backend, precision, size):
    model = resident(folder, size, backend, precision)
    assert answers(model) == whole(backend, precision)
    assert model.experts.counts.most_resident_bytes <= size
    assert model.experts.tiers.check() == []


def test_the_same_bits_on_jax_in_exact_mode(folder, whole):
    """It runs there step by step; two tokens, because every expert computes every row."""
    model = resident(folder, 9 * KERNEL, "jax", "exact")
    ids = [7, 8, 9]
    assert model.logits(ids).tobytes() == lab.load_model("storybook_moe", "numpy", "exact").logits(ids).tobytes()
    assert model.experts.counts.misses >= 96


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_guesses_change_no_bit_and_are_often_right(folder, whole, backend):
    model = resident(folder, 20 * KERNEL, backend, prefetch=True)
    assert answers(model, 6) == whole(backend, "float32")
    counts = model.experts.counts
    assert counts.prefetched > 0 and counts.guessed_right / counts.prefetched > 0.3
    assert counts.most_resident_bytes <= 20 * KERNEL


def test_what_is_guessed_is_what_the_next_gate_would_choose(folder, monkeypatch):
    model, guessed = resident(folder, ALL * 2, prefetch=True), []
    monkeypatch.setattr(ResidentExperts, "guess", lambda self, name, number: guessed.append((name, number)))
    sequences = model.engine.begin([[7, 8, 9]], 2)
    assert guessed == []  # a prompt uses most of them anyway
    sequences.feed([10])
    seen = model.record([7, 8, 9, 10], [f"blocks.{layer}.norm_2" for layer in range(3)])
    expected = set()
    for layer in range(3):
        gate = model.params["blocks"][layer + 1]["ffn"]["router"]["gate"]
        best = np.argsort(-(seen[f"blocks.{layer}.norm_2"][0, -1] @ gate), kind="stable")[:2]
        names = ("gate", "up", "down")
        expected |= {(f"blocks.{layer + 1}.ffn.experts.{n}.kernel", int(b)) for n in names for b in best}
    assert set(guessed) == expected and len(guessed) == len(expected)


def test_counts_by_hand(folder):
    """Three maps of two experts for each token in each of four layers, and nothing stays under a budget of a byte."""
    model = resident(folder, 1)
    sequences = model.engine.begin([[7, 8, 9]], 4)
    before = model.experts.counts.misses
    sequences.feed([10])
    assert model.experts.counts.misses - before == 3 * 2 * 4 and model.experts.counts.hits == 0
    assert model.experts.counts.resident_bytes == 0
    roomy = resident(folder, 2 * ALL)
    roomy.engine.begin([[7, 8, 9]], 4).end()
    once = replace(roomy.experts.counts)
    roomy.engine.begin([[7, 8, 9]], 4).end()
    counts = roomy.experts.counts
    assert counts.misses == once.misses == len(roomy.experts._hot) and counts.evicted == 0
    assert counts.hits == once.hits * 2 + once.misses
    assert counts.resident_bytes == counts.misses * KERNEL


def test_a_second_start_writes_nothing(folder):
    model = resident(folder, KERNEL)
    model.experts.tiers.flush()
    assert model.experts.tiers.ledger.cold.put.blocks == 0 and len(list(folder.glob("*.block"))) == 96


def test_other_weights_have_other_files(tmp_path):
    one, other = (resident(tmp_path, KERNEL, weights="random", seed=seed) for seed in (1, 2))
    for model, seed in ((one, 1), (other, 2)):
        whole = lab.load_model("storybook_moe", weights="random", seed=seed)
        assert model.logits([7, 8, 9]).tobytes() == whole.logits([7, 8, 9]).tobytes()


def test_a_file_that_is_gone_or_damaged_is_said(tmp_path):
    model = resident(tmp_path, 1)
    model.experts.tiers.flush()
    for file in tmp_path.glob("*.block"):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    with pytest.raises(lab.UnavailableError, match=r"number \d, is not in .* any more\. Load the model again"):
        model.logits([7, 8, 9])


def test_many_threads(folder, whole):
    model, found = resident(folder, 7 * KERNEL, prefetch=True), []
    expected = whole("numpy", "float32")
    threads = [threading.Thread(target=lambda: found.append(answers(model))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4
    counts = model.experts.counts
    assert counts.resident_bytes == sum(one.size for one in model.experts._hot.values()) <= 7 * KERNEL


def test_saving_gives_the_whole_model(folder, tmp_path, whole):
    resident(folder, KERNEL).save(tmp_path / "saved")
    assert answers(lab.load_model(tmp_path / "saved")) == whole("numpy", "float32")


@pytest.mark.parametrize("mistake", ["another expert", "another map"])
def test_planted_mistakes_are_seen(folder, whole, monkeypatch, mistake):
    right = ResidentExperts.kernel

    def wrong(self, name, number):
        if mistake == "another expert":
            return right(self, name, (number + 1) % 8)
        return right(self, name.replace(".gate.", ".up."), number)

    monkeypatch.setattr(ResidentExperts, "kernel", wrong)
    assert answers(resident(folder, KERNEL)) != whole("numpy", "float32")


def test_a_tier_that_forgets_is_no_silent_zero(folder, monkeypatch):
    model = resident(folder, 1)
    monkeypatch.setattr(Tiers, "get", lambda self, key, ids: None)
    with pytest.raises(lab.UnavailableError, match="disk_bytes must hold all"):
        model.logits([7, 8, 9])


@pytest.mark.filterwarnings("ignore:The cold tier")
def test_what_cannot_be_is_refused(folder, tmp_path):
    with pytest.raises(lab.ConfigurationError, match="this model has none"):
        lab.load_model("storybook", residency=Residency(folder=folder))
    with pytest.raises(lab.ConfigurationError, match=r"The jax backend compiles a whole step.*precision=exact"):
        resident(folder, KERNEL, "jax")
    with pytest.raises(lab.ConfigurationError, match=r"disk_bytes is 1,000, .* take 28,311,552 bytes"):
        lab.load_model("storybook_moe", residency=Residency(KERNEL, folder, disk_bytes=1000))
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(lab.UnavailableError, match=r"cannot be kept in .*file\. The cold tier .* is switched off"):
        resident(tmp_path / "file", KERNEL)
    for fields in ({"bytes": 0}, {"disk_bytes": 1.5}, {"bytes": True}):
        with pytest.raises(lab.ConfigurationError, match=r"residency\.\w+ is .*; it must be a whole number of bytes"):
            Residency(**fields)


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["model=storybook_moe", "prompt=Once upon a time", "max_new_tokens=4", "hydra.run.dir=run"]
    assert main(words) == 0
    plain = capsys.readouterr().out
    assert main([*words, "residency=tiered", "residency.bytes=3000000", "residency.folder=./experts here"]) == 0
    assert capsys.readouterr().out == plain
    experts = json.loads((tmp_path / "run" / "result.json").read_text())["output"]["experts"]
    assert 0 < experts["most_resident_bytes"] <= 3_000_000 and experts["misses"] > 0
    gc.collect()  # as the end of the process does: what is on its way is written
    assert len(list((tmp_path / "experts here").glob("*.block"))) == 96


def test_there_are_as_many_experts_as_the_tests_say():
    ffns = [block.ffn for block in lab.load_model("storybook_moe").config.blocks]
    assert [type(ffn) for ffn in ffns] == [MixtureOfExperts] * 4
    assert {ffn.experts.count for ffn in ffns} == {8} and {ffn.router.k for ffn in ffns} == {2}
