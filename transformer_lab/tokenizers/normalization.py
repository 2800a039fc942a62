"""Changes text before it is cut, as the `normalizer` of a tokenizer.json says.

A normalizer is a list of steps, each text -> text. Results are those of the `tokenizers` library, which the names come
from too; also where its tables are older than Python's (`unicode_versions.py`).

Knows nothing of tokens.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal as OneOf

from transformer_lab.tokenizers.expressions import Expression, Literal
from transformer_lab.tokenizers.unicode_versions import is_newer, normalized_otherwise

# Unicode's White_Space property. str.strip() without an argument would also take U+001C to U+001F.
WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029"
WHITE_SPACE += "\u202f\u205f\u3000"


@dataclass(frozen=True)
class UnicodeForm:
    """One of Unicode's normal forms, as in its version 9: composed (C) or decomposed (D), and with K without variants.

    Python's newer tables agree about every character that version 9 knew; the others it left as they are.
    """

    form: OneOf["NFC", "NFD", "NFKC", "NFKD"]

    def __call__(self, text: str) -> str:
        if text.isascii():
            return text
        later = normalized_otherwise()
        if not later.meet(text):
            return unicodedata.normalize(self.form, text)
        parts = re.split(f"([{re.escape(''.join(later.members))}])", text)
        return "".join(part if part in later.members else unicodedata.normalize(self.form, part) for part in parts)

    @property
    def growth(self) -> int:
        """How many characters may become of one, at most."""
        return 18 if "K" in self.form else 4


@dataclass(frozen=True)
class Lowercase:
    """Every character in lower case by itself, as in Unicode 17; so a sigma at the end of a word is no exception."""

    growth = 2

    def __call__(self, text: str) -> str:
        return text.lower() if text.isascii() else text.translate(_LOWER_CASE)


@dataclass(frozen=True)
class StripAccents:
    """Without combining marks, those of Unicode 9. Behind NFD, letters lose their accents."""

    growth = 1

    def __call__(self, text: str) -> str:
        return text if text.isascii() else text.translate(_NO_ACCENTS)


@dataclass(frozen=True)
class Strip:
    """Without white space at the ends."""

    left: bool = True
    right: bool = True
    growth = 1

    def __call__(self, text: str) -> str:
        text = text.lstrip(WHITE_SPACE) if self.left else text
        return text.rstrip(WHITE_SPACE) if self.right else text


@dataclass(frozen=True)
class Prepend:
    """With a text in front, if there is any text."""

    prefix: str
    growth = 1

    def __call__(self, text: str) -> str:
        return self.prefix + text if text else text


@dataclass(frozen=True)
class Replace:
    """With another text for every match of a pattern."""

    pattern: Literal | Expression
    content: str

    def __call__(self, text: str) -> str:
        if isinstance(self.pattern, Literal) and self.pattern.text:
            return text.replace(self.pattern.text, self.content)
        parts, end = [], 0
        for match in self.pattern.spans(text):
            parts += [text[end : match[0]], self.content]
            end = match[1]
        return "".join([*parts, text[end:]])

    @property
    def growth(self) -> int:
        """How many characters may become of one, at most: an expression may match between any two characters."""
        if isinstance(self.pattern, Literal) and self.pattern.text:
            return max(1, math.ceil(len(self.content) / len(self.pattern.text)))
        return 1 + len(self.content)


NormalizerStep = UnicodeForm | Lowercase | StripAccents | Strip | Prepend | Replace


def normalize(steps: Sequence[NormalizerStep], text: str) -> str:
    """`text` after all steps, one after the other."""
    for step in steps:
        text = step(text)
    return text


def growth(steps: Sequence[NormalizerStep]) -> int:
    """How many characters the steps may make of one, at most, apart from what is put in front."""
    return math.prod(step.growth for step in steps)


class _LowerCase(dict[int, str]):
    """code point -> its lower case, looked up when it first comes up."""

    def __missing__(self, code: int) -> str:
        for codes, first in _LATE_LOWER_CASE.items():
            if code in codes:
                return self.setdefault(code, chr(first + code - codes.start))
        return self.setdefault(code, chr(code) if is_newer(code, 16) else chr(code).lower())


# What has a lower case in Unicode 17 and none yet in Unicode 14, which is that of Python 3.11.
_LATE_LOWER_CASE = {
    range(0x1C89, 0x1C8A): 0x1C8A,
    range(0xA7CB, 0xA7CC): 0x0264,
    range(0xA7CC, 0xA7CD): 0xA7CD,
    range(0xA7CE, 0xA7CF): 0xA7CF,
    range(0xA7D2, 0xA7D3): 0xA7D3,
    range(0xA7D4, 0xA7D5): 0xA7D5,
    range(0xA7DA, 0xA7DB): 0xA7DB,
    range(0xA7DC, 0xA7DD): 0x019B,
    range(0x10D50, 0x10D66): 0x10D70,
    range(0x16EA0, 0x16EB9): 0x16EBB,
}
_LOWER_CASE = _LowerCase()


class _NoAccents(dict[int, int | None]):
    """code point -> None if it is a combining mark, else itself, looked up when it first comes up."""

    def __missing__(self, code: int) -> int | None:
        mark = unicodedata.category(chr(code)).startswith("M") and not is_newer(code, 9)
        # Two marks have become letters since, and a sign has become a mark.
        mark = (mark and code != 0x111C9) or code in (0x1CF2, 0x1CF3)
        return self.setdefault(code, None if mark else code)


_NO_ACCENTS = _NoAccents()
