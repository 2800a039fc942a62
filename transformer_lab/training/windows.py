"""What training and validation see of a token file: windows of a fixed length, in order or shuffled into batches.

A window of length L is L + 1 ids: every id but the last is an input, every id but the first a target. Each target of
the file belongs to exactly one window, and the end-of-text behind each document is a target too. A window that is not
full is padded with end-of-text, and weights of 0 keep the padding out of the loss.

Nothing here grows with the corpus but one number for every thousand documents. Knows nothing of text and of models.
"""

from collections.abc import Sequence

import numpy as np

from transformer_lab.errors import ConfigurationError, InputFileError
from transformer_lab.training.permutation import Permutation, random_number
from transformer_lab.training.token_file import TokenFile

# Documents whose numbers of windows are summed up into one number that is kept.
_BLOCK = 1024
_OFFSETS, _ORDER = 1, 2  # what a random number is for


class Windows:
    """The windows of a token file in order: `take(indices)`, with indices from 0 to len() - 1.

    cross_documents: windows follow each other through all documents, and only the last one may be short. The file is
    taken as a ring, since it begins and ends with an end-of-text; `offset` says how far behind its beginning the first
    window starts. Otherwise each document is cut for itself, so that no window sees two of them, and its last window
    may be short.
    """

    def __init__(self, token_file: TokenFile, length: int, cross_documents: bool = True, offset: int = 0) -> None:
        if length < 1:
            message = f"The length of the windows is {length}; it must be at least 1."
            raise ConfigurationError(message)
        self.token_file = token_file
        self.length = length
        self.targets = token_file.count - 1
        self._offset = offset % self.targets
        self._windows_before: np.ndarray | None = None  # the first document of each block
        self._count = -(-self.targets // length)
        if not cross_documents:
            blocks = range(0, token_file.documents, _BLOCK)
            sums = np.cumsum([0, *(int(self._windows_of_block(first)[1].sum()) for first in blocks)])
            self._windows_before, self._count = sums[:-1], int(sums[-1])

    def __len__(self) -> int:
        return self._count

    def take(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(ids int64 [n, length + 1], weights float32 [n, length]): 1 where the target counts, 0 for padding."""
        ids = np.full((len(indices), self.length + 1), self.token_file.end_of_text_id, np.int64)
        weights = np.zeros((len(indices), self.length), np.float32)
        for row, index in enumerate(indices):
            if not 0 <= index < self._count:
                wrong = f"window {index} of {self._count}"
                raise IndexError(wrong)
            found = self._in_ring(int(index)) if self._windows_before is None else self._in_document(int(index))
            ids[row, : len(found)] = found
            weights[row, : len(found) - 1] = 1
        return ids, weights

    def _in_ring(self, index: int) -> np.ndarray:
        begin = index * self.length
        size = min(self.length, self.targets - begin)
        start = (self._offset + begin) % self.targets
        stop = start + size + 1
        if stop <= self.token_file.count:
            return self.token_file.read(start, stop)
        # The last token is the end-of-text that the file begins with.
        return np.concatenate([self.token_file.read(start, self.targets), self.token_file.read(0, stop - self.targets)])

    def _in_document(self, index: int) -> np.ndarray:
        assert self._windows_before is not None
        block = int(np.searchsorted(self._windows_before, index, side="right")) - 1
        starts, windows = self._windows_of_block(block * _BLOCK)
        ends = int(self._windows_before[block]) + np.cumsum(windows)
        document = int(np.searchsorted(ends, index, side="right"))
        begin = (index - int(ends[document] - windows[document])) * self.length
        start = int(starts[document]) - 1 + begin  # the end-of-text before the document is its first input
        return self.token_file.read(start, min(start + self.length + 1, int(starts[document + 1])))

    def _windows_of_block(self, first: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the documents of the block begin, and the one behind them; and how many windows each has."""
        starts = self.token_file.starts(first, min(first + _BLOCK, self.token_file.documents) + 1)
        return starts, -(-np.diff(starts) // self.length)


class Batches:
    """Shuffled batches without end: `at(step)` depends on nothing but the arguments, so a run can go on anywhere.

    Each epoch holds every target once, in an order of its own; with cross_documents the windows are also cut at other
    places. The end of an epoch and the beginning of the next may share a batch.
    """

    def __init__(
        self, token_file: TokenFile, length: int, batch_size: int, seed: int, cross_documents: bool = True
    ) -> None:
        if batch_size < 1:
            message = f"The batch size is {batch_size}; it must be at least 1."
            raise ConfigurationError(message)
        self._windows = Windows(token_file, length, cross_documents)
        self._seed = seed
        self._cross_documents = cross_documents
        self.batch_size = batch_size
        self.length = length
        self.tokens_per_epoch = self._windows.targets
        if cross_documents and self.tokens_per_epoch < length:
            message = (
                f"{token_file.name} has {self.tokens_per_epoch:,} tokens, too few for one window of {length:,}. "
                "Give more text, or shorten the windows."
            )
            raise InputFileError(message)

    def at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Batch number `step`, from 0: ids int64 [batch_size, length + 1], weights float32 [batch_size, length]."""
        first = step * self.batch_size
        numbers = np.arange(first, first + self.batch_size)
        epochs, places = np.divmod(numbers, len(self._windows))
        parts = [self._of_epoch(int(epoch), places[epochs == epoch]) for epoch in np.unique(epochs)]
        return np.concatenate([ids for ids, _ in parts]), np.concatenate([weights for _, weights in parts])

    def epoch(self, step: int) -> float:
        """How often the corpus was seen before this step."""
        return step * self.batch_size / len(self._windows)

    def _of_epoch(self, epoch: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        windows = self._windows
        if self._cross_documents:
            offset = random_number(self._seed, _OFFSETS, epoch)
            windows = Windows(windows.token_file, windows.length, True, offset)
        return windows.take(Permutation(len(windows), random_number(self._seed, _ORDER, epoch))(places))
