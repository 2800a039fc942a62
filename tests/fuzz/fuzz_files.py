"""Damages model files at random and reads them: whatever comes, it is a LabError that names the file, or a clean load.

    python tests/fuzz/fuzz_files.py --seconds 60 [--seed N] [--only config]

Each kind of file has one function: given a random generator and an empty folder it writes a damaged model into it and
says what to call with it. To fuzz another kind, write such a function, here or in a file of its own, and add it to
KINDS. What loads must work: the weights have the promised shapes, a tokenizer encodes and decodes, a whole model
generates. Reports the number of cases and of clean loads per kind and the growth of memory; exits with 1 and the way to
repeat the case if one fails.
"""

import argparse
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from chat_templates import chat_kind
from damage import damage, damage_bytes, dumped, odd, put
from library_tokenizers import library_kind
from safetensors import safe_open
from safetensors.numpy import save
from training_checkpoints import checkpoint_kind

import transformer_lab as lab
from transformer_lab.attention.softmax import SoftmaxAttention
from transformer_lab.block.parallel import Parallel
from transformer_lab.block.sequential import Sequential
from transformer_lab.checkpoints import (
    inspect_folder,
    load_parameters,
    read_config,
    read_original,
    save_folder,
    weights_sha256,
)
from transformer_lab.checkpoints.number_formats import BITS
from transformer_lab.checkpoints.safetensors_file import read_header
from transformer_lab.errors import InputFileError, LabError
from transformer_lab.ffn.dense import Dense
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.parameters import flatten, shapes
from transformer_lab.norm.layer_norm import LayerNorm
from transformer_lab.norm.rms_norm import RMSNorm
from transformer_lab.position.learned import Learned
from transformer_lab.position.rotary import Rotary
from transformer_lab.tokenizers import ByteBPE, load_tokenizer_folder
from transformer_lab.tokenizers.gpt2_split import GPT2_SPLIT

MOST_GROWTH = 700e6  # bytes above the interpreter with everything imported
INDEX = "model.safetensors.index.json"

_GPT2_BLOCK = Sequential(SoftmaxAttention(2, 4), Dense(8), LayerNorm())
GPT2 = ModelConfig(20, 8, 8, (_GPT2_BLOCK,) * 2, LayerNorm(), Learned())
_ROTARY = SoftmaxAttention(2, 4, position=Rotary(), qkv_bias=False, out_bias=False)
_LLAMA_BLOCK = Sequential(_ROTARY, Dense(8, "silu", gated=True, bias=False), RMSNorm())
LLAMA = ModelConfig(20, 8, 8, (_LLAMA_BLOCK,), RMSNorm())
# Held by our own family alone.
OURS = ModelConfig(20, 8, 8, (Parallel(_ROTARY, Dense(8), LayerNorm()), _LLAMA_BLOCK), RMSNorm(), tied_head=False)

# Large enough a vocabulary for a tokenizer.
TALKING_GPT2 = replace(GPT2, vocab_size=280, blocks=GPT2.blocks[:1])
TALKING_LLAMA = replace(LLAMA, vocab_size=280)

# Fields that change the function and that a small model does not have of itself.
MORE_FIELDS = [
    "quantization_config", "is_causal", "n_ctx", "hidden_size", "sliding_window", "layer_types", "rope_scaling",
    "rope_theta", "add_cross_attention", "per_layer_config", "head_dim", "n_inner",
]  # fmt: skip


TEMPLATES = {}


def template(config, **options):
    """The files of a whole small model, made once."""
    key = (config, tuple(options.items()))
    if key not in TEMPLATES:
        arrays = {name: np.ones(shape, np.float32) for name, shape in shapes(config).items()}
        with tempfile.TemporaryDirectory() as folder:
            save_folder(folder, config, arrays, **options)
            TEMPLATES[key] = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    return TEMPLATES[key]


TEXT = "Once upon a time, it's   12:30!\n\n  École <|endoftext|><pad> ☃ e\u0301 \x00 𝒳y" + " \t" * 20
SPLITS = [
    GPT2_SPLIT,
    r"(?i:'s|'re|'ll)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"\s+\s+\s+x|\p{L}{2,}+|[\p{Lu}\p{M}]*",
]
ADDED = {"id": 0, "content": "<pad>", "special": True, "lstrip": False, "rstrip": True, "normalized": False}


def tokenizer_template():
    """The four files of a small tokenizer, made once."""
    if "tokenizer" not in TEMPLATES:
        with tempfile.TemporaryDirectory() as folder:
            lab.train_tokenizer([TEXT.replace("\x00", "") * 3], 270, ("<|endoftext|>", "<pad>")).save(folder)
            TEMPLATES["tokenizer"] = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    return dict(TEMPLATES["tokenizer"])


def whole(rng):
    return template(rng.choice([GPT2, LLAMA, OURS]), dtype=rng.choice(["float32", "float16", "bfloat16"]))


def header_and_rest(data):
    """The header of a safetensors file as an object, and the bytes behind it."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def read_all(folder):
    """Everything that reads a model folder."""
    inspect_folder(folder)
    config = read_config(folder)
    read_original(folder)
    weights_sha256(folder)
    loaded = dict(flatten(load_parameters(folder, config)))
    assert {name: array.shape for name, array in loaded.items()} == shapes(config)


def safetensors_kind(rng, folder):
    """Damage in the header, in the length before it, or anywhere. What passes must pass safetensors' own reader too."""
    files = dict(whole(rng))
    data = files["model.safetensors"]
    header, tensors = header_and_rest(data)
    chance = rng.random()
    if chance < 0.6:
        if rng.random() < 0.3:  # another dtype in one entry, of the right size now and then
            header[rng.choice(list(header))] = {"dtype": rng.choice(list(BITS)), "shape": [8], "data_offsets": [0, 32]}
        text = dumped(rng, damage(rng, header))
        claimed = len(text) if rng.random() < 0.9 else rng.choice([0, 1, len(text) + 1, 10**8, 2**63, 2**64 - 1])
        data = claimed.to_bytes(8, "little") + text + tensors
    elif chance < 0.9:
        data = damage_bytes(rng, data)
    else:
        data = rng.randbytes(rng.choice([0, 1, 7, 8, 9, 100, 10_000]))
    files["model.safetensors"] = data
    put(folder, files)

    def read():
        path = folder / "model.safetensors"
        ours = read_header(path)
        with safe_open(path, "np") as judge:
            assert set(judge.keys()) == set(ours.tensors)
            for name, tensor in ours.tensors.items():
                assert tuple(judge.get_slice(name).get_shape()) == tensor.shape
        read_all(folder)

    return read


def config_kind(rng, folder):
    """Damage in config.json: known fields with odd values, unknown ones, broken text."""
    files = dict(whole(rng))
    fields = json.loads(files["config.json"])
    for _ in range(rng.choice([0, 1, 3])):
        names = [*MORE_FIELDS, *fields]
        fields[rng.choice(names)] = odd(rng)
    files["config.json"] = dumped(rng, damage(rng, fields) if rng.random() < 0.7 else fields)
    put(folder, files)
    return lambda: read_all(folder)


def index_kind(rng, folder):
    """Damage in the index of the shards, or a shard gone, doubled or swapped."""
    files = dict(template(GPT2, max_shard_size=2000))
    if rng.random() < 0.8:
        files[INDEX] = dumped(rng, damage(rng, json.loads(files[INDEX])))
    shards = sorted(name for name in files if name.startswith("model-"))
    chance = rng.random()
    if chance < 0.1:
        del files[rng.choice(shards)]
    elif chance < 0.2:
        files[rng.choice(shards)] = files[rng.choice(shards)]
    put(folder, files)
    return lambda: read_all(folder)


def damaged_expression(rng):
    letters = list(rng.choice(SPLITS))
    for _ in range(rng.choice([0, 1, 1, 3])):
        at = rng.randrange(len(letters))
        letters[at : at + rng.choice([0, 1])] = rng.choice(
            ["(?:", ")", "(", "+", "*", "{2,9999}", "|", "[", "\\p{L}", "x"]
        )
    nested = rng.choice([0] * 20 + [50, 3000])
    return "(?:" * nested + "".join(letters) + ")" * nested


NORMALIZERS = [
    *({"type": kind} for kind in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents")),
    {"type": "Strip", "strip_left": True, "strip_right": True},
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
]
PRE_TOKENIZERS = [
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False},
    *(
        {"type": "Split", "pattern": {"Regex": r"\s+|\p{P}"}, "behavior": behavior, "invert": behavior == "Removed"}
        for behavior in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
    ),
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    {"type": "Digits", "individual_digits": True},
    *({"type": kind} for kind in ("Whitespace", "WhitespaceSplit", "Punctuation")),
]
MODELS = [
    {"unk_token": "a"},
    {"unk_token": "a", "fuse_unk": True, "byte_fallback": True},
    {"ignore_merges": True},
    {"end_of_word_suffix": "e"},
    {"continuing_subword_prefix": "t", "merges": []},
]


def other_rules(rng, value):
    """The same vocabulary under other rules."""
    value["normalizer"] = {"type": "Sequence", "normalizers": rng.sample(NORMALIZERS, rng.choice([0, 1, 2]))}
    steps = rng.sample(PRE_TOKENIZERS, rng.choice([0, 1, 2, 3]))
    value["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    value["model"] |= rng.choice(MODELS)


def damaged_tokenizer_json(rng, data):
    """tokenizer.json with damage in the rules, in the vocabulary, in the merges, or in the text."""
    value = json.loads(data)
    if rng.random() < 0.4:
        other_rules(rng, value)
    vocab, merges = value["model"]["vocab"], value["model"]["merges"]
    chance = rng.random()
    if chance < 0.4:  # in the rules: everything but the two long parts
        value["model"] |= {"vocab": {}, "merges": []}
        value = damage(rng, value)
        if isinstance(value, dict) and isinstance(value.get("model"), dict):
            value["model"] |= {"vocab": vocab, "merges": merges}
    elif chance < 0.6:
        split = {"type": "Split", "pattern": {"Regex": damaged_expression(rng)}, "behavior": "Isolated"}
        last = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": rng.random() < 0.1}
        steps = [split] * rng.choice([0, 1, 1, 1, 2, 60]) + [last]
        value["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    elif chance < 0.7:
        value["added_tokens"] += [
            ADDED
            | {
                "id": len(vocab) + number,
                "content": rng.choice([" ", "é", "a\x1b[2J", "Once", "\ud800", f"<{number}>"]),
            }
            for number in range(rng.choice([1, 2, 3, 1000]))
        ]
        value["normalizer"] = rng.choice([None, {"type": "NFC"}, {"type": "NFD"}])
    else:
        value["model"] = {**value["model"], "merges": damage(rng, merges)}
        if rng.random() < 0.5:
            value["model"]["vocab"] = damage(rng, vocab)
    return dumped(rng, value)


def damaged_merges(rng, data):
    lines = data.split(b"\n")
    chance = rng.random()
    if chance < 0.3:
        return damage_bytes(rng, data)
    if chance < 0.5:
        rng.shuffle(lines)
    elif chance < 0.7:
        lines[rng.randrange(len(lines))] = rng.choice(
            [b"a", b"a  b", b"\x1b[2J a", b"\xff a", b"a \xc4\xa0" * 9, b"\r", b"x" * 10**6]
        )
    elif chance < 0.72:
        line = rng.choice([b"", b"a b", b"a", b"\xf0\x9d\x92\xb3 a", lines[1]])
        return (line + b"\n") * rng.choice([699_999, 5_000_000])
    else:
        del lines[rng.randrange(len(lines))]
    return b"\n".join(lines)


def try_tokenizer(tokenizer):
    """What was accepted must encode and decode, and lose nothing if it promises so."""
    for allow_special in (False, True):
        ids = tokenizer.encode(TEXT, allow_special)
        assert all(0 <= token_id < tokenizer.vocab_size for token_id in ids)
        text = tokenizer.decode(ids)
        if isinstance(tokenizer, ByteBPE):
            rules = tokenizer.definition
            strips = any(token.lstrip or token.rstrip or token.normalized for token in rules.added_tokens)
            loses = [getattr(step, "behavior", "") == "Removed" for step in rules.pre_tokenizer]
            changes = [getattr(step, "add_prefix_space", False) for step in rules.pre_tokenizer]
            kinds = {type(step).__name__ for step in rules.pre_tokenizer}
            if not (rules.normalizer or any(loses + changes) or strips or kinds - {"ByteLevel", "Split", "Digits"}):
                assert text == TEXT, f"{text!r} came back"
    assert tokenizer.special_tokens.keys() is not None and tokenizer.end_of_text_id is not False


def tokenizer_json_kind(rng, folder):
    """Damage in tokenizer.json, read by the tokenizer by hand, and now and then by the library."""
    files = tokenizer_template()
    files["tokenizer.json"] = damaged_tokenizer_json(rng, files["tokenizer.json"])
    if rng.random() < 0.9:
        files = {"tokenizer.json": files["tokenizer.json"]}
    put(folder, files)
    if rng.random() < 0.2:
        return lambda: try_both(folder)
    return lambda: try_tokenizer(load_tokenizer_folder(folder))


def try_both(folder):
    """What the tokenizer by hand and the library both accept must have the same ids."""
    ours = theirs = None
    try:
        ours = load_tokenizer_folder(folder)
        try_tokenizer(ours)
    finally:
        theirs = load_tokenizer_folder(folder, "huggingface")
        try_tokenizer(theirs)
    whole_pieces = ours.definition.ignore_merges  # with them the library lets a text forge special tokens
    for allow_special in (True,) if whole_pieces else (True, False):
        assert ours.encode(TEXT, allow_special) == theirs.encode(TEXT, allow_special)


def merges_kind(rng, folder):
    """Damage in vocab.json, merges.txt and the small files beside them."""
    files = tokenizer_template()
    del files["tokenizer.json"]
    chance = rng.random()
    if chance < 0.4:
        files["merges.txt"] = damaged_merges(rng, files["merges.txt"])
    elif chance < 0.7:
        files["vocab.json"] = dumped(rng, damage(rng, json.loads(files["vocab.json"])))
    else:
        files["tokenizer_config.json"] = dumped(rng, damage(rng, json.loads(files["tokenizer_config.json"])))
        files["added_tokens.json"] = dumped(rng, damage(rng, {"<new>": 270, "b": 1}))
        files["special_tokens_map.json"] = dumped(rng, damage(rng, {"pad_token": "<pad>", "eos_token": ADDED}))
    put(folder, files)
    kind = "huggingface" if rng.random() < 0.1 else "byte_bpe"
    return lambda: try_tokenizer(load_tokenizer_folder(folder, kind))


def lora_template():
    """The two files of an adapter for TALKING_GPT2, made once."""
    if "lora" not in TEMPLATES:
        name = "base_model.model.transformer.h.0.attn.c_attn.lora_{}.weight"
        shapes_of = {name.format("A"): (2, 8), name.format("B"): (24, 2)}
        fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["c_attn"], "use_rslora": False}
        fields |= {
            "use_dora": False,
            "bias": "none",
            "fan_in_fan_out": True,
            "rank_pattern": {},
            "modules_to_save": None,
        }
        fields |= {"init_lora_weights": True, "base_model_name_or_path": "base", "revision": None}
        TEMPLATES["lora"] = {
            "adapter_config.json": json.dumps(fields).encode(),
            "adapter_model.safetensors": save({key: np.ones(shape, np.float32) for key, shape in shapes_of.items()}),
        }
    return dict(TEMPLATES["lora"])


def adapter_kind(rng, folder):
    """A LoRA adapter beside its model, with damage in one of its two files."""
    files = template(TALKING_GPT2, dtype="float32") | lora_template()
    name = rng.choice(list(lora_template()))
    if name.endswith(".json"):
        fields = json.loads(files[name])
        fields[rng.choice([*fields, "a_new_field", "lora_dropout", "inference_mode"])] = odd(rng)
        files[name] = dumped(rng, damage(rng, fields) if rng.random() < 0.3 else fields)
    elif rng.random() < 0.6:
        header, tensors = header_and_rest(files[name])
        text = dumped(rng, damage(rng, header))
        files[name] = len(text).to_bytes(8, "little") + text + tensors
    else:
        files[name] = damage_bytes(rng, files[name])
    put(folder, files)
    return lambda: read_all(folder)


# Files that lie beside the others, whatever reads them, and what stands in them.
BESIDE = {
    "generation_config.json": {"eos_token_id": [2, 3], "bos_token_id": 1, "temperature": 0.7, "do_sample": True},
    "tokenizer_config.json": {
        "tokenizer_class": "GPT2Tokenizer", "bos_token": "<|endoftext|>", "eos_token": ADDED, "add_bos_token": True,
        "added_tokens_decoder": {"270": ADDED | {"content": "<think>"}}, "chat_template": "{{ messages }}",
        "extra_special_tokens": {"a": "<a>"}, "additional_special_tokens": ["<b>"], "model_max_length": 1e30,
    },
    "added_tokens.json": {"<new>": 270, "b": 1},
    "special_tokens_map.json": {"pad_token": "<pad>", "eos_token": ADDED, "additional_special_tokens": ["<c>"]},
    "adapter_config.json": {"peft_type": "LORA", "r": 2, "base_model_name_or_path": "nothing"},
    "adapter_model.safetensors": {},
}  # fmt: skip
HUGE = 60_000_000  # bytes


def beside_kind(rng, folder):
    """The small files beside a model and its tokenizer: damaged, huge, deep, full, or no files at all."""
    files = template(rng.choice([TALKING_GPT2, TALKING_LLAMA]), dtype="float32") | tokenizer_template()
    if rng.random() < 0.5:
        del files["tokenizer.json"]  # then vocab.json and merges.txt count, and more of the small files
    name = rng.choice([name for name in BESIDE if "adapter" not in name or rng.random() < 0.5])
    value = BESIDE[name]
    chance = rng.random()
    if chance < 0.5:
        files[name] = dumped(rng, damage(rng, value))
    elif chance < 0.6:
        files[name] = json.dumps(odd(rng)).encode()
    elif chance < 0.7:
        files[name] = rng.choice([b"", b"\0", b"\xef\xbb\xbf{}", b"[]", b"null", b'{"a": 1} x', b"\xff" * 9, b'"' * 99])
    elif chance < 0.75:
        entry = rng.choice(['"<%d>": %d', '"%d": {"content": "%d", "id": 3}', '"%d": [%d]', '"%d": "%d"'])
        count = rng.choice([49_999, 60_000, 700_000])
        files[name] = ("{" + ", ".join(entry % (n, n) for n in range(count)) + "}").encode()
    elif chance < 0.78:
        depth = rng.choice([100, 1000, 1_000_000])
        files[name] = b'{"a":' * depth + b"1" + b"}" * depth
    put(folder, files)
    path = folder / name
    if chance >= 0.78:
        path.unlink(missing_ok=True)
        rng.choice(
            [
                path.mkdir,
                lambda: os.mkfifo(path),
                lambda: path.symlink_to("nowhere"),
                lambda: path.symlink_to(path.name),
                lambda: path.symlink_to("/dev/zero"),
                lambda: [path.touch(), os.truncate(path, HUGE)],
            ]
        )()
    kind = rng.choice(["byte_bpe", "huggingface"])

    def load():
        inspect_folder(folder)
        model = lab.load_model(folder, tokenizer=kind)
        if model.tokenizer is not None:
            try_tokenizer(model.tokenizer)

    return load


def folder_kind(rng, folder):
    """A whole model with its tokenizer and damage in one file, by the way that a user takes: lab.load_model."""
    config = rng.choice([TALKING_GPT2, TALKING_LLAMA])
    files = template(config, dtype=rng.choice(["float32", "float16", "bfloat16"])) | tokenizer_template()
    name = rng.choice([*files, "config.json", "model.safetensors"])
    data = files[name]
    if name == "tokenizer.json":
        files[name] = damaged_tokenizer_json(rng, data)
    elif name == "merges.txt":
        files[name] = damaged_merges(rng, data)
    elif name.endswith(".json"):
        files[name] = dumped(rng, damage(rng, json.loads(data)))
    else:  # numbers of any size, infinities and NaN among them
        files[name] = data[:-400] + rng.randbytes(400) if rng.random() < 0.5 else damage_bytes(rng, data)
    if rng.random() < 0.05:
        del files[rng.choice(list(files))]
    put(folder, files)

    def load():
        model = lab.load_model(folder)
        with np.errstate(all="ignore"):
            if model.tokenizer is not None:
                try_tokenizer(model.tokenizer)
            assert model.logits([0]).shape == (1, 1, model.config.vocab_size)
            if model.config.context_length > 2:
                for temperature in (0.0, 1.0):
                    try:
                        assert len(model.generate([0], 2, temperature=temperature).logprobs) <= 2
                    except InputFileError as error:
                        assert "not finite" in str(error)

    return load


KINDS = {
    "adapter": adapter_kind,
    "beside": beside_kind,
    "chat": chat_kind,
    "checkpoint": checkpoint_kind,
    "library": library_kind,
    "safetensors": safetensors_kind,
    "config": config_kind,
    "index": index_kind,
    "tokenizer.json": tokenizer_json_kind,
    "merges.txt": merges_kind,
    "folder": folder_kind,
}

SELDOM = {"chat": 4}  # of so many cases one, where each takes a process


def peak_bytes():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def check(kind, seed, folder, plant=False):
    """Runs one case, which kind and seed decide alone. -> "loaded", or "refused"; raises on a failure."""
    rng = random.Random(f"{kind} {seed}")
    read = KINDS[kind](rng, folder)
    try:
        read()
    except LabError as error:
        message = str(error)
        assert plant is False, "planted fault"
        in_use = ("With this tokenizer, ", "The tokenizer's expression ")  # when its file had been read
        assert str(folder) in message or message.startswith(in_use), f"the message does not name the file: {message}"
        written = str(error.args[0]).replace(str(folder), "")  # before LabError makes what is left of it harmless
        assert written.isprintable(), f"control characters in {written!r}"
        assert len(message) < 3000, f"a message of {len(message)} characters"
        return "refused"
    return "loaded"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rounds", type=int, default=None, help="cases of each kind, instead of a time")
    parser.add_argument("--seed", type=int, default=None, help="the first case; they count up from it")
    parser.add_argument("--only", choices=sorted(KINDS))
    parser.add_argument("--plant", action="store_true", help="take every refusal for a failure, to test this script")
    options = parser.parse_args()
    kinds = [options.only] if options.only else sorted(KINDS)
    seed = time.time_ns() % 10**9 if options.seed is None else options.seed
    outcomes, failures, first, start = Counter(), 0, seed, time.monotonic()
    print(f"from seed {first} on", flush=True)  # a library may end the process
    with tempfile.TemporaryDirectory() as scratch:
        before = peak_bytes()
        while not failures and (
            time.monotonic() - start < options.seconds if options.rounds is None else seed - first < options.rounds
        ):
            for kind in (kind for kind in kinds if options.only or seed % SELDOM.get(kind, 1) == 0):
                folder = Path(scratch) / "case"
                folder.mkdir()
                try:
                    outcomes[kind, check(kind, seed, folder, options.plant)] += 1
                except Exception:
                    failures += 1
                    print(f"FAILED: --only {kind} --seed {seed} --seconds 0.001")
                    traceback.print_exc(file=sys.stdout)
                shutil.rmtree(folder)
            seed += 1
        growth = peak_bytes() - before
    for (kind, outcome), count in sorted(outcomes.items()):
        print(f"{kind:14} {outcome:8} {count:8}")
    if growth > MOST_GROWTH:
        failures += 1
        print(f"FAILED: memory grew by {growth / 1e6:.0f} MB; {MOST_GROWTH / 1e6:.0f} MB are allowed")
    print(f"{outcomes.total()} cases from seed {first} on, {failures} failures, memory grew by {growth / 1e6:.0f} MB")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
