"""The index of the cold tier in SQLite: which blocks there are, how large, when used last and how often.

It is written after the file, and in the same transaction as the file's removal. It is no authority on what a block
holds, so it is kept with a rollback journal and without waiting for the disk: what is lost of it is found again.
"""

import sqlite3
from pathlib import Path

SCHEMA_VERSION = 1
NAME = "index.sqlite"


class FutureIndexError(Exception):
    """A later version of this program wrote the index; it is left alone."""


def open_index(folder: Path) -> sqlite3.Connection:
    """The index, made if need be; one that SQLite cannot read is made again. Raises FutureIndexError, sqlite3.Error."""
    try:
        return _open(folder / NAME)
    except sqlite3.OperationalError:  # locked, read-only, no room: not the index's fault
        raise
    except sqlite3.DatabaseError:
        for ending in ("", "-journal", "-wal", "-shm"):
            (folder / (NAME + ending)).unlink(missing_ok=True)
        return _open(folder / NAME)


def _open(path: Path) -> sqlite3.Connection:
    index = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
    try:
        (version,) = index.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise FutureIndexError
        index.execute("PRAGMA synchronous=OFF")
        index.execute("BEGIN IMMEDIATE")
        index.execute(
            "CREATE TABLE IF NOT EXISTS blocks (key BLOB PRIMARY KEY, tokens INTEGER, bytes INTEGER,"
            " used INTEGER, uses INTEGER)"
        )
        index.execute("SELECT key, tokens, bytes, used, uses FROM blocks LIMIT 1")
        index.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        index.execute("COMMIT")
        if index.execute("PRAGMA quick_check").fetchone() != ("ok",):
            raise sqlite3.DatabaseError
    except BaseException:
        index.close()
        raise
    return index
