"""A training run that is killed at any moment, or whose disk is full or fails there, goes on to the same end.

At each call that changes something on the disk (`fault_layer.py`), and in the middle of each write: the process is
killed, the power fails, the disk is full from there on, or this one call fails. Then the run goes on with the same
words, and everything has to be as if nothing had happened: the bits of weights and moments, a line in metrics.jsonl for
each step, the model, no file too many in the run's folder, the cache and the system's folder for temporary files.

Not covered: what Hydra writes before the job begins (.hydra/ in the run's folder), trackers, and writing that does not
pass through Python; here all of it does, safetensors and .npz files too. A power cut is taken to lose everything that
was not synced, or everything but removals; real disks lose less.
"""

import io
import itertools
import json
import os
import pickle
import re
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from child_jobs import disturbed, forked, going_on, make_root, recorded, start_server, trained
from fault_layer import Fault, State, make_tree, tree

from transformer_lab.composition import compose
from transformer_lab.config import Settings
from transformer_lab.tokenizers import train_tokenizer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

WORDS = [
    "job=train",
    "model=new",
    "model.hidden_size=8",
    "model.num_layers=1",
    "model.num_heads=2",
    "model.context_length=8",
    "data.validation_share=0.2",
    "job.steps=4",
    "job.batch_size=2",
    "job.checkpoint_every=2",
    "job.evaluate_every=2",
    "job.keep_last=1",
    "job.average_decay=0.9",
    "schedule.warmup_steps=1",
]
CODES = {"killed": [-signal.SIGKILL], "full": [0, 4], "failing": [0, 4]}  # 0: where it can be done without, as a cache
TEXT = "\n<|endoftext|>\n".join(f"The king of hill {n} had {n % 7} sons." for n in range(12))


@dataclass(frozen=True)
class Undisturbed:
    """settings, resuming: the words. calls: what changed something on the disk. end: see `end_of`."""

    settings: Settings
    resuming: Settings
    calls: list[str]
    states: list[State]
    end: dict[str, object]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "text.txt").write_text(TEXT)
    train_tokenizer([TEXT] * 5, 270).save(folder / "words")
    words = [*WORDS, f"data.path={folder}/text.txt", f"tokenizer.source={folder}/words"]
    settings, resuming = compose(words), compose([*words, "job.resume=run"])
    start_server()
    root = make_root(folder / "root")
    assert forked(recorded, root, folder / "moments", trained, settings) == 0, (folder / "root.log").read_text()
    calls, states = pickle.loads((folder / "moments").read_bytes())
    return Undisturbed(settings, resuming, calls, states, end_of(root))


def end_of(root):
    """Everything that lies there at the end, as far as it must not depend on how it came about."""
    files = {name: data for name, data in tree(root).items() if name.split("/")[0] != "again"}
    files.pop("run/result.json", None)  # may be that of the run that was disturbed
    for name, data in files.items():
        if name.endswith(".npz"):
            with np.load(io.BytesIO(data)) as arrays:
                files[name] = {key: (arrays[key].dtype.str, arrays[key].tobytes()) for key in arrays.files}
        elif name.endswith("metrics.jsonl"):
            lines = [json.loads(line) for line in data.splitlines()]
            files[name] = [{key: value for key, value in line.items() if key != "tokens_per_s"} for line in lines]
    last = json.loads((root / ("again" if (root / "again").exists() else "run") / "result.json").read_text())
    said = ("checkpoints", "steps", "tokens", "loss", "evaluation", "best", "another_schedule_until")
    return files | {"status": last["status"]} | {key: relative(last["output"][key], root) for key in said}


def relative(value, root):
    return [Path(part).name for part in value] if isinstance(value, list) else value


def difference(found, expected):
    return sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))


def finishes(undisturbed, root, *faults):
    """Goes on, with the faults one after the other and then without: what is wrong at the end."""
    for fault in (*faults, None):
        code = forked(going_on, root, undisturbed.settings, undisturbed.resuming, fault)
    if code != 0:
        return [f"exit code {code}", root.with_suffix(".log").read_text()[-2000:]]
    wrong = difference(end_of(root), undisturbed.end)
    if not wrong:
        shutil.rmtree(root)  # some hundreds of them
    return wrong


def finishes_after(fault, undisturbed, root):
    """Begins a run that meets the fault, and goes on: what is wrong at the end."""
    code = forked(disturbed, make_root(root), fault, trained, undisturbed.settings)
    if code not in CODES[fault.kind]:
        return [f"exit code {code} at {undisturbed.calls[fault.number]}", root.with_suffix(".log").read_text()[-2000:]]
    return finishes(undisturbed, root)


def wrong_of(check, cases):
    """check(case) for each, two at a time: what is wrong, where something is."""
    assert cases
    with ThreadPoolExecutor(2) as pool:
        return {case: wrong for case, wrong in zip(cases, pool.map(check, cases), strict=True) if wrong}


def without_the_like(calls):
    """The numbers of the calls, but of a long row of writes into one file only the first, the middle and the last."""
    kept, first = [], 0
    for _, row in itertools.groupby(calls):
        size = len(list(row))
        kept += [first + place for place in (range(size) if size < 4 else (0, size // 2, size - 1))]
        first += size
    return kept


def telling(states, calls):
    """Those before a call that changes names or sizes, and of the many beside writes, which are alike, each third."""
    numbers = set(without_the_like(calls))
    states = [state for state in states if state.call in numbers]
    alike = ("open", "write", "fsync")
    return [state for n, state in enumerate(states) if n % 3 == 0 or not calls[state.call].startswith(alike)]


def wrong_from(states, undisturbed, tmp_path):
    def check(number):
        make_tree(tmp_path / str(number), states[number].content)
        return finishes(undisturbed, tmp_path / str(number))

    wrong = wrong_of(check, range(len(states)))
    return {f"{states[number].kind} at {undisturbed.calls[states[number].call]}": wrong[number] for number in wrong}


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.full)])
def test_killed_anywhere(undisturbed, tmp_path, every):
    states = [state for state in undisturbed.states if state.kind == "killed"]
    states = states if every else telling(states, undisturbed.calls)
    assert wrong_from(states, undisturbed, tmp_path) == {}


def test_the_power_fails_anywhere(undisturbed, tmp_path):
    states = [state for state in undisturbed.states if state.kind != "killed"]
    assert wrong_from(states, undisturbed, tmp_path) == {}


@pytest.mark.parametrize("every", [17, pytest.param(1, marks=pytest.mark.full)])
@pytest.mark.parametrize("kind", ["full", "failing"])
def test_a_disk_that_refuses(undisturbed, tmp_path, kind, every):
    numbers = without_the_like(undisturbed.calls)[::every]
    wrong = wrong_of(lambda n: finishes_after(Fault(kind, n), undisturbed, tmp_path / str(n)), numbers)
    assert wrong == {}


def test_a_real_kill_leaves_what_was_kept(undisturbed, tmp_path):
    """The states of the tests above are those that the system leaves."""
    kept = [without_chance(state.content) for state in undisturbed.states if state.kind == "killed"]
    for number in without_the_like(undisturbed.calls)[5::41]:
        root = make_root(tmp_path / str(number))
        assert forked(disturbed, root, Fault("killed", number), trained, undisturbed.settings) == -signal.SIGKILL
        assert without_chance(tree(root)) in kept
        assert finishes(undisturbed, root) == []


def without_chance(content):
    """Temporary names have a random part, a step takes its time, and an .npz file knows the time of day."""
    return {
        re.sub(r"[0-9a-f]{12}(?=\.transformer-lab)", "", name): len(data) if ".npz" in name else data
        for name, data in content.items()
        if not re.search(r"metrics\.jsonl|result\.json", name)
    }


@pytest.mark.full
def test_disturbed_again_and_again(undisturbed, tmp_path):
    draw = np.random.default_rng(0)
    last = len(undisturbed.calls) // 2  # a run that goes on has fewer
    several = [
        [Fault(str(draw.choice(["killed", "full", "failing"])), int(draw.integers(last))) for _ in range(4)]
        for _ in range(60)
    ]
    wrong = wrong_of(lambda n: finishes(undisturbed, make_root(tmp_path / str(n)), *several[n]), range(60))
    assert {str(several[number]): wrong[number] for number in wrong} == {}
