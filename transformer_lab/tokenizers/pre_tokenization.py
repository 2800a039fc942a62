r"""Cuts text into the pieces inside which BPE may merge ("pre-tokens"): words, numbers, punctuation, white space.

Without this cut BPE would learn tokens such as `dog.` and `dog!` beside `dog`. GPT-2's rule is one regular expression:
a contraction, or letters, digits or other signs with at most one space before them, or white space; the last white
space of a run is left to the word behind it. Later models changed the expression and kept the idea.

Also here: where a long text may be cut without changing the pieces, so that reading in sections is exact.
Knows nothing of bytes, merges or ids.
"""

import re
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from typing import Any

from transformer_lab.errors import InputFileError, shown

GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# The same cut for ASCII text, in the words of the standard library's `re`, which is twice as fast as `regex` but does
# not know \p{L}. The commonest alternative comes first: the alternatives cannot match at the same place, except the
# contractions and the signs, and those two keep their order.
_GPT2_SPLIT_ASCII = r" ?[A-Za-z]+|'(?:[stmd]|re|ve|ll)| ?[0-9]+| ?[^\t-\r A-Za-z0-9]+|[\t-\r ]+(?![^\t-\r ])|[\t-\r ]+"

# Small enough that one curly quote sends only its neighbourhood down the slower path.
_SECTION = 4096

# Of an expression from a file, in characters; published ones have some hundred.
_LONGEST_EXPRESSION = 10_000
_SECONDS = 10.0  # for cutting a text with such an expression, and as many more as it has 100,000 characters

Split = Callable[[str], list[str]]

# The part of the expression language that means the same in `regex` and in the Oniguruma of the `tokenizers` library.
# Left out on purpose: capturing groups (findall would return them), \h \w \b . ^ $ (they differ), set operations in
# classes, and repeated groups (a hostile file could make those take exponential time).
_SHARED_SYNTAX = r"""(?x:
    \(\?(?:i?:|<?[!=]) | \)(?![*+{]) | \|
  | (?: \\p\{\^?[A-Za-z_]+\} | \\P\{[A-Za-z_]+\} | \\[sSdDrnt'"/\-.\[\](){}?*+|\\^$] | [^\\\[\](){}?*+|.^$]
      | \[\^?(?: \\p\{\^?[A-Za-z_]+\} | \\P\{[A-Za-z_]+\} | \\[sSdDrnt'"/\-.\[\](){}?*+|\\^$]
               | [^\\\[\]&~|\-] | (?<!-)-(?!-) | \|(?!\|) | &(?!&) | ~(?!~) )+ \] )
    (?: [?*+][?+]? | \{[0-9]+(?:,[0-9]*)?\}(?![?+*]) )?
  | (?<=\))\?(?![?+*])
)*"""


@lru_cache(64)
def _pattern(expression: str) -> Any:
    import regex  # here, because importing the package must stay cheap

    return regex.compile(expression)


def is_supported(expression: str) -> bool:
    """True if a split expression from a file is known to mean here what it means to the `tokenizers` library."""
    import regex

    if len(expression) > _LONGEST_EXPRESSION or not _pattern(_SHARED_SYNTAX).fullmatch(expression):
        return False
    try:
        _pattern(expression)
    except (regex.error, RecursionError):  # the second for hundreds of groups inside each other
        return False
    return True


@cache
def _gpt2_split() -> Split:
    ascii_pieces = re.compile(_GPT2_SPLIT_ASCII).findall
    all_pieces: Split = _pattern(GPT2_SPLIT).findall

    def split(text: str) -> list[str]:
        return ascii_pieces(text) if text.isascii() else all_pieces(text)

    return split


def split_function(expressions: tuple[str, ...]) -> Split:
    """The function str -> pieces, in order and without gaps, for one or several expressions applied in turn."""
    if expressions == (GPT2_SPLIT,):
        return _gpt2_split()
    patterns = [_pattern(expression) for expression in expressions]

    def split(text: str) -> list[str]:
        pieces = [text] if text else []
        for pattern in patterns:
            pieces = [inner for piece in pieces for inner in _isolate(pattern, piece)]
        return pieces

    return split


def _isolate(pattern: Any, text: str) -> list[str]:
    """The matches, and what lies between them, in order."""
    # A text of a few hundred spaces can keep `\s+\s+\s+\s+\d` busy for years, and expressions come from files.
    seconds = _SECONDS + len(text) / 100_000
    try:
        pieces: list[str] = pattern.findall(text, timeout=seconds)
        if sum(map(len, pieces)) == len(text) and all(pieces):
            return pieces
        pieces, end = [], 0
        for match in pattern.finditer(text, timeout=seconds):
            if match.end() > match.start():
                if match.start() > end:
                    pieces.append(text[end : match.start()])
                pieces.append(match.group())
                end = match.end()
    except TimeoutError:
        message = f"tokenizer.json, field pre_tokenizer: {shown(pattern.pattern)} takes too long to cut this text."
        raise InputFileError(message) from None
    return [*pieces, text[end:]] if end < len(text) else pieces


def last_safe_cut(text: str, low: int, high: int) -> int:
    """The largest i in [low, high) where GPT-2's split has a border whatever surrounds the text; -1 if there is none.

    A space behind a character that is not white space is such a place: a piece holds a space at its first position or
    consists of white space alone, and the one look-ahead sits at the end of white space.
    """
    i = text.rfind(" ", max(low, 1), high)
    while i > 0 and text[i - 1].isspace():
        i = text.rfind(" ", max(low, 1), i)
    return i


def sections(text: str, size: int = _SECTION) -> Iterator[str]:
    """Sections of about `size` characters, cut at safe places: their pieces are those of the whole text."""
    start = 0
    while len(text) - start > size:
        cut = text.find(" ", start + size)
        while cut > 0 and text[cut - 1].isspace():
            cut = text.find(" ", cut + 1)
        if cut < 0:
            break
        yield text[start:cut]
        start = cut
    yield text[start:] if start else text


def replace_lone_surrogates(text: str) -> str:
    """Pairs of surrogates become the character they mean, single ones U+FFFD, which is tiktoken's answer too."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
