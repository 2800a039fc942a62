"""Finds the weight files of a folder in Hugging Face layout, and reads their headers together.

Either `model.safetensors`, or `model.safetensors.index.json` and the shards it names; the single file wins, as in
transformers. Pickle files can run code when they are read, so they are refused, with the way to convert them.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from transformer_lab.checkpoints.json_file import read_object
from transformer_lab.checkpoints.quoted import listed, quoted
from transformer_lab.checkpoints.regular_file import is_there
from transformer_lab.checkpoints.safetensors_file import Tensor, read_header
from transformer_lab.errors import InputFileError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
LARGEST_INDEX = 25_000_000


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
    """The weight files, in the order of the index (which is read and checked)."""
    if is_there(folder / SINGLE):
        return [folder / SINGLE]
    if is_there(folder / INDEX):
        return list(dict.fromkeys(folder / file for file in read_index(folder).values()))
    names = sorted(os.listdir(folder))
    message = f"{folder} has no weights: looked for {SINGLE} and {INDEX}."
    if pickles := [name for name in names if name.endswith(PICKLES)]:
        message = f"{folder} has no {SINGLE}. " + pickle_refusal(pickles)
    elif others := [name for name in names if name.endswith(".safetensors")]:
        message += f" It has {listed([quoted(name) for name in others])}; rename the one that is meant."
    raise InputFileError(message)


def read_index(folder: Path) -> dict[str, str]:
    """The `weight_map` of the index: tensor -> file beside the index, each name checked to be one."""
    path = folder / INDEX
    weight_map = read_object(path, LARGEST_INDEX, strict=True).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        message = f"{path}: the field 'weight_map' is {quoted(weight_map)}; an object, tensor to file, is expected."
        raise InputFileError(message)
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or not file.endswith(".safetensors") or any(mark in file for mark in "/\\:\0"):
            message = (
                f"{path} names the file {quoted(file)} for the tensor {quoted(tensor)}; only the name of a "
                f".safetensors file in the same folder is allowed."
            )
            raise InputFileError(message)
    missing = {file for file in weight_map.values() if not is_there(folder / file)}
    if missing:
        message = f"{path} names files that are not in the folder: {listed(sorted(map(quoted, missing)))}."
        raise InputFileError(message)
    return weight_map


def read_headers(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the folder by its name in the files, which agree with the index if there is one."""
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        for name, tensor in read_header(path).tensors.items():
            if name in tensors:
                message = f"{path} and {tensors[name].file.path.name} both hold the tensor {quoted(name)}."
                raise InputFileError(message)
            tensors[name] = tensor
    if not is_there(folder / SINGLE):
        wrong = [
            f"{quoted(name)} in {file}"
            for name, file in read_index(folder).items()
            if name not in tensors or tensors[name].file.path.name != file
        ]
        if wrong:
            message = f"{folder / INDEX} names tensors that are not where it says: {listed(wrong)}."
            raise InputFileError(message)
    return tensors


def pickle_refusal(names: Iterable[str]) -> str:
    return (
        f"{listed([quoted(name) for name in names])} may be pickle, which can run code when it is read, so it is not "
        "read. Convert it with transformers, where you trust it: "
        "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)."
    )
