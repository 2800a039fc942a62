"""Where a model comes from: a folder, a name under conf/model or resources/models, or a hub id -> a folder on disk."""

import re
from collections.abc import Callable
from os import PathLike
from pathlib import Path

from transformer_lab.config import names, read_yaml
from transformer_lab.errors import ConfigurationError, InputFileError
from transformer_lab.paths import data_folder
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
        try:
            folder = Path(source).expanduser()
            if folder.is_dir():
                return folder
            what = "is a file, not a folder" if folder.exists() else "does not exist"
        except (OSError, RuntimeError) as error:  # no permission, a name too long, ~somebody who is not here
            reason = (getattr(error, "strerror", None) or str(error)).rstrip(".")
            what = f"cannot be read ({reason[:1].lower()}{reason[1:]})"
        shown = str(source) if len(str(source)) < 300 else f"{str(source)[:300]}..."
        message = f"The model folder {shown} {what}. Expected a folder with config.json and *.safetensors."
        raise InputFileError(message)
    source = str(source)
    embedded = data_folder("resources") / "models"
    if source and (embedded / source).is_dir() and "/" not in source:
        return embedded / source
    if source in names("model"):
        entry = read_yaml(data_folder("conf") / "model" / f"{source}.yaml")
        if entry["source"] is None:
            message = (
                f"model={source} has no weights: it is a shape for job=train. Load the folder that training wrote."
            )
            raise ConfigurationError(message)
        if entry["source"] != source:
            return model_folder(entry["source"], revision or entry.get("revision"))
    if not HUB_ID.fullmatch(source):
        message = (
            f"There is no model {source!r}. Choose one of {', '.join(names('model'))}, a folder (./folder or /folder), "
            "or a hub id (owner/name)."
        )
        raise ConfigurationError(message)
    from transformer_lab.checkpoints import download

    return download(source, revision=revision or "main")


def config_folder(source: str | PathLike[str], revision: str | None = None) -> Path:
    """A folder with the config.json of `source`; for a name under resources/config nothing is downloaded."""
    if not is_folder_source(source):
        for name in names("model"):
            published = data_folder("resources") / "config" / name
            entry = read_yaml(data_folder("conf") / "model" / f"{name}.yaml")
            if published.is_dir() and source in (name, entry["source"]):
                return published
    return model_folder(source, revision)


def load_tokenizer(source: str | PathLike[str], kind: str = "byte_bpe") -> Tokenizer:
    """The tokenizer of `source`.

    source: a name under resources/tokenizer_data or conf/model ("gpt2", "storybook"), a folder (tokenizer.json, or
    vocab.json or gpt2-vocab.json + merges.txt), or a hub id. kind: "byte_bpe" (by hand) or "huggingface".
    Raises ConfigurationError for an unknown name or kind, InputFileError for missing or damaged files.
    """
    if is_folder_source(source) or source in embedded_tokenizer_names():
        return load_named_tokenizer(source, kind)
    return load_named_tokenizer(model_folder(source), kind)
