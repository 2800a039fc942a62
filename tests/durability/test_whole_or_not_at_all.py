"""What is saved over something older: at any moment each file is whole, the old or the new one; the next save tidies.

The layer and its limits are those of `test_killed_at_any_moment.py`.
"""

import os
import pickle
import re
import shutil
import signal
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from child_jobs import disturbed, forked, make_root, recorded, start_server
from fault_layer import Fault, make_tree, tree
from small_models import small_model

from transformer_lab.atomic_file import write_json
from transformer_lab.checkpoints import save_folder
from transformer_lab.comparison.participants.dumped import write_dump
from transformer_lab.comparison.reporting.report import Report
from transformer_lab.ffn.dense import Dense
from transformer_lab.model.init import initialise
from transformer_lab.tokenizers import train_tokenizer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

CONFIG = small_model(20, 8, 8, 1, 2, Dense(16))


def model(root: Path, seed: int, max_shard_size: int | None = None) -> None:
    save_folder(root / "run" / "model", CONFIG, dict(initialise(CONFIG, seed)), max_shard_size=max_shard_size)


def tokenizer(root: Path, size: int) -> None:
    train_tokenizer(["the king and his sons and the sea"] * 3, size).save(root / "run" / "words")


def report(root: Path, layers: int) -> None:
    from comparison.report_cases import sound

    made = Report(verdict="Sound.", status="sound", first_divergence=None, content=sound(layers))
    made.to_json(root / "run" / "report.json")
    made.to_html(root / "run" / "report.html")


def dump(root: Path, ending: str, seed: int) -> None:
    write_dump(root / "run" / f"dump{ending}", [1, 2], {"embed": np.full((2, 8), seed, np.float32)})


def record(root: Path, number: int) -> None:
    write_json(root / "run" / "result.json", {"numbers": [number] * 1000})


FAULTS = ("killed", "full", "failing")
WORKS = {
    "model": (partial(model, seed=0), partial(model, seed=1)),
    "shards over a model": (partial(model, seed=0), partial(model, seed=1, max_shard_size=2000)),
    "a model over shards": (partial(model, seed=0, max_shard_size=2000), partial(model, seed=1)),
    "tokenizer": (partial(tokenizer, size=260), partial(tokenizer, size=264)),
    "report": (partial(report, layers=1), partial(report, layers=2)),
    "npz": (partial(dump, ending=".npz", seed=1), partial(dump, ending=".npz", seed=2)),
    "safetensors": (partial(dump, ending=".safetensors", seed=1), partial(dump, ending=".safetensors", seed=2)),
    "result": (partial(record, number=1), partial(record, number=2)),
}


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.full)])
@pytest.mark.parametrize("name", WORKS)
def test_each_file_is_the_old_or_the_new_one(tmp_path, name, every):
    before, work = WORKS[name]
    start_server()
    root = make_root(tmp_path / "root")
    before(root)
    old = contents(root)
    assert forked(recorded, root, tmp_path / "moments", work) == 0
    new = contents(root)
    calls, states = pickle.loads((tmp_path / "moments").read_bytes())
    assert new != old and len(calls) > 5
    for state in states:
        for path, data in comparable(state.content).items():
            assert data in (old.get(path), new.get(path)), f"{path}: {state.kind} at {calls[state.call]}"
        assert old.keys() & new.keys() <= comparable(state.content).keys()
    for number in range(len(states)) if every else (len(states) // 2,):
        made = tmp_path / str(number)
        make_tree(made, states[number].content)
        work(made)
        assert contents(made) == new
    one_each = [("killed", len(calls) // 2), ("full", 1), ("failing", len(calls) - 1)]
    for kind, number in product(FAULTS, range(len(calls))) if every else one_each:
        shutil.rmtree(root)
        before(make_root(root))
        code = forked(disturbed, root, Fault(kind, number), work)
        assert code == -signal.SIGKILL if kind == "killed" else code in (0, 3, 4)
        left = comparable(tree(root))
        assert all(data in (old.get(path), new.get(path)) for path, data in left.items())
        assert kind == "killed" or not any(path.endswith(".transformer-lab") for path in tree(root))
        work(root)
        assert contents(root) == new


def contents(root):
    assert not [path for path in tree(root) if path.endswith(".transformer-lab")]
    return comparable(tree(root))


def comparable(content):
    """Without what is temporary, and without the time of day that an .npz file holds."""
    return {
        path: re.sub(rb"(?s)(PK\x03\x04.{6}|PK\x01\x02.{8}).{4}", rb"\1", data) if path.endswith(".npz") else data
        for path, data in content.items()
        if not path.endswith(".transformer-lab")
    }
