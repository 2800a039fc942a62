"""A file of text or JSON that is there whole or not at all: it is written under another name and renamed."""

import json
import math
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformer_lab.errors import UnavailableError


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8 to `path`. Raises UnavailableError where the disk refuses; what was there stays then."""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
        try:
            # backslashreplace: half a character of a file name becomes \\udcXX, which JSON reads back
            with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
                file.write(text)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror or error}."
        raise UnavailableError(message) from error


def write_json(path: Path, value: Any) -> None:
    """The same for plain data; what is not finite becomes null, for JSON knows neither NaN nor infinity."""
    write_text(path, json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """The value with None for every NaN and infinity, at any depth; keys become text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return value
