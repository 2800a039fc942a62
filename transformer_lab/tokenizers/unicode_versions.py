"""Ids must not depend on the day of installation: which version of Unicode each part of a tokenizer reads text with.

Every year Unicode makes letters, digits and signs of code points that were unassigned. A split on letters then cuts a
text at other places, and its ids are others. What counts is the `tokenizers` library, whose ids are the model's, and
it reads with four old tables: Unicode 8 for punctuation, 9 for normal forms and accents, 16 for expressions, 17 for
lower case and digits (measured on version 0.23.3 over all code points; the tests do it again). Python and `regex` bring
newer tables. This file says what they know too much, and the parts that use them leave that out.
"""

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable
from functools import cache
from itertools import chain, pairwise
from pathlib import Path

from transformer_lab.errors import UnavailableError

_AGES = Path(__file__).with_name("unicode_ages.txt")


@cache
def _assigned_in() -> dict[str, list[range]]:
    """The code points first assigned in version "9", in "16" (10 to 16), and "later" or not yet."""
    ages: dict[str, list[range]] = {}
    for line in _AGES.read_text(encoding="ascii").splitlines():
        if line.endswith(":"):
            current = ages.setdefault(line[:-1], [])
        elif not line.startswith("#"):
            for entry in line.split():
                first, _, last = entry.partition("-")
                current.append(range(int(first, 16), int(last or first, 16) + 1))
    return ages


@cache
def newer_than(version: int) -> list[range]:
    """The code points that Unicode 8, 9 or 16 (`version`) had not assigned, in order."""
    since = {8: ("9", "16", "later"), 9: ("16", "later"), 16: ("later",)}[version]
    return sorted((codes for age in since for codes in _assigned_in()[age]), key=lambda codes: codes.start)


@cache
def _starts(version: int) -> list[int]:
    return [codes.start for codes in newer_than(version)]


def is_newer(code: int, version: int) -> bool:
    """True if Unicode 8, 9 or 16 (`version`) had not assigned this code point."""
    place = bisect_right(_starts(version), code) - 1
    return place >= 0 and code in newer_than(version)[place]


class Characters:
    """A set of characters outside ASCII that says fast of most texts that they hold none of them."""

    def __init__(self, members: Iterable[str]) -> None:
        self.members = frozenset(members)
        # `re` looks up the first 65,536 code points in a table; of others it would try range by range.
        first = re.escape("".join(sorted(member for member in self.members if member <= "\uffff")))
        self._first = re.compile(f"[{first}]").search if first else lambda text: None
        self._first_or_high = re.compile(f"[{first}\U00010000-\U0010ffff]").search
        self._high = re.compile("[\U00010000-\U0010ffff]").findall

    def meet(self, text: str) -> bool:
        """True if `text` holds one of them."""
        if not self.members or text.isascii() or self._first_or_high(text) is None:
            return False
        return self._first(text) is not None or not self.members.isdisjoint(self._high(text))


def as_ranges(characters: str) -> str:
    """Characters outside ASCII, in order, as the inside of a class in an expression: neighbours as a range."""
    codes = list(map(ord, characters))
    begins = [code for before, code in pairwise([-1, *codes]) if code != before + 1]
    ends = [code for code, behind in pairwise([*codes, -1]) if behind != code + 1]
    return "".join(f"{chr(begin)}-{chr(end)}" for begin, end in zip(begins, ends, strict=True))


# U+0295 was a small letter until Unicode 17 took it for one without case. No other character that Unicode 16 had has
# changed its general category since (up to Unicode 18; the tests look).
_CHANGED = {"Ll": "\u0295"}


@cache
def seen_otherwise() -> dict[str, str]:
    """What the installed `regex` puts elsewhere than Unicode 16 did: general category there -> characters, in order."""
    import regex  # here, because importing the package must stay cheap

    if regex.match(r"\p{Cn}", "\u1c89"):
        message = f"The installed regex {regex.__version__} knows less than Unicode 16. Install regex>=2024.9.11."
        raise UnavailableError(message)
    # Above plane 3 nothing but signs for special purposes is planned, and that is most of what is unassigned.
    unassigned = chain.from_iterable(range(codes.start, min(codes.stop, 0x40000)) for codes in newer_than(16))
    seen = {"Cn": "".join(regex.findall(r"\P{Cn}+", "".join(map(chr, unassigned))))}
    for category, characters in _CHANGED.items():
        seen[category] = "".join(regex.findall(rf"\P{{{category}}}+", characters))
    return {category: characters for category, characters in seen.items() if characters}


@cache
def all_seen_otherwise() -> Characters:
    """The characters of `seen_otherwise`."""
    return Characters("".join(seen_otherwise().values()))


@cache
def normalized_otherwise() -> Characters:
    """What Python's normal forms treat in a way of its own and Unicode 9 did not know: it left these as they are."""
    newer = [chr(code) for code in chain.from_iterable(newer_than(9)) if code < 0x20000]  # above are ideographs
    changed = {character: fields for character in newer if (fields := unicodedata.decomposition(character))}
    parts = {chr(int(code, 16)) for fields in changed.values() for code in fields.split() if code[0] != "<"}
    return Characters({*changed, *filter(unicodedata.combining, newer), *parts.intersection(newer)})
