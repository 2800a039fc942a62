r"""What a tokenizer's file searches a text for: a plain text, or a regular expression.

The `tokenizers` library runs expressions with Oniguruma, here it is the package `regex`. Their languages differ, and
an expression that means something else gives other ids without a word. So an expression is read part by part; what
means the same to both is passed on, some of it in other words, and anything else is refused (`\w`, `\b`, groups that
repeat, backward references ...). Both engines are also made to know the same Unicode (`unicode_versions.py`).

An expression from a stranger is bounded: in length, in how often it repeats, and in the time it may take.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain
from typing import Any, Protocol

from transformer_lab.errors import ConfigurationError, InputFileError, shown
from transformer_lab.tokenizers import published_splits
from transformer_lab.tokenizers.ascii_splits import on_ascii
from transformer_lab.tokenizers.safe_cuts import sections
from transformer_lab.tokenizers.unicode_versions import all_seen_otherwise, as_ranges, seen_otherwise

# Published expressions have some hundred characters, and count to 3.
_LONGEST = 10_000
_MOST_REPEATED = 1_000  # by all counts such as {1,3} together: both engines write out what is repeated
_SECONDS = 10.0  # for one text, and as many more as it has 100,000 characters

Span = tuple[int, int]


class Pattern(Protocol):
    """Something to search a text for."""

    def spans(self, text: str) -> list[Span]:
        """Where it stands in `text`: (start, end), in order, no two overlapping."""


@dataclass(frozen=True)
class Literal:
    """A text as it stands. The empty one stands between all characters, and at both ends."""

    text: str

    def spans(self, text: str) -> list[Span]:
        if not self.text:
            return [(i, i) for i in range(len(text) + 1)] if text else []
        found, start = [], text.find(self.text)
        while start >= 0:
            end = start + len(self.text)
            found.append((start, end))
            start = text.find(self.text, end)
        return found


@dataclass(frozen=True)
class Expression:
    """A regular expression in Oniguruma's words. Raises ConfigurationError if it is not known to mean the same here."""

    source: str

    def __post_init__(self) -> None:
        _ = self._usual  # so that a wrong one is refused at once

    def findall(self, text: str) -> list[str]:
        """The matches in `text`, in order."""
        if self.source in published_splits.ALL:
            return list(chain.from_iterable(map(self._in_section, sections(text))))
        try:
            matches: list[str] = self._for(text).findall(text, timeout=self._seconds(text))
        except TimeoutError:
            raise self._too_slow() from None
        return matches

    def _in_section(self, section: str) -> list[str]:
        matches: list[str] = self._on_ascii(section) if section.isascii() else self._for(section).findall(section)
        return matches

    def spans(self, text: str) -> list[Span]:
        """Where the matches stand in `text`; an empty match counts, unless it stands right behind another match."""
        pattern = self._for(text)
        try:
            found = [match.span() for match in pattern.finditer(text, timeout=self._seconds(text))]
            if any(start == end for start, end in found):
                found = list(_spans_with_empty_ones(pattern, text, self._seconds(text)))
        except TimeoutError:
            raise self._too_slow() from None
        return found if text else []

    def _for(self, text: str) -> Any:
        return self._exact if all_seen_otherwise().meet(text) else self._usual

    @cached_property
    def _usual(self) -> Any:
        """For text whose characters the installed `regex` sees as Unicode 16 did."""
        return _compiled(_translated(self.source, {}), self.source)

    @cached_property
    def _on_ascii(self) -> Callable[[str], list[str]]:
        return on_ascii(self.source)

    @cached_property
    def _exact(self) -> Any:
        """For any text, and slower."""
        return _compiled(_translated(self.source, seen_otherwise()), self.source)

    def _seconds(self, text: str) -> float | None:
        """How long it may take; None if that need not be watched, which is three times as fast."""
        return None if self._is_quick else _SECONDS + len(text) / 100_000

    @cached_property
    def _is_quick(self) -> bool:
        r"""Whether its time is known to grow with the text and no faster.

        A text of a few hundred spaces can keep `\s+\s+\s+\s+\d` busy for years; alternatives of one part each cannot.
        """
        return self.source in published_splits.ALL or all(map(_PART.fullmatch, self.source.split("|")))

    def _too_slow(self) -> InputFileError:
        return InputFileError(f"The tokenizer's expression {shown(self.source)} takes too long to cut this text.")


def is_word_character(character: str) -> bool:
    r"""True for what `\w` is to the library, as in Unicode 16."""
    return bool(_word_character().findall(character))


@cache
def _word_character() -> Expression:
    return Expression(f"[{WORD_CHARACTERS}]")


def _spans_with_empty_ones(pattern: Any, text: str, seconds: float | None) -> Iterator[Span]:
    """As Oniguruma walks: behind an empty match it goes on at the next character, and none follows a match directly."""
    position, last_end = 0, -1
    while position <= len(text):
        match = pattern.search(text, position, timeout=seconds)
        if match is None:
            return
        start, end = match.span()
        if start == end == last_end:
            position = end + 1
            continue
        yield start, end
        last_end = end
        position = end + 1 if start == end else end


def _compiled(expression: str, source: str) -> Any:
    import regex  # here, because importing the package must stay cheap

    try:
        return regex.compile(expression)
    except RecursionError:
        raise _refusal(source, "hundreds of its groups are inside each other") from None
    except regex.error as error:
        raise _refusal(source, f"it is wrong: {error}") from None


def _refusal(source: str, reason: str) -> ConfigurationError:
    return ConfigurationError(f"{shown(source)} is not read, because {reason}")


# Reading an expression part by part

_CHARACTER = r"(?: \\[nrtfv!-/:-@\[-`{-~] | \\u[0-9A-Fa-f]{4} | [^\\\[\]&~|\-] | \|(?!\|) | &(?!&) | ~(?!~) )"
_PROPERTY = r"\\[pP]\{\^?[A-Za-z_]+\} | \\[dD]"
_PART = re.compile(
    rf"""(?:
      (?P<open> \( (?: \?(?: i?: | <?[=!] ) )? (?!\?) )
    | (?P<close> \) )
    | (?P<class> \[ \^? -? (?: {_CHARACTER}-{_CHARACTER} | {_CHARACTER} | {_PROPERTY} | \\[sS]
                             | \[(?![:^]) (?: {_CHARACTER}-{_CHARACTER} | {_CHARACTER} )+ \] )+ -? \] )
    | (?P<property> {_PROPERTY} )
    | (?P<anchor> [$^] )
    | (?P<other> \| | \. | \\[sSnrtfv!-/:-@\[-`{{-~] | \\u[0-9A-Fa-f]{{4}} | [^\\\[\](){{}}?*+|.^$] )
    )
    (?P<repeat> [?*+][?+]? | \{{[0-9]+(?:,[0-9]*)?\}}(?![?+*]) )?""",
    re.VERBOSE | re.DOTALL,
)
_CLASS_MEMBER = re.compile(rf"{_PROPERTY} | \\. | .", re.VERBOSE | re.DOTALL)
# What may ignore case: letters that no others fold to. To Oniguruma `ss` is also `ß`, and `fl` is `ﬂ`; only to `regex`
# `i` is also `İ`.
_WITHOUT_CASE = re.compile(r"['|)]|[sS](?![sStT])|[fF](?![fFlL])|[A-EGHJ-RT-Za-eghj-rt-z]|\[[A-HJ-Za-hj-z]+\]")

# Inside a class, what `\w` is to the library: letters, marks, digits, connectors such as _, and the two joiners.
WORD_CHARACTERS = r"\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\u200c\u200d"

# General categories, and scripts of which no character changed hands since Unicode 16.
_CATEGORY_NAMES = (
    "L LC Lu Ll Lt Lm Lo M Mn Mc Me N Nd Nl No P Pc Pd Ps Pe Pi Pf Po S Sm Sc Sk So Z Zs Zl Zp C Cc Cf Cn Co"
)
_SCRIPT_NAMES = (
    "Arabic Armenian Bengali Bopomofo Cyrillic Devanagari Ethiopic Georgian Greek Gujarati Gurmukhi Han Hangul "
    "Hebrew Hiragana Kannada Katakana Khmer Lao Latin Malayalam Mongolian Myanmar Sinhala Tamil Telugu Thai Tibetan"
)
_NAMES = frozenset([*_CATEGORY_NAMES.split(), *_SCRIPT_NAMES.split(), "Alphabetic"])
_LONG_NAMES = {"Letter": "L", "Mark": "M", "Number": "N", "Punctuation": "P", "Symbol": "S", "Separator": "Z"}


def _translated(source: str, otherwise: Mapping[str, str]) -> str:
    """The expression in the words of `regex`. otherwise: see `seen_otherwise`; with {} its tables are trusted."""
    if len(source) > _LONGEST:
        raise _refusal(source, f"it has {len(source):,} characters; at most {_LONGEST:,} are read")
    translated: list[str] = []
    open_groups: list[str] = []
    position = repeated = 0
    while position < len(source):
        part = _PART.match(source, position)
        without_case = "(?i:" in open_groups
        if part is None or (without_case and not _WITHOUT_CASE.match(source, position)):
            reason = f"{shown(source[position : position + 20])} in it may mean something else to the library"
            raise _refusal(source, reason)
        group = ""
        if part["open"]:
            open_groups.append(part["open"])
        elif part["close"] and open_groups:
            group = open_groups.pop()
        repeat = part["repeat"] or ""
        once = part["open"] or part["anchor"] or part["other"] == "|" or group.endswith(("=", "!"))
        if repeat and (once or (group and repeat != "?")):
            raise _refusal(source, f"{shown(part[0])} in it repeats what is read only once")
        repeated += max([0, *map(int, re.findall("[0-9]+", repeat))]) if len(repeat) < 12 else _MOST_REPEATED + 1
        if repeated > _MOST_REPEATED:
            raise _refusal(source, f"it repeats more than {_MOST_REPEATED:,} times")
        translated.append(_translated_part(part, source, otherwise) + repeat)
        position = part.end()
    return "".join(translated)


def _translated_part(part: re.Match[str], source: str, otherwise: Mapping[str, str]) -> str:
    if part["open"]:
        return "(?:" if part["open"] == "(" else part["open"]
    if part["anchor"]:  # Oniguruma's are those of a line, and no line begins behind the last line end
        return r"(?m:^(?!\Z))" if part["anchor"] == "^" else "(?m:$)"
    if part["property"]:
        _holds(part["property"], "Cn", source)  # refuses unknown names
        return _one_of("", [part["property"]], source, otherwise)
    if part["class"]:
        inside = part["class"][1:-1]
        negated = "^" if inside.startswith("^") else ""
        # A class inside a class is a union with it.
        members = [m for m in _CLASS_MEMBER.findall(inside[len(negated) :]) if m not in "[]"]
        return _one_of(negated, members, source, otherwise)
    return part["close"] or part["other"]


def _one_of(negated: str, members: list[str], source: str, otherwise: Mapping[str, str]) -> str:
    """The class [members], or [^members], whose properties mean what they meant in Unicode 16."""
    properties = [member for member in members if re.fullmatch(_PROPERTY, member, re.VERBOSE)]
    for member in properties:
        _holds(member, "Cn", source)  # refuses unknown names
    whole = f"[{negated}{''.join(members)}]"
    if not properties or not otherwise:
        return whole
    others = [rf"\{member}" if member == "^" else member for member in members if member not in properties]
    ranges = {category: as_ranges(characters) for category, characters in otherwise.items()}
    choices = [f"(?![{''.join(ranges.values())}]){whole}"]
    for category, characters in ranges.items():
        these = f"[{characters}]"
        if any(_holds(member, category, source) for member in properties):
            choices += [] if negated else [these]
        elif others:
            choices.append(f"(?={these})[{negated}{''.join(others)}]")
        elif negated:
            choices.append(these)
    return f"(?:{'|'.join(choices)})"


def _holds(member: str, category: str, source: str) -> bool:
    r"""True if \p{...}, \P{...}, \d or \D held the characters of this general category in Unicode 16."""
    if member in (r"\d", r"\D"):
        return (category == "Nd") == (member == r"\d")
    name = member[3:-1].removeprefix("^")
    name = _LONG_NAMES.get(name, name)
    if name not in _NAMES:
        raise _refusal(source, f"the property {shown(name)} is not known to mean the same to the library")
    holds = category in (name, *_WIDER.get(name, ())) or (name in "LMNPSZC" and category.startswith(name))
    return holds != ((member[1] == "P") != member[3:].startswith("^"))


# What else holds a category; of the last two, they hold U+0295, the one letter that has changed its category.
_WIDER = {"LC": ("Lu", "Ll", "Lt"), "Alphabetic": ("Ll",), "Latin": ("Ll",)}
