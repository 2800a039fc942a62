"""The checkpoints of a run: whole or not there, kept and removed, and damaged ones answered."""

import json
import os
import tracemalloc

import numpy as np
import pytest
from small_models import small_model

import transformer_lab as lab
from transformer_lab.ffn.dense import Dense
from transformer_lab.left_over import temporary_name
from transformer_lab.model.init import initialise
from transformer_lab.training import checkpoint

CONFIG = small_model(20, 8, 8, 1, 2, Dense(16))


def trees(seed=0):
    draw = np.random.default_rng(seed)
    params = dict(initialise(CONFIG, seed))
    moments = {
        title: {name: draw.standard_normal(array.shape).astype(np.float32) for name, array in params.items()}
        for title in ("first", "second", "average")
    }
    return {"params": params, **moments}


def save(run, step, **facts):
    return checkpoint.save(run, step, CONFIG, trees(step), facts, None)


def test_what_is_loaded_is_what_was_saved(tmp_path):
    save(tmp_path, 7, best={"step": 7, "loss": 1.5})
    (found,) = checkpoint.found(tmp_path)
    assert (found.step, found.facts()["best"]["loss"]) == (7, 1.5)
    loaded = checkpoint.load(found, CONFIG, np.float32)
    for title, tree in trees(7).items():
        for name, array in tree.items():
            np.testing.assert_array_equal(loaded[title][name], array)
    np.testing.assert_array_equal(  # and the folder is a model
        lab.load_model(found.path).backend.recover("embed.token", loaded["params"]["embed.token"]),
        trees(7)["params"]["embed.token"],
    )


def test_the_last_and_the_best_are_kept(tmp_path):
    for step in (10, 20, 30, 40, 50):
        save(tmp_path, step)
        checkpoint.prune(tmp_path, step, keep_last=2, best_step=20)
    assert [found.step for found in checkpoint.found(tmp_path)] == [20, 40, 50]


def test_a_later_one_does_not_count_in_place_of_a_good_one(tmp_path):
    """The run went on from step 10, so what lies beyond is damaged."""
    for step in (10, 20):
        save(tmp_path, step)
    checkpoint.prune(tmp_path, 10, keep_last=1, best_step=None)
    assert [found.step for found in checkpoint.found(tmp_path)] == [10, 20]
    save(tmp_path, 25)
    checkpoint.prune(tmp_path, 25, keep_last=1, best_step=None)
    assert [found.step for found in checkpoint.found(tmp_path)] == [25]


def test_one_that_cannot_be_removed_is_left_whole(tmp_path, monkeypatch):
    for step in (10, 20):
        save(tmp_path, step)

    def refused(*arguments, **named):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("os.rename", refused)
        checkpoint.prune(tmp_path, 20, keep_last=1, best_step=None)
    for found in checkpoint.found(tmp_path):
        checkpoint.load(found, CONFIG, np.float32)
    assert len(checkpoint.found(tmp_path)) == 2


def test_the_same_step_again_replaces_the_first(tmp_path):
    (save(tmp_path, 10) / checkpoint.STATE).unlink()
    save(tmp_path, 10)
    checkpoint.load(checkpoint.found(tmp_path)[0], CONFIG, np.float32)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]


def test_a_disk_that_is_full_loses_nothing(tmp_path, monkeypatch):
    save(tmp_path, 10)

    def full(*arguments, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(lab.UnavailableError, match=r"step 20 could not be written.*No space left"):
        save(tmp_path, 20)
    assert [found.step for found in checkpoint.found(tmp_path)] == [10]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]


def test_what_was_being_written_is_not_taken_for_a_checkpoint(tmp_path):
    save(tmp_path, 10)
    left = temporary_name(tmp_path / "checkpoints" / "step-00000020")
    left.mkdir()
    assert [found.step for found in checkpoint.found(tmp_path)] == [10]
    save(tmp_path, 20)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000010", "step-00000020"]


@pytest.mark.parametrize("damage", ["cut", "zero", "missing", "other", "one moment", "half an average", "more"])
def test_damaged_moments_are_refused(tmp_path, damage):
    path = save(tmp_path, 10) / checkpoint.STATE
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "zero":
        path.write_bytes(b"\0" * 1000)
    elif damage == "missing":
        path.unlink()
    elif damage == "other":
        with open(path, "wb") as file:
            np.savez(file, **{"first/embed.token": np.zeros((3, 3), np.float32)})
    else:
        params = trees(1)["params"]
        arrays = {f"first/{name}": array for name, array in params.items()}
        if damage != "one moment":
            arrays |= {f"second/{name}": array for name, array in params.items()}
            arrays[("average" if damage == "half an average" else "third") + "/embed.token"] = params["embed.token"]
        with open(path, "wb") as file:
            np.savez(file, **arrays)
    (found,) = checkpoint.found(tmp_path)
    with pytest.raises(lab.InputFileError, match=r"optimizer\.npz"):
        checkpoint.load(found, CONFIG, np.float32)


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", "", "[" * 9999]
    + [
        json.dumps({"schema": checkpoint.SCHEMA, "step": 10} | wrong)
        for wrong in (
            {"best": 3},
            {"best": {"loss": 1.5}},
            {"best": {"step": 1, "loss": "low"}},
            {"loss": [1]},
            {"evaluation": 1},
            {"surroundings": None},
        )
    ],
)
def test_facts_that_are_none_are_refused(tmp_path, content):
    (save(tmp_path, 10) / checkpoint.FACTS).write_text(content)
    (found,) = checkpoint.found(tmp_path)
    with pytest.raises(lab.InputFileError, match=r"training\.json.* The checkpoint is damaged\.$"):
        found.facts()


def test_a_configuration_of_another_model_is_refused(tmp_path):
    path = save(tmp_path, 10) / "config.json"
    fields = json.loads(path.read_text())
    (found,) = checkpoint.found(tmp_path)
    for wrong in ({"model_type": "llama"}, {"n_layer": 2}, {"layer_norm_epsilon": 0.1}, {"n_head": "two"}):
        path.write_text(json.dumps(fields | wrong))
        with pytest.raises(lab.InputFileError, match=r"config\.json.* The checkpoint is damaged"):
            checkpoint.load(found, CONFIG, np.float32)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("name", [checkpoint.FACTS, checkpoint.STATE])
def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path, name):
    path = save(tmp_path, 10) / name
    path.unlink()
    os.mkfifo(path)
    (found,) = checkpoint.found(tmp_path)
    with pytest.raises(lab.InputFileError, match=f"{name} is a pipe; .* The checkpoint is damaged"):
        found.facts(), checkpoint.load(found, CONFIG, np.float32)


def test_moments_that_claim_too_much_take_no_memory(tmp_path):
    """An archive may unpack to a thousand times its size, and a header may promise anything."""
    path = save(tmp_path, 10) / checkpoint.STATE
    np.savez_compressed(path, **{"first/embed.token": np.zeros((1000, 10_000), np.float32)})
    (found,) = checkpoint.found(tmp_path)
    tracemalloc.start()
    with pytest.raises(lab.InputFileError, match=r"'first/embed\.token' does not fit this model"):
        checkpoint.load(found, CONFIG, np.float32)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000


@pytest.mark.parametrize("schema", range(1, checkpoint.SCHEMA))
def test_those_of_an_earlier_version_are_refused_by_that(schema, tmp_path):
    (save(tmp_path, 10) / checkpoint.FACTS).write_text(json.dumps({"schema": schema, "step": 10, "identity": {}}))
    (found,) = checkpoint.found(tmp_path)
    with pytest.raises(lab.InputFileError, match="written by another version"):
        found.facts()
