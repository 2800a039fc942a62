"""The tiers together: what warm evicts is written to cold by a thread, and what cold finds comes back to warm.

One lock guards the maps, and nothing waits for the disk while it holds it; the index of the files has a lock of its
own. Who holds the lock of the index may take that of the maps, never the other way round.
"""

import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from transformer_lab.errors import ConfigurationError, TierWarning
from transformer_lab.tiers.block import Arrays, Block, as_tokens, owned
from transformer_lab.tiers.cold import Cold
from transformer_lab.tiers.eviction import Eviction, LeastRecentlyUsed
from transformer_lab.tiers.ledger import Ledger
from transformer_lab.tiers.warm import Warm
from transformer_lab.tiers.write_queue import WriteQueue

_MOST_WANTED = 1024  # what was asked for before that many others is no longer needed soon


class Found(NamedTuple):
    """What a lookup gave: arrays that cannot be written to, and the tier, "warm", "queue" or "cold"."""

    arrays: Arrays
    tier: str


class Tiers:
    """Blocks in memory (warm), on their way to the files (queue) and in the files (cold). From any thread.

    What is put under a key and tokens is always the same: a key stands for all that its arrays depend on (`key.py`).
    With 0 bytes, or without a folder, a tier is off. A cold tier that cannot go on switches itself off with one
    TierWarning; with warns=False silently, for an owner who cannot go on without it and asks `reason`. Raises
    ConfigurationError for a negative budget.
    """

    def __init__(
        self,
        warm_bytes: int,
        cold_folder: Path | None = None,
        cold_bytes: int = 0,
        policy: Callable[[], Eviction] = LeastRecentlyUsed,
        warns: bool = True,
    ) -> None:
        if warm_bytes < 0 or cold_bytes < 0:
            message = f"A tier of {min(warm_bytes, cold_bytes)} bytes was asked for. Give 0 (off) or more bytes."
            raise ConfigurationError(message)
        self.ledger = Ledger()
        self._warm = Warm(warm_bytes, policy(), self.ledger.warm) if warm_bytes else None
        self._queue = WriteQueue(self.ledger.queue)
        self._cold = Cold(cold_folder, cold_bytes, policy(), self.ledger) if cold_folder and cold_bytes else None
        self._change = threading.Condition(threading.RLock())
        self._wanted: deque[tuple[bytes, tuple[int, ...]]] = deque(maxlen=_MOST_WANTED)
        self._reading: set[bytes] = set()  # keys of files that a thread is reading
        self._closed, self._said = False, not warns
        self._process = os.getpid()
        works = (self._write, self._read_ahead) if self._cold is not None else ()
        self._threads = [threading.Thread(target=work, daemon=True) for work in works]
        for thread in self._threads:
            thread.start()
        self._say()

    def put(self, key: bytes, token_ids: Sequence[int], arrays: Arrays) -> None:
        """Keeps copies of the arrays under the key, 32 bytes; waits while the writer has too much before it.

        Raises ConfigurationError for arrays that a file could not give back, and after `close`.
        """
        if len(key) != 32:
            message = f"The key of a block has {len(key)} bytes; expected 32, as next_key gives them."
            raise ConfigurationError(message)
        block = owned(token_ids, arrays)
        with self._change:
            self._change.wait_for(lambda: not self._queue.full or self._closed)
            self._require_open()
            self.ledger.kept += self._keep(key, block)
        self._say()

    def get(self, key: bytes, token_ids: Sequence[int]) -> Found | None:
        """The arrays and who had them, or None. Tokens are compared too, never the key alone."""
        tokens = as_tokens(token_ids)
        with self._change:
            # Somebody may be bringing it from its file just now. What is warm need not wait for that.
            self._change.wait_for(lambda: key not in self._reading or self._is_warm(key))
            self._require_open()
            block, tier = self._look(key, tokens)
            ask_cold = block is None and self._cold is not None
            if ask_cold:
                self._reading.add(key)
            else:
                self._count(key, block, tier)
        if ask_cold:
            block, tier = self._read(key, tokens, self._count), "cold"
        self._say()
        return None if block is None else Found(block.arrays, tier)

    def contains(self, key: bytes) -> bool:
        """Whether some tier has a block under the key, of whatever tokens. It counts as no lookup."""
        with self._change:
            if self._is_warm(key) or key in self._queue:
                return True
        return self._cold is not None and self._cold.contains(key)

    def prefetch(self, blocks: Iterable[tuple[bytes, Sequence[int]]]) -> None:
        """Asks for blocks, by key and tokens, that will be needed; a thread brings them to warm."""
        wanted = [(key, as_tokens(token_ids)) for key, token_ids in blocks]
        with self._change:
            self._require_open()
            if self._cold is not None and self._warm is not None:
                self._wanted.extend(wanted)
                self._change.notify_all()

    @property
    def is_open(self) -> bool:
        """Whether there is a tier, and it may be asked: not after `close`, nor in a process that was forked, which has
        no thread that writes."""
        some = self._warm is not None or (self._cold is not None and not self._cold.off)
        return some and not self._closed and self._process == os.getpid()

    def most_like(self, key: bytes, token_ids: Sequence[int], arrays: Arrays) -> int:
        """How many blocks like this the last tier has room for."""
        block = owned(token_ids, arrays)
        if self._cold is not None and not self._cold.off:
            return self._cold.most_like(key, block)
        return self._warm.most_like(block) if self._warm is not None else 0

    @property
    def off(self) -> str | None:
        """Why the cold tier is switched off, in words; None if it is not."""
        return None if self._cold is None else self._cold.off

    @property
    def reason(self) -> str | None:
        """The same in the system's words alone."""
        return None if self._cold is None else self._cold.reason

    def check(self) -> list[str]:
        """In words, each law of the ledger that is broken now."""
        with self._cold.lock if self._cold is not None else nullcontext(), self._change:
            return self.ledger.check()

    def flush(self) -> None:
        """Brings all that is warm to the files too, and waits until it is there."""
        with self._change:
            self._demote_all()
            last = self._queue.came
            self._change.wait_for(lambda: self._queue.has_left(last))
        self._say()

    def close(self) -> None:
        """`flush`, and then nothing more. A second call does nothing, and none in a process that was forked."""
        if self._process != os.getpid():
            return
        with self._change:
            if not self._closed:
                self._demote_all()
            self._closed = True
            self._change.notify_all()
        if threading.current_thread() in self._threads:
            return  # the garbage collector called, in here; the writer writes what is left, and ends by itself
        for thread in self._threads:
            thread.join()
        with self._change:
            self._change.wait_for(lambda: not self._reading)
            if self._warm is not None:
                self._warm.close()
        if self._cold is not None:
            self._cold.close()
        self._say()

    def finish(self) -> None:
        """`close` for a finalizer: where warnings are errors, there is nobody whom one could reach."""
        with suppress(TierWarning):
            self.close()

    def __enter__(self) -> "Tiers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _is_warm(self, key: bytes) -> bool:
        return self._warm is not None and key in self._warm

    def _look(self, key: bytes, tokens: tuple[int, ...]) -> tuple[Block | None, str]:
        """In memory, and by whom it was found."""
        if self._warm is not None:
            block = self._warm.get(key, tokens)
            if block is not None:
                return block, "warm"
        return (self._queue.get(key, tokens) if self._cold is not None else None), "queue"

    def _count(self, key: bytes, block: Block | None, tier: str = "cold") -> None:
        """One lookup, and what came of it; what was found below warm goes up."""
        if tier == "cold":
            self.ledger.cold.looked_up(block)
        self.ledger.lookups += 1
        self.ledger.misses += block is None
        if block is not None and tier != "warm":
            self._promote(key, block)

    def _read(self, key: bytes, tokens: tuple[int, ...], came: Callable[[bytes, Block | None], None]) -> Block | None:
        """From its file, outside of the lock; `came` is told under it. The key is among those being read."""
        assert self._cold is not None
        block = None
        try:
            block = self._cold.get(key, tokens)
        finally:
            with self._change:
                self._reading.discard(key)
                came(key, block)
                self._change.notify_all()
        return block

    def _keep(self, key: bytes, block: Block) -> bool:
        """Whether warm took it; if it does not fit there, it goes on to the files."""
        if self._warm is None or not self._warm.takes(block):
            if self._warm is not None:
                self._warm.remove(key, block)
            self._demote(key, block)
            return False
        for gone, old in self._warm.put(key, block):
            self._demote(gone, old)
        return True

    def _promote(self, key: bytes, block: Block) -> None:
        """Nobody waits for it, and what was put under the key meanwhile stays."""
        if self._warm is not None and self._warm.takes(block) and key not in self._warm and not self._queue.full:
            self._keep(key, block)
            self.ledger.promotions += 1

    def _demote(self, key: bytes, block: Block) -> None:
        if self._cold is not None and not self._cold.off:
            self.ledger.demotions += self._queue.put(key, block)
            self._change.notify_all()

    def _demote_all(self) -> None:
        for key, block in self._warm.blocks() if self._warm is not None else []:
            self._demote(key, block)

    def _write(self) -> None:
        """The writer's thread. Whatever happens in it, it goes on: somebody may be waiting for the queue."""
        assert self._cold is not None
        while True:
            with self._change:
                self._change.wait_for(lambda: len(self._queue) or self._closed)
                if not len(self._queue):
                    return
                key, block = self._queue.first()
            outcome = "off"
            try:
                outcome = self._cold.put(key, block)
            except BaseException as error:
                self._cold.switch_off(str(error) or type(error).__name__)
            with self._change:
                self.ledger.write_backs += outcome == "written"
                self._queue.remove(key, block, outcome)
                self._change.notify_all()

    def _read_ahead(self) -> None:
        """The thread of `prefetch`."""
        assert self._cold is not None
        while True:
            with self._change:
                self._change.wait_for(lambda: self._wanted or self._closed)
                if self._closed:
                    return
                key, tokens = self._wanted.popleft()
                if self._is_warm(key) or key in self._queue or key in self._reading:
                    continue
                self._reading.add(key)
            try:
                self._read(key, tokens, self._came_ahead)
            except BaseException as error:
                self._cold.switch_off(str(error) or type(error).__name__)

    def _came_ahead(self, key: bytes, block: Block | None) -> None:
        if block is not None:
            self.ledger.prefetched += 1
            self._promote(key, block)

    def _require_open(self) -> None:
        if self._closed:
            message = "These tiers are closed. Open the folder again for more blocks."
            raise ConfigurationError(message)

    def _say(self) -> None:
        """One warning, in the caller's thread, that the cold tier is off."""
        with self._change:
            if self._said or self._cold is None or not self._cold.off:
                return
            self._said = True
        warnings.warn(self._cold.off, TierWarning, stacklevel=3)
