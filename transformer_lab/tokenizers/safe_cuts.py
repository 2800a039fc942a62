"""Where a long text may be cut without changing the pieces of GPT-2's split and its successors.

So reading in sections is exact: for files larger than memory, and because a section of ASCII is split twice as fast.
"""

from collections.abc import Iterator

# Small enough that one curly quote sends only its neighbourhood down the slower path.
SECTION = 4096


def last_safe_cut(text: str, low: int, high: int) -> int:
    """The largest i in [low, high) where every published split has a border whatever surrounds the text; -1 if none.

    A space behind a character that is not white space is such a place: a piece holds a space at its first position or
    consists of white space alone, and the one look-ahead sits at the end of white space.
    """
    i = text.rfind(" ", max(low, 1), high)
    while i > 0 and text[i - 1].isspace():
        i = text.rfind(" ", max(low, 1), i)
    return i


def sections(text: str, size: int = SECTION) -> Iterator[str]:
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
