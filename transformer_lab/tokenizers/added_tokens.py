"""Tokens that are found in the text as they stand, before any splitting and merging: `<|endoftext|>` and its kin.

Which of several overlapping tokens wins (the leftmost, then the longest), what `lstrip` and `rstrip` swallow, and in
which order the two groups of tokens are looked for follows the `tokenizers` library, so that ids agree.
Knows nothing of merges.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class AddedToken:
    """One token with its text and id.

    A `special` one is recognised only where the caller allows it (`encode(..., allow_special=True)`), so that text from
    outside cannot forge it; another one always is. `normalized` says that it is looked for after normalization.
    """

    text: str
    id: int
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


class AddedTokenFinder:
    """Cuts a text at the added tokens of one group."""

    def __init__(self, tokens: Sequence[AddedToken]) -> None:
        self._tokens = {token.text: token for token in tokens}
        # re takes the first alternative that matches, so sorting by length makes it the longest.
        by_length = sorted(self._tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, by_length))) if by_length else None
        self._only_special = all(token.special for token in tokens)

    def find(self, text: str, allow_special: bool) -> Iterator[str | int]:
        """Yields the ids of the tokens found and, as str, the text between them; no empty text."""
        if self._pattern is None or (self._only_special and not allow_special):
            if text:
                yield text
            return
        done = 0
        for match in self._pattern.finditer(text):
            token = self._tokens[match.group()]
            if token.special and not allow_special:
                continue
            start, end = match.span()
            if token.lstrip:
                start = max(done, len(text[:start].rstrip(_WHITE_SPACE)))
            if token.rstrip:
                end = len(text) - len(text[end:].lstrip(_WHITE_SPACE))
            if done < start:
                yield text[done:start]
            yield token.id
            done = end
        if done < len(text):
            yield text[done:]


# Unicode's White_Space property. str.strip() without an argument would also take U+001C to U+001F.
_WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029"
_WHITE_SPACE += "\u202f\u205f\u3000"
