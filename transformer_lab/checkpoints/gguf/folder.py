"""A GGUF file as a folder that everything else reads: unpacked once, in float32, into the user's cache folder."""

import hashlib
import json
import os
from pathlib import Path

from transformer_lab.atomic_file import of_content, write_files
from transformer_lab.atomic_folder import new_folder
from transformer_lab.checkpoints.gguf.architectures import read_fields
from transformer_lab.checkpoints.gguf.file import read_gguf
from transformer_lab.checkpoints.gguf.header import Header
from transformer_lab.checkpoints.gguf.tensors import parameters
from transformer_lab.checkpoints.gguf.tokenizer import tokenizer_files
from transformer_lab.checkpoints.original import Original
from transformer_lab.checkpoints.saving import save_folder
from transformer_lab.errors import ConfigurationError, InputFileError, UnavailableError
from transformer_lab.paths import cache_folder, expanded

LAYOUT = 2  # of what is unpacked; another one is unpacked anew


def unpacked(path: str | Path) -> Path:
    """The folder for a GGUF file, made if it is not there yet: its weights in float32, its tokenizer, its template.

    Raises InputFileError for a damaged file, or a model that is not offered; UnavailableError without the package that
    reads quantised numbers, or without room.
    """
    path = expanded(path)
    folder = cache_folder() / "gguf" / f"{path.stem}-{_key(path)}"
    if folder.is_dir():
        return folder
    file = read_gguf(path)
    try:
        architecture, family, fields = read_fields(Header(file))
        config = family.config_from(fields)
        arrays = parameters(file, config, architecture)
        tokenizer = tokenizer_files(file)
    except ConfigurationError as error:
        message = f"{path}: {error}"
        raise InputFileError(message) from error
    said = Original({"model_type": architecture.family, "eos_token_id": fields.values["eos_token_id"]})
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(folder) as place:
            save_folder(place, config, arrays, original=said)
            write_files(place, {name: of_content(content) for name, content in tokenizer.items()})
    except OSError as error:
        if folder.is_dir():  # another process was as fast
            return folder
        message = f"{path} cannot be unpacked into {folder}: {error.strerror or error}."
        raise UnavailableError(message) from error
    return folder


def _key(path: Path) -> str:
    """Of the file as it is now; reading all of it would take longer than loading."""
    try:
        status = os.stat(path)
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror or error}."
        raise InputFileError(message) from error
    facts = [LAYOUT, os.path.realpath(path), status.st_size, status.st_mtime_ns, status.st_ino]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
