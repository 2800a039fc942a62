r"""GPT-2's split: words, numbers, signs and white space, the pieces inside which its BPE may merge.

Without a cut BPE would learn tokens such as `dog.` and `dog!` beside `dog`. The rule is one regular expression: a
contraction, or letters, digits or other signs with at most one space before them, or white space; the last white space
of a run is left to the word behind it. Later models changed the expression and kept the idea.

Also here: where a long text may be cut without changing the pieces, so that reading in sections is exact.
Knows nothing of bytes, merges or ids.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain

from transformer_lab.tokenizers.expressions import Expression
from transformer_lab.tokenizers.published_splits import GPT2 as GPT2_SPLIT

# The same cut for ASCII text, in the words of the standard library's `re`, which is twice as fast as `regex` but does
# not know \p{L}. The commonest alternative comes first: the alternatives cannot match at the same place, except the
# contractions and the signs, and those two keep their order.
_ascii_pieces = re.compile(
    r" ?[A-Za-z]+|'(?:[stmd]|re|ve|ll)| ?[0-9]+| ?[^\t-\r A-Za-z0-9]+|[\t-\r ]+(?![^\t-\r ])|[\t-\r ]+"
).findall

# Small enough that one curly quote sends only its neighbourhood down the slower path.
_SECTION = 4096


@cache
def _expression() -> Expression:
    return Expression(GPT2_SPLIT)


def gpt2_split(text: str) -> Iterable[str]:
    """The pieces, in order and without gaps."""
    if len(text) <= _SECTION:
        return _split_section(text)
    return chain.from_iterable(map(_split_section, sections(text)))


def _split_section(text: str) -> list[str]:
    return _ascii_pieces(text) if text.isascii() else _expression().findall(text)


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
