"""Blocks in files of one folder under a budget in bytes, found again after a restart.

A block is its file; the index beside it serves the budget. The file comes first and the row after it, and a file is
removed in one transaction with its row. So a process that is killed in between leaves a file without a row, which the
next start checks and adopts or removes, or a row without a file, which is a miss. Files are read and written outside of
every lock. Several processes may use one folder.

Whatever goes wrong beyond a block, a full disk, a folder that is gone, a mistake of ours, switches the tier off, and
`off` says why: a cache is no reason for a run to end. For whom it is one there is the bare `reason`.
"""

import hashlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from transformer_lab.atomic_file import make_folder, write_file
from transformer_lab.left_over import remove_left_over
from transformer_lab.tiers.block import Block
from transformer_lab.tiers.block_file import (
    DamagedError,
    UnreadableError,
    file_size,
    header_of,
    read_block,
    write_block,
)
from transformer_lab.tiers.eviction import Eviction
from transformer_lab.tiers.index import FutureIndexError, Index, is_damage
from transformer_lab.tiers.key import of_numbers
from transformer_lab.tiers.ledger import Ledger

_ENDING = ".block"
_Result = TypeVar("_Result")


class _NoIndexError(Exception):
    """The tier is off or closed."""


class Cold:
    """From any thread. Files that it does not know by their names it leaves alone. No method raises."""

    def __init__(self, folder: Path, budget: int, eviction: Eviction, ledger: Ledger) -> None:
        self._folder, self._budget, self._eviction = folder, budget, eviction
        self._ledger, self._counts = ledger, ledger.cold
        self._index: Index | None = None
        self._made_again = False
        self.lock = threading.RLock()  # of the index and the counts
        self.off: str | None = None
        self.reason: str | None = None  # of `off`, alone
        with self._switching_off(), self.lock:
            self._folder = folder.absolute()  # the working folder of the process may change
            make_folder(self._folder)
            remove_left_over(self._folder)
            self._open()

    def get(self, key: bytes, token_ids: tuple[int, ...]) -> Block | None:
        """The block, or None: not there, damaged (its file is removed), or of other tokens."""
        with self._switching_off():
            row = self._step(lambda index: index.row(key))
            if row is None:
                return None
            size = row[2]
            try:
                block = read_block(self._path(key), key, size)
            except UnreadableError:
                return None
            except (DamagedError, FileNotFoundError):
                self._step(lambda index: self._lose(index, key, size))
                return None
            if block.token_ids != token_ids:
                self._step(lambda index: self._collide())
                return None
            self._step(lambda index: index.use(key))
            return block
        return None

    def put(self, key: bytes, block: Block) -> str:
        """What came of it: "written"; "kept", for it is there already; "too large"; "off"."""
        with self._switching_off():
            header = header_of(key, block)
            size = file_size(header, block)
            if size > self._budget:
                return "too large"
            if self._step(lambda index: self._is_there_or_makes_room(index, key, block, size)):
                return "kept"
            write_file(self._path(key), lambda file: write_block(file, header, block))
            self._step(lambda index: self._enter(index, key, block, size))
            return "written"
        return "off"

    def most_like(self, key: bytes, block: Block) -> int:
        """How many files of its size there is room for."""
        return self._budget // file_size(header_of(key, block), block)

    def contains(self, key: bytes) -> bool:
        """Whether the index knows it. Nothing is counted and no file is read."""
        with self._switching_off():
            return self._step(lambda index: index.row(key)) is not None
        return False

    def keys(self) -> set[bytes]:
        """Of the blocks that the index knows."""
        with self._switching_off():
            return self._step(lambda index: index.keys())
        return set()

    def close(self) -> None:
        """The files stay."""
        with self.lock, suppress(sqlite3.Error):
            if self._index is not None:
                index, self._index = self._index, None
                index.close()

    def switch_off(self, reason: str) -> None:
        """From now on there is nothing here. The first reason stays."""
        self.reason = self.reason or reason
        self.off = self.off or f"The cold tier in {self._folder} is switched off: {reason}. The run goes on without it."
        self.close()

    def _lose(self, index: Index, key: bytes, size: int) -> None:
        """What was read of this size was no block. Meanwhile it may have gone, or been replaced by another process."""
        row = index.row(key)
        if row is not None and row[2] == size:
            if os.path.lexists(self._path(key)):
                self._counts.damaged += 1
            else:
                self._counts.vanished += 1
            self._evict(index, key, "damage")

    def _collide(self) -> None:
        self._counts.collisions += 1

    def _is_there_or_makes_room(self, index: Index, key: bytes, block: Block, size: int) -> bool:
        """The content of what is there is not looked at: if it is damaged, the next lookup finds out."""
        row = index.row(key)
        if row is not None:
            same = row[0] == _digest(block)
            if same and row[2] == size and _size_of(self._path(key)) == size:
                index.use(key)
                return True
            self._evict(index, key, "damage" if same else "collision")
        self._make_room(index, size)
        return False

    def _enter(self, index: Index, key: bytes, block: Block, size: int) -> None:
        """Another process may have written the same block meanwhile, or taken the room."""
        if index.row(key) is not None:
            self._evict(index, key, "replaced", and_file=False)
        self._make_room(index, size)
        index.insert(key, _digest(block), len(block.token_ids), size)
        self._counts.put.change(1, len(block.token_ids), size)
        self._counts.resident.change(1, len(block.token_ids), size)

    def _make_room(self, index: Index, size: int) -> None:
        while self._counts.resident.bytes + size > self._budget:
            first = index.first_to_go()
            if first is None:
                break
            self._evict(index, first, "budget")

    def _evict(self, index: Index, key: bytes, reason: str, and_file: bool = True) -> None:
        row = index.row(key)
        if row is not None:
            index.remove(key)
            self._counts.evicted[reason].change(1, row[1], row[2])
            self._counts.resident.change(-1, -row[1], -row[2])
        if and_file and not os.path.isdir(self._path(key)):
            self._path(key).unlink(missing_ok=True)

    def _open(self) -> None:
        self._index = Index(self._folder, self._eviction)
        self._in_transaction(self._drop_rows_without_files)
        for key in sorted(self._files() - self._in_transaction(lambda index: index.keys())):
            self._adopt(key)
        self._in_transaction(lambda index: self._make_room(index, 0))

    def _files(self) -> set[bytes]:
        names = {name.removesuffix(_ENDING) for name in os.listdir(self._folder) if name.endswith(_ENDING)}
        return {bytes.fromhex(name) for name in names if len(name) == 64 and set(name) <= set("0123456789abcdef")}

    def _drop_rows_without_files(self, index: Index) -> None:
        for key in sorted(index.keys() - self._files()):
            self._counts.vanished += 1
            self._evict(index, key, "damage")

    def _adopt(self, key: bytes) -> None:
        """A file without a row is read, and enters the index or is removed."""
        try:
            block = read_block(self._path(key), key, self._budget)
        except (UnreadableError, FileNotFoundError):
            return
        except DamagedError:
            if not os.path.isdir(self._path(key)):
                self._path(key).unlink(missing_ok=True)
                self._ledger.orphans_removed += 1
            return
        size = file_size(header_of(key, block), block)

        def enter(index: Index) -> None:
            if index.row(key) is None and os.path.lexists(self._path(key)):
                index.insert(key, _digest(block), len(block.token_ids), size)
                self._counts.found.change(1, len(block.token_ids), size)
                self._counts.resident.change(1, len(block.token_ids), size)
                self._ledger.orphans_adopted += 1

        self._in_transaction(enter)

    def _step(self, step: Callable[[Index], _Result]) -> _Result:
        """Does it in one transaction. An index that is found to be damaged is made again from the files, once."""
        with self.lock:
            try:
                return self._in_transaction(step)
            except sqlite3.DatabaseError as error:
                if self._made_again or not is_damage(error):
                    raise
                self._made_again = True
                self.close()
                self._open()
                return self._in_transaction(step)

    def _in_transaction(self, step: Callable[[Index], _Result]) -> _Result:
        """What others did since the last one is taken into the counts."""
        if self._index is None:
            raise _NoIndexError
        with self._index.transaction() as others:
            if others:
                now = self._counts.resident
                blocks, tokens, size = self._index.totals()
                change = (blocks - now.blocks, tokens - now.tokens, size - now.bytes)
                self._counts.others.change(*change)
                now.change(*change)
            return step(self._index)

    def _path(self, key: bytes) -> Path:
        return self._folder / (key.hex() + _ENDING)

    @contextmanager
    def _switching_off(self) -> Iterator[None]:
        try:
            yield
        except _NoIndexError:
            pass
        except FutureIndexError:
            self.switch_off("its index was written by a later version of this program")
        except Exception as error:
            self.switch_off(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def _digest(block: Block) -> bytes:
    return hashlib.sha256(of_numbers(block.token_ids)).digest()


def _size_of(path: Path) -> int | None:
    with suppress(OSError):
        return os.lstat(path).st_size
    return None
