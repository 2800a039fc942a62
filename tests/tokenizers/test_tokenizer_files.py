"""Files: what is saved loads elsewhere with the same ids, real folders load here, hostile ones are refused in words."""

import json
import os
import shutil
import subprocess
import sys
from itertools import islice

import pytest
import tokenizers
from tokenizer_references import TEXTS, tiktoken_encoding
from transformers import AutoTokenizer, GPT2TokenizerFast

from transformer_lab.errors import ConfigurationError, InputFileError, UnavailableError
from transformer_lab.paths import data_folder
from transformer_lab.tokenizers import (
    TOKENIZER_FILES,
    ByteBPE,
    embedded_tokenizer_names,
    is_folder_source,
    load_tokenizer,
    load_tokenizer_folder,
    tokenizer_files,
    train_tokenizer,
)
from transformer_lab.tokenizers.byte_alphabet import CHARACTER_OF_BYTE

GPT2 = data_folder("resources") / "tokenizer_data" / "gpt2"
ENGLISH = "It was the best of times, it was the worst of times; she sells sea shells.\n" * 4
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
LLAMA3 = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
QWEN2 = LLAMA3.replace("{1,3}", "")
O200K = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer([ENGLISH, *TEXTS], 400, special_tokens=("<|endoftext|>", "<pad>"))


@pytest.fixture
def folder(trained, tmp_path):
    trained.save(tmp_path / "saved")
    return tmp_path / "saved"


def only(folder, *names):
    """Leaves only these files."""
    for file in folder.iterdir():
        if file.name not in names:
            file.unlink()
    return folder


def change(file, edit):
    data = json.loads(file.read_text(encoding="utf-8"))
    edit(data)
    file.write_text(json.dumps(data), encoding="utf-8")


# Saving


def test_saved_files_load_everywhere(trained, folder):
    assert {file.name for file in folder.iterdir()} == {
        "vocab.json",
        "merges.txt",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    auto, gpt2_fast = AutoTokenizer.from_pretrained(folder), GPT2TokenizerFast.from_pretrained(folder)
    assert len(auto) == len(gpt2_fast) == library.get_vocab_size() == trained.vocab_size == 400
    for text in [*TEXTS, ENGLISH, "a<|endoftext|><pad> b"]:
        ids = trained.encode(text, allow_special=True)
        assert library.encode(text).ids == ids
        assert auto(text)["input_ids"] == gpt2_fast(text)["input_ids"] == ids
        assert auto.decode(ids) == trained.decode(ids)
    assert auto.eos_token_id == trained.end_of_text_id == 0


def test_saved_without_special_tokens(tmp_path):
    tokenizer = train_tokenizer(ENGLISH, 280, special_tokens=())
    assert tokenizer.end_of_text_id is None
    tokenizer.save(tmp_path)
    auto = AutoTokenizer.from_pretrained(tmp_path)
    assert len(auto) == 280
    assert auto(ENGLISH)["input_ids"] == tokenizer.encode(ENGLISH)
    assert load_tokenizer(tmp_path).vocab_size == 280


@pytest.mark.parametrize("kind", ["byte_bpe", "huggingface"])
@pytest.mark.parametrize(
    "names",
    [
        ("tokenizer.json",),
        ("vocab.json", "merges.txt", "tokenizer_config.json"),
        ("vocab.json", "merges.txt", "tokenizer.json"),
    ],
)
def test_load_what_was_saved(kind, names, trained, folder):
    tokenizer = load_tokenizer(only(folder, *names), kind)
    assert tokenizer.special_tokens == trained.special_tokens
    assert tokenizer.vocab_size == 400
    for text in [*TEXTS, "a<|endoftext|><pad> b"]:
        for allow in (False, True):
            assert tokenizer.encode(text, allow) == trained.encode(text, allow)
    tokenizer.save(folder / "again")
    assert load_tokenizer(folder / "again").encode(ENGLISH) == trained.encode(ENGLISH)


def test_published_names_of_the_files(trained, folder):
    only(folder, "vocab.json", "merges.txt", "tokenizer_config.json")
    (folder / "vocab.json").rename(folder / "gpt2-vocab.json")
    (folder / "merges.txt").rename(folder / "gpt2-merges.txt")
    assert load_tokenizer(folder).encode(ENGLISH) == trained.encode(ENGLISH)


def test_gpt2_saved_and_loaded(gpt2, tmp_path):
    gpt2.save(tmp_path)
    assert json.loads((tmp_path / "vocab.json").read_text("utf-8")) == json.loads(
        (GPT2 / "vocab.json").read_text("utf-8")
    )
    assert (tmp_path / "merges.txt").read_bytes() == (GPT2 / "merges.txt").read_bytes()
    auto = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, "a<|endoftext|>b"]:
        assert auto(text)["input_ids"] == gpt2.encode(text, allow_special=True)


def test_a_failed_save_loses_nothing(trained, folder, monkeypatch):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    real, calls = os.fsync, []

    def full_disk(file):
        calls.append(file)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return real(file)

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UnavailableError, match="No space"):
        train_tokenizer(ENGLISH, 260).save(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_saving_onto_a_file(trained, tmp_path):
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/below"):
        with pytest.raises((InputFileError, UnavailableError), match="file"):
            trained.save(tmp_path / place)
    assert (tmp_path / "file").read_text() == "mine"


# Folders that transformers made


def test_folders_saved_by_transformers(tmp_path):
    theirs = GPT2TokenizerFast.from_pretrained(GPT2)
    theirs.save_pretrained(tmp_path / "plain")
    theirs.add_special_tokens({"pad_token": "<pad>", "additional_special_tokens": ["<|im_start|>", "<|im_start|>x"]})
    theirs.add_tokens(["foo bar", "the"])
    theirs.save_pretrained(tmp_path / "more")
    for name in ("plain", "more"):
        auto = AutoTokenizer.from_pretrained(tmp_path / name)
        for kind in ("byte_bpe", "huggingface"):
            ours = load_tokenizer(tmp_path / name, kind)
            assert ours.vocab_size == len(auto)
            for text in [*TEXTS, "the foo bar<pad> the<|im_start|>x<|im_start|>"]:
                assert ours.encode(text, allow_special=True) == auto(text)["input_ids"]
    ours, library = load_tokenizer(tmp_path / "more"), load_tokenizer(tmp_path / "more", "huggingface")
    text = "a the foo bar<pad> x"
    assert ours.encode(text) == library.encode(text)
    assert ours.special_tokens == library.special_tokens
    assert set(ours.special_tokens) >= {"<|endoftext|>", "<pad>", "<|im_start|>"} and "the" not in ours.special_tokens
    assert len(ours.encode("<pad>")) > 1 == len(ours.encode("foo bar"))


def test_the_older_small_files(folder, trained):
    """special_tokens_map.json and added_tokens.json, as transformers 4 wrote them beside vocab.json and merges.txt."""
    only(folder, "vocab.json", "merges.txt")
    assert load_tokenizer(folder).special_tokens == {"<|endoftext|>": 0}
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": "<|endoftext|>", "pad_token": {"content": "<pad>"}, "cls_token": "<unheard-of>"})
    )
    (folder / "added_tokens.json").write_text(json.dumps({"<mask>": 400, "house": 401}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"mask_token": "<mask>", "add_prefix_space": True}))
    ours, library = load_tokenizer(folder), load_tokenizer(folder, "huggingface")
    assert ours.special_tokens == {"<|endoftext|>": 0, "<pad>": 1, "<mask>": 400} == library.special_tokens
    for text in ("house<mask> <pad>", "x", "", " x", "a house"):
        for allow in (False, True):
            assert ours.encode(text, allow) == library.encode(text, allow)
    assert ours.encode("x") == trained.encode(" x")
    assert ours.encode("house") == [401]


# Other tokenizer.json files of the byte-level kind


def with_splits(folder, *expressions, **model):
    def edit(data):
        splits = [
            {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
            for expression in expressions
        ]
        last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*splits, last]} if splits else last
        data["model"].update(model)

    change(only(folder, "tokenizer.json") / "tokenizer.json", edit)
    return load_tokenizer(folder), load_tokenizer(folder, "huggingface")


@pytest.mark.parametrize(
    "expressions", [(CL100K,), (LLAMA3,), (QWEN2,), (O200K,), (), (r"\p{N}{1,3}", r"[一-龥ぁ-ゟ]+", LLAMA3)]
)
@pytest.mark.parametrize("ignore_merges", [False, True])
def test_other_splits(expressions, ignore_merges, folder):
    ours, library = with_splits(folder, *expressions, ignore_merges=ignore_merges)
    for text in [*TEXTS, ENGLISH, "IT'S 12345 x\r\n\r\n  y\n ;;\n\n你好 CamelCase don'T"]:
        assert ours.encode(text) == library.encode(text)
        if len(expressions) == 1:
            assert ours.decode(ours.encode(text)) == text
    if len(expressions) == 1 and not ignore_merges:
        ours.save(folder / "again")
        assert load_tokenizer(folder / "again").encode(ENGLISH) == ours.encode(ENGLISH)
        assert AutoTokenizer.from_pretrained(folder / "again")(ENGLISH)["input_ids"] == ours.encode(ENGLISH)


def test_cl100k_as_in_tiktoken(folder):
    ours, _ = with_splits(folder, CL100K)
    theirs = tiktoken_encoding(ours, CL100K)
    for text in [*TEXTS, ENGLISH]:
        assert ours.encode(text) == theirs.encode_ordinary(text)


def test_ignore_merges_matters(folder):
    (with_merges, _), (without, _) = [
        with_splits(folder, LLAMA3, ignore_merges=flag, merges=[]) for flag in (0 > 1, True)
    ]
    assert len(without.encode(" times")) == 1 < len(with_merges.encode(" times"))


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("normalizer", [None, {"type": "NFC"}, {"type": "Sequence", "normalizers": [{"type": "NFC"}]}])
def test_prefix_space_normalizer_and_added_token_flags(prefix, normalizer, folder):
    def edit(data):
        data["pre_tokenizer"]["add_prefix_space"] = prefix
        data["normalizer"] = normalizer
        flags = [("<mask>", True, False, False), ("<sep>", False, True, False), ("ca\u0301", True, True, True)]
        for i, (content, lstrip, rstrip, normalized) in enumerate(flags):
            token = {"id": 400 + i, "content": content, "single_word": False, "lstrip": lstrip, "rstrip": rstrip}
            data["added_tokens"].append({**token, "normalized": normalized, "special": i < 2})
        data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]

    change(only(folder, "tokenizer.json") / "tokenizer.json", edit)
    ours, library = load_tokenizer(folder), load_tokenizer(folder, "huggingface")
    texts = [
        "x \t<mask> y",
        "<sep>  y <sep>\u2003<mask><mask>  \x1f<mask>",
        "e\u0301 ca\u0301 cá  z",
        "<pad>a<pad> b",
        "",
    ]
    for text in [*TEXTS, *texts]:
        for allow in (False, True):
            assert ours.encode(text, allow) == library.encode(text, allow), (text, allow)


# Names and folders


def test_names(tmp_path, monkeypatch, trained):
    assert "gpt2" in embedded_tokenizer_names()
    with pytest.raises(ConfigurationError, match=r"gpt3.*gpt2"):
        load_tokenizer("gpt3")
    with pytest.raises(ConfigurationError, match=r"bpe.*byte_bpe"):
        load_tokenizer("gpt2", kind="bpe")
    for wrong in ("", None, 5, ["gpt2"]):
        with pytest.raises(ConfigurationError, match="tokenizer"):
            load_tokenizer(wrong)
    with pytest.raises(InputFileError, match="unknown user"):
        load_tokenizer("~no-such-user/tokenizer")
    monkeypatch.chdir(tmp_path)
    trained.save("gpt2")  # a folder of that name comes first
    assert load_tokenizer("gpt2").vocab_size == load_tokenizer("./gpt2").vocab_size == 400
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_tokenizer("~/gpt2").vocab_size == 400
    assert is_folder_source("gpt2") and is_folder_source("/x") and not is_folder_source("gpt2_large")


def test_folders_without_a_tokenizer(tmp_path):
    assert load_tokenizer_folder(tmp_path) is None
    assert load_tokenizer_folder(tmp_path, "huggingface") is None
    with pytest.raises(InputFileError) as caught:
        load_tokenizer(tmp_path)
    assert all(name in str(caught.value) for name in TOKENIZER_FILES)
    for missing in (tmp_path / "nothing", "./nothing", "/no/such/folder", "/" + "x" * 5000):
        with pytest.raises(InputFileError, match="does not exist"):
            load_tokenizer(missing)
    with pytest.raises(InputFileError, match="holds a null character"):
        load_tokenizer("/null\0character")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputFileError, match="not a folder"):
        load_tokenizer(tmp_path / "file")


def test_links_to_files_are_followed(folder, trained, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "tokenizer.json").symlink_to(folder / "tokenizer.json")
    assert load_tokenizer(tmp_path / "links").encode(ENGLISH) == trained.encode(ENGLISH)


def test_two_formats_must_agree(folder):
    text = (folder / "merges.txt").read_text("utf-8").splitlines(keepends=True)
    (folder / "merges.txt").write_text("".join([text[0], text[2], text[1], *text[3:]]), "utf-8")
    with pytest.raises(InputFileError, match=r"tokenizer.json.*merges.txt disagree"):
        load_tokenizer(folder)
    (folder / "merges.txt").write_text("".join(text), "utf-8")

    def swap(vocab):
        vocab["a"], vocab["b"] = vocab["b"], vocab["a"]

    change(folder / "vocab.json", swap)
    with pytest.raises(InputFileError, match=r"vocab.json disagree about 'a'"):
        load_tokenizer(folder)


# Hostile files


def refused(folder, *words):
    for kind in ("byte_bpe", "huggingface"):
        with pytest.raises(InputFileError) as caught:
            load_tokenizer(folder, kind)
        if kind == "byte_bpe":
            message = str(caught.value)
    for word in words:
        assert word in message
    assert len(message) < 700
    return message


DAMAGE = {
    "empty": b"",
    "cut off": b'{"model": {"type": "BPE", "vocab": {"a": 1',
    "no JSON": b"hello",
    "list": b"[]",
    "number": b"3",
    "null": b"null",
    "deep list": b"[" * 200_000,
    "deep object": b'{"a":' * 200_000,
    "not UTF-8": b'{"a": "\xff"}',
    "UTF-16": "{}".encode("utf-16"),
    "long number": b'{"a": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json"])
def test_damaged_json(name, damage, folder):
    only(folder, *(["tokenizer.json"] if name == "tokenizer.json" else ["vocab.json", "merges.txt"]))
    (folder / name).write_bytes(DAMAGE[damage])
    refused(folder, name)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
@pytest.mark.parametrize("damage", ["cut off", "list", "deep object", "not UTF-8"])
def test_damaged_small_files(name, damage, folder):
    only(folder, "vocab.json", "merges.txt")
    (folder / name).write_bytes(DAMAGE[damage])
    refused(folder, name)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": []}, ["added_tokens_decoder"]),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "y"}}}, ["added_tokens_decoder.x"]),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9" * 50: {"content": "y"}}}, ["added_tokens_decoder.9"]),
        ("tokenizer_config.json", {"added_tokens_decoder": {"400": {"content": 5}}}, ["added_tokens_decoder.400"]),
        ("tokenizer_config.json", {"added_tokens_decoder": {"400": "<y>"}}, ["added_tokens_decoder.400", "an object"]),
        ("tokenizer_config.json", {"added_tokens_decoder": {"999999999999": {"content": "<y>"}}}, ["'<y>'", "at most"]),
        ("tokenizer_config.json", {"added_tokens_decoder": {"7": {"content": "<y>"}}}, ["same id 7"]),
        ("tokenizer_config.json", {"added_tokens_decoder": {"7": {"content": "y"}}}, ["'y' has id 7 here"]),
        ("tokenizer_config.json", {"added_tokens_decoder": {"401": {"content": "<y>"}}}, ["would give it 400"]),
        ("tokenizer_config.json", {"add_prefix_space": "yes"}, ["add_prefix_space"]),
        ("tokenizer_config.json", {"eos_token": 5}, ["eos_token"]),
        ("special_tokens_map.json", {"additional_special_tokens": "x"}, ["additional_special_tokens"]),
        ("added_tokens.json", {"y": "400"}, ["'y'"]),
        ("added_tokens.json", {"y": -1}, ["'y'"]),
    ],
)
def test_wrong_small_files(name, content, words, folder):
    only(folder, "vocab.json", "merges.txt")
    (folder / name).write_text(json.dumps(content))
    refused(folder, *words)


@pytest.mark.parametrize(
    ("token", "token_id", "words"),
    [
        ("ab", 10**12, ["'ab'", "at most 10,000,000"]),
        ("ab", 10**30, ["'ab'", "at most 10,000,000"]),
        ("ab", 5, ["same id 5"]),
        ("ab", -1, ["'ab'", "-1"]),
        ("ab", "400", ["'ab'"]),
        ("ab", 400.0, ["'ab'"]),
        ("ab", True, ["'ab'"]),
        ("ab", None, ["'ab'"]),
        ("ab", [1], ["'ab'"]),
        ("\ud800", 400, ["surrogate"]),
    ],
)
def test_wrong_ids_in_files(token, token_id, words, folder):
    shutil.copytree(folder, folder.parent / "pair")
    change(
        only(folder.parent / "pair", "vocab.json", "merges.txt") / "vocab.json", lambda d: d.update({token: token_id})
    )
    refused(folder.parent / "pair", "vocab.json", *words)

    def edit(data):
        data["model"]["vocab"][token] = token_id

    change(only(folder, "tokenizer.json") / "tokenizer.json", edit)
    with pytest.raises(InputFileError) as caught:
        load_tokenizer(folder)
    assert all(word in str(caught.value) for word in ["tokenizer.json", "vocab", *words])


def test_a_missing_byte(folder):
    """SmolLM2's vocabulary lacks some control characters: text with one is read, and it is left out."""

    def edit(vocab):
        vocab["new"] = vocab.pop("Ą")  # byte 0x04

    change(only(folder, "vocab.json", "merges.txt") / "vocab.json", edit)
    ours, library = load_tokenizer(folder), load_tokenizer(folder, "huggingface")
    for text in ("a\x04b", "\x04", "the\x04\x04 the", "ä the"):
        assert ours.encode(text) == library.encode(text)
        assert ours.decode(ours.encode(text)) == text.replace("\x04", "")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a", ["line 400"]),
        ("a b c", ["line 400"]),
        ("a  b", ["line 400"]),
        (" a", ["line 400"]),
        ("zz b", ["'zz'"]),
        ("z q", ["'zq'"]),
        ("\ufffd b", ["merges"]),
    ],
)
def test_wrong_merges(line, words, folder):
    file = only(folder, "vocab.json", "merges.txt") / "merges.txt"
    lines = ["#version: 0.2", *(file.read_text("utf-8").splitlines()[1:] * 10)][:399]
    file.write_text("\n".join([*lines, line]), "utf-8")
    refused(folder, *words)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("model", None, ["model"]),
        ("model.type", "WordPiece", ["model.type", "WordPiece", "huggingface"]),
        ("model.type", "Unigram", ["model.type", "Unigram", "huggingface"]),
        ("model.type", ["BPE"], ["model.type"]),
        ("model.vocab", [], ["model.vocab"]),
        ("model.vocab", None, ["model.vocab"]),
        ("model.merges", {}, ["model.merges"]),
        ("model.merges", [["a"]], ["model.merges[0]"]),
        ("model.merges", ["a b c"], ["model.merges[0]"]),
        ("model.merges", [["a", 1]], ["model.merges[0]"]),
        ("model.merges", [["zz", "b"]], ["merges", "'zz'"]),
        ("model.dropout", 0.1, ["model.dropout", "huggingface"]),
        ("model.end_of_word_suffix", {}, ["model.end_of_word_suffix"]),
        ("model.ignore_merges", 1, ["model.ignore_merges"]),
        ("normalizer", {"type": "BertNormalizer"}, ["normalizer.type", "BertNormalizer", "huggingface"]),
        ("normalizer", [], ["normalizer"]),
        ("pre_tokenizer", {"type": "BertPreTokenizer"}, ["pre_tokenizer.type", "BertPreTokenizer", "huggingface"]),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": 5}, ["pre_tokenizer.pretokenizers"]),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [5]}, ["pre_tokenizer.pretokenizers[0]"]),
        ("pre_tokenizer.use_regex", "no", ["pre_tokenizer.use_regex"]),
        ("added_tokens", {}, ["added_tokens"]),
        ("added_tokens", [5], ["added_tokens[0]"]),
        ("added_tokens", [{"id": "1", "content": "x"}], ["added_tokens[0]"]),
        ("added_tokens", [{"id": 400, "content": ""}], ["added_tokens"]),
        ("added_tokens", [{"id": 9, "content": "<pad>"}], ["'<pad>' has id 9 here and 1 in vocab"]),
        ("added_tokens", [{"id": 400, "content": "<x>", "single_word": 1}], ["added_tokens[0].single_word"]),
        ("added_tokens", [{"id": 400, "content": "<x>"}] * 2, ["added_tokens", "listed twice"]),
        ("added_tokens", [{"id": 401, "content": "<x>"}], ["added_tokens", "would give it 400"]),
    ],
)
def test_other_kinds_of_tokenizer_json(path, value, words, folder):
    def edit(data):
        *parents, last = path.split(".")
        for parent in parents:
            data = data[parent]
        data[last] = value

    change(only(folder, "tokenizer.json") / "tokenizer.json", edit)
    with pytest.raises(InputFileError) as caught:
        load_tokenizer(folder)
    assert all(word in str(caught.value) for word in ["tokenizer.json", *words])
    try:  # the library may load it, or refuse it in words
        load_tokenizer(folder, "huggingface").encode("text")
    except InputFileError as error:
        assert "tokenizer.json" in str(error)


@pytest.mark.parametrize("expression", [r"(a|a)*b", r"(\w)", "[a&&b]", r"\h", "(", "(?:" * 900 + "a" + ")" * 900])
def test_splits_that_may_mean_something_else(expression, folder):
    with pytest.raises(InputFileError, match=r"pre_tokenizer.pretokenizers\[0\].pattern.Regex.*huggingface"):
        with_splits(folder, expression)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"])
@pytest.mark.parametrize("what", ["pipe", "folder", "unreadable"])
def test_no_regular_file(name, what, folder):
    """A named pipe in place of a file must not make the loader wait."""
    only(folder, *(["tokenizer.json"] if name == "tokenizer.json" else ["vocab.json", "merges.txt"]))
    (folder / name).unlink(missing_ok=True)
    if what == "pipe":
        os.mkfifo(folder / name)
    elif what == "folder":
        (folder / name).mkdir()
    else:
        (folder / name).write_text("{}")
        (folder / name).chmod(0)
        if os.access(folder / name, os.R_OK):
            pytest.skip("this user may read everything")
    refused(folder, name)


def test_too_large_a_file(folder, monkeypatch):
    with open(folder / "tokenizer.json", "r+b") as stream:
        stream.truncate(tokenizer_files.MAX_FILE_BYTES + 1)  # sparse: takes no disk space
    refused(folder, "tokenizer.json", str(tokenizer_files.MAX_FILE_BYTES))


@pytest.mark.full
def test_as_many_merges_as_were_ever_published(tmp_path):
    """Gemma's 580,604, here of pairs of bytes and a third one; one more than is read is refused."""
    first = list(CHARACTER_OF_BYTE)
    pairs = [[a, b] for a in first for b in first]
    triples = ([a + b, c] for c in first for a, b in pairs)
    merges = [*pairs, *islice(triples, 580_604 - len(pairs))]
    vocab = {token: number for number, token in enumerate([*first, *map("".join, merges)])}
    write = {"type": "BPE", "vocab": vocab, "merges": merges}
    split = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    value = {"version": "1.0", "pre_tokenizer": split, "decoder": split, "model": write}
    (tmp_path / "tokenizer.json").write_text(json.dumps(value))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocab_size == 256 + 580_604 and tokenizer.decode(tokenizer.encode("the king")) == "the king"
    write["merges"] = [f"{a} {b}" for a, b in [*merges, *pairs, *pairs]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(value))
    with pytest.raises(InputFileError, match=r"field model\.merges: 711,676 entries; more than 700,000 are not read"):
        load_tokenizer(tmp_path)


# The other kinds, through the library


def test_huggingface_loads_other_kinds(tmp_path):
    word_piece = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({"[UNK]": 0, "low": 1, "##er": 2, "[SEP]": 3}, unk_token="[UNK]")
    )
    word_piece.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    word_piece.decoder = tokenizers.decoders.WordPiece()
    word_piece.add_special_tokens(["[SEP]"])
    word_piece.enable_truncation(1)
    word_piece.enable_padding(length=7)
    word_piece.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputFileError, match="WordPiece"):
        load_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path, "huggingface")
    assert tokenizer.encode("low lower") == [1, 1, 2]
    assert tokenizer.encode("low[SEP]", allow_special=True) == [1, 3]
    assert tokenizer.decode([1, 1, 2, 3]) == "low lower [SEP]"
    assert tokenizer.decode_bytes([1, 2]) == b"lower"
    stream = tokenizer.stream_decoder()
    assert [stream.push(1), stream.push(1), stream.push(2), stream.flush()] == ["low", " low", "er", ""]
    tokenizer.save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again", "huggingface").encode("low lower") == [1, 1, 2]


@pytest.mark.parametrize("as_text", [True, False])
def test_a_prefix_that_the_library_would_cut_through_a_character(as_text, tmp_path):
    """Version 0.23 of the library ends the process at this file, beyond the reach of any `except`."""
    merges = ["Ã ĉ"] if as_text else [["Ã", "ĉ"]]
    model = {"type": "BPE", "vocab": {"Ã": 0, "ĉ": 1, "Ãĉ": 2}, "merges": merges, "continuing_subword_prefix": "x"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}), encoding="utf-8")
    with pytest.raises(InputFileError, match=r"tokenizer.json, field model.merges\[0\]: 'ĉ' does not begin with 'x'"):
        load_tokenizer(tmp_path, "huggingface")


@pytest.mark.parametrize("place", ["vocab", "added_tokens"])
def test_an_id_for_which_the_library_would_take_gigabytes(place, tmp_path):
    data = {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}, "added_tokens": []}
    if place == "vocab":
        data["model"]["vocab"]["b"] = 2**31
    else:
        data["added_tokens"].append({"content": "b", "id": 2**31})
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(InputFileError, match="the id of 'b' is 2147483648; at most 10,000,000"):
        load_tokenizer(tmp_path, "huggingface")


@pytest.mark.parametrize("value", [[0] * 9, [[]] * 4, [{}] * 4, {"a": 1, "b": 2, "c": 3, "d": 4}])
def test_a_file_of_more_values_than_any_tokenizer_has(value, tmp_path, monkeypatch):
    file = tmp_path / "some.json"
    file.write_text(json.dumps({"values": value}))
    count = sum(map(file.read_text().count, "[{,:"))
    monkeypatch.setattr(tokenizer_files, "MOST_VALUES", count)
    assert tokenizer_files.read_json_object(file) == {"values": value}
    monkeypatch.setattr(tokenizer_files, "MOST_VALUES", count - 1)
    with pytest.raises(InputFileError, match=f"some.json holds more than {count - 1} values"):
        tokenizer_files.read_json_object(file)


def test_special_tokens_outside_ascii(folder):
    def edit(data):
        data["added_tokens"].append({"id": 400, "content": "<|é▁|>", "special": True, "normalized": False, **FLAGS})

    change(only(folder, "tokenizer.json") / "tokenizer.json", edit)
    for kind in ("byte_bpe", "huggingface"):
        tokenizer = load_tokenizer(folder, kind)
        assert tokenizer.encode("a<|é▁|>", allow_special=True)[1:] == [400]
        assert tokenizer.decode([400]) == "<|é▁|>"


FLAGS = {"single_word": False, "lstrip": False, "rstrip": False}


# Import


def test_importing_needs_no_library():
    code = (
        "import sys, transformer_lab.tokenizers as t; t.load_tokenizer('gpt2').encode('x')\n"
        "print([name for name in ('tokenizers', 'torch', 'jax', 'numpy', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_kinds_satisfy_the_interface(gpt2, gpt2_library):
    public = {name for name in dir(ByteBPE) if not name.startswith("_")} - {"encode_bytes"}
    assert public <= set(dir(gpt2_library))
