"""Reads a JSON object out of a file that nobody vouches for. It does not know what the object means.

Python's parser turns a byte into up to thirty bytes of objects, and raises four kinds of error. So the size and the
number of values are bounded before parsing, and every failure comes out as one InputFileError that names the file.
"""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from transformer_lab.checkpoints.regular_file import open_regular
from transformer_lab.errors import InputFileError, shown

# A tensor takes about a dozen of these in a safetensors header: enough for 80,000 tensors in one file.
MOST_VALUES = 1_000_000


def read_object(path: Path, largest: int, strict: bool = False) -> dict[str, Any]:
    """The JSON object in the file at `path`, of at most `largest` bytes; a leading byte order mark is skipped."""
    with open_regular(path) as handle:
        try:
            data = handle.read(min(largest, os.fstat(handle.fileno()).st_size) + 1)  # read(n) allocates n at once
        except OSError as error:
            message = f"{path} cannot be read: {error.strerror}."
            raise InputFileError(message) from error
    if len(data) > largest:
        message = f"{path} is larger than {largest:,} bytes, which no such file needs."
        raise InputFileError(message)
    return parse_object(data.removeprefix(b"\xef\xbb\xbf"), str(path), strict)


def parse_object(data: bytes, where: str, strict: bool = False) -> dict[str, Any]:
    """The JSON object in `data`; `where` opens the error message.

    `strict` also refuses what Python lets pass: a key given twice, NaN and infinities, half a surrogate pair.
    """
    if sum(data.count(mark) for mark in (b"[", b"{", b",", b":")) > MOST_VALUES:
        message = f"{where} holds more than {MOST_VALUES:,} values, which no such file needs."
        raise InputFileError(message)
    hooks: dict[str, Any] = {}
    if strict:
        hooks = {"object_pairs_hook": partial(_strict_object, where), "parse_constant": partial(_no_constant, where)}
    try:
        value = json.loads(data.decode("utf-8"), **hooks)
    except InputFileError:
        raise
    except UnicodeDecodeError as error:
        message = f"{where} is not valid JSON: byte {error.start} is not UTF-8."
        raise InputFileError(message) from error
    except json.JSONDecodeError as error:
        reason = error.msg[:1].lower() + error.msg[1:]
        message = f"{where} is not valid JSON: {reason} in line {error.lineno}, column {error.colno}."
        raise InputFileError(message) from error
    except RecursionError as error:
        message = f"{where} is not usable JSON: it is nested too deeply."
        raise InputFileError(message) from error
    except ValueError as error:  # a whole number of more than some thousand digits
        message = f"{where} is not usable JSON: it holds a number of too many digits."
        raise InputFileError(message) from error
    if not isinstance(value, dict):
        message = f"{where} holds {shown(value)}; a JSON object, {{...}}, is expected."
        raise InputFileError(message)
    return value


def _strict_object(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            message = f"{where} gives {shown(key)} twice."
            raise InputFileError(message)
        for text in (key, value):
            if isinstance(text, str) and not _is_unicode(text):
                message = f"{where} holds {shown(text)}, which is not valid Unicode."
                raise InputFileError(message)
        result[key] = value
    return result


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_constant(where: str, name: str) -> None:
    message = f"{where} is not valid JSON: it holds {name}."
    raise InputFileError(message)
