r"""Text files as a stream of documents, each in pieces of some 100 kB, so that neither lies in memory whole.

A document ends at a line that holds only `<|endoftext|>`, and at the end of its file. White space (ASCII's) at both
ends of a document is dropped, so that the empty lines around the separator are not learned; a document of nothing else
is none at all. Line ends inside are kept as they are, CRLF too.

Where a long document is cut decides nothing: it is before a white space that is followed by something else, where
GPT-2's pre-tokenization has a border whatever stands around it (its pattern ends with `\s+(?!\S)|\s+`: a run of white
space leaves its last one to the word behind it). Other tokenizers have one at least before a single space between two
words, so such a place is taken first. Only a text without any such place for 100 kB is cut between two characters.
Knows nothing of tokens.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from transformer_lab.checkpoints.regular_file import open_regular, regular_file_size
from transformer_lab.errors import InputFileError
from transformer_lab.paths import expanded
from transformer_lab.tokenizers import END_OF_TEXT

# Bytes that are read at once. A piece has at least as many, if the document has, and at most about twice as many.
PIECE_BYTES = 2**17

_SEPARATOR = END_OF_TEXT.encode()
_BLANK = " \t\n\r\v\f"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# The first byte of a character that is surely no white space: those that could begin one of Unicode's are left out.
_VISIBLE = rb"(?=[!-~\xc3-\xe0\xe4-\xf4]|\xe1[\x80-\x99\x9b-\xbf]|\xe3[\x81-\xbf])"
_BETWEEN_WORDS = re.compile(rb"(?<=\S) " + _VISIBLE)
_BEFORE_A_WORD = re.compile(rb"[ \n\t]" + _VISIBLE)


class Piece(NamedTuple):
    """A part of a document. `document` counts from 0 through all files."""

    document: int
    text: str


def text_files(path: str | os.PathLike[str]) -> list[Path]:
    """The file, or all *.txt files in the folder and its subfolders, in the order of their paths."""
    place = expanded(path)
    if not os.path.isdir(place):
        regular_file_size(place)
        return [place]

    def refuse(error: OSError) -> None:
        message = f"{error.filename} cannot be read: {error.strerror}."
        raise InputFileError(message) from error

    files = [
        Path(folder, name)
        for folder, _, names in os.walk(place, onerror=refuse)
        for name in names
        if name.endswith(".txt")
    ]
    if not files:
        message = f"The folder {place} holds no *.txt files."
        raise InputFileError(message)
    return sorted(files)


def documents(
    files: Sequence[Path], on_read: Callable[[int], object] | None = None, piece_bytes: int = PIECE_BYTES
) -> Iterator[Piece]:
    """The documents of all files in order. `on_read` is told how many bytes were read, whenever some were."""
    number = 0
    for file in files:
        begun = False  # whether a piece of document `number` was given
        for text, ends in _file_pieces(file, on_read, piece_bytes):
            text = text if begun else text.lstrip(_BLANK)
            text = text.rstrip(_BLANK) if ends else text
            if text:
                yield Piece(number, text)
                begun = True
            if ends and begun:
                number += 1
                begun = False


def _file_pieces(file: Path, on_read: Callable[[int], object] | None, piece_bytes: int) -> Iterator[tuple[str, bool]]:
    """(text, whether the document ends with it) of one file; the text between two separators may be empty."""
    with open_regular(file) as stream:
        buffer = b""
        position = 0  # in the file, of the buffer's first byte
        line_starts = True  # whether the buffer's first byte begins a line
        at_end = False
        while not at_end:
            data = _read(stream, piece_bytes, file)
            at_end = not data
            if on_read is not None and data:
                on_read(len(data))
            if position == 0 and not buffer and data.startswith(_BYTE_ORDER_MARK):
                data, position = data[len(_BYTE_ORDER_MARK) :], len(_BYTE_ORDER_MARK)
            buffer += data
            # A separator that begins up to here is in the buffer as a whole, with its line end.
            certain = len(buffer) if at_end else len(buffer) - len(_SEPARATOR) - 2
            start = 0
            for found, behind in _separators(buffer, line_starts, certain):
                yield _decode(buffer, start, found, position, file), True
                start = behind
            if at_end:
                yield _decode(buffer, start, len(buffer), position, file), True
                return
            while (cut := _place_to_cut(buffer, start, certain, piece_bytes)) > start:
                yield _decode(buffer, start, cut, position, file), False
                start = cut
            if start > 0:
                line_starts = buffer[start - 1 : start] == b"\n"
                buffer = buffer[start:]
                position += start


def _read(stream: BinaryIO, size: int, file: Path) -> bytes:
    try:
        return stream.read(size)
    except OSError as error:
        message = f"{file} cannot be read: {error.strerror or error}."
        raise InputFileError(message) from error


def _separators(buffer: bytes, line_starts: bool, certain: int) -> Iterator[tuple[int, int]]:
    """(where it begins, where the next line begins) of every separator line that begins up to `certain`."""
    found = buffer.find(_SEPARATOR)
    while 0 <= found <= certain:
        behind = found + len(_SEPARATOR)
        begins_line = buffer[found - 1 : found] == b"\n" if found > 0 else line_starts
        rest = buffer[behind : behind + 2]
        if begins_line and (rest[:1] in (b"\n", b"") or rest in (b"\r\n", b"\r")):
            behind += rest.find(b"\n") + 1 or len(rest)
            yield found, behind
        found = buffer.find(_SEPARATOR, behind)


def _place_to_cut(buffer: bytes, start: int, certain: int, piece_bytes: int) -> int:
    """The first good place that is at least `piece_bytes` behind `start`; `start` itself if it is not known yet."""
    # What is looked at ends before `certain`, so that the character behind the place is in the buffer.
    if match := _BETWEEN_WORDS.search(buffer, start + piece_bytes, certain):
        return match.start()
    if certain - start < 2 * piece_bytes:
        return start
    if match := _BEFORE_A_WORD.search(buffer, start + piece_bytes, certain):
        return match.start()
    cut = start + 2 * piece_bytes - 4
    while cut > start + 1 and buffer[cut] & 0xC0 == 0x80:  # inside a character
        cut -= 1
    return cut


def _decode(buffer: bytes, start: int, stop: int, position: int, file: Path) -> str:
    try:
        return buffer[start:stop].decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"{file} is not UTF-8 text: byte {position + start + error.start} is wrong."
        raise InputFileError(message) from None
