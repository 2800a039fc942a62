"""Writes a model as a folder in Hugging Face layout, which transformers' from_pretrained loads too.

Everything is first written under temporary names in the same folder and then renamed (`atomic_file.py`), so that a save
that fails or is interrupted while it writes leaves the old files whole, and no others. Files that are not part of it,
such as a tokenizer's, stay untouched.
"""

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from transformer_lab.atomic_file import Write, of_content, sync_folder, write_files
from transformer_lab.checkpoints.config_file import CONFIG, family_for
from transformer_lab.checkpoints.number_formats import BITS, NAMES
from transformer_lab.checkpoints.original import GENERATION_CONFIG, Original, completed
from transformer_lab.checkpoints.safetensors_file import write
from transformer_lab.checkpoints.tensor_names import Stored
from transformer_lab.checkpoints.weight_files import INDEX, SINGLE
from transformer_lab.errors import ConfigurationError, InputFileError, UnavailableError, listed
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.parameters import flatten, shapes
from transformer_lab.paths import expanded

_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_Part = tuple[str, tuple[int, ...], Callable[[], Any]]


def save_folder(
    folder: str | Path,
    config: ModelConfig,
    named_tensors: Mapping[str, Any],
    dtype: str = "float32",
    max_shard_size: int | None = None,
    original: Original | None = None,
) -> None:
    """Writes config.json and model.safetensors into `folder`, which is made if need be.

    named_tensors: the parameters as NumPy arrays (or what np.asarray takes), nested or under dotted names, in any
    memory layout. dtype: float32, float64, float16 or bfloat16. max_shard_size: if given, no file gets more bytes of
    tensors, unless one tensor alone has more, and an index is written. original: what `read_original` found in the
    folder that the model comes from, to be kept.

    Raises ConfigurationError for a model that no family can hold or parameters that do not fit, UnavailableError if the
    disk does not take it, InputFileError if `folder` cannot be one.
    """
    folder = expanded(folder)
    if dtype not in NAMES:
        message = f"dtype is {dtype!r}; choose one of {', '.join(NAMES)}."
        raise ConfigurationError(message)
    if max_shard_size is not None and max_shard_size < 1:
        message = f"max_shard_size is {max_shard_size}; it must be a positive number of bytes."
        raise ConfigurationError(message)
    original = original or Original()
    family, fields = family_for(config, original.fields.get("model_type"))
    flat = dict(flatten(named_tensors))
    _require_fit(config, flat)
    stored: dict[str, Stored] = family.NAMES.stored(config)
    parts = [
        (family.NAMES.in_file(name, family.PREFIX), shape, array)
        for ours, form in stored.items()
        for name, shape, array in _split(flat[ours], form)
    ]
    format = NAMES[dtype]
    shards = _shards(parts, format, max_shard_size)
    contents: dict[str, Write] = {}
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        contents[file] = lambda handle, shard=shard: write(handle, shard, format)  # type: ignore[misc]
        weight_map |= {name: file for name, _, _ in shard}
    contents[CONFIG] = _json(completed(fields, original, family, config) | {"dtype": dtype})
    if original.generation is not None:
        contents[GENERATION_CONFIG] = _json(original.generation)
    if len(shards) > 1:
        size = sum(math.prod(shape) * BITS[format] // 8 for _, shape, _ in parts)
        contents[INDEX] = _json({"metadata": {"total_size": size}, "weight_map": weight_map})
    _write_all(folder, contents)


def _split(array: Any, form: Stored) -> list[_Part]:
    """One parameter of ours as the parts that the files hold; nothing is copied before it is written."""
    result: list[_Part] = []
    for name, shape, place in form.places():
        result.append((name, shape, lambda place=place: _stored_layout(array, form)[place]))  # type: ignore[misc]
    return result


def _stored_layout(array: Any, form: Stored) -> Any:
    return form.to_file(np.asarray(array))


def _require_fit(config: ModelConfig, flat: Mapping[str, Any]) -> None:
    expected = shapes(config)
    wrong = [f"{name} is missing" for name in expected if name not in flat]
    wrong += [f"{name} is not a parameter" for name in flat if name not in expected]
    wrong += [
        f"{name} is {list(np.shape(flat[name]))}, not {list(shape)}"
        for name, shape in expected.items()
        if name in flat and tuple(np.shape(flat[name])) != shape
    ]
    if wrong:
        message = f"The parameters do not fit the configuration: {listed(wrong)}."
        raise ConfigurationError(message)


def _shards(parts: list[_Part], format: str, max_shard_size: int | None) -> list[list[_Part]]:
    """The parts in order, cut before the one that would make a shard too large."""
    shards: list[list[_Part]] = [[]]
    size = 0
    for part in parts:
        bytes_ = math.prod(part[1]) * BITS[format] // 8
        if shards[-1] and max_shard_size is not None and size + bytes_ > max_shard_size:
            shards.append([])
            size = 0
        shards[-1].append(part)
        size += bytes_
    return shards


def _json(value: Mapping[str, Any]) -> Write:
    return of_content(json.dumps(value, indent=2, sort_keys=True) + "\n")


def _write_all(folder: Path, contents: Mapping[str, Write]) -> None:
    """Writes the files, then removes what they replace."""
    try:
        write_files(folder, contents)
        _remove_replaced(folder, set(contents))
    except (FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError, ValueError) as error:
        if isinstance(error, ConfigurationError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        message = f"The model cannot be saved in {folder}: {reason[:1].lower()}{reason[1:]}."
        raise InputFileError(message) from error
    except OSError as error:
        reason = error.strerror or str(error)
        message = f"The model could not be saved in {folder}: {reason[:1].lower()}{reason[1:]}."
        raise UnavailableError(message) from error


def _remove_replaced(folder: Path, written: set[str]) -> None:
    """A single file would win over an index, shards of another count are not in the new index, and what another model
    would generate with is not meant for this one: all go.
    """
    removable = (SINGLE, INDEX, GENERATION_CONFIG)
    names = [name for name in os.listdir(folder) if name in removable or _SHARD.fullmatch(name)]
    replaced = [name for name in names if name not in written]
    for name in replaced:
        (folder / name).unlink()
    if replaced:
        sync_folder(folder)
