"""Blocks in files of one folder under a budget in bytes, found again after a restart.

A block is its file; the index beside it serves the budget. The file comes first and the row after it, so a process that
is killed between them leaves a file without a row: it is checked at the next start and adopted, or removed. Several
processes may use one folder. Where the disk refuses, the tier switches itself off, and `off` says why.
"""

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from transformer_lab.atomic_file import make_folder, write_file
from transformer_lab.left_over import remove_left_over
from transformer_lab.tiers.block import Block
from transformer_lab.tiers.block_file import DamagedError, read_block, write_block
from transformer_lab.tiers.index import FutureIndexError, open_index
from transformer_lab.tiers.ledger import Ledger

_ENDING = ".block"


class Cold:
    """Its owner holds the lock. Files that it does not know by their ending it leaves alone."""

    def __init__(self, folder: Path, budget: int, ledger: Ledger) -> None:
        self._folder, self._budget, self._ledger, self._counts = folder, budget, ledger, ledger.cold
        self._index: sqlite3.Connection | None = None
        self.off: str | None = None
        with self._switching_off():
            make_folder(folder)
            remove_left_over(folder)
            self._index = open_index(folder)
            with self._transaction(self._index):
                self._adopt(self._index)

    def get(self, key: bytes, token_ids: Sequence[int]) -> Block | None:
        """The block, or None: not there, damaged (its file is removed), or of other tokens."""
        self._counts.lookups += 1
        found = None
        with self._switching_off():
            if self._index is not None:
                with self._transaction(self._index):
                    found = self._get(self._index, key, tuple(token_ids))
        if found is None:
            self._counts.misses += 1
        else:
            self._counts.hits.add(len(found.token_ids), found.bytes)
        return found

    def put(self, key: bytes, block: Block) -> bool:
        """Whether it was written; what is there already with the same tokens is not written again."""
        with self._switching_off():
            if self._index is None or block.bytes > self._budget:
                return False
            with self._transaction(self._index):
                if self._row(self._index, key) is not None:
                    with contextlib.suppress(DamagedError, FileNotFoundError):
                        there, old = read_block(self._path(key))
                        if there == key and old.token_ids == block.token_ids:
                            return False
                    self._evict(self._index, key, "replaced")
                self._make_room(self._index, block.bytes)
                write_file(self._path(key), lambda file: write_block(file, key, block))
                self._insert(self._index, key, block)
                self._counts.put.add(len(block.token_ids), block.bytes)
            return True
        return False

    def close(self) -> None:
        """The files stay."""
        if self._index is not None:
            self._index.close()
            self._index = None

    def keys(self) -> list[bytes]:
        """Of the blocks that the index knows."""
        return [] if self._index is None else [key for (key,) in self._index.execute("SELECT key FROM blocks")]

    def _get(self, index: sqlite3.Connection, key: bytes, token_ids: tuple[int, ...]) -> Block | None:
        if self._row(index, key) is None:
            return None
        try:
            there, block = read_block(self._path(key))
            if there != key:
                raise DamagedError
        except (DamagedError, FileNotFoundError) as error:
            if isinstance(error, FileNotFoundError):  # its process was killed between removing the file and the row
                self._counts.vanished += 1
            else:
                self._counts.damaged += 1
            self._evict(index, key, "damage")
            return None
        if block.token_ids != token_ids:
            self._counts.collisions += 1
            return None
        index.execute(
            "UPDATE blocks SET used=(SELECT MAX(used) FROM blocks)+1, uses=uses+1 WHERE key=?",
            (key,),
        )
        return block

    def _make_room(self, index: sqlite3.Connection, size: int) -> None:
        while self._counts.resident.bytes + size > self._budget:
            row = index.execute("SELECT key FROM blocks ORDER BY used, key LIMIT 1").fetchone()
            if row is None:
                break
            self._evict(index, row[0], "budget")

    def _evict(self, index: sqlite3.Connection, key: bytes, reason: str) -> None:
        row = self._row(index, key)
        if row is not None:
            index.execute("DELETE FROM blocks WHERE key=?", (key,))
            self._counts.evicted[reason].add(*row)
            self._counts.resident.add(-row[0], -row[1], -1)
        self._path(key).unlink(missing_ok=True)

    def _insert(self, index: sqlite3.Connection, key: bytes, block: Block) -> None:
        index.execute(
            "INSERT INTO blocks VALUES (?, ?, ?, (SELECT COALESCE(MAX(used), 0) FROM blocks)+1, 1)",
            (key, len(block.token_ids), block.bytes),
        )
        self._counts.resident.add(len(block.token_ids), block.bytes)

    def _adopt(self, index: sqlite3.Connection) -> None:
        """Files without a row are read and adopted, or removed; the counts begin with what the index knows."""
        for path in sorted(self._folder.glob("*" + _ENDING)):
            try:
                key = bytes.fromhex(path.name.removesuffix(_ENDING))
            except ValueError:
                continue
            if len(key) != 32 or path != self._path(key) or self._row(index, key) is not None:
                continue
            try:
                there, block = read_block(path)
                if there != key:
                    raise DamagedError
            except DamagedError:
                with contextlib.suppress(IsADirectoryError, PermissionError):
                    path.unlink(missing_ok=True)
                    self._ledger.orphans_removed += 1
                continue
            self._insert(index, key, block)
            self._counts.found.add(len(block.token_ids), block.bytes)
            self._ledger.orphans_adopted += 1
        self._make_room(index, 0)

    def _path(self, key: bytes) -> Path:
        return self._folder / (key.hex() + _ENDING)

    def _row(self, index: sqlite3.Connection, key: bytes) -> tuple[int, int] | None:
        row: tuple[int, int] | None = index.execute("SELECT tokens, bytes FROM blocks WHERE key=?", (key,)).fetchone()
        return row

    @contextmanager
    def _transaction(self, index: sqlite3.Connection) -> Iterator[None]:
        """Nobody else writes during it. What others did since the last one is taken into the counts."""
        index.execute("BEGIN IMMEDIATE")
        try:
            blocks, tokens, size = index.execute(
                "SELECT COUNT(*), COALESCE(SUM(tokens), 0), COALESCE(SUM(bytes), 0) FROM blocks"
            ).fetchone()
            now = self._counts.resident
            off = (tokens - now.tokens, size - now.bytes, blocks - now.blocks)
            self._counts.others.add(*off)
            now.add(*off)
            yield
        finally:
            if index.in_transaction:  # also after an error: the rows then say what was done to the files
                index.execute("COMMIT")

    @contextmanager
    def _switching_off(self) -> Iterator[None]:
        try:
            yield
        except FutureIndexError:
            self._switch_off("its index was written by a later version of this program")
        except (OSError, sqlite3.Error) as error:
            self._switch_off(getattr(error, "strerror", None) or str(error))

    def _switch_off(self, reason: str) -> None:
        self.off = f"The cold tier in {self._folder} is switched off: {reason}. The run goes on without it."
        with contextlib.suppress(sqlite3.Error):
            self.close()
