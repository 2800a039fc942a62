"""The index of the cold tier in SQLite: which blocks there are, how large, and in which order they go.

It is no authority on what a block holds: a row only says that there should be a file. So it is kept with a rollback
journal, which every disk can do, and without waiting for the disk: what a power cut takes of it is found again in the
files. A process that is killed takes nothing from it, for what it wrote is with the system already.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformer_lab.tiers.eviction import Eviction

SCHEMA_VERSION = 2
NAME = "index.sqlite"
_SECONDS_TO_WAIT = 10  # for another process's transaction; none holds a file's bytes being written
# What is no number or no key there would be met much later, far from here.
_COLUMNS = ", ".join(
    f"{name} NOT NULL CHECK (typeof({name.split()[0]}) = '{kind}')"
    for kind, names in {
        "blob": ("key PRIMARY KEY", "digest"),
        "integer": ("tokens", "bytes", "uses", "rank", "used"),
    }.items()
    for name in names
)
_SCHEMA = (
    f"CREATE TABLE IF NOT EXISTS blocks ({_COLUMNS})",
    "CREATE INDEX IF NOT EXISTS by_rank ON blocks (rank, used)",
    "CREATE TABLE IF NOT EXISTS state (one INTEGER PRIMARY KEY, clock INTEGER, age INTEGER)",
    "INSERT OR IGNORE INTO state VALUES (1, 0, 0)",
)


class FutureIndexError(Exception):
    """A later version of this program wrote the index; it is left alone."""


class Index:
    """Made if need be; one that SQLite cannot read is made again. Its owner holds the lock.

    Raises FutureIndexError, OSError and sqlite3.Error.
    """

    def __init__(self, folder: Path, eviction: Eviction) -> None:
        self._eviction = eviction
        self._version: int | None = None
        try:
            self._open(folder / NAME)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            for ending in ("", "-journal", "-wal", "-shm"):
                (folder / (NAME + ending)).unlink(missing_ok=True)
            self._open(folder / NAME)

    @contextmanager
    def transaction(self) -> Iterator[bool]:
        """Nobody else writes during it. Gives whether somebody else has written since the last one."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            (version,) = self._db.execute("PRAGMA data_version").fetchone()
            others, self._version = version != self._version, version
            yield others
        finally:
            if self._db.in_transaction:  # also after an error: the rows then say what was done to the files
                self._db.execute("COMMIT")

    def totals(self) -> tuple[int, int, int]:
        """Blocks, tokens and bytes."""
        found: tuple[int, int, int] = self._db.execute(
            "SELECT COUNT(*), COALESCE(SUM(tokens), 0), COALESCE(SUM(bytes), 0) FROM blocks"
        ).fetchone()
        return found

    def keys(self) -> set[bytes]:
        """Of all blocks."""
        return {key for (key,) in self._db.execute("SELECT key FROM blocks")}

    def row(self, key: bytes) -> tuple[bytes, int, int] | None:
        """The digest of its tokens, how many they are, and the bytes of the file; None if there is no such block."""
        found: tuple[bytes, int, int] | None = self._db.execute(
            "SELECT digest, tokens, bytes FROM blocks WHERE key=?", (key,)
        ).fetchone()
        return found

    def insert(self, key: bytes, digest: bytes, tokens: int, size: int) -> None:
        """A block that was just put."""
        self._db.execute("INSERT INTO blocks VALUES (?, ?, ?, ?, 0, 0, 0)", (key, digest, tokens, size))
        self.use(key)

    def use(self, key: bytes) -> None:
        """The block was put or read."""
        row = self._db.execute("SELECT uses FROM blocks WHERE key=?", (key,)).fetchone()
        if row is not None:
            self._db.execute("UPDATE state SET clock=clock+1")
            clock, age = self._db.execute("SELECT clock, age FROM state").fetchone()
            place = (row[0] + 1, self._eviction.rank(row[0] + 1, age), clock, key)
            self._db.execute("UPDATE blocks SET uses=?, rank=?, used=? WHERE key=?", place)

    def remove(self, key: bytes) -> None:
        """The row goes."""
        self._db.execute("DELETE FROM blocks WHERE key=?", (key,))

    def first_to_go(self) -> bytes | None:
        """The key of the block of the lowest rank, for whoever now removes it: the tier ages by it."""
        row: Any = self._db.execute("SELECT key, rank FROM blocks ORDER BY rank, used LIMIT 1").fetchone()
        if row is None:
            return None
        self._db.execute("UPDATE state SET age=MAX(age, ?)", (row[1],))
        return bytes(row[0])

    def close(self) -> None:
        """The file stays."""
        self._db.close()

    def _open(self, path: Path) -> None:
        # Every use is under the lock of the tier, so threads may share the connection.
        self._db = sqlite3.connect(path, timeout=_SECONDS_TO_WAIT, isolation_level=None, check_same_thread=False)
        try:
            self._db.execute("PRAGMA trusted_schema=OFF")
            self._db.execute("PRAGMA synchronous=OFF")
            self._db.execute("BEGIN IMMEDIATE")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA_VERSION:
                raise FutureIndexError
            if 0 < version < SCHEMA_VERSION:
                raise sqlite3.DatabaseError
            for statement in _SCHEMA:
                self._db.execute(statement)
            self._db.execute("SELECT digest, uses, rank, used FROM blocks LIMIT 1")  # another's table of this name
            self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            self._db.execute("COMMIT")
            if self._db.execute("PRAGMA quick_check").fetchone() != ("ok",):
                raise sqlite3.DatabaseError
        except BaseException:
            self._db.close()
            raise


def is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether a new index would help: not where the index is locked, the folder read-only or the disk full."""
    if not isinstance(error, sqlite3.OperationalError):
        return True
    # The file was removed or replaced under the connection; or a table or a column is missing.
    return getattr(error, "sqlite_errorname", "") in ("SQLITE_READONLY_DBMOVED", "SQLITE_ERROR")
