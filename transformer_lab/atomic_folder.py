"""A folder that is there whole or not at all: it is filled under another name, brought to the disk, and renamed.

And its removal, in the other order: its name goes first, so that a half removed folder has none that anybody looks for.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformer_lab.atomic_file import sync_folder
from transformer_lab.left_over import discard, remove_left_over, temporary, temporary_name


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill; when the block ends well, it is at `path`. Who writes a file in it also syncs that.

    Raises OSError as the system does, also if something is at `path` by then: it may be another's, and as good.
    """
    remove_left_over(path.parent)
    with temporary(path, Path.mkdir) as place:
        yield place
        sync_folder(place)
        os.rename(place, path)
        sync_folder(path.parent)


def remove_folder(path: Path) -> None:
    """Removes the folder at `path`, if there is one. Raises OSError if the system refuses, before a file has gone."""
    gone = temporary_name(path)
    try:
        os.rename(path, gone)
    except FileNotFoundError:
        return
    sync_folder(path.parent)  # before its files go, or a power cut may give what is left of it the name again
    discard(gone)
