"""Finds conf/ and resources/ (beside the package in a checkout, inside it in a wheel), and the cache folder."""

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def data_folder(name: str) -> Path:
    """The folder `conf` or `resources`, from any working directory.

    The pyproject.toml test keeps an installed wheel from taking somebody else's `site-packages/conf` for ours.
    """
    beside = _PACKAGE.parent / name
    if (_PACKAGE.parent / "pyproject.toml").is_file() and beside.is_dir():
        return beside
    return _PACKAGE / name


def cache_folder() -> Path:
    """Where this package keeps what it can compute again: XDG_CACHE_HOME or ~/.cache, and in it transformer_lab."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "transformer_lab"
