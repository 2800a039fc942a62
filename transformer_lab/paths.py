"""Finds conf/ and resources/ (beside the package in a checkout, inside it in a wheel), home and cache folders."""

import os
from pathlib import Path

from transformer_lab.errors import InputFileError

_PACKAGE = Path(__file__).resolve().parent


def data_folder(name: str) -> Path:
    """The folder `conf` or `resources`, from any working directory.

    The pyproject.toml test keeps an installed wheel from taking somebody else's `site-packages/conf` for ours.
    """
    beside = _PACKAGE.parent / name
    if (_PACKAGE.parent / "pyproject.toml").is_file() and beside.is_dir():
        return beside
    return _PACKAGE / name


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path that somebody typed, with `~` and `~name` at its beginning replaced by a home folder.

    Raises InputFileError if there is no such home folder, and for what no system takes for a path.
    """
    if "\0" in os.fspath(path):
        message = f"{os.fspath(path)} holds a null character, which no path can."
        raise InputFileError(message)
    try:
        return Path(path).expanduser()
    except RuntimeError:
        message = f"{os.fspath(path)} names the home folder of an unknown user."
        raise InputFileError(message) from None


def cache_folder() -> Path:
    """Where this package keeps what it can compute again: XDG_CACHE_HOME or ~/.cache, and in it transformer_lab."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "transformer_lab"
