"""Tokens that are found in the text as they stand, before any splitting and merging: `<|endoftext|>` and its kin.

Which of several overlapping tokens wins (the leftmost, then the longest), what `lstrip` and `rstrip` swallow, what a
single word is, and in which order the two groups of tokens are looked for follows the `tokenizers` library, so that ids
agree. Knows nothing of merges.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformer_lab.tokenizers.expressions import is_word_character
from transformer_lab.tokenizers.normalization import WHITE_SPACE


@dataclass(frozen=True)
class AddedToken:
    """One token with its text and id.

    A `special` one is recognised only where the caller allows it (`encode(..., allow_special=True)`), so that text from
    outside cannot forge it; another one always is. lstrip, rstrip: the white space before, behind it belongs to it.
    `normalized` says that it is looked for after normalization. single_word: not beside a letter or a digit.
    """

    text: str
    id: int
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    single_word: bool = False


class AddedTokenFinder:
    """Cuts a text at the added tokens of one group."""

    def __init__(self, tokens: Sequence[AddedToken]) -> None:
        self._tokens = {token.text: token for token in tokens if token.text}
        # Where one may begin, and then how long those are that begin so, the longest first. An expression of all
        # tokens would try each of Gemma's 6,415 at every line end.
        lengths: dict[str, set[int]] = {}
        for text in self._tokens:
            lengths.setdefault(text[0], set()).add(len(text))
        self._lengths = {first: sorted(those, reverse=True) for first, those in lengths.items()}
        self._first = re.compile(f"[{re.escape(''.join(lengths))}]") if lengths else None
        self._only_special = all(token.special for token in tokens)

    def find(self, text: str, allow_special: bool) -> Iterator[str | int]:
        """Yields the ids of the tokens found and, as str, the text between them; no empty text."""
        if self._first is None or (self._only_special and not allow_special):
            if text:
                yield text
            return
        done = 0
        for start, end in self._matches(text, self._first):
            token = self._tokens[text[start:end]]
            if (token.special and not allow_special) or (token.single_word and _is_in_a_word(text, start, end)):
                continue
            if token.lstrip:
                start = max(done, len(text[:start].rstrip(WHITE_SPACE)))
            if token.rstrip:
                end = len(text) - len(text[end:].lstrip(WHITE_SPACE))
            if start >= end:  # of white space, which belongs to the token before it
                continue
            if done < start:
                yield text[done:start]
            yield token.id
            done = end
        if done < len(text):
            yield text[done:]

    def _matches(self, text: str, first: re.Pattern[str]) -> Iterator[tuple[int, int]]:
        position = 0
        while candidate := first.search(text, position):
            start = candidate.start()
            position = start + 1
            for length in self._lengths[text[start]]:
                if text[start : start + length] in self._tokens:
                    position = start + length
                    yield start, position
                    break


def _is_in_a_word(text: str, start: int, end: int) -> bool:
    return (start > 0 and is_word_character(text[start - 1])) or (end < len(text) and is_word_character(text[end]))
