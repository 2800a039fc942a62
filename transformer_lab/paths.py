"""Finds conf/ and resources/: beside the package in a checkout, inside it in an installed wheel."""

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
