"""Published expressions by `re` on ASCII, section by section: the matches of `regex` on the whole text."""

import random

import pytest
from hypothesis import given, settings, strategies
from tokenizer_references import any_text

from transformer_lab.tokenizers import ascii_splits, expressions, published_splits
from transformer_lab.tokenizers.ascii_splits import on_ascii
from transformer_lab.tokenizers.expressions import Expression
from transformer_lab.tokenizers.safe_cuts import SECTION, last_safe_cut, sections

ALL = sorted(published_splits.ALL)
ASCII = "".join(map(chr, range(128)))
FRAGMENTS = [
    "it's",
    "I'LL",
    "'",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t ",
    "\x1c",
    "\x0b",
    "aBC",
    "x1",
    "1234",
    "!?",
    "(a",
    "/\n",
    "_",
    "+=",
    "<|endoftext|>",
]
ascii_text = strategies.lists(strategies.sampled_from([*FRAGMENTS, *ASCII])).map("".join)


def on_the_whole(expression, text):
    return Expression(expression)._for(text).findall(text)


def long_text(seed, length=3 * SECTION):
    """Some sections are ASCII and some are not; there are runs of white space and long words to cut in."""
    chooser = random.Random(seed)
    ascii_parts = [*FRAGMENTS, " the", " king", " ", " "]
    parts = [*ascii_parts, "é", "’s", "\u3000", "\u2028 ", "你好", "ſ", "\u0301", "½"]
    words = [chooser.choice(parts if i < length // 3 else ascii_parts) for i in range(length)]
    words[length // 2 : length // 2] = [" " * (SECTION + 10), "a" * (SECTION + 10), " x"]
    return "".join(words)


@settings(deadline=None, max_examples=200)
@given(text=ascii_text)
def test_the_same_matches_in_ascii(text):
    for expression in ALL:
        assert on_ascii(expression)(text) == on_the_whole(expression, text), expression


@settings(deadline=None, max_examples=100)
@given(text=any_text | ascii_text)
def test_the_same_matches_in_any_text(text):
    for expression in ALL:
        assert Expression(expression).findall(text) == on_the_whole(expression, text), expression


@pytest.mark.parametrize("expression", ALL)
@pytest.mark.parametrize("seed", range(3))
def test_the_same_matches_in_a_long_text(expression, seed):
    text = long_text(seed)
    parts = list(sections(text))
    assert len(parts) > 3
    assert 0 < sum(map(str.isascii, parts)) < len(parts)
    assert Expression(expression).findall(text) == on_the_whole(expression, text)


def test_white_space_of_re_is_noticed(monkeypatch):
    monkeypatch.setattr(ascii_splits, "_WHITE_SPACE", r"\s")
    text = "a\x1c!"
    assert on_ascii(published_splits.LLAMA3)(text) != on_the_whole(published_splits.LLAMA3, text)


@pytest.mark.parametrize("expression", ALL)
def test_cutting_anywhere_is_noticed(expression, monkeypatch):
    monkeypatch.setattr(expressions, "sections", lambda text: [text[: SECTION + 2], text[SECTION + 2 :]])
    text = " king" * SECTION
    assert Expression(expression).findall(text) != on_the_whole(expression, text)


@pytest.mark.parametrize("expression", ALL)
@pytest.mark.parametrize("seed", range(3))
def test_a_safe_cut_is_a_border_whatever_surrounds_it(expression, seed):
    text = long_text(seed, 200)
    cut = last_safe_cut(text, 1, len(text))
    assert cut > 0
    for start, end in ((0, len(text)), (cut - 1, cut + 1), (max(0, cut - 7), cut + 3)):
        matches = [match.span() for match in Expression(expression)._for(text).finditer(text[start:end])]
        assert not any(start + a < cut < start + b for a, b in matches)
