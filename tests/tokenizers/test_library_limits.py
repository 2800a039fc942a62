"""Files at which the `tokenizers` library ends the process, or would take all memory, are refused by name before.

They are read in a process of its own with bounded memory: were one of the checks missing, it would die of a signal.
"""

import base64
import json
import subprocess
import sys

import pytest

from transformer_lab import load_tokenizer

MODEL = {"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0, "b": 1, "▁a": 2}}
TWICE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}


def several(kind, steps):
    inner = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}[kind]
    return {kind: {"type": "Sequence", inner: steps}}


def charsmap(tree_bytes, rest=b"a\0bc\0"):
    return base64.b64encode(tree_bytes.to_bytes(4, "little") + rest).decode()


def added(*texts):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    return [{"id": 10 + number, "content": text} | flags for number, text in enumerate(texts)]


HOSTILE = {
    "doubling 40 times": (several("normalizer", [TWICE] * 40), "normalizer"),
    "doubling 40 times, untyped": ({"normalizer": {"normalizers": [TWICE | {"type": "x"}] * 40}}, "normalizer"),
    "an insertion between all letters": (
        several("normalizer", [{"type": "Replace", "pattern": {"Regex": ""}, "content": "a" * 1000}] * 3),
        "normalizer",
    ),
    "bytes as letters": (several("normalizer", [{"type": "ByteLevel"}] * 40), "normalizer"),
    "bytes as letters, later": (several("pre_tokenizer", [{"type": "ByteLevel"}] * 40), "pre_tokenizer"),
    "doubling the text of one id": (several("decoder", [TWICE] * 40), "decoder"),
    "the suffix nothing": (several("decoder", [{"type": "BPEDecoder", "suffix": ""}] * 40), "decoder"),
    "a tree that is not there": (
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap(2**32 - 4)}},
        "normalizer.precompiled_charsmap",
    ),
    "a tree that is not there, unpadded": (
        several("normalizer", [{"type": "Precompiled", "precompiled_charsmap": charsmap(2**32 - 4).rstrip("=")}]),
        "normalizer.precompiled_charsmap",
    ),
    "an added token of nothing": (
        {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}, "added_tokens": added(" ")},
        "added_tokens",
    ),
    "an added token of nothing but an accent": (
        {"normalizer": {"type": "StripAccents"}, "added_tokens": added("<x>", "\u0301")},
        "added_tokens",
    ),
    "long added tokens": (
        {"normalizer": {"type": "Prepend", "prepend": "a" * 50_000}, "added_tokens": added(*map(str, range(10**4)))},
        "added_tokens",
    ),
    "many added tokens": ({"added_tokens": added(*map(str, range(60_000)))}, "added_tokens"),
    "a deep tree": ({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["a" * 10**6, 0.0]]}}, "model.vocab"),
}  # fmt: skip
SCRIPT = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (4 * 10**9, 4 * 10**9))
from transformer_lab import InputFileError, load_tokenizer
for folder in sys.argv[1:]:
    try:
        load_tokenizer(folder, "huggingface").encode("a b a")
        print("loaded")
    except InputFileError as error:
        print(error)
"""


def write(folder, fields):
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": MODEL} | fields))
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded by what Linux offers")
def test_what_would_end_the_process_is_refused_by_name(tmp_path):
    folders = [write(tmp_path / str(number), fields) for number, (fields, _) in enumerate(HOSTILE.values())]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *folders], capture_output=True, text=True, timeout=100)
    answers = done.stdout.splitlines()
    assert done.returncode == 0, list(HOSTILE)[len(answers)] + done.stderr[-500:]
    for name, folder, answer, (_, field) in zip(HOSTILE, folders, answers, HOSTILE.values(), strict=True):
        assert answer.startswith(f"{folder / 'tokenizer.json'}, field {field}"), f"{name}: {answer}"
    assert "Exception ignored" not in done.stderr


ALBERT = [
    {"type": "Replace", "pattern": {"String": "``"}, "content": '"'},
    {"type": "NFKD"},
    {"type": "StripAccents"},
    {"type": "Lowercase"},
    {"type": "Precompiled", "precompiled_charsmap": charsmap(4, bytes(4) + b"\0".join([b"x" * 33] * 20))},
    {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
]
LLAMA_2 = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
SOUND = {
    "like Llama 2": several("normalizer", LLAMA_2),
    "like ALBERT": several("normalizer", ALBERT)
    | several("pre_tokenizer", [{"type": "WhitespaceSplit"}, {"type": "Metaspace", "replacement": "▁"}]),
    "many rules of punctuation": several(
        "normalizer", [{"type": "Replace", "pattern": {"String": "…"}, "content": "..."}] * 100
    ),
    "an added token with an accent": {"normalizer": {"type": "StripAccents"}, "added_tokens": added("é", " ")},
    "a long word of a subword vocabulary": {
        "model": {"type": "Unigram", "unk_id": 0, "vocab": [["a" * 1500, 0.0], ["b", -1.0]]}
    },
}


@pytest.mark.parametrize("name", SOUND)
def test_what_is_like_published_ones_loads(tmp_path, name):
    assert load_tokenizer(write(tmp_path / "t", SOUND[name]), "huggingface").vocab_size >= 2
