"""Which block of a pool belongs to whom: numbers alone, on the host. It knows no arrays and no tokens.

A block is free, held (by one row or several, counted), or kept: held by nobody, and still full of what somebody may ask
for again. A kept block is given away only when no free one is left, the one that was let go first.
"""

from bisect import insort
from collections import OrderedDict
from collections.abc import Callable, Iterable

SCRATCH = 0  # the block that padding is written to; nobody holds it


class Blocks:
    """The blocks from 1 to `count`. forgotten(block): called when a kept block is given away."""

    def __init__(self, count: int = 0, forgotten: Callable[[int], None] = lambda block: None) -> None:
        self.count = 0
        self._free: list[int] = []  # in order
        self._holders: dict[int, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()  # the one that was let go first stands first
        self._forgotten = forgotten
        self.add(count)

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def held(self) -> int:
        return len(self._holders)

    @property
    def kept(self) -> int:
        return len(self._kept)

    def add(self, more: int) -> None:
        """The pool has become larger by so many blocks."""
        self._free.extend(range(self.count + 1, self.count + 1 + more))
        self.count += more

    def take(self, near: int) -> int:
        """A block for one holder: `near` if it is free, else the first free one, else a kept one.

        Rows whose blocks lie one behind the other are read without a copy; that is all that `near` is for. Raises
        KeyError if nothing is available.
        """
        if near in self._free:
            block = near
            self._free.remove(near)
        elif self._free:
            block = self._free.pop(0)
        else:
            block, _ = self._kept.popitem(last=False)
            self._forgotten(block)
        self._holders[block] = 1
        return block

    def share(self, block: int) -> None:
        """One more holder of a block that is held or kept."""
        self._kept.pop(block, None)
        self._holders[block] = self._holders.get(block, 0) + 1

    def give_away_kept(self) -> None:
        """All kept blocks become free."""
        while self._kept:
            block, _ = self._kept.popitem(last=False)
            self._forgotten(block)
            insort(self._free, block)

    def let_go(self, blocks: Iterable[int], keep: Callable[[int], bool] = lambda block: False) -> None:
        """One holder less of each, in this order. keep(block): whether a block that nobody holds any more is kept."""
        for block in blocks:
            self._holders[block] -= 1
            if self._holders[block] == 0:
                del self._holders[block]
                if keep(block):
                    self._kept[block] = None
                else:
                    insort(self._free, block)
