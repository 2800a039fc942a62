"""metrics.jsonl: the numbers of a training run, a JSON object per line, in the run's folder.

It is the source of truth: it is written in every run, with the standard library alone, and each line is with the
system before the next step begins, so that a killed process loses nothing but the line it was writing. Before each
checkpoint they are brought to the disk, so a run that goes on finds the line of each step that it does not do again.
It does not know what the numbers mean, nor who shows them (tracking.py, charts/).
"""

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from transformer_lab.atomic_file import of_content, write_file
from transformer_lab.errors import InputFileError, UnavailableError

FILE_NAME = "metrics.jsonl"


class MetricsFile:
    """metrics.jsonl of `folder`, open for further lines. What is there is kept; a torn last line is cut off.

    Only one process may write. Raises UnavailableError where the disk refuses.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self._open()

    def write(self, step: int, **values: float | str | Mapping[str, Any] | None) -> None:
        """Appends a line. A number that is not finite becomes null. What a full disk cuts off is taken back."""
        line = json.dumps({"step": step} | {name: _plain(value) for name, value in values.items()}, allow_nan=False)
        encoded = line.encode() + b"\n"
        try:
            written = self._file.write(encoded)
            if written != len(encoded):  # the disk took a part of it; asked for the rest, it says why
                self._file.write(encoded[written:])
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(self._size)
            raise self._refused(error) from error
        self._size += len(encoded)

    def resume(self, step: int) -> None:
        """Keeps only the lines up to `step`, for a run that goes on from a checkpoint written then."""
        kept = [line for line in read(self.path) if line["step"] <= step]
        self.close()
        try:
            write_file(self.path, of_content("".join(json.dumps(line) + "\n" for line in kept)))
        except OSError as error:
            raise self._refused(error) from error
        finally:
            self._open()

    def sync(self) -> None:
        """Waits until all lines are on the disk, for what is written next relies on them."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._refused(error) from error

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        try:
            # Unbuffered: a line is one call of the system, not something that waits in this process.
            self._file = self.path.open("a+b", buffering=0)
            self._size = _whole_lines(self._file)
            self._file.truncate(self._size)
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> UnavailableError:
        message = f"{self.path} cannot be written: {error.strerror or error}. Its earlier lines are kept."
        return UnavailableError(message)


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, each with a "step". A last line without an end was torn off, and is left out."""
    try:
        content = path.read_bytes()
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror or error}."
        raise InputFileError(message) from error
    lines = []
    for number, line in enumerate(content.split(b"\n")[:-1], 1):  # after the last end of a line there is nothing
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):  # ValueError: not JSON, or not UTF-8
            values = None
        if not isinstance(values, dict) or type(values.get("step")) is not int:
            message = f"{path}: line {number} is not a JSON object with a whole number as its step."
            raise InputFileError(message)
        lines.append(values)
    return lines


def _whole_lines(file: FileIO) -> int:
    """How many bytes of the file belong to lines that were written to their end; it is read from its end."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 65536)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _plain(value: Any) -> Any:
    """The value as JSON knows it: NumPy's numbers become Python's, NaN and infinity null."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
