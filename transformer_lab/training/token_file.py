"""Token ids of a corpus on disk, read through a memory map whose pages are given back: memory does not grow with it.

Three files of one name. NAME.tokens: the ids, little-endian, two bytes each where the vocabulary fits, else four; an
end-of-text id, then every document followed by an end-of-text id, so that the first token of a document is predicted
from an end-of-text too. NAME.starts: where each document's first token stands, and behind the last the number of all
tokens, eight bytes each. NAME.json: the head, written last. Knows nothing of text and of training windows.
"""

import json
import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from transformer_lab.atomic_file import of_content, write_file
from transformer_lab.errors import InputFileError

_FORMAT = 1
# Given back as soon as about this much of a map may have been touched.
_MOST_MAPPED_BYTES = 2**22
# What one access may bring in at most: on Linux sixteen pages around it, but a whole huge page where the system's cache
# holds the file in such.
_PAGES_AROUND = 2**21


class MappedNumbers:
    """The numbers of a binary file; pages that were read do not stay in this process's memory."""

    def __init__(self, path: Path, dtype: str) -> None:
        self._path = path
        self._dtype = np.dtype(dtype)
        self._map = self._open()
        self._touched = 0

    def _open(self) -> mmap.mmap:
        with self._path.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        if hasattr(mmap, "MADV_RANDOM"):
            mapped.madvise(mmap.MADV_RANDOM)  # windows are read in shuffled order: reading ahead is in vain
        return mapped

    def __len__(self) -> int:
        return len(self._map) // self._dtype.itemsize

    def read(self, start: int, stop: int) -> np.ndarray:
        """int64 [stop - start], a copy."""
        size = self._dtype.itemsize
        view = np.frombuffer(self._map, self._dtype, stop - start, start * size)
        numbers = view.astype(np.int64)
        del view  # a map that is looked at cannot be closed
        self._touched += (stop - start) * size + _PAGES_AROUND
        if self._touched > _MOST_MAPPED_BYTES:
            self._release()
        return numbers

    def _release(self) -> None:
        """The pages stay in the system's cache as long as it likes; this process no longer holds them."""
        self._touched = 0
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
        else:
            self._map.close()
            self._map = self._open()


class TokenFile:
    """A token file, opened for reading. `name` is what error messages call the corpus that it was made from.

    count: tokens. documents: their number. text_bytes: of all documents, in UTF-8. head: everything in NAME.json.
    Raises InputFileError for a file that is missing, cut off, or not of this format.
    """

    def __init__(self, path: str | os.PathLike[str], name: str | None = None) -> None:
        self.path = Path(path)
        self.name = str(path) if name is None else name
        try:
            self.head: dict[str, Any] = json.loads(self.path.with_suffix(".json").read_bytes())
            if self.head["format"] != _FORMAT:
                raise ValueError
            self.count, self.documents, self.text_bytes, self.end_of_text_id, self.vocab_size = (
                int(self.head[key]) for key in ("count", "documents", "text_bytes", "end_of_text_id", "vocab_size")
            )
            self._tokens = MappedNumbers(self.path, _token_type(self.vocab_size))
            self._starts = MappedNumbers(self.path.with_suffix(".starts"), "<i8")
            sizes = (os.path.getsize(self.path), os.path.getsize(self.path.with_suffix(".starts")))
            whole = sizes == (self.count * int(_token_type(self.vocab_size)[-1]), (self.documents + 1) * 8)
            if not whole or int(self._starts.read(self.documents, self.documents + 1)[0]) != self.count:
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            message = f"{self.path} is not a whole token file. Remove it; it is made again from the text."
            raise InputFileError(message) from error

    def __repr__(self) -> str:
        return f"TokenFile({str(self.path)!r}: {self.count:,} tokens in {self.documents:,} documents)"

    def read(self, start: int, stop: int) -> np.ndarray:
        """The ids at start, ..., stop - 1: int64 [stop - start]."""
        if not 0 <= start <= stop <= self.count:
            wrong = f"tokens {start} to {stop} of {self.count}"
            raise IndexError(wrong)
        return self._tokens.read(start, stop)

    def starts(self, first: int, last: int) -> np.ndarray:
        """Where the documents first, ..., last - 1 begin: int64 [last - first]. Behind the last one stands `count`."""
        return self._starts.read(first, last)


class TokenFileWriter:
    """Writes a token file from beginning to end. It is not whole before `close`; an own folder to rename is wise."""

    def __init__(self, path: Path, vocab_size: int, end_of_text_id: int) -> None:
        self.path = path
        self.documents = 0
        self.text_bytes = 0
        self._vocab_size = vocab_size
        self._type = np.dtype(_token_type(vocab_size))
        self._end_of_text_id = end_of_text_id
        self._open_document = False
        self._count = 0
        self._tokens: BinaryIO = path.open("wb")
        self._starts: BinaryIO = path.with_suffix(".starts").open("wb")
        self._write([end_of_text_id])

    def begin_document(self) -> None:
        """Ends the document before, if there is one."""
        self._end_document()
        self._open_document = True
        self.documents += 1
        self._starts.write(self._count.to_bytes(8, "little"))

    def add(self, ids: Sequence[int], text_bytes: int) -> None:
        """More tokens of the document that was begun last, and how many bytes of text they stand for."""
        self.text_bytes += text_bytes
        self._write(ids)

    def close(self, **head: Any) -> None:
        """Ends the last document and writes the head, with the given keys in it."""
        self._end_document()
        self._starts.write(self._count.to_bytes(8, "little"))
        for file in (self._tokens, self._starts):
            file.flush()
            os.fsync(file.fileno())  # before the head, or a power cut may leave a head without its numbers
            file.close()
        head = {
            "format": _FORMAT,
            "count": self._count,
            "documents": self.documents,
            "text_bytes": self.text_bytes,
            "end_of_text_id": self._end_of_text_id,
            "vocab_size": self._vocab_size,
            **head,
        }
        write_file(self.path.with_suffix(".json"), of_content(json.dumps(head, indent=2) + "\n"))

    def abandon(self) -> None:
        """Closes the files as they are."""
        for file in (self._tokens, self._starts):
            with suppress(OSError):  # a disk that is full has said so before
                file.close()

    def _end_document(self) -> None:
        if self._open_document:
            self._write([self._end_of_text_id])
        self._open_document = False

    def _write(self, ids: Sequence[int]) -> None:
        self._tokens.write(np.array(ids, self._type).tobytes())
        self._count += len(ids)


def _token_type(vocab_size: int) -> str:
    return "<u2" if vocab_size <= 2**16 else "<u4"
