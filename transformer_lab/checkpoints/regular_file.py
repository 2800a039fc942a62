"""Opens a file for reading, and only a file: a pipe would hang, a device has no size, a folder has no bytes.

Symbolic links to regular files are fine; the cache of the Hugging Face hub is made of them. This file does not know
what is in the files it opens.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from transformer_lab.errors import InputFileError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_regular(path: Path) -> BinaryIO:
    """The file, opened for reading bytes. Raises InputFileError, naming the path, for everything else."""
    try:
        _require_regular(path, os.stat(path))  # before open: opening a device can already do something
        # And not blocking: between the two calls somebody could have put a pipe there.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        handle = os.fdopen(os.open(path, flags), "rb")
        try:
            _require_regular(path, os.fstat(handle.fileno()))
        except BaseException:
            handle.close()
            raise
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        if isinstance(error, InputFileError):
            raise
        raise InputFileError(_cannot_read(path, error)) from error
    return handle


def regular_file_size(path: Path) -> int:
    """The size in bytes, with the same refusals and without opening."""
    try:
        status = os.stat(path)
        _require_regular(path, status)
    except (OSError, ValueError) as error:
        if isinstance(error, InputFileError):
            raise
        raise InputFileError(_cannot_read(path, error)) from error
    return status.st_size


def is_there(path: Path) -> bool:
    """Whether something has this name, be it a broken link; a name that cannot exist is not there."""
    try:
        return os.path.lexists(path)
    except (OSError, ValueError):
        return False


def _require_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((word for test, word in _KINDS if test(status.st_mode)), "not a file")
        message = f"{path} is {kind}; a regular file is expected there."
        raise InputFileError(message)


def _cannot_read(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        if os.path.islink(path):
            return f"{path} is a link to a file that is not there."
        return f"There is no file {path}."
    if isinstance(error, PermissionError):
        return f"{path} cannot be read: permission denied."
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{path} cannot be read: {reason}."
