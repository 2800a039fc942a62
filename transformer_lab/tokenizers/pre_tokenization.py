"""Cuts text into the pieces inside which BPE may merge ("pre-tokens"), as the `pre_tokenizer` of a tokenizer.json says.

A pre-tokenizer is a list of steps. Each takes a piece and gives pieces, in order, some of them changed: ByteLevel and
Metaspace write spaces as other characters, Split and its kin only cut, and may leave something out. Empty pieces do not
count. Results are those of the `tokenizers` library, which the names come from too.

Knows nothing of merges or ids.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from typing import Literal as OneOf

from transformer_lab.tokenizers.byte_alphabet import to_stand_ins
from transformer_lab.tokenizers.expressions import WORD_CHARACTERS, Expression, Literal, Span
from transformer_lab.tokenizers.gpt2_split import gpt2_split
from transformer_lab.tokenizers.unicode_versions import as_ranges, is_newer

# What becomes of the text that a Split finds: it is left out, stands alone, joins its neighbour, or its like.
Behavior = OneOf["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]


@dataclass(frozen=True)
class Split:
    """Cuts at the matches of a pattern; inverted, what lies between them is taken for the matches."""

    pattern: Literal | Expression
    behavior: Behavior = "Isolated"
    invert: bool = False

    def __call__(self, text: str) -> list[str]:
        matches_alone = self.behavior == "Removed" and self.invert
        if isinstance(self.pattern, Expression) and (self.behavior == "Isolated" or matches_alone):
            matches = self.pattern.findall(text)  # quicker than asking where they stand
            if all(matches) and (matches_alone or sum(map(len, matches)) == len(text)):
                return matches
            if not matches:
                return [text]
        elif isinstance(self.pattern, Literal) and self.pattern.text not in text:
            return [] if matches_alone else [text]
        return _pieces(text, self.pattern.spans(text), self.behavior, self.invert)


def _pieces(text: str, matches: list[Span], behavior: Behavior, invert: bool) -> list[str]:
    parts: list[tuple[int, int, bool]] = []  # start, end, whether it counts as a match
    end = 0
    for match in matches:
        if end < match[0]:
            parts.append((end, match[0], invert))
        parts.append((*match, not invert))
        end = match[1]
    if end < len(text):
        parts.append((end, len(text), invert))
    if behavior == "Removed":
        parts = [part for part in parts if not part[2]]
    elif behavior == "Contiguous":
        parts = _joined(parts, lambda before, part: before[2] == part[2])
    elif behavior == "MergedWithPrevious":
        parts = _joined(parts, lambda before, part: part[2] and not before[2])
    elif behavior == "MergedWithNext":
        # The same seen from behind: a match joins the part that follows, unless that is a match.
        mirrored = [(-end, -start, match) for start, end, match in reversed(parts)]
        mirrored = _joined(mirrored, lambda before, part: part[2] and not before[2])
        parts = [(-end, -start, match) for start, end, match in reversed(mirrored)]
    return [text[start:end] for start, end, _ in parts if start < end]


Part = tuple[int, int, bool]


def _joined(parts: list[Part], belong: Callable[[Part, Part], bool]) -> list[Part]:
    """Parts that belong to the one directly before them, joined with it."""
    joined: list[Part] = []
    before: Part | None = None
    for part in parts:
        if before is not None and belong(before, part):
            joined[-1] = (joined[-1][0], part[1], part[2])
        else:
            joined.append(part)
        before = part
    return joined


@dataclass(frozen=True)
class ByteLevel:
    """GPT-2's way: its split, and every byte of UTF-8 as one visible character (`byte_alphabet.py`).

    add_prefix_space: a space is put before a piece that begins with none. use_regex: False leaves the split out.
    """

    add_prefix_space: bool = False
    use_regex: bool = True

    def __call__(self, text: str) -> list[str]:
        return [to_stand_ins(piece.encode("utf-8")) for piece in self.cut(text)]

    def cut(self, text: str) -> Iterable[str]:
        """The pieces before their bytes are written as characters."""
        if self.add_prefix_space and not text.startswith(" "):
            text = f" {text}"
        return gpt2_split(text) if self.use_regex else (text,)


@dataclass(frozen=True)
class Metaspace:
    """SentencePiece's way: spaces become visible, each begins a piece, and the text begins with one.

    prepend_scheme: "always" puts one before every piece that begins with none, "first" only where the text begins
    (not behind an added token), "never" nowhere. split: False leaves the cutting out.
    Kudo and Richardson 2018, arXiv 1808.06226.
    """

    replacement: str = "▁"
    prepend_scheme: OneOf["always", "first", "never"] = "always"
    split: bool = True

    def __call__(self, text: str) -> list[str]:
        text = text.replace(" ", self.replacement)
        if self.prepend_scheme != "never" and not text.startswith(self.replacement):
            text = self.replacement + text
        return Split(Literal(self.replacement), "MergedWithNext")(text) if self.split else [text]


@dataclass(frozen=True)
class Digits:
    """Numbers by themselves; each digit by itself if they are individual. A digit is every character of category N."""

    individual: bool = False

    def __call__(self, text: str) -> list[str]:
        return Split(_digit(), "Isolated" if self.individual else "Contiguous")(text)


@dataclass(frozen=True)
class Punctuation:
    """Cuts at each punctuation character: ASCII's, which are more than category P, and those of Unicode 8."""

    behavior: Behavior = "Isolated"

    def __call__(self, text: str) -> list[str]:
        return Split(_punctuation(), self.behavior)(text)


@dataclass(frozen=True)
class Whitespace:
    """Words, and what stands between them without white space, which is left out."""

    def __call__(self, text: str) -> list[str]:
        return Split(_words_and_signs(), "Removed", invert=True)(text)


@dataclass(frozen=True)
class WhitespaceSplit:
    """What stands between white space, which is left out."""

    def __call__(self, text: str) -> list[str]:
        return Split(_no_white_space(), "Removed", invert=True)(text)


PreTokenizerStep = Split | ByteLevel | Metaspace | Digits | Punctuation | Whitespace | WhitespaceSplit
GPT2_PRE_TOKENIZER: tuple[PreTokenizerStep, ...] = (ByteLevel(),)


@cache
def _digit() -> Expression:
    # Two groups of digits came with Unicode 17, which the library follows in this.
    return Expression("[\\p{N}\U00011de0-\U00011de9\U00016ff4-\U00016ff6]")


@cache
def _punctuation() -> Expression:
    above_ascii = "".join(map(chr, chain(range(0x80, 0xD800), range(0xE000, 0x20000))))
    signs = "".join(Expression(r"\p{P}+").findall(above_ascii))
    # Two signs have not been punctuation since Unicode 11 and 12.
    known_to_8 = {sign for sign in signs if not is_newer(ord(sign), 8)} | {"\U000111c9", "\u166d"}
    return Expression(rf"[!-/:-@\[-`{{-~{as_ranges(''.join(sorted(known_to_8)))}]")


@cache
def _words_and_signs() -> Expression:
    return Expression(rf"[{WORD_CHARACTERS}]+|[^{WORD_CHARACTERS}\s]+")


@cache
def _no_white_space() -> Expression:
    return Expression(r"\S+")


def pre_tokenize(steps: Sequence[Callable[[str], Iterable[str]]]) -> Callable[[str], Iterable[str]]:
    """The function text -> pieces of all steps, one after the other."""
    if not steps:
        return lambda text: (text,)
    if len(steps) == 1:
        return steps[0]

    def pieces(text: str) -> Iterable[str]:
        found: Iterable[str] = (text,)
        for step in steps:
            found = chain.from_iterable(map(step, found))
        return found

    return pieces


def behind_the_beginning(steps: Sequence[PreTokenizerStep]) -> tuple[PreTokenizerStep, ...]:
    """The steps as they work on a part of a text that does not begin it."""
    return tuple(
        replace(step, prepend_scheme="never")
        if isinstance(step, Metaspace) and step.prepend_scheme == "first"
        else step
        for step in steps
    )


def replace_lone_surrogates(text: str) -> str:
    """Pairs of surrogates become the character they mean, single ones U+FFFD, which is tiktoken's answer too."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
