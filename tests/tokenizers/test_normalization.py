"""Every step of a normalizer gives the text that the `tokenizers` library gives, whatever Unicode the machine has."""

import json
import time

import pytest
from hypothesis import given, settings, strategies
from tokenizer_references import TEXTS, any_text
from tokenizers import Tokenizer

from transformer_lab.errors import InputFileError
from transformer_lab.tokenizers import normalization
from transformer_lab.tokenizers.normalization import growth, normalize
from transformer_lab.tokenizers.normalizer_json import normalizer_json, read_normalizer
from transformer_lab.tokenizers.unicode_versions import newer_than

STEPS = {
    **{form: {"type": form} for form in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents")},
    "Strip": {"type": "Strip", "strip_left": True, "strip_right": True},
    "Strip left": {"type": "Strip", "strip_left": True, "strip_right": False},
    "Strip right": {"type": "Strip", "strip_left": False, "strip_right": True},
    "Prepend": {"type": "Prepend", "prepend": "▁"},
    "Prepend nothing": {"type": "Prepend", "prepend": ""},
    "Replace": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    "Replace away": {"type": "Replace", "pattern": {"String": "e"}, "content": ""},
    "Replace between": {"type": "Replace", "pattern": {"String": ""}, "content": "·"},
    "Replace all": {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
    "Replace perhaps nothing": {"type": "Replace", "pattern": {"Regex": r"\p{L}*"}, "content": "x"},
    "Replace, no group": {"type": "Replace", "pattern": {"String": "1"}, "content": r"$0\0"},
}
SEQUENCES = {
    "Llama 2": [STEPS["Prepend"], STEPS["Replace"]],
    "CLIP": [STEPS["NFC"], STEPS["Replace all"], STEPS["Lowercase"]],
    "without accents": [STEPS["NFD"], STEPS["StripAccents"], STEPS["Lowercase"], STEPS["Strip"]],
    "nested": [{"type": "Sequence", "normalizers": [STEPS["NFKD"]]}, {"type": "Sequence", "normalizers": []}],
    "nothing": [],
}
ALL = {**STEPS, **{name: {"type": "Sequence", "normalizers": steps} for name, steps in SEQUENCES.items()}}


def library(value):
    data = {"normalizer": value, "model": {"type": "BPE", "vocab": {}, "merges": []}}
    return Tokenizer.from_str(json.dumps(data)).normalizer.normalize_str


def ours(value, where="tokenizer.json"):
    steps = read_normalizer(value, where)
    return lambda text: normalize(steps, text)


@pytest.mark.parametrize("name", ALL)
def test_known_texts(name):
    for text in [
        *TEXTS,
        "ΟΔΟΣ ΣΊΣΥΦΟΣ",
        "İstanbul ǅ ß ẞ",
        "\u1e9b\u0323 \u212b Å \uf900",
        "ﷺ ㋿ ﬃ",
        "q\u0307\u0323",
        "각 ᄀ",
    ]:
        assert ours(ALL[name])(text) == library(ALL[name])(text)


@pytest.mark.parametrize("name", ALL)
@settings(deadline=None, max_examples=25)
@given(text=any_text)
def test_any_text(name, text):
    assert ours(ALL[name])(text) == library(ALL[name])(text)


@pytest.mark.parametrize("name", ["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Strip"])
def test_every_character(name):
    mine, theirs = ours(STEPS[name]), library(STEPS[name])
    everything = [chr(code) for code in range(0x20000) if not 0xD800 <= code < 0xE000] + list("\U0002f800\U000e0100")
    for start in range(0, len(everything), 64):  # apart from each other, so that none composes with its neighbour
        text = "|".join(everything[start : start + 64])
        assert mine(text) == theirs(text), text


@settings(deadline=None, max_examples=50)
@given(data=strategies.data())
def test_characters_that_came_after_unicode_9_beside_others(data):
    """They neither decompose nor compose nor move, as the library does not know them."""
    newer = [chr(codes[0]) for codes in newer_than(9) if codes[0] < 0x20000]
    marks = [
        "\u0301",
        "\u0323",
        "\u05b0",
        "a",
        "e",
        "가",
        "\U00011935",
        "\U00011930",
        "\U00011938",
        "\U0001e131",
        "\u08d3",
    ]
    text = "".join(data.draw(strategies.lists(strategies.sampled_from(newer + marks * 20), max_size=12)))
    for form in ("NFC", "NFD", "NFKC", "NFKD", "StripAccents"):
        assert ours(STEPS[form])(text) == library(STEPS[form])(text)


def test_python_alone_gives_other_texts(monkeypatch):
    from transformer_lab.tokenizers.unicode_versions import Characters

    monkeypatch.setattr(normalization, "normalized_otherwise", lambda: Characters(""))
    assert ours(STEPS["NFKC"])("㋿") != library(STEPS["NFKC"])("㋿")
    assert "ΟΔΟΣ".lower() != library(STEPS["Lowercase"])("ΟΔΟΣ")
    assert "\x1c ".strip() != library(STEPS["Strip"])("\x1c ")


@pytest.mark.parametrize("name", ALL)
def test_writing_gives_what_was_read(name):
    steps = read_normalizer(ALL[name], "tokenizer.json")
    again = normalizer_json(steps)
    assert read_normalizer(again, "tokenizer.json") == steps
    if again is not None:
        for text in TEXTS:
            assert library(again)(text) == library(ALL[name])(text)


@pytest.mark.parametrize("name", ALL)
def test_growth_is_no_less_than_what_grows(name):
    """Of one character, and of all characters that grow most."""
    steps = [step for step in read_normalizer(ALL[name], "") if type(step).__name__ != "Prepend"]
    for text in ["İ", "ﷺ", "ΐ", "ᾂ", "\U0001d160", " ", "a", "1", "e", "ﷺİ" * 20]:
        assert len(normalize(steps, text)) <= growth(steps) * len(text) + growth(steps)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "field normalizer: expected an object"),
        ({"type": "BertNormalizer"}, "field normalizer.type: found 'BertNormalizer'"),
        ({}, "field normalizer.type: found null"),
        ({"type": "Sequence", "normalizers": {}}, r"field normalizer.normalizers: expected a list"),
        ({"type": "Sequence", "normalizers": [5]}, r"field normalizer.normalizers\[0\]: expected an object"),
        ({"type": "Sequence", "normalizers": [{"type": "NFC"}] * 51}, "51 entries; more than 50"),
        ({"type": "Prepend"}, "field normalizer.prepend: expected a text"),
        ({"type": "Strip", "strip_left": 1}, "field normalizer.strip_left: expected true or false"),
        ({"type": "Replace", "content": ""}, "field normalizer.pattern: found null"),
        ({"type": "Replace", "pattern": "a", "content": ""}, "field normalizer.pattern: found 'a'"),
        ({"type": "Replace", "pattern": {"String": "a", "Regex": "b"}, "content": ""}, "field normalizer.pattern"),
        ({"type": "Replace", "pattern": {"String": "a"}}, "field normalizer.content: expected a text"),
        ({"type": "Replace", "pattern": {"Regex": "(a"}, "content": ""}, "field normalizer.pattern.Regex"),
        ({"type": "Replace", "pattern": {"Regex": "(a)"}, "content": "$1"}, "field normalizer.content.*without"),
    ],
)
def test_what_is_not_read(value, words):
    with pytest.raises(InputFileError, match=words):
        read_normalizer(value, "tokenizer.json")


def test_sequences_inside_each_other_are_bounded():
    inside = {"type": "NFC"}
    for _ in range(30):
        inside = {"type": "Sequence", "normalizers": [inside]}
    with pytest.raises(InputFileError, match="entries; more than"):
        read_normalizer(inside, "tokenizer.json")
    wide = {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [{"type": "NFC"}] * 50}] * 50}
    begin = time.perf_counter()
    with pytest.raises(InputFileError, match="more than 50"):
        read_normalizer({"type": "Sequence", "normalizers": [wide] * 50}, "tokenizer.json")
    assert time.perf_counter() - begin < 1
