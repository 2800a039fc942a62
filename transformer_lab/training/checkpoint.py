"""The checkpoints of a run: a model folder in Hugging Face layout for each, with all that the next step needs.

RUN/checkpoints/step-00000300/ holds config.json, model.safetensors, the tokenizer's files, optimizer.npz (the moments
of AdamW and the average of the weights, bit for bit) and training.json. A checkpoint gets its name when it is whole,
and loses it before it is removed (`atomic_folder.py`): a killed process leaves no half of one under such a name.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transformer_lab import checkpoints
from transformer_lab.atomic_file import make_folder, of_content, write_file
from transformer_lab.atomic_folder import new_folder, remove_folder
from transformer_lab.checkpoints.json_file import read_object
from transformer_lab.checkpoints.npz_file import read_array, read_arrays
from transformer_lab.errors import InputFileError, UnavailableError, shown
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.parameters import flatten, nest, shapes
from transformer_lab.model.state import without_states

FOLDER, STATE, FACTS = "checkpoints", "optimizer.npz", "training.json"
SCHEMA = 3  # 1 knew less of the run, and its schedules had other numbers; 2 had the model in one word
MOST_STEPS = 10**15  # far above any run
LARGEST_FACTS = 10_000_000  # bytes of training.json
_TITLES = ("first", "second", "average")  # of what `save` is given beside the parameters
_NAME = re.compile(r"step-(\d{8,})")
Trees = dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Checkpoint:
    """A folder, by its name a checkpoint. step: how many steps were done."""

    path: Path
    step: int

    def facts(self) -> dict[str, Any]:
        """What training.json holds: `step`, and what `save` was given. Raises InputFileError if it is damaged."""
        path = self.path / FACTS
        with _damaged():
            facts = read_object(path, LARGEST_FACTS)
        if "schema" in facts and facts["schema"] != SCHEMA:
            message = f"{path} was written by another version of this package, which alone can go on from it."
            raise InputFileError(message)
        if not _is_usable(facts):
            message = f"{path} does not say what the end of a step looked like. The checkpoint is damaged."
            raise InputFileError(message)
        return facts


def save(
    run: Path,
    step: int,
    config: ModelConfig,
    trees: Trees,
    facts: Mapping[str, Any],
    tokenizer: Any,
    original: checkpoints.Original | None = None,
) -> Path:
    """Writes the checkpoint of `step` and returns its folder. trees: as TrainingStep.trees gives them. original: what
    the folder that the model comes from says beside its weights.

    Raises UnavailableError if the disk does not take it; the other checkpoints are then still there.
    """
    path = run / FOLDER / f"step-{step:08d}"
    dtype = str(next(iter(trees["params"].values())).dtype)
    rest = {
        f"{title}/{name}": array for title, tree in trees.items() if title != "params" for name, array in tree.items()
    }
    try:
        make_folder(path.parent)
        with new_folder(path) as place:
            checkpoints.save_folder(place, config, nest(trees["params"]), dtype=dtype, original=original)
            if tokenizer is not None:
                tokenizer.save(place)
            write_file(place / STATE, lambda file: np.savez(file, **rest))  # type: ignore[arg-type]
            write_file(
                place / FACTS, of_content(json.dumps({"schema": SCHEMA, "step": step, **facts}, indent=2) + "\n")
            )
            remove_folder(path)  # the same step again: that one was damaged, and the run went on from an older one
    except OSError as error:
        message = f"The checkpoint of step {step} could not be written to {path}: {error.strerror or error}."
        raise UnavailableError(message) from error
    return path


def found(run: Path) -> list[Checkpoint]:
    """The checkpoints of a run, oldest first. One that was damaged from outside is among them until it is looked at."""
    with suppress(FileNotFoundError, NotADirectoryError):
        matches = [(path, _NAME.fullmatch(path.name)) for path in (run / FOLDER).iterdir()]
        return sorted((Checkpoint(path, int(match[1])) for path, match in matches if match), key=lambda one: one.step)
    return []


def prune(run: Path, step: int, keep_last: int, best_step: int | None) -> None:
    """Removes the checkpoints up to `step` but the last `keep_last` of them and the best.

    Later ones are damaged, or the run would have gone on from them: they must not count in place of good ones.
    """
    for checkpoint in [one for one in found(run) if one.step <= step][:-keep_last]:
        if checkpoint.step != best_step:
            with suppress(OSError):  # it can go another time
                remove_folder(checkpoint.path)


def load(checkpoint: Checkpoint, config: ModelConfig, dtype: Any) -> Trees:
    """The trees that `save` was given. Raises InputFileError if the folder is damaged."""

    def owned(name: str, array: np.ndarray) -> np.ndarray:
        return np.array(array, order="C")

    with _damaged():
        if checkpoints.to_hf(checkpoints.read_config(checkpoint.path)) != checkpoints.to_hf(config):
            message = f"{checkpoint.path}: its config.json does not fit this model."
            raise InputFileError(message)
    trees: Trees = {"params": dict(flatten(checkpoints.load_parameters(checkpoint.path, config, owned, dtype)))}
    wanted = shapes(config)
    path = checkpoint.path / STATE
    with _damaged():
        for key, stored in read_arrays(path).items():
            title, _, name = key.partition("/")
            if title not in _TITLES or stored.shape != wanted.get(name) or stored.dtype != dtype:
                message = f"{path}: {shown(key)} does not fit this model."
                raise InputFileError(message)
            trees.setdefault(title, {})[name] = read_array(stored)
    learned = without_states(wanted)
    needed = {title: learned if title in ("first", "second") else wanted for title in trees}
    whole = all(tree.keys() == needed[title].keys() for title, tree in trees.items())
    if not (whole and trees.keys() >= {"first", "second"}):
        message = f"{path} does not hold the moments of every parameter. The checkpoint is damaged."
        raise InputFileError(message)
    return trees


def _is_usable(facts: Mapping[str, Any]) -> bool:
    """Whether the facts that a run goes on with are of the types that `save` is given; any of them may be missing."""
    best = {"step": 0, "loss": 0.0} if facts.get("best") is None else facts["best"]
    return (
        facts.get("schema") == SCHEMA
        and isinstance(best, dict)
        and type(best.get("step")) is int
        and 0 <= best["step"] < MOST_STEPS
        and isinstance(best.get("loss"), float)
        and isinstance(facts.get("loss"), float | None)
        and isinstance(facts.get("evaluation"), dict | None)
        and isinstance(facts.get("surroundings", {}), dict)
    )


@contextmanager
def _damaged() -> Iterator[None]:
    """Says of a file that cannot be read that it is part of a checkpoint, which is not whole any more."""
    try:
        yield
    except InputFileError as error:
        message = f"{error} The checkpoint is damaged."
        raise InputFileError(message) from error
