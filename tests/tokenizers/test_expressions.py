"""Expressions from files find what Oniguruma finds in the `tokenizers` library, or are refused; and are bounded."""

import random
import time

import pytest
from hypothesis import given, settings, strategies
from tokenizer_references import TEXTS, any_text
from tokenizers import Regex, pre_tokenizers

from transformer_lab.errors import ConfigurationError, InputFileError
from transformer_lab.tokenizers import expressions
from transformer_lab.tokenizers.expressions import Expression, Literal, is_word_character
from transformer_lab.tokenizers.unicode_versions import all_seen_otherwise

# What published tokenizers split with, beside those of test_tokenizer_files.py.
PUBLISHED = {
    "DeepSeek-V3": r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
    "DeepSeek-LLM, signs": r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
    "DeepSeek-LLM, line ends": r"\s+$",
    "DeepSeek-LLM, ideographs": r"[一-龥ࠀ-一가-퟿]+",
    "BLOOM": r" ?[^(\s|[.,!?…。，、।۔،])]+",
    "CLIP": r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    "Falcon": "[0-9][0-9][0-9]",
    "CodeGen": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s+",
}
PUBLISHED["cl100k"] = PUBLISHED["cl100k"].replace("{1,3}+", "{1,3}")
# One expression for each part of the language that is read; the last of them match nothing at all somewhere.
PARTS = r"""
\s
\S+
\d+
\D
\n
\r\n
\t
\f|\v
\.
\\
\u00e9
.
a.b
ab|b
a?b
\p{L}+
\P{L}+
\p{^L}
\p{Lu}\p{Ll}*
\p{Han}+
\p{Cn}
\p{Letter}
[^a-z]
[\p{N}_]+
[^\s\p{L}\p{N}]+
[\p{L}\P{N}]
[^\P{L}]
[\p{L}^]+
[\d.]+
[\-a]
[-a]
[a-]
[\u0041-\u005a]+
[a[b-d]e]+
[^[.,]\s]+
[\[\]^]
[a|b]
[a&b]
[a~b]
^a
a$
^\s+
\s+$
^\p{L}|\n$
a(?=b)
a(?!b)
(?<=a)b
(?<!a)b
\s+(?!\S)
(?:ab|a)c
(ab)
(a|b)c?
(?:ab)?c
(?i:'s|'re)
(?i:S)
a*?b
a+
a+?
a??b
a?+b
a*+b
a++b
a{2}
a{1,2}
a{2,}
a{0}b
|a
a|
a*
b*
b*|a
(?=b)
(?=\p{L})
\s*
\s*(?=a)
a*?
^
$
(?<=a)""".splitlines()  # the first is the empty one
REFUSED = r"""
(a|a)*b
(a+)+
(?:a){2}
(\w)
\b
\h
\1
\x41
\p{Word}
\p{Foo}
\pL
\X
\G
[a&&b]
[a--b]
[a||b]
[a~~b]
[a-\d]
[\d-a]
[[:alpha:]]
[a[^b]]
[]a]
[
[a
[z-a]
(
)
a)
(?<n>a)
(?>a)
(?#a)
(?i)a
(?m:a)
(?-i:a)
a**
a{2}+
a{1,2}?b
a{3,1}
a{,2}
*a
|*
^*
{
a}
(?=a)?
(?i:ß)
(?i:ss)
(?i:fl)
(?i:i)
(?i:\p{L})
(?i:[a-i])
(?i:.)
\
"""
TOO_DEEP = "(?:" * 900 + "a" + ")" * 900


def library_pieces(expression, text, behavior="isolated", invert=False):
    split = pre_tokenizers.Split(Regex(expression), behavior, invert)
    return [piece for piece, _ in split.pre_tokenize_str(text)]


def matches(expression, text):
    return "".join(text[start:end] for start, end in Expression(expression).spans(text))


def borders(expression, text):
    """Where the library cuts, empty matches included."""
    cuts, place = [], 0
    for piece in library_pieces(expression, text):
        place += len(piece)
        cuts.append(place)
    return cuts


def our_borders(expression, text):
    cuts = {place for span in Expression(expression).spans(text) for place in span}
    return sorted(cuts.union([len(text)] if text else []) - {0})


@pytest.mark.parametrize("expression", [*PARTS, *PUBLISHED.values()])
def test_the_same_matches_as_in_the_library(expression):
    texts = [
        *TEXTS,
        "aab ab\nba abc\n\na cab",
        "it's 'S 'Re x\r\n\r\n",
        "a",
        "ab",
        "bb aabb",
        "\n",
        "a\n\n",
        "[^.,]&|~-_",
    ]
    for text in texts:
        assert our_borders(expression, text) == borders(expression, text), text
        matched = "".join(library_pieces(expression, text, "removed", invert=True))
        assert matches(expression, text) == matched


@settings(deadline=None, max_examples=60)
@given(expression=strategies.sampled_from([*PARTS, *PUBLISHED.values()]), text=any_text)
def test_the_same_matches_in_any_text(expression, text):
    assert our_borders(expression, text) == borders(expression, text)


ATOMS = [
    "a",
    "b",
    " ",
    r"\s",
    r"\S",
    ".",
    "[ab]",
    "[^a]",
    r"\p{L}",
    r"[^\p{L}\s]",
    "\n",
    "^",
    "$",
    "(?=a)",
    "(?<!b)",
    "(?!\\s)",
]
made_up = strategies.lists(
    strategies.tuples(
        strategies.sampled_from(ATOMS), strategies.sampled_from(["", "", "?", "*", "+", "*?", "+?", "++", "{1,2}", "|"])
    ).map(lambda part: part[0] + (part[1] if part[0][-1] not in "^$)" or part[1] == "|" else "")),
    min_size=1,
    max_size=6,
).map("".join)


@settings(deadline=None, max_examples=300)
@given(expression=made_up, text=strategies.text("ab \né1", max_size=12))
def test_made_up_expressions(expression, text):
    assert our_borders(expression, text) == borders(expression, text)


@pytest.mark.parametrize("name", sorted(expressions._NAMES | set(expressions._LONG_NAMES)))
def test_properties_are_those_of_unicode_16(name):
    """Among them many characters that the installed `regex` sees otherwise."""
    chooser = random.Random(name)
    others = [chr(code) for code in chooser.sample(range(0x110000), 300) if not 0xD800 <= code < 0xE000]
    otherwise = sorted(all_seen_otherwise().members)
    text = "".join([*map(chr, range(0x180)), *chooser.sample(otherwise, min(300, len(otherwise))), "ʕ", *others])
    assert matches(rf"\p{{{name}}}+", text) == "".join(library_pieces(rf"\p{{{name}}}+", text, "removed", invert=True))
    assert matches(rf"[^\p{{{name}}}a]+", text) == "".join(
        library_pieces(rf"[^\p{{{name}}}a]+", text, "removed", invert=True)
    )


@pytest.mark.skipif(not all_seen_otherwise().members, reason="the installed regex knows Unicode 16 and no more")
def test_without_the_table_other_pieces_come_out(monkeypatch):
    """DeepSeek's split beside a sign of Unicode 17, o200k's beside a letter that changed."""
    monkeypatch.setattr(Expression, "_for", lambda self, text: self._usual)
    assert our_borders(PUBLISHED["DeepSeek-V3"], "hi \U0001faea") != borders(PUBLISHED["DeepSeek-V3"], "hi \U0001faea")
    words = r"[\p{Lu}\p{Lo}]*[\p{Ll}\p{Lo}]+"
    assert our_borders(words, "\u0295Ab") != borders(words, "\u0295Ab")


@pytest.mark.parametrize("expression", [*REFUSED.strip("\n").split("\n"), TOO_DEEP])
def test_what_may_mean_something_else_is_refused(expression):
    with pytest.raises(ConfigurationError, match="is not read, because"):
        Expression(expression)


def test_the_refused_are_refused_for_a_reason():
    """Read in the words of `regex` alone, these would find something else than the library."""
    import regex

    for expression, text in [
        (r"\w+", "²"),
        (r"\h", "f"),
        ("(?i:ss)", "ß"),
        (r"(?i:\p{Lu})", "a"),
        ("[[:punct:]]", "Ⓐ"),
    ]:
        theirs = "".join(library_pieces(expression, text, "removed", invert=True))
        assert "".join(regex.findall(expression, text)) != theirs


@pytest.mark.parametrize(
    "expression",
    ["x{1,1000000}", "x{600}y{600}", "x{1001}", "x{,}" + "y{999}z{9}", "a" * 10_001, "x{1,99999999999999}"],
)
def test_what_would_fill_the_memory_is_refused_at_once(expression):
    begin = time.perf_counter()
    with pytest.raises(ConfigurationError, match=r"repeats more than 1,000 times|at most 10,000|something else"):
        Expression(expression)
    assert time.perf_counter() - begin < 1


def test_counts_of_the_size_of_published_ones_are_read():
    assert Expression(r"\p{N}{1,3}").findall("12345") == ["123", "45"]
    assert Expression("x{1,1000}").findall("x" * 2500) == ["x" * 1000, "x" * 1000, "x" * 500]


@pytest.mark.parametrize("expression", [r"\s+\s+\s+\s+\s+\s+\d", r"\s*\s*\s*\s*\s*\d|"])
def test_an_expression_that_takes_years_is_stopped(expression, monkeypatch):
    monkeypatch.setattr(expressions, "_SECONDS", 0.2)
    for search in (Expression(expression).findall, Expression(expression).spans):
        with pytest.raises(InputFileError, match="takes too long to cut this text"):
            search(" " * 5000)


@given(text=strategies.text("ab", max_size=20), literal=strategies.text("ab", max_size=3))
def test_plain_texts(text, literal):
    cuts = {place for span in Literal(literal).spans(text) for place in span}
    place, expected = 0, []
    for piece, _ in pre_tokenizers.Split(literal, "isolated").pre_tokenize_str(text):
        place += len(piece)
        expected.append(place)
    assert sorted(cuts.union([len(text)] if text else []) - {0}) == expected


def test_word_characters():
    characters = [*map(chr, range(0x3000)), *sorted(all_seen_otherwise().members)[::50], "\U0001d7d8", "\u203f", "ʕ"]
    whitespace = pre_tokenizers.Whitespace()
    for character in characters:
        together = [piece for piece, _ in whitespace.pre_tokenize_str(f"a{character}")] == [f"a{character}"]
        assert is_word_character(character) == together, hex(ord(character))
