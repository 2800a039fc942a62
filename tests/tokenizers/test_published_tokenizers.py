"""Tokenizers as they are published give the library's ids, and load fast. Runs where such files are to be found.

PUBLISHED_TOKENIZERS names a folder whose folders each hold a tokenizer.json. CONTRIBUTING.md says how to fill it.
"""

import functools
import os
import random
from pathlib import Path

import pytest
import tokenizers
from tokenizer_references import TEXTS

from transformer_lab.tokenizers import BPE, load_tokenizer

PLACE = os.environ.get("PUBLISHED_TOKENIZERS")
FOLDERS = sorted(path.parent for path in Path(PLACE).glob("*/tokenizer.json")) if PLACE else []
WORDS = """
the king said to his son I'M it's DON'T def return 12345 3.14 ▁x naïve straße Füße ǅ ſt ΟΔΟΣ Привет мир 今天天气
こんにちは 한국어 مرحبا हिन्दी สวัสดี 🙂👍🏽 👨‍👩‍👧‍👦 Å ﬁ ① ½ 🫪 ʕAb
"""

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not FOLDERS, reason="PUBLISHED_TOKENIZERS does not name a folder of tokenizers"),
]


def mixed_text(seed, length=4000):
    """Words of many scripts, long runs of spaces, line ends, digits and signs, and any character at all."""
    chooser = random.Random(seed)
    parts, characters = [], 0
    while characters < length:
        kind = chooser.random()
        if kind < 0.5:
            part = chooser.choice(WORDS.split()) + chooser.choice([" ", " ", "  ", "\n", "\t", ""])
        elif kind < 0.6:
            part = chooser.choice([" ", "\n", "\t", "\r\n", "\u00a0", "\u3000", "\x1c"]) * chooser.randrange(1, 40)
        elif kind < 0.7:
            part = "".join(chooser.choices("0123456789", k=chooser.randrange(1, 30)))
        elif kind < 0.8:
            code = chooser.randrange(chooser.choice([0x80, 0x800, 0xD800, 0x30000, 0x110000]))
            part = "" if 0xD800 <= code < 0xE000 else chr(code)
        elif kind < 0.9:
            part = "".join(chooser.choices("ab▁ \n", k=chooser.randrange(1, 200)))
        else:
            part = chooser.choice("!?.,;:-_()[]{}'\"`~@#$%^&*+=<>/\\|")
        parts.append(part)
        characters += len(part)
    return "".join(parts)


@functools.cache
def both(folder):
    ours, library = load_tokenizer(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert isinstance(ours, BPE)
    library.no_truncation()
    library.no_padding()
    return ours, library


def with_added_tokens(ours, seed):
    chooser = random.Random(seed)
    texts = [token.text for token in ours.definition.added_tokens]
    return "".join(
        chooser.choice([*chooser.sample(texts, min(5, len(texts))), " ", "a", "\n", "b "]) for _ in range(80)
    )


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_ids_as_in_the_library(folder, tmp_path):
    ours, library = both(folder)
    texts = [*TEXTS, *map(mixed_text, range(20)), *(with_added_tokens(ours, seed) for seed in range(20))]
    for text in texts:
        for allow in (False, True):
            library.encode_special_tokens = not allow
            ids = ours.encode(text, allow)
            assert ids == library.encode(text, add_special_tokens=False).ids
            if not ours.is_byte_level:
                assert ours.decode(ids) == library.decode(ids, skip_special_tokens=False)
    ours.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert all(again.encode(text) == ours.encode(text) for text in texts[:30])


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_definition_written_anew_has_the_same_ids(folder):
    """Not the original file, which `save` gives back, but what was understood of it."""
    from transformer_lab.tokenizers.huggingface import HuggingFaceTokenizer

    ours, _ = both(folder)
    again = HuggingFaceTokenizer.from_definition(ours.definition)
    for seed in range(5):
        for text in (mixed_text(seed), with_added_tokens(ours, seed)):
            for allow in (False, True):
                assert again.encode(text, allow) == ours.encode(text, allow)
