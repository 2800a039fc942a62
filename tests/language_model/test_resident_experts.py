"""Experts that are fetched: the same bits as in memory, under the budget, and what happens when a file is gone."""

import errno
import gc
import json
import threading
import time
import weakref
from dataclasses import asdict, replace

import numpy as np
import pytest

import transformer_lab as lab
from transformer_lab.cache.provenance import weights_digest
from transformer_lab.cache.tiered import Tiered
from transformer_lab.cli import main
from transformer_lab.ffn.moe import MixtureOfExperts
from transformer_lab.language_model.resident_experts import Residency, ResidentExperts
from transformer_lab.model.parameters import flatten, shapes
from transformer_lab.tiers import cold as cold_module
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


def files_of(folder):
    return sorted((folder / "experts").glob("*.block"))


def damage(files):
    for file in files:
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)


def weights_of(model):
    wanted = shapes(model.config)
    return {name: model.backend.recover(name, one) for name, one in flatten(model.params) if name in wanted}


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
    assert model.experts.tiers.ledger.cold.put.blocks == 0 and len(files_of(folder)) == 96


def test_other_weights_have_other_files(tmp_path):
    one, other = (resident(tmp_path, KERNEL, weights="random", seed=seed) for seed in (1, 2))
    for model, seed in ((one, 1), (other, 2)):
        whole = lab.load_model("storybook_moe", weights="random", seed=seed)
        assert model.logits([7, 8, 9]).tobytes() == whole.logits([7, 8, 9]).tobytes()


def test_a_file_that_is_gone_or_damaged_is_said(tmp_path):
    model = resident(tmp_path, 1)
    damage(files_of(tmp_path))
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


def test_what_cannot_be_is_refused(folder, tmp_path):
    with pytest.raises(lab.ConfigurationError, match="this model has none"):
        lab.load_model("storybook", residency=Residency(folder=folder))
    with pytest.raises(lab.ConfigurationError, match=r"The jax backend compiles a whole step.*precision=exact"):
        resident(folder, KERNEL, "jax")
    with pytest.raises(lab.ConfigurationError, match=r"disk_bytes is 1,000, .* take 28,333,728 bytes"):
        lab.load_model("storybook_moe", residency=Residency(KERNEL, folder, disk_bytes=1000))
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(
        lab.UnavailableError, match=r"cannot be kept in .*file.experts: .+\. Give another residency\.folder\.$"
    ):
        resident(tmp_path / "file", KERNEL)
    with pytest.raises(lab.ConfigurationError, match=r"residency\.prefetch is true, and exact mode guesses no"):
        resident(folder, KERNEL, precision="exact", prefetch=True)
    for fields in ({"bytes": 0}, {"disk_bytes": 1.5}, {"bytes": True}):
        with pytest.raises(lab.ConfigurationError, match=r"residency\.\w+ is .*; it must be a whole number of bytes"):
            Residency(**fields)
    for empty in ("", " "):
        with pytest.raises(lab.ConfigurationError, match=r"residency\.folder is empty\. Give the name"):
            Residency(folder=empty)


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["model=storybook_moe", "prompt=Once upon a time", "max_new_tokens=4", "hydra.run.dir=run"]
    assert main(words) == 0
    plain = capsys.readouterr().out
    assert main([*words, "residency=tiered", "residency.bytes=3000000", "residency.folder=./experts here"]) == 0
    assert capsys.readouterr().out == plain
    experts = json.loads((tmp_path / "run" / "result.json").read_text())["output"]["experts"]
    assert 0 < experts["most_resident_bytes"] <= 3_000_000 and experts["misses"] > 0
    assert len(files_of(tmp_path / "experts here")) == 96


def test_what_is_wrong_is_said_once_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no folder")
    words = ["model=storybook_moe", "max_new_tokens=2", "hydra.run.dir=run", "residency=tiered"]
    assert main([*words, "residency.folder=file"]) == 4
    said = capsys.readouterr().err
    assert said.count("file") == 1 and "Warning" not in said and "cold tier" not in said and "goes on" not in said
    assert main([*words, "residency.folder="]) == 2
    assert "residency.folder is empty" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.block")) and not (tmp_path / "experts").exists()


# --- bytes, on the device and on the disk ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "precision"),
    [("torch", "bfloat16"), ("torch", "int8"), ("torch", "float64"), ("torch", "exact"), ("numpy", "float64")],
)
def test_bytes_are_those_of_what_is_placed(folder, tmp_path, backend, precision):
    """Counted by hand from a model that has all of them in memory."""

    def size(kernel):
        return sum(map(size, kernel)) if isinstance(kernel, tuple) else kernel.nbytes

    whole = lab.load_model("storybook_moe", backend, precision)
    experts = [block["ffn"]["experts"] for block in whole.params["blocks"]]
    sizes = [size(kernel) for layer in experts for one in layer.values() for kernel in one["kernel"]]
    where = tmp_path if precision == "float64" else folder  # other files
    model = resident(where, sum(sizes), backend, precision)
    for name, keys in model.experts._keys.items():
        for number in range(len(keys)):
            model.experts.kernel(name, number)
    assert len(sizes) == 96 and model.experts.counts.resident_bytes == sum(sizes) != ALL
    assert model.experts.counts.evicted == 0
    tight = resident(where, 10 * max(sizes), backend, precision)
    tight.logits([7, 8, 9])
    assert len(tight.experts._hot) >= 10 and tight.experts.counts.most_resident_bytes <= 10 * max(sizes)


def test_the_files_need_what_they_take(folder, tmp_path, whole):
    needed = sum(file.stat().st_size for file in files_of(folder))
    residency = Residency(KERNEL, tmp_path, disk_bytes=needed)
    for _ in range(2):
        model = lab.load_model("storybook_moe", residency=residency)
        assert answers(model) == whole("numpy", "float32")
    with pytest.raises(lab.ConfigurationError, match=rf"disk_bytes is {needed - 1:,}, .* take {needed:,} bytes"):
        lab.load_model("storybook_moe", residency=replace(residency, disk_bytes=needed - 1))


def test_what_was_pushed_out_while_loading_is_said_then(folder, monkeypatch):
    monkeypatch.setattr(Tiers, "contains", lambda self, key: False)
    with pytest.raises(lab.UnavailableError, match=r"number 0, is not in .*disk_bytes must hold all"):
        resident(folder, KERNEL)


@pytest.mark.parametrize("written", [0, 40, 95])
def test_a_full_disk_is_found_while_loading(tmp_path, monkeypatch, capsys, written):
    left, write = [None] * written, cold_module.write_file

    def full(*arguments):
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")
        left.pop()
        write(*arguments)

    monkeypatch.setattr(cold_module, "write_file", full)
    monkeypatch.chdir(tmp_path)
    words = ["model=storybook_moe", "max_new_tokens=2", "residency=tiered", "residency.folder=small"]
    assert main(words) == 4
    said = " ".join(capsys.readouterr().err.split())
    assert "small/experts: No space left on device. Give another residency.folder." in said and "any more" not in said


def test_a_disk_that_goes_while_the_model_runs_is_said_so(tmp_path, monkeypatch):
    model = resident(tmp_path, 1)

    def fails(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(cold_module, "read_block", fails)
    for _ in range(2):
        with pytest.raises(lab.UnavailableError, match=r"cannot be kept in .*experts: Input/output error\. Give"):
            model.logits([7, 8, 9])


def test_a_folder_may_be_shared_with_a_cache(tmp_path, whole):
    """Whose budget is too small for one kernel, and is for its own files alone."""
    for _ in range(2):
        cache = Tiered(block=4, warm_bytes=0, cold_folder=tmp_path, cold_bytes=100_000)
        model = resident(tmp_path, 1, cache=cache)
        assert answers(model) == whole("numpy", "float32")
        model.engine.memory.tiers.close()
        assert len(files_of(tmp_path)) == 96 and list(tmp_path.glob("*.block"))


def test_the_files_are_in_the_cache_folder_if_nothing_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    resident(None, KERNEL)
    assert len(files_of(tmp_path / "transformer_lab")) == 96


def test_a_second_load_writes_what_is_damaged_again(tmp_path, whole):
    resident(tmp_path, 1)
    damage(files_of(tmp_path)[::2])
    files_of(tmp_path)[1].unlink()
    model = resident(tmp_path, 1)
    assert answers(model) == whole("numpy", "float32")
    ledger = model.experts.tiers.ledger
    assert ledger.cold.damaged == 48 and ledger.cold.put.blocks == 49 and model.experts.tiers.check() == []


# --- who looks at all of them ----------------------------------------------------------------------------------------


def test_who_writes_all_down_leaves_no_trace(folder, tmp_path):
    model = resident(folder, 5 * KERNEL, cache=Tiered(block=4))  # which hashes all weights
    assert set(asdict(model.experts.counts).values()) == {0} and not model.experts._hot
    model.logits([7, 8, 9])
    counts, hot = replace(model.experts.counts), list(model.experts._hot)
    model.save(tmp_path / "saved")
    assert model.experts.counts == counts and list(model.experts._hot) == hot and len(hot) == 5


@pytest.mark.parametrize(("backend", "precision"), [("numpy", "exact"), ("torch", "bfloat16"), ("torch", "int8")])
def test_what_is_in_files_is_the_same_weights(folder, backend, precision):
    models = lab.load_model("storybook_moe", backend, precision), resident(folder, 1, backend, precision)
    digests = {weights_digest(model.backend, model.config, model.params) for model in models}
    assert len(digests) == 1


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_exact_mode_hashes_and_saves_what_is_in_files(folder, tmp_path, backend):
    model = resident(folder, 9 * KERNEL, backend, "exact", cache=Tiered(block=2))
    one = lab.load_model("storybook_moe", "numpy", "exact")
    assert model.logits([7, 8]).tobytes() == one.logits([7, 8]).tobytes()
    model.save(tmp_path / "saved")
    saved, mine = weights_of(lab.load_model(tmp_path / "saved")), weights_of(one)
    assert saved.keys() == mine.keys() and all(saved[name].tobytes() == mine[name].tobytes() for name in saved)


# --- other weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("backend", "precision"), PLACES)
def test_replaced_weights_lie_in_files_too(tmp_path, monkeypatch, backend, precision):
    monkeypatch.chdir(tmp_path)
    model = resident("here", 5 * KERNEL, backend, precision, prefetch=precision != "exact")
    model.logits([7, 8, 9])
    other = lab.load_model("storybook_moe", backend, precision, weights="random", seed=3)
    expected = other.logits([7, 8, 9]).tobytes()
    before = weakref.ref(model.experts)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    model.replace_weights(weights_of(other))
    gc.collect()
    assert before() is None  # with all that it had in memory, and its guesses
    assert model.experts.counts.misses == 0 and len(files_of(tmp_path / "here")) == 192
    assert not list((tmp_path / "elsewhere").iterdir())
    assert model.logits([7, 8, 9]).tobytes() == expected
    counts = model.experts.counts
    assert counts.misses > 0 and 0 < counts.most_resident_bytes <= 5 * KERNEL


def test_guesses_are_those_of_the_replaced_weights(folder, tmp_path):
    model = resident(tmp_path, 20 * KERNEL, weights="random", seed=3, prefetch=True)
    model.replace_weights(weights_of(lab.load_model("storybook_moe")))
    model.generate(TEXT, max_new_tokens=6)
    once = resident(folder, 20 * KERNEL, prefetch=True)
    once.generate(TEXT, max_new_tokens=6)
    counts, expected = model.experts.counts, once.experts.counts
    assert counts.prefetched > 0
    assert counts.hits + counts.awaited + counts.misses == expected.hits + expected.awaited + expected.misses
    assert counts.guessed_right / counts.prefetched > 0.3


def test_weights_that_find_no_room_change_nothing(tmp_path, monkeypatch, whole):
    model = resident(tmp_path, KERNEL)
    experts = model.experts

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cold_module, "write_file", full)
    with pytest.raises(lab.UnavailableError, match="No space left on device"):
        model.replace_weights(weights_of(lab.load_model("storybook_moe", weights="random")))
    assert model.experts is experts and answers(model) == whole("numpy", "float32")


# --- what the counts mean --------------------------------------------------------------------------------------------


def test_a_guess_that_is_waited_for_is_no_miss(folder, monkeypatch):
    experts = resident(folder, 20 * KERNEL, prefetch=True).experts
    name, read, go = next(iter(experts._keys)), ResidentExperts._read, threading.Event()

    def slowly(self, at):
        assert go.wait(60)
        return read(self, at)

    monkeypatch.setattr(ResidentExperts, "_read", slowly)
    experts.guess(name, 0)
    needed = threading.Thread(target=experts.kernel, args=(name, 0))
    needed.start()
    while not experts.counts.awaited + experts.counts.misses:
        time.sleep(0.001)
    go.set()
    needed.join()
    found = experts.counts
    assert (found.hits, found.misses, found.awaited, found.prefetched, found.guessed_right) == (0, 0, 1, 1, 1)
    experts.kernel(name, 0)
    experts.kernel(name, 1)
    assert (found.hits, found.misses, found.awaited, found.prefetched, found.guessed_right) == (1, 1, 1, 1, 1)


def test_there_are_as_many_experts_as_the_tests_say():
    ffns = [block.ffn for block in lab.load_model("storybook_moe").config.blocks]
    assert [type(ffn) for ffn in ffns] == [MixtureOfExperts] * 4
    assert {ffn.experts.count for ffn in ffns} == {8} and {ffn.router.k for ffn in ffns} == {2}
