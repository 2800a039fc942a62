"""Kinds of tokens, on a text that has all of them, by two tokenizers of other forms."""

import pytest

import transformer_lab as lab
from transformer_lab.routes.token_classes import CLASSES, token_classes

TEXT = 'The kingfisher said: "No!"\n\n 12 men\'s hats'


@pytest.fixture(scope="module")
def storybook():
    return lab.load_tokenizer("storybook")


def classed(tokenizer, text, allow_special=False):
    ids = tokenizer.encode(text, allow_special=allow_special)
    return list(zip([tokenizer.decode([one]) for one in ids], token_classes(tokenizer, ids), strict=True))


def test_every_class(storybook):
    found = classed(storybook, TEXT + "<|endoftext|>Ä€next", allow_special=True)
    assert found[0] == ("The", "word start")
    assert {name for _, name in found} == {*CLASSES}
    for text, name in found:
        body = text.strip()
        assert (name == "special") == (text == "<|endoftext|>")
        assert name != "space" or not body
        assert name != "digit" or body.isnumeric()
        assert name != "punctuation" or not any(letter.isalnum() for letter in body)
        assert name != "word start" or any(letter.isalpha() for letter in body)
        assert name != "continuation" or not text[0].isspace()
        assert (name == "part of a character") == ("\ufffd" in text)


def test_a_continuation_stands_behind_a_letter():
    tokenizer = lab.train_tokenizer("a", 257)  # every byte is a token
    assert [name for _, name in classed(tokenizer, 'on "it')] == [
        *("word start", "continuation", "space", "punctuation", "word start", "continuation")
    ]


def test_tokens_that_are_no_bytes_of_their_own(tmp_path):
    """Metaspace: the first token of a text loses its space, and a token between others does not."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens = ["<unk>", "\u2581on", "\u2581the", "re", "\u25811", "."]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    made = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()

    class Words:
        is_byte_level, special_tokens = False, {"<unk>": 0}

        def decode(self, ids):
            return made.decode(list(ids), skip_special_tokens=False)

    expected = ["word start", "word start", "continuation", "digit", "punctuation", "special"]
    assert token_classes(Words(), [1, 2, 3, 4, 5, 0]) == expected
