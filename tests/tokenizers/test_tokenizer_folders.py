"""Folders of tokenizers as they are published: read whole, and given back as they were. Judge: transformers."""

import json
from itertools import product

import pytest
import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from transformer_lab.errors import InputFileError
from transformer_lab.tokenizers import TOKENIZER_KINDS, load_tokenizer, loading, published_splits, train_tokenizer
from transformer_lab.tokenizers.text_template import TextTemplate, text_template
from transformer_lab.tokenizers.tokenizer_config import with_tokenizer_config

TEXT = "the old king said to the old man: the king is old"
BOS = [("<s>", 0)]
PROCESSORS = {
    "none": None,
    "ByteLevel": processors.ByteLevel(),
    "begin": processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=BOS),
    "both": processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[*BOS, ("</s>", 1)]),
    "sequence": processors.Sequence(
        [processors.ByteLevel(), processors.TemplateProcessing(single="<s> $A", special_tokens=BOS)]
    ),
    "Bert": processors.BertProcessing(("</s>", 1), ("<s>", 0)),
    "Roberta": processors.RobertaProcessing(("</s>", 1), ("<s>", 0)),
}


def library(processor="none", prefix_space=False):
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    if PROCESSORS[processor] is not None:
        tokenizer.post_processor = PROCESSORS[processor]
    return tokenizer


def folder_of(path, config, tokenizer=None, **files):
    path.mkdir(exist_ok=True)
    (tokenizer or library()).save(str(path / "tokenizer.json"))
    if config is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    for name, content in files.items():
        name = name.replace("_json", ".json").replace("_jinja", ".jinja")
        (path / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def theirs(path):
    return transformers.AutoTokenizer.from_pretrained(path)


def token(text, **flags):
    return {"content": text, "lstrip": False, "rstrip": False, "single_word": False, "normalized": False} | flags


FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
ROLES = {"bos_token": "<s>", "eos_token": "</s>"}
GPT2 = {"tokenizer_class": "GPT2Tokenizer", "unk_token": "<s>", **ROLES}
CONFIGS = {
    "nothing": FAST,
    "roles": FAST | ROLES,
    "roles as objects": FAST | {role: token(text) | {"__type": "AddedToken"} for role, text in ROLES.items()},
    "an ordinary token more": FAST | {"added_tokens_decoder": {"279": token("<think>", special=False)}},
    "special tokens more": FAST
    | ROLES
    | {"added_tokens_decoder": {"280": token("<b>", special=True), "279": token("<a>", special=True)}},
    "a token that eats spaces": FAST | {"added_tokens_decoder": {"279": token("<a>", special=False, lstrip=True)}},
    "a role that is no token yet": FAST | ROLES | {"pad_token": "<pad>"},
    "a space before a text": GPT2 | {"add_prefix_space": True},
    "no space before a text": GPT2 | {"add_prefix_space": False},
    "a setting that this class does not read": FAST | {"add_prefix_space": True},
}
TEXTS = ["the king", "a <think>b", "<a><b> c", "king <pad>x", "x <a> y", "", " ", "old  king"]


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_tokenizer_config_is_read_beside_tokenizer_json(name, kind, tmp_path):
    folder = folder_of(tmp_path, CONFIGS[name])
    judge, tokenizer = theirs(folder), load_tokenizer(folder, kind)
    for text in TEXTS:
        expected = judge(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.encode(text, allow_special=True) == expected, text
    assert tokenizer.special_tokens.keys() >= set(judge.all_special_tokens)
    assert tokenizer.vocab_size == len(judge)


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
@pytest.mark.parametrize("name", ["GPT2Tokenizer", "RobertaTokenizerFast", "BlenderbotTokenizer", "Qwen2Tokenizer"])
def test_a_space_before_a_text_is_a_setting_of_the_class(name, kind, tmp_path):
    """Whatever the tokenizer.json says, and where the configuration says nothing, the class does."""
    for number, (in_file, asked) in enumerate(product([True, False], [True, False, None])):
        config = FAST | ROLES | {"unk_token": "<s>", "tokenizer_class": name, "add_prefix_space": asked}
        one = library(prefix_space=in_file)
        if name == "Qwen2Tokenizer":
            split = pre_tokenizers.Split(tokenizers.Regex(published_splits.QWEN2), "isolated")
            last = pre_tokenizers.ByteLevel(add_prefix_space=in_file, use_regex=False)
            one.pre_tokenizer = pre_tokenizers.Sequence([split, last])
        folder = folder_of(tmp_path / str(number), {key: x for key, x in config.items() if x is not None}, one)
        judge, tokenizer = theirs(folder), load_tokenizer(folder, kind)
        for text in ("the king", " the king", "old</s>king", ""):
            expected = judge(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.encode(text, allow_special=True) == expected, (in_file, asked, text)


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_tokenizer_gives_its_folder_back(name, kind, tmp_path):
    extra = {"chat_template_jinja": "{{ messages }}", "special_tokens_map_json": {"eos_token": "</s>"}}
    folder = folder_of(tmp_path / "a", CONFIGS[name], **extra)
    (tmp_path / "b").mkdir()
    for stale in ("merges.txt", "added_tokens.json", "tokenizer.model"):
        (tmp_path / "b" / stale).write_text("of another tokenizer")
    (tmp_path / "b" / "notes.txt").write_text("stay")
    load_tokenizer(folder, kind).save(tmp_path / "b")
    saved = {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert saved.pop("notes.txt") == b"stay"
    assert saved == {path.name: path.read_bytes() for path in folder.iterdir()}
    load_tokenizer(folder, kind).save(folder)
    assert saved == {path.name: path.read_bytes() for path in folder.iterdir()}, "saved into its own folder"


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_what_is_given_back_is_what_was_understood(kind, tmp_path, monkeypatch):
    """The file is read once: one that is written anew while it is loaded must not be given back in its place."""
    folder = folder_of(tmp_path / "before", FAST)
    before = (folder / "tokenizer.json").read_bytes()

    def understood(*arguments):
        (folder / "tokenizer.json").write_bytes(b"{}")
        return with_tokenizer_config(*arguments)

    monkeypatch.setattr(loading, "with_tokenizer_config", understood)
    load_tokenizer(folder, kind).save(tmp_path / "again")
    assert (folder / "tokenizer.json").read_bytes() == b"{}"
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == before


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_a_pair_of_files_comes_back_with_a_tokenizer_json(kind, tmp_path):
    train_tokenizer(TEXT, vocab_size=270).save(tmp_path / "a")
    (tmp_path / "a" / "tokenizer.json").unlink()
    config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>", "note": "of their own"}
    (tmp_path / "a" / "tokenizer_config.json").write_text(json.dumps(config))
    load_tokenizer(tmp_path / "a", kind).save(tmp_path / "b")
    names = {path.name for path in (tmp_path / "b").iterdir()}
    assert names == {"tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"}
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert theirs(tmp_path / "a")(TEXT)["input_ids"] == theirs(tmp_path / "b")(TEXT)["input_ids"]


@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
@pytest.mark.parametrize("name", PROCESSORS)
def test_the_template_around_a_text(name, kind, tmp_path):
    folder = folder_of(tmp_path, FAST | ROLES, library(name))
    judge, tokenizer = theirs(folder), load_tokenizer(folder, kind)
    for text in TEXTS:
        assert tokenizer.template.around(tokenizer.encode(text)) == judge(text)["input_ids"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"added_tokens_decoder": {"400": token("<a>")}},
            "field added_tokens_decoder.400: the id of '<a>' would be 279",
        ),
        ({"added_tokens_decoder": [1]}, "field added_tokens_decoder: expected an object, found a list"),
        ({"added_tokens_decoder": {"x": token("<a>")}}, "added_tokens_decoder.x: the key must be a token id"),
        ({"added_tokens_decoder": {"279": {}}}, "added_tokens_decoder.279: an added token needs a text"),
        ({"added_tokens_decoder": {"279": "<a>"}}, "added_tokens_decoder.279: an added token needs a text"),
        ({"bos_token": 3}, "field bos_token: expected the text of a token, found a number"),
        ({"additional_special_tokens": "x"}, "field additional_special_tokens: expected a list, found a string"),
    ],
)
@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
def test_a_wrong_tokenizer_config(config, words, kind, tmp_path):
    with pytest.raises(InputFileError, match=words):
        load_tokenizer(folder_of(tmp_path, config), kind)


@pytest.mark.parametrize(
    "processor",
    [
        3,
        {"type": "Unheard"},
        {"type": "Sequence", "processors": 3},
        {"type": "Sequence", "processors": [{"type": "Sequence", "processors": []}]},
        {"type": "TemplateProcessing", "single": 3, "special_tokens": {}},
        {"type": "TemplateProcessing", "single": [], "special_tokens": {}},
        {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}] * 2, "special_tokens": {}},
        {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x"}}], "special_tokens": {}},
        {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "x"}}],
            "special_tokens": {"x": {"ids": ["a"]}},
        },
        {"type": "TemplateProcessing", "single": [{}], "special_tokens": {}},
        {"type": "BertProcessing", "cls": ["<s>"], "sep": ["</s>", 1]},
    ],
    ids=str,
)
def test_a_damaged_post_processor(processor, tmp_path):
    with pytest.raises(InputFileError, match=r"tokenizer.json, field post_processor"):
        text_template(processor, tmp_path / "tokenizer.json")


def test_no_post_processor():
    assert text_template(None, None) == TextTemplate() and TextTemplate((1,), (2, 3)).around([7]) == [1, 7, 2, 3]
