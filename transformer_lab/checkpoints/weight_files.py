"""Finds the weight files of a folder in Hugging Face layout, and reads their headers together.

Either `model.safetensors`, or `model.safetensors.index.json` and the shards it names, whatever they are called; the
single file wins, as in transformers. Shards whose index is gone are found by their numbers, NAME-00001-of-00002, as
long as none is missing; and a single file of another name is taken where it is the only one. Pickle files can run code
when they are read, so they are refused, with the way to convert them.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from transformer_lab.checkpoints.json_file import read_object
from transformer_lab.checkpoints.regular_file import is_there
from transformer_lab.checkpoints.safetensors_file import Tensor, read_header
from transformer_lab.errors import InputFileError, listed, shown

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
LARGEST_INDEX = 25_000_000
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")


def require_folder(folder: Path) -> None:
    """Raises InputFileError, saying what was looked for, unless `folder` is one."""
    try:
        if folder.is_dir():
            os.listdir(folder)
            return
        reason = "is a file; give the folder it lies in" if folder.exists() else "does not exist"
        if folder.suffix in PICKLES and folder.exists():
            raise InputFileError(pickle_refusal([str(folder)]))
    except PermissionError:
        reason = "cannot be read: permission denied"
    except (OSError, ValueError) as error:
        if isinstance(error, InputFileError):
            raise
        reason = f"cannot be read: {getattr(error, 'strerror', None) or error}"
    message = f"The folder {folder} {reason}. Looked for config.json and {SINGLE}, or {INDEX}, in it."
    raise InputFileError(message)


def weight_files(folder: Path) -> list[Path]:
    """The weight files, in the order of the index (which is read and checked) or of their numbers."""
    if is_there(folder / SINGLE):
        return [folder / SINGLE]
    if is_there(folder / INDEX):
        return list(dict.fromkeys(folder / file for file in read_index(folder).values()))
    names = sorted(os.listdir(folder))
    if shards := shards_without_index(names, str(folder)):
        return [folder / name for name in shards]
    message = f"{folder} has no weights: looked for {SINGLE} and {INDEX}."
    others = [name for name in names if name.endswith(".safetensors") and not name.startswith("adapter_")]
    if len(others) == 1:  # there is no doubt about which is meant
        return [folder / others[0]]
    if pickles := [name for name in names if name.endswith(PICKLES)]:
        message = f"{folder} has no {SINGLE}. " + pickle_refusal(pickles)
    elif others:
        message += f" It has {listed([shown(name) for name in others])}; rename the one that is meant."
    raise InputFileError(message)


def has_weights(folder: Path) -> bool:
    """Whether something is there that `weight_files` would read or refuse by its name."""
    names = os.listdir(folder)
    return INDEX in names or any(name.endswith(".safetensors") and not name.startswith("adapter_") for name in names)


def shards_without_index(names: Iterable[str], where: str) -> list[str]:
    """The shards among the names of files, in order, or none. InputFileError, beginning with `where`, if some lack."""
    sets: dict[tuple[str, int], set[int]] = {}
    for name in names:
        if match := _SHARD.fullmatch(name):
            sets.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    if not sets:
        return []
    if len(sets) > 1:
        described = [f"{shown(stem)} in {count} files" for stem, count in sorted(sets)]
        message = (
            f"{where} has the shards of several models, {listed(described)}, and no {INDEX} that says which is meant. "
            "Leave one of them there, or fetch the index."
        )
        raise InputFileError(message)
    ((stem, count), present) = sets.popitem()
    shards = {number: f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)}
    if missing := [shown(name) for number, name in shards.items() if number not in present]:
        message = (
            f"{where} has no {INDEX}, and not all of the {count} shards: missing are {listed(missing)}. Fetch them."
        )
        raise InputFileError(message)
    return list(shards.values())


def read_weight_map(folder: Path) -> dict[str, str]:
    """The `weight_map` of the index: tensor -> file beside the index, each name checked to be one."""
    path = folder / INDEX
    weight_map = read_object(path, LARGEST_INDEX, strict=True).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        message = f"{path}: the field 'weight_map' is {shown(weight_map)}; an object, tensor to file, is expected."
        raise InputFileError(message)
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or not file.endswith(".safetensors") or any(mark in file for mark in "/\\:\0"):
            message = (
                f"{path} names the file {shown(file)} for the tensor {shown(tensor)}; only the name of a "
                f".safetensors file in the same folder is allowed."
            )
            raise InputFileError(message)
    return weight_map


def read_index(folder: Path) -> dict[str, str]:
    """`read_weight_map`, after it was made sure that the files are there."""
    path, weight_map = folder / INDEX, read_weight_map(folder)
    missing = {file for file in weight_map.values() if not is_there(folder / file)}
    if missing:
        message = f"{path} names files that are not in the folder: {listed(sorted(map(shown, missing)))}."
        raise InputFileError(message)
    return weight_map


def read_headers(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the folder by its name in the files, which agree with the index if there is one."""
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        for name, tensor in read_header(path).tensors.items():
            if name in tensors:
                message = f"{path} and {tensors[name].file.path.name} both hold the tensor {shown(name)}."
                raise InputFileError(message)
            tensors[name] = tensor
    if not is_there(folder / SINGLE) and is_there(folder / INDEX):
        wrong = [
            f"{shown(name)} in {file}"
            for name, file in read_index(folder).items()
            if name not in tensors or tensors[name].file.path.name != file
        ]
        if wrong:
            message = f"{folder / INDEX} names tensors that are not where it says: {listed(wrong)}."
            raise InputFileError(message)
    return tensors


def pickle_refusal(names: Iterable[str]) -> str:
    return (
        f"{listed([shown(name) for name in names])} may be pickle, which can run code when it is read, so it is not "
        "read. Convert it with transformers, where you trust it: "
        "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)."
    )
