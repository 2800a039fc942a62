"""The checkpoints of a run: a model folder in Hugging Face layout for each, with all that the next step needs.

RUN/checkpoints/step-00000300/ holds config.json, model.safetensors, the tokenizer's files, optimizer.npz (the moments
of AdamW and the average of the weights, bit for bit) and training.json. A checkpoint is written under another name and
renamed when it is whole, so each folder of that name is good, and the old ones go only after that.
"""

import json
import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transformer_lab import checkpoints
from transformer_lab.errors import InputFileError, UnavailableError
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.parameters import flatten, nest, shapes

FOLDER, STATE, FACTS = "checkpoints", "optimizer.npz", "training.json"
_NAME = re.compile(r"step-(\d{8,})")
Trees = dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Checkpoint:
    """step: how many steps were done. facts: what training.json holds, among it "best", the best evaluation so far."""

    path: Path
    step: int
    facts: Mapping[str, Any]


def save(run: Path, step: int, config: ModelConfig, trees: Trees, facts: Mapping[str, Any], tokenizer: Any) -> Path:
    """Writes the checkpoint of `step` and returns its folder. trees: as TrainingStep.trees gives them.

    Raises UnavailableError if the disk does not take it; what was there before is then still there.
    """
    path = run / FOLDER / f"step-{step:08d}"
    temporary = path.with_name(f".{path.name}.writing")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        dtype = str(next(iter(trees["params"].values())).dtype)
        checkpoints.save_folder(temporary, config, nest(trees["params"]), dtype=dtype)
        if tokenizer is not None:
            tokenizer.save(temporary)
        rest = {
            f"{title}/{name}": array
            for title, tree in trees.items()
            if title != "params"
            for name, array in tree.items()
        }
        with open(temporary / STATE, "wb") as file:
            np.savez(file, **rest)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        with open(temporary / FACTS, "w", encoding="utf-8") as text:
            json.dump({"schema": 1, "step": step, **facts}, text, indent=2)
            text.flush()
            os.fsync(text.fileno())
        if path.exists():  # the same step again, after resuming from an older one
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        message = f"The checkpoint of step {step} could not be written to {path}: {error.strerror or error}."
        raise UnavailableError(message) from error
    except UnavailableError:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return path


def found(run: Path) -> list[Checkpoint]:
    """The whole checkpoints of a run, oldest first."""
    result = []
    with suppress(FileNotFoundError, NotADirectoryError):
        for path in (run / FOLDER).iterdir():
            if match := _NAME.fullmatch(path.name):
                result.append(Checkpoint(path, int(match[1]), _facts(path)))
    return sorted(result, key=lambda checkpoint: checkpoint.step)


def prune(run: Path, keep_last: int, best_step: int | None) -> None:
    """Removes all but the last `keep_last` checkpoints and the best."""
    for checkpoint in found(run)[:-keep_last]:
        if checkpoint.step != best_step:
            shutil.rmtree(checkpoint.path, ignore_errors=True)


def load(checkpoint: Checkpoint, config: ModelConfig, dtype: Any) -> Trees:
    """The trees that `save` was given. Raises InputFileError if the folder is damaged."""

    def owned(name: str, array: np.ndarray) -> np.ndarray:
        return np.array(array, order="C")

    trees: Trees = {"params": dict(flatten(checkpoints.load_parameters(checkpoint.path, config, owned, dtype)))}
    wanted = shapes(config)
    path = checkpoint.path / STATE
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as state:
            for key in state.files:
                title, _, name = key.partition("/")
                array = state[key]
                if name not in wanted or array.shape != wanted[name] or array.dtype != dtype:
                    message = f"{path}: {key} does not fit this model. The checkpoint is damaged or of another model."
                    raise InputFileError(message)
                trees.setdefault(title, {})[name] = array
    except (OSError, ValueError, zipfile.BadZipFile, KeyError, EOFError) as error:
        message = f"{path} cannot be read ({error}). Remove this checkpoint's folder to go on from the one before it."
        raise InputFileError(message) from error
    if any(set(trees.get(moment, ())) != set(wanted) for moment in ("first", "second")):
        message = f"{path} does not hold the moments of every parameter. The checkpoint is damaged."
        raise InputFileError(message)
    return trees


def _facts(path: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((path / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{path / FACTS} cannot be read ({error}). Remove this checkpoint's folder to go on without it."
        raise InputFileError(message) from error
    return facts
