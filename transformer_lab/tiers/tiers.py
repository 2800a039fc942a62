"""The two tiers together: what warm evicts is written to cold by a thread, and what cold finds comes back to warm.

One lock guards all of it, the files too. So whoever asks waits while a block is being written: simple, and not the
fastest. `put` need not wait for the disk unless the queue is full.
"""

import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from transformer_lab.errors import ConfigurationError
from transformer_lab.tiers.block import Arrays, Block, owned
from transformer_lab.tiers.cold import Cold
from transformer_lab.tiers.eviction import Eviction, LeastRecentlyUsed
from transformer_lab.tiers.ledger import Ledger
from transformer_lab.tiers.warm import Warm

_LONGEST_QUEUE = 16


class Tiers:
    """`put`, `get` and `prefetch` from any thread. Raises ConfigurationError for a negative budget."""

    def __init__(
        self,
        warm_bytes: int,
        cold_folder: Path | None = None,
        cold_bytes: int = 0,
        policy: Callable[[], Eviction] = LeastRecentlyUsed,
    ) -> None:
        if warm_bytes < 0 or cold_bytes < 0:
            message = f"A tier of {min(warm_bytes, cold_bytes)} bytes was asked for. Give 0 (off) or more bytes."
            raise ConfigurationError(message)
        self.ledger = Ledger()
        self._warm = Warm(warm_bytes, policy(), self.ledger.warm)
        self._warm_bytes = warm_bytes
        self._cold = None if cold_folder is None or not cold_bytes else Cold(cold_folder, cold_bytes, self.ledger)
        self._change = threading.Condition(threading.RLock())
        self._queue: dict[bytes, Block] = {}  # in the order in which they are written; the first is being written
        self._wanted: list[tuple[bytes, tuple[int, ...]]] = []
        self._closed = self._said = False
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._write, self._read_ahead)]
        for thread in self._threads if self._cold is not None else []:
            thread.start()
        self._say()

    def put(self, key: bytes, token_ids: Sequence[int], arrays: Arrays) -> None:
        """Keeps copies of the arrays under the key; waits while the writer has too much before it."""
        block = owned(token_ids, arrays)
        with self._change:
            self._require_open()
            self._keep(key, block)
        self._say()

    def get(self, key: bytes, token_ids: Sequence[int]) -> Arrays | None:
        """The arrays, read-only, or None. Tokens are compared too, never the key alone."""
        tokens = tuple(int(token) for token in token_ids)
        with self._change:
            self._require_open()
            block = self._warm.get(key, tokens) if self._warm_bytes else None
            if block is None and key in self._queue and self._queue[key].token_ids == tokens:
                block = self._queue[key]
            if block is None and self._cold is not None and key not in self._queue:
                block = self._cold.get(key, tokens)
                if block is not None and 0 < block.bytes <= self._warm_bytes:
                    self._keep(key, block)
                    self.ledger.promotions += 1
        self._say()
        return None if block is None else block.arrays

    def prefetch(self, blocks: Iterable[tuple[bytes, Sequence[int]]]) -> None:
        """Asks for blocks, by key and tokens, that will be needed; a thread brings them to warm."""
        with self._change:
            self._require_open()
            if self._cold is not None and self._warm_bytes:
                self._wanted += [(key, tuple(tokens)) for key, tokens in blocks]
                self._change.notify_all()

    def flush(self) -> None:
        """Brings all that is warm to the files too, and waits until it is there."""
        with self._change:
            for key, block in self._warm.blocks():
                self._demote(key, block)
            self._change.wait_for(lambda: not self._queue)
        self._say()

    def close(self) -> None:
        """`flush`, and then nothing more. A second call does nothing."""
        with self._change:
            if self._closed:
                return
            self.flush()
            self._closed = True
            self._change.notify_all()
        for thread in self._threads if self._cold is not None else []:
            thread.join()
        for key, _ in self._warm.blocks():
            self._warm.evict(key, "closed")
        if self._cold is not None:
            self._cold.close()

    def _keep(self, key: bytes, block: Block) -> None:
        for gone, old in self._warm.put(key, block) if self._warm_bytes else [(key, block)]:
            self._demote(gone, old)

    def _demote(self, key: bytes, block: Block) -> None:
        if self._cold is None or self._cold.off:
            return
        self._change.wait_for(lambda: len(self._queue) < _LONGEST_QUEUE and key not in self._queue)
        self._queue[key] = block
        self.ledger.demotions += 1
        self._change.notify_all()

    def _write(self) -> None:
        assert self._cold is not None
        while True:
            with self._change:
                self._change.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return
                key, block = next(iter(self._queue.items()))
                try:
                    self.ledger.write_backs += self._cold.put(key, block)
                finally:
                    del self._queue[key]
                    self._change.notify_all()

    def _read_ahead(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._wanted or self._closed)
                if self._closed:
                    return
                key, tokens = self._wanted.pop(0)
                if key in self._warm or key in self._queue or self._cold is None:
                    continue
                block = self._cold.get(key, tokens)
                if block is not None and 0 < block.bytes <= self._warm_bytes:
                    self._keep(key, block)
                    self.ledger.promotions += 1

    def _require_open(self) -> None:
        if self._closed:
            message = "These tiers are closed. Open the folder again for more blocks."
            raise ConfigurationError(message)

    def _say(self) -> None:
        """One warning, in the caller's thread, that the cold tier is off."""
        if self._cold is not None and self._cold.off and not self._said:
            self._said = True
            warnings.warn(self._cold.off, RuntimeWarning, stacklevel=3)
