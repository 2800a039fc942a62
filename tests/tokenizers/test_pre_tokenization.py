"""Every step of a pre-tokenizer cuts a text where the `tokenizers` library cuts it."""

import json

import pytest
from hypothesis import given, settings
from tokenizer_references import TEXTS, any_text
from tokenizers import Tokenizer

from transformer_lab.errors import InputFileError
from transformer_lab.tokenizers.pre_tokenization import pre_tokenize
from transformer_lab.tokenizers.pre_tokenizer_json import pre_tokenizer_json, read_pre_tokenizer

BEHAVIORS = ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")


def split(pattern, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}


def byte_level(add_prefix_space=False, use_regex=True):
    flags = {"add_prefix_space": add_prefix_space, "trim_offsets": True, "use_regex": use_regex}
    return {"type": "ByteLevel", **flags}


def metaspace(prepend_scheme, split=True, replacement="▁"):
    return {"type": "Metaspace", "replacement": replacement, "prepend_scheme": prepend_scheme, "split": split}


STEPS = {
    **{
        f"Split {pattern} {behavior}{' inverted' * invert}": split(pattern, behavior, invert)
        for pattern in ({"String": " "}, {"String": "the"}, {"Regex": r"\s+|\p{P}"}, {"Regex": r"\d*"})
        for behavior in BEHAVIORS
        for invert in (False, True)
    },
    **{f"ByteLevel {prefix} {regex}": byte_level(prefix, regex) for prefix in (False, True) for regex in (False, True)},
    **{
        f"Metaspace {scheme} {cut}": metaspace(scheme, cut)
        for scheme in ("always", "first", "never")
        for cut in (0 < 1, 0 > 1)
    },
    "Metaspace, another sign": metaspace("always", True, "_"),
    "Metaspace of old": {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True},
    "Digits": {"type": "Digits", "individual_digits": False},
    "Digits one by one": {"type": "Digits", "individual_digits": True},
    "Punctuation": {"type": "Punctuation"},
    **{f"Punctuation {behavior}": {"type": "Punctuation", "behavior": behavior} for behavior in BEHAVIORS},
    "Whitespace": {"type": "Whitespace"},
    "WhitespaceSplit": {"type": "WhitespaceSplit"},
}
SEQUENCES = {
    "nothing": [],
    "Falcon": [
        {"type": "Punctuation", "behavior": "Contiguous"},
        byte_level(),
        {"type": "Digits", "individual_digits": False},
        split({"Regex": "[0-9][0-9][0-9]"}),
    ],
    "StarCoder": [{"type": "Digits", "individual_digits": True}, byte_level()],
    "DeepSeek-Coder": [
        *(split({"Regex": regex}) for regex in (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")),
        {"type": "Digits", "individual_digits": True},
        byte_level(use_regex=False),
    ],
    "a space before every word": [{"type": "WhitespaceSplit"}, byte_level(True)],
    "words with signs": [{"type": "WhitespaceSplit"}, metaspace("always")],
    "nested": [{"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, {"type": "Punctuation"}]}],
    "cut behind the bytes": [byte_level(True), split({"String": "Ġ"}, "MergedWithPrevious")],
}
ALL = {**STEPS, **{name: {"type": "Sequence", "pretokenizers": steps} for name, steps in SEQUENCES.items()}}
MORE_TEXTS = [
    "the king's 12 the34 the",
    "a-b--c",
    "...a.b",
    "12 3",
    "  the  ",
    "the",
    " ",
    "1",
    "a,b!c",
    "▁a ▁ b_c",
    "_a b",
]


def library(value):
    data = {"pre_tokenizer": value, "model": {"type": "BPE", "vocab": {}, "merges": []}}
    step = Tokenizer.from_str(json.dumps(data)).pre_tokenizer
    return lambda text: [piece for piece, _ in step.pre_tokenize_str(text)] if text else []


def ours(value):
    pieces = pre_tokenize(read_pre_tokenizer(value, "tokenizer.json"))
    return lambda text: list(pieces(text)) if text else []


@pytest.mark.parametrize("name", ALL)
def test_known_texts(name):
    mine, theirs = ours(ALL[name]), library(ALL[name])
    for text in [*TEXTS, *MORE_TEXTS]:
        assert mine(text) == theirs(text)


@pytest.mark.parametrize("name", ALL)
@settings(deadline=None, max_examples=15)
@given(text=any_text)
def test_any_text(name, text):
    assert ours(ALL[name])(text) == library(ALL[name])(text)


@pytest.mark.parametrize("name", ["Digits", "Punctuation", "Whitespace", "WhitespaceSplit", "ByteLevel False True"])
def test_every_character(name):
    mine, theirs = ours(STEPS[name]), library(STEPS[name])
    everything = [chr(code) for code in range(0x20000) if not 0xD800 <= code < 0xE000]
    for start in range(0, len(everything), 256):
        text = "a".join(everything[start : start + 256])
        assert mine(text) == theirs(text), hex(start)


@pytest.mark.parametrize("name", ALL)
def test_writing_gives_what_was_read(name):
    steps = read_pre_tokenizer(ALL[name], "tokenizer.json")
    again = pre_tokenizer_json(steps)
    assert read_pre_tokenizer(again, "tokenizer.json") == steps
    if again is not None:
        for text in MORE_TEXTS:
            assert library(again)(text) == library(ALL[name])(text)


def test_wrong_behaviors_are_noticed():
    """Each behavior cuts some text as no other does."""
    pattern = {"Regex": r"\p{P}"}
    found = {str([ours(split(pattern, behavior))(text) for text in MORE_TEXTS]) for behavior in BEHAVIORS}
    assert len(found) == len(BEHAVIORS)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "field pre_tokenizer: expected an object"),
        ({"type": "BertPreTokenizer"}, "field pre_tokenizer.type: found 'BertPreTokenizer'"),
        ({"type": "Sequence", "pretokenizers": 5}, "field pre_tokenizer.pretokenizers: expected a list"),
        ({"type": "Sequence", "pretokenizers": [5]}, r"field pre_tokenizer.pretokenizers\[0\]: expected an object"),
        ({"type": "Sequence", "pretokenizers": [{"type": "Digits"}] * 51}, "51 entries; more than 50"),
        ({"type": "Split", "pattern": {"String": "a"}}, "field pre_tokenizer.behavior: expected a text, found null"),
        (
            {"type": "Split", "pattern": {"String": "a"}, "behavior": "Else"},
            "field pre_tokenizer.behavior: found 'Else'",
        ),
        ({"type": "Split", "behavior": "Isolated"}, "field pre_tokenizer.pattern: found null"),
        ({"type": "Split", "pattern": {"Regex": r"\b"}, "behavior": "Isolated"}, "field pre_tokenizer.pattern.Regex"),
        ({"type": "ByteLevel", "use_regex": "no"}, "field pre_tokenizer.use_regex: expected true or false"),
        ({"type": "Metaspace"}, "field pre_tokenizer.replacement: expected a text"),
        ({"type": "Metaspace", "replacement": "ab"}, "field pre_tokenizer.replacement: found 'ab'"),
        ({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "last"}, "field pre_tokenizer.prepend_scheme"),
        ({"type": "Metaspace", "replacement": "▁", "add_prefix_space": False}, "field pre_tokenizer.add_prefix_space"),
    ],
)
def test_what_is_not_read(value, words):
    with pytest.raises(InputFileError, match=words):
        read_pre_tokenizer(value, "tokenizer.json")
