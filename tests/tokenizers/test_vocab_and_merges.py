"""vocab.json and merges.txt alone mean what their class in transformers means, or are refused by the class's name."""

import json

import pytest
import transformers
from hypothesis import given, settings
from tokenizer_references import TEXTS, any_text
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import models, normalizers, pre_tokenizers, trainers

from transformer_lab.errors import InputFileError
from transformer_lab.tokenizers import TOKENIZER_KINDS, load_tokenizer
from transformer_lab.tokenizers.tokenizer_class import CLASSES

CORPUS = ["the king said I'M old, it's 12 and 1234 and don't", "a photo of a cat, a photo of the kings"] * 4
SPECIAL = {
    "GPT2Tokenizer": ["<|endoftext|>"],
    "CodeGenTokenizer": ["<|endoftext|>"],
    "WhisperTokenizer": ["<|endoftext|>"],
    "GPTNeoXTokenizer": ["<|endoftext|>", "<|padding|>"],
    "Qwen2Tokenizer": ["<|endoftext|>"],
    "CLIPTokenizer": ["<|startoftext|>", "<|endoftext|>"],
    "DebertaTokenizer": ["[CLS]", "[SEP]", "[UNK]", "[PAD]", "[MASK]"],
}
TEXTS_OF_CLASSES = [
    *TEXTS,
    *CORPUS,
    "I'M the KING's",
    "Café 12345\r\n\r\n  x",
    "a  photo\n",
    "…ok",
    "e\u0301 É",
    "\u0295Ab 🫪",
]


def pair_of(folder, name, **config):
    """A small vocabulary with the alphabet that the class needs, trained by the library."""
    suffix = {"end_of_word_suffix": "</w>"} if name.startswith("CLIP") else {}
    library = LibraryTokenizer(models.BPE(**suffix))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.normalizer = normalizers.Lowercase() if suffix else None
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = SPECIAL.get(name.removesuffix("Fast"), ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    trainer = trainers.BpeTrainer(
        vocab_size=600 if suffix else 340,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
        **suffix,
    )
    library.train_from_iterator(CORPUS, trainer)
    model = json.loads(library.to_str())["model"]
    for character in sorted(alphabet) if suffix else ():
        model["vocab"].setdefault(character + "</w>", len(model["vocab"]))
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = "\n".join(["#version: 0.2", *map(" ".join, model["merges"])]) + "\n"
    (folder / "merges.txt").write_text(merges, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, **config}))
    return folder


def transformers_tokenizer(folder, name):
    known = {"BartTokenizer", "LongformerTokenizer", "LEDTokenizer"}  # in transformers 5 other names of this one
    kind = getattr(transformers, "RobertaTokenizer" if name in known else name)
    return kind.from_pretrained(folder)


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
@pytest.mark.parametrize("name", CLASSES)
def test_classes_as_in_transformers(name, kind, tmp_path):
    folder = pair_of(tmp_path / "pair", name)
    theirs, ours = transformers_tokenizer(folder, name), load_tokenizer(folder, kind)
    special = "".join(f"a{token} b " for token in SPECIAL.get(name, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]))
    for text in [*TEXTS_OF_CLASSES, special]:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, allow_special=True) == ids, text
    assert set(ours.special_tokens) == set(theirs.all_special_tokens)
    assert ours.vocab_size == len(theirs)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    found = {}
    for name in CLASSES:
        folder = pair_of(tmp_path_factory.mktemp(name) / "pair", name)
        found[name] = transformers_tokenizer(folder, name), load_tokenizer(folder)
    return found


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "Qwen2Tokenizer", "CLIPTokenizer", "GPTNeoXTokenizer"])
@settings(deadline=None, max_examples=30)
@given(text=any_text)
def test_any_text(name, text, loaded):
    theirs, ours = loaded[name]
    assert ours.encode(text, allow_special=True) == theirs(text, add_special_tokens=False)["input_ids"]


def test_the_classes_differ(loaded):
    """With GPT-2's rules for all, these would have other ids."""
    gpt2 = loaded["GPT2Tokenizer"][1]
    for name in ("Qwen2Tokenizer", "CLIPTokenizer", "GPTNeoXTokenizer"):
        ours = loaded[name][1]
        assert any(
            [ours.decode([i]) for i in ours.encode(text)] != [gpt2.decode([i]) for i in gpt2.encode(text)]
            for text in TEXTS_OF_CLASSES
        )


def test_clip_decodes_its_words(loaded):
    theirs, ours = loaded["CLIPTokenizer"]
    ids = ours.encode("A photo of the king's cat")
    assert ours.decode(ids) == theirs.decode(ids) == "a photo of the king 's cat"


@pytest.mark.parametrize(
    "name", ["GPT2TokenizerFast", "RobertaTokenizerFast", "CLIPTokenizerFast", "Qwen2TokenizerFast"]
)
def test_fast_in_the_name_makes_no_difference(name, tmp_path):
    fast = load_tokenizer(pair_of(tmp_path, name))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name.removesuffix("Fast")}))
    slow = load_tokenizer(tmp_path)
    assert all(slow.encode(text) == fast.encode(text) for text in TEXTS_OF_CLASSES)


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "RobertaTokenizer", "Qwen2Tokenizer", "BlenderbotTokenizer"])
@pytest.mark.parametrize("asked", [True, False])
def test_a_space_before_a_text(name, asked, tmp_path):
    folder = pair_of(tmp_path / "pair", name, add_prefix_space=asked)
    theirs, ours = transformers_tokenizer(folder, name), load_tokenizer(folder)
    for text in ["king", " king", "", "a king\nx"]:
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]


def test_without_a_class_it_is_gpt2s(tmp_path):
    named = load_tokenizer(pair_of(tmp_path, "GPT2Tokenizer"))
    (tmp_path / "tokenizer_config.json").unlink()
    plain = load_tokenizer(tmp_path)
    assert all(plain.encode(text) == named.encode(text) for text in TEXTS_OF_CLASSES)


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
@pytest.mark.parametrize("name", ["LlamaTokenizer", "OpenAIGPTTokenizer", "PreTrainedTokenizerFast", "Unheard", "Fast"])
def test_other_classes_are_refused_by_name(name, kind, tmp_path):
    with pytest.raises(
        InputFileError, match=f"tokenizer_config.json, field tokenizer_class: '{name}' has a way of its own"
    ):
        load_tokenizer(pair_of(tmp_path / "pair", name), kind)


def test_a_class_that_is_no_text(tmp_path):
    folder = pair_of(tmp_path / "pair", "GPT2Tokenizer")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": 5}')
    with pytest.raises(InputFileError, match="field tokenizer_class: expected a text, found a number"):
        load_tokenizer(folder)


def test_beside_a_tokenizer_json_the_class_is_not_asked(tmp_path):
    folder = pair_of(tmp_path / "pair", "Qwen2Tokenizer")
    ours = load_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "Unheard"}')
    from transformer_lab.tokenizers.tokenizer_json import to_tokenizer_json

    (folder / "tokenizer.json").write_text(json.dumps(to_tokenizer_json(ours.definition)))
    again = load_tokenizer(folder)
    assert all(ours.encode(text) == again.encode(text) for text in TEXTS_OF_CLASSES)
