"""What is known of a text corpus before it is tokenised: its digest and its counts, from one pass through the text.

The digest is that of the documents, whatever files they lie in and whatever the files are called. It is remembered in
the cache folder by the path, size and times of the files, so that a large corpus is not read again. What cannot be
remembered is computed again, in silence. Knows nothing of tokens.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from transformer_lab.atomic_file import of_content, write_file
from transformer_lab.checkpoints.regular_file import regular_file_size
from transformer_lab.errors import InputFileError
from transformer_lab.paths import cache_folder
from transformer_lab.tokenizers import END_OF_TEXT
from transformer_lab.training.documents import Piece, documents, text_files

Progress = Callable[[str, int, int], object]  # what is being done, bytes done, bytes in all

_FORMAT = 1


@dataclass(frozen=True)
class Contents:
    """sha256: of the documents in order. documents: their number. text_bytes: of their text in UTF-8."""

    sha256: str
    documents: int
    text_bytes: int


class Corpus:
    """A text file, or a folder of them. `name` is the path as the user gave it."""

    def __init__(self, path: str) -> None:
        self.name = path
        self.files = text_files(path)

    def pieces(self, what: str, progress: Progress | None = None) -> Iterable[Piece]:
        """The documents in pieces; `progress` hears of `what` after each read."""
        if progress is None:
            return documents(self.files)
        total = sum(map(regular_file_size, self.files))
        done = 0

        def on_read(count: int) -> None:
            nonlocal done
            done += count
            progress(what, done, total)

        return documents(self.files, on_read)

    def contents(self, progress: Progress | None = None) -> Contents:
        """From memory, or by reading. Raises InputFileError if there is no text, or no UTF-8."""
        key = _files_digest(self.files)
        contents = _remembered(key)
        if contents is None:
            counter = ContentCounter()
            for piece in self.pieces("reading", progress):
                counter.add(piece)
            contents = counter.contents()
            _remember(key, contents)
        if contents.documents == 0:
            message = f"{self.name} holds no text."
            raise InputFileError(message)
        return contents


class ContentCounter:
    """Adds up the contents while documents pass by."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._documents = 0
        self._text_bytes = 0

    def add(self, piece: Piece) -> int:
        """The piece's bytes in UTF-8."""
        data = piece.text.encode("utf-8")
        if piece.document == self._documents:
            # No document holds a line like this, so different documents have different digests.
            self._digest.update(b"\n" + END_OF_TEXT.encode() + b"\n")
            self._documents += 1
        self._digest.update(data)
        self._text_bytes += len(data)
        return len(data)

    def contents(self) -> Contents:
        """Of what was added so far."""
        return Contents(self._digest.hexdigest(), self._documents, self._text_bytes)


def _files_digest(files: list[Path]) -> str:
    digest = hashlib.sha256(str(_FORMAT).encode())
    for file in files:
        regular_file_size(file)  # refuses a pipe among them
        status = file.stat()
        # The time of the last change of the inode is in it too: unlike the others, no program can set it back.
        entry = [os.path.realpath(file), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        digest.update(json.dumps(entry).encode())
    return digest.hexdigest()


def _memory(key: str) -> Path:
    return cache_folder() / "tokens" / "contents" / f"{key}.json"


def _remembered(key: str) -> Contents | None:
    try:
        value = json.loads(_memory(key).read_bytes())
        contents = Contents(**value)
    except (OSError, ValueError, TypeError, RecursionError, RuntimeError):  # RuntimeError: no home folder
        return None
    known = isinstance(contents.sha256, str) and type(contents.documents) is type(contents.text_bytes) is int
    return contents if known else None


def _remember(key: str, contents: Contents) -> None:
    with contextlib.suppress(OSError, RuntimeError):
        path = _memory(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, of_content(json.dumps(asdict(contents))))
