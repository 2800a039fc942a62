"""Reads small files that a stranger may have made, and writes files without losing what was there.

Knows nothing of what the files mean.
"""

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformer_lab import atomic_file
from transformer_lab.errors import InputFileError, UnavailableError

# The largest published tokenizer.json files have some 35 MB and two million values. Anything far above is no tokenizer,
# and a byte of JSON may become thirty of objects, so both are bounded before parsing.
MAX_FILE_BYTES = 50_000_000
MOST_VALUES = 3_000_000


def read_text(file: Path) -> str:
    """The UTF-8 text of a file; errors as in `read_bytes`."""
    return _decoded(read_bytes(file), file)


def _decoded(data: bytes, file: Path) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"{file} is not UTF-8 text: byte {error.start} is wrong."
        raise InputFileError(message) from None


def read_bytes(file: Path) -> bytes:
    """What is in a regular file (or a link to one) of at most MAX_FILE_BYTES; otherwise an InputFileError.

    The kind of file is looked at before it is opened: opening a named pipe would wait for a writer, perhaps forever.
    """
    try:
        status = os.stat(file)
        if not stat.S_ISREG(status.st_mode):
            message = f"{file} is not a regular file."
            raise InputFileError(message)
        if status.st_size > MAX_FILE_BYTES:
            message = f"{file} has {status.st_size} bytes, too many for a tokenizer file (at most {MAX_FILE_BYTES})."
            raise InputFileError(message)
        with open(file, "rb") as stream:
            return stream.read(MAX_FILE_BYTES)
    except OSError as error:
        message = f"{file} cannot be read: {error.strerror or error}."
        raise InputFileError(message) from None


def read_json_object(file: Path) -> dict[str, Any]:
    """The JSON object in `file`; an InputFileError if it is damaged or something else."""
    return json_object(read_bytes(file), file)


def json_object(data: bytes, file: Path) -> dict[str, Any]:
    """The same of what was read; `file` is its name for messages."""
    if len(data) - len(data.translate(None, delete=b"[{,:")) > MOST_VALUES:  # quicker than counting each of them
        message = f"{file} holds more than {MOST_VALUES:,} values, which no tokenizer file needs."
        raise InputFileError(message)
    try:
        value = json.loads(_decoded(data, file).removeprefix("\ufeff"))
    except RecursionError:
        message = f"{file} is nested too deeply."
        raise InputFileError(message) from None
    except json.JSONDecodeError as error:
        message = f"{file} is not valid JSON, perhaps cut off: {error}."
        raise InputFileError(message) from None
    except ValueError:  # a whole number of more than some thousand digits
        message = f"{file} is not usable JSON: it holds a number of too many digits."
        raise InputFileError(message) from None
    if not isinstance(value, dict):
        message = f"{file} must hold a JSON object, but holds {json_type(value)}."
        raise InputFileError(message)
    return value


def optional_json_object(file: Path) -> dict[str, Any]:
    """The same, and an empty object if there is no such file."""
    return read_json_object(file) if os.path.lexists(file) else {}


def json_type(value: object) -> str:
    """What JSON calls the type of a parsed value, for messages."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a number"}
    return names.get(type(value), "null" if value is None else "a number")


def write_files(folder: Path, contents: Mapping[str, str | bytes]) -> None:
    """Writes name -> content into `folder`, made if missing: all are whole before the first is renamed to its name."""
    try:
        if folder.exists() and not folder.is_dir():
            message = f"{folder} is a file; a folder is needed."
            raise InputFileError(message)
        atomic_file.write_files(folder, {name: atomic_file.of_content(each) for name, each in contents.items()})
    except OSError as error:
        message = f"{folder} cannot be written: {error.strerror or error}."
        raise UnavailableError(message) from error
