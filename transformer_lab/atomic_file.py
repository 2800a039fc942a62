"""A file that is there whole or not at all: it is written under another name, brought to the disk, and renamed.

So neither a process that is killed nor a power cut leaves half a file under a good name. `write_files` does the same
for several files that belong together; a folder that is new as a whole is `atomic_folder.py`.
"""

import errno
import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

from transformer_lab.errors import UnavailableError
from transformer_lab.left_over import remove_left_over, temporary

Write = Callable[[BinaryIO], object]  # writes the content of one file


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8 to `path`. Raises UnavailableError where the disk refuses; what was there stays then."""
    try:
        # backslashreplace: half a character of a file name becomes \\udcXX, which JSON reads back
        write_file(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror or error}."
        raise UnavailableError(message) from error


def write_json(path: Path, value: Any) -> None:
    """The same for plain data; what is not finite becomes null, for JSON knows neither NaN nor infinity."""
    write_text(path, json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_file(path: Path, write: Write) -> None:
    """Lets `write` write what is to be at `path`. Raises OSError, or what `write` raises; what was there stays then."""
    _write_all(path.parent, {path.name: write})


def write_files(folder: Path, contents: Mapping[str, Write]) -> None:
    """Writes files by name into `folder`, which is made if need be; other files in it stay.

    All are whole on the disk before the first gets its name, and they get their names in the order of `contents`.
    Raises OSError, or what writing raises: then all is as it was, unless the system refused its name to a later file.
    """
    made = make_folder(folder)
    try:
        _write_all(folder, contents)
    except BaseException:
        for new in made:
            with suppress(OSError):
                new.rmdir()
        raise


def of_content(content: str | bytes) -> Write:
    """For `write_file` and `write_files`: writes bytes as they are and text as UTF-8."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    return lambda file: file.write(data)


def make_folder(folder: Path) -> list[Path]:
    """Makes `folder` and what is missing above it, on the disk too: the folders that it made, the lowest first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync_folder(path.parent)
    return missing


def sync_folder(folder: Path) -> None:
    """Waits until the names in `folder` are on the disk: without it, a power cut may undo a rename."""
    if os.name == "nt":  # where a folder cannot be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks have no such thing
            raise
    finally:
        os.close(handle)


def finite(value: Any) -> Any:
    """The value with None for every NaN and infinity, at any depth; keys become text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return value


def _write_all(folder: Path, contents: Mapping[str, Write]) -> None:
    remove_left_over(folder)
    with ExitStack() as held:
        places: dict[str, Path] = {}
        for name, write in contents.items():
            places[name] = held.enter_context(temporary(folder / name, _new_file))
            with open(places[name], "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
        for name in contents:
            if (folder / name).is_dir():  # seen before anything is replaced
                raise IsADirectoryError(errno.EISDIR, f"{name} in it is a folder")
        for name, place in places.items():
            os.replace(place, folder / name)
        sync_folder(folder)


def _new_file(path: Path) -> None:
    path.touch(exist_ok=False)
