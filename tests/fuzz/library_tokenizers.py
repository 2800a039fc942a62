"""Damaged tokenizer.json files of every kind that the `tokenizers` library knows, which it reads and runs.

Each is put together at random from models, normalizers, pre-tokenizers, decoders and post-processors with all their
fields, and then damaged, or not. What is streamed behind a prompt is held against the rule: decode(prompt + new)
without its beginning decode(prompt).
"""

import json
from itertools import takewhile

from damage import damage, dumped, odd, put

from transformer_lab.tokenizers import load_tokenizer_folder
from transformer_lab.tokenizers.text_template import TextTemplate

TEXT = "Once upon a time, it's   12:30!\n\n  École <unk>▁the##ed ☃ e\u0301 𝒳y" + " \t" * 5
WORDS = {"<unk>": 0, "▁the": 1, "the": 2, "##ed": 3, "O": 4, "n": 5, "<0xE2>": 6, "<0x0A>": 7, "▁": 8, "a": 9, "on": 10}

MODELS = [
    {"type": "WordLevel", "vocab": WORDS, "unk_token": "<unk>"},
    {"type": "WordPiece", "vocab": WORDS, "unk_token": "<unk>", "continuing_subword_prefix": "##",
     "max_input_chars_per_word": 100},
    {"type": "Unigram", "vocab": [[word, -1.5 * number] for word, number in WORDS.items()], "unk_id": 0,
     "byte_fallback": False},
    {"type": "Unigram", "vocab": [[word, 0.0] for word in WORDS], "unk_id": 0, "byte_fallback": True},
    {"type": "BPE", "vocab": WORDS, "merges": [["o", "n"]], "unk_token": "<unk>", "fuse_unk": True,
     "byte_fallback": True, "dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
     "ignore_merges": False},
    {"type": "BPE", "vocab": WORDS | {"o": 11}, "merges": ["o n"], "unk_token": "<unk>", "end_of_word_suffix": "</w>"},
]  # fmt: skip
NORMALIZERS = [
    None,
    *({"type": kind} for kind in ("NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "StripAccents")),
    {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": True,
    },
    {"type": "Strip", "strip_left": True, "strip_right": False},
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
    {"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAABhAGIA"},
    {"type": "ByteLevel"},
]
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
PRE_TOKENIZERS = [
    None,
    *({"type": kind} for kind in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit", "UnicodeScripts")),
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True},
    {"type": "CharDelimiterSplit", "delimiter": "i"},
    {"type": "Digits", "individual_digits": True},
    {"type": "Punctuation", "behavior": "Contiguous"},
    {"type": "FixedLength", "length": 3},
    SPLIT | {"pattern": {"Regex": r"\w+|[^\w\s]+"}},
    SPLIT | {"pattern": {"String": "e"}, "behavior": "Removed"},
]
DECODERS = [
    None,
    *({"type": kind} for kind in ("ByteLevel", "ByteFallback", "Fuse")),
    {"type": "WordPiece", "prefix": "##", "cleanup": True},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    {"type": "BPEDecoder", "suffix": "</w>"},
    {"type": "CTC", "pad_token": "<unk>", "word_delimiter_token": "▁", "cleanup": True},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "Replace", "pattern": {"Regex": "e+"}, "content": ""},
]
BEGIN = {"SpecialToken": {"id": "<unk>", "type_id": 0}}
PROCESSORS = [
    None,
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
    {"type": "BertProcessing", "sep": ["<unk>", 0], "cls": ["the", 2]},
    {"type": "RobertaProcessing", "sep": ["<unk>", 0], "cls": ["the", 2], "trim_offsets": True,
     "add_prefix_space": True},
    {"type": "TemplateProcessing", "single": [BEGIN, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [],
     "special_tokens": {"<unk>": {"id": "<unk>", "ids": [0], "tokens": ["<unk>"]}}},
]  # fmt: skip
ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": True}


def steps(rng, choices, name):
    """One of the choices, or a few in a row."""
    if rng.random() < 0.5:
        return rng.choice(choices)
    return {"type": "Sequence", name: rng.sample(choices[1:], rng.choice([0, 1, 2, 3]))}


def made_up(rng):
    """A tokenizer.json of random parts."""
    texts = rng.sample(["<unk>", "the", "é", " ", "<b>", "▁the", "Once"], rng.choice([0, 1, 3]))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": WORDS.get(text, 12 + n), "content": text, **ADDED} for n, text in enumerate(texts)],
        "normalizer": steps(rng, NORMALIZERS, "normalizers"),
        "pre_tokenizer": steps(rng, PRE_TOKENIZERS, "pretokenizers"),
        "post_processor": steps(rng, PROCESSORS, "processors"),
        "decoder": steps(rng, DECODERS, "decoders"),
        "model": rng.choice(MODELS),
    }


def library_kind(rng, folder):
    """Any tokenizer of the library, damaged three times out of four."""
    value = made_up(rng)
    chance = rng.random()
    if chance < 0.6:
        value = damage(rng, value)
    elif chance < 0.75:
        value[rng.choice(list(value))] = odd(rng)
    put(folder, {"tokenizer.json": dumped(rng, value) if chance < 0.75 else json.dumps(value).encode()})

    def read():
        tokenizer = load_tokenizer_folder(folder, "huggingface")
        assert isinstance(tokenizer.template, TextTemplate)
        ids = tokenizer.encode(TEXT, allow_special=rng.random() < 0.5)[:200]
        cut = rng.randrange(len(ids) + 1)
        before, whole = tokenizer.decode(ids[:cut]), tokenizer.decode(ids)
        stream = tokenizer.stream_decoder(ids[:cut])
        pieces = [*map(stream.push, ids[cut:]), stream.flush()]
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, whole, strict=False)))
        assert "".join(pieces) == whole[same:], (before, whole, pieces)

    return read
