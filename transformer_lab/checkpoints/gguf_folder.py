"""A GGUF file as a folder that everything else reads: unpacked once, in float32, into the user's cache folder.

What llama.cpp calls the architectures llama (Llama, Mistral, SmolLM2 ...), qwen2 and qwen3 become models of our parts.
Of tokenizers those with byte-level BPE are read, whose way to split a text is known here by its name.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from transformer_lab.atomic_file import of_content, write_files
from transformer_lab.atomic_folder import new_folder
from transformer_lab.attention.softmax import SoftmaxAttention
from transformer_lab.block.sequential import Sequential
from transformer_lab.checkpoints.gguf_file import GGUFFile, read_gguf
from transformer_lab.checkpoints.saving import save_folder
from transformer_lab.errors import ConfigurationError, InputFileError, UnavailableError, listed, shown
from transformer_lab.ffn.dense import Dense
from transformer_lab.memory import require_bytes
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.limits import require_positive
from transformer_lab.model.parameters import count, shapes
from transformer_lab.norm.rms_norm import RMSNorm
from transformer_lab.paths import cache_folder, expanded
from transformer_lab.position.rotary import Rotary
from transformer_lab.position.rotary_scaling import Linear, LongRope, Yarn
from transformer_lab.tokenizers.published_splits import LLAMA3, QWEN2

ARCHITECTURES = ("llama", "qwen2", "qwen3")
LAYOUT = 1  # of what is unpacked; another one is unpacked anew
# What the header may say of the architecture, below its name. Anything else could change the function.
_KNOWN = {
    *("context_length", "embedding_length", "block_count", "feed_forward_length", "vocab_size"),
    *("attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon", "attention.key_length"),
    *("attention.value_length", "rope.freq_base", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor"),
    *("rope.scaling.original_context_length", "rope.scaling.attn_factor", "rope.scaling.finetuned"),
}
_INSIDE = {
    "norm_1.weight": "attn_norm.weight",
    "attn.out.kernel": "attn_output.weight",
    "attn.out.bias": "attn_output.bias",
    "attn.q_norm.weight": "attn_q_norm.weight",
    "attn.k_norm.weight": "attn_k_norm.weight",
    "norm_2.weight": "ffn_norm.weight",
    "ffn.gate.kernel": "ffn_gate.weight",
    "ffn.up.kernel": "ffn_up.weight",
    "ffn.down.kernel": "ffn_down.weight",
}
_OUTSIDE = {
    "embed.token": "token_embd.weight",
    "final_norm.weight": "output_norm.weight",
    "head.kernel": "output.weight",
}
_ROPE_DIVISORS = "rope_freqs.weight"
_SPLITS = {"llama-bpe": LLAMA3, "llama3": LLAMA3, "qwen2": QWEN2}
_CONTROL, _OWN = 3, 4  # kinds of tokens


def unpacked(path: str | Path) -> Path:
    """The folder for a GGUF file, made if it is not there yet: its weights in float32, its tokenizer, its template.

    Raises InputFileError for a damaged file, or a model that is not offered; UnavailableError without the package that
    reads quantised numbers, or without room.
    """
    path = expanded(path)
    folder = cache_folder() / "gguf" / f"{path.stem}-{_key(path)}"
    if folder.is_dir():
        return folder
    file = read_gguf(path)
    try:
        config = config_of(file)
        arrays = _arrays(file, config)
    except ConfigurationError as error:
        message = f"{path}: {error}"
        raise InputFileError(message) from error
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(folder) as place:
            save_folder(place, config, arrays)
            write_files(place, {name: of_content(content) for name, content in tokenizer_files(file).items()})
    except OSError as error:
        if folder.is_dir():  # another process was as fast
            return folder
        message = f"{path} cannot be unpacked into {folder}: {error.strerror or error}."
        raise UnavailableError(message) from error
    return folder


def _key(path: Path) -> str:
    """Of the file as it is now; reading all of it would take longer than loading."""
    try:
        status = os.stat(path)
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror or error}."
        raise InputFileError(message) from error
    facts = [LAYOUT, os.path.realpath(path), status.st_size, status.st_mtime_ns, status.st_ino]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def config_of(file: GGUFFile) -> ModelConfig:
    """The header's model. Raises ConfigurationError, naming the key, for what is not offered."""
    name = file.values.get("general.architecture")
    if name not in ARCHITECTURES:
        _refuse("general.architecture", f"is {shown(name)}; read are {', '.join(ARCHITECTURES)}")
    own = {key.removeprefix(f"{name}."): value for key, value in file.values.items() if key.startswith(f"{name}.")}
    for key in own:
        if key not in _KNOWN:
            _refuse(f"{name}.{key}", f"is {shown(own[key])}, which is not known here")

    def whole(key: str, usual: int | None = None) -> int:
        value = own.get(key, usual)
        if type(value) is not int or not 1 <= value <= 10**9:
            _refuse(f"{name}.{key}", f"is {shown(value)}; it must be a whole number")
        return int(value)

    hidden, heads = whole("embedding_length"), whole("attention.head_count")
    size = whole("attention.key_length", hidden // heads)
    if own.get("attention.value_length", size) != size:
        _refuse(f"{name}.attention.value_length", "differs from key_length, which is not offered")
    epsilon = own.get("attention.layer_norm_rms_epsilon")
    norm = RMSNorm(float(f"{epsilon:.7g}") if isinstance(epsilon, float) else 0.0)  # it was written in decimals
    attention = SoftmaxAttention(
        heads,
        size,
        whole("attention.head_count_kv", heads),
        _rotary(file, name, own, whole),
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        out_bias="blk.0.attn_output.bias" in file.tensors,
        norm=norm if "blk.0.attn_q_norm.weight" in file.tensors else None,
    )
    block = Sequential(attention, Dense(whole("feed_forward_length"), "silu", gated=True, bias=False), norm)
    embedding = file.tensors.get("token_embd.weight")
    ids = [file.values.get(f"tokenizer.ggml.{role}_token_id") for role in ("eos", "bos")]
    vocab = embedding.shape[0] if embedding is not None else 0
    end, begin = (token if type(token) is int and 0 <= token < vocab else None for token in ids)
    return ModelConfig(
        vocab_size=vocab,
        context_length=whole("context_length"),
        hidden_size=hidden,
        blocks=(block,) * min(whole("block_count"), 10_000),
        norm=norm,
        tied_head="output.weight" not in file.tensors,
        end_of_text_id=end,
        begin_of_text_id=begin,
    )


def _rotary(file: GGUFFile, name: Any, own: dict[str, Any], whole: Callable[..., int]) -> Rotary:
    kind, numbers = own.get("rope.scaling.type", "none"), {"rope.freq_base": 10000.0, "rope.scaling.factor": 1.0}
    base, factor = (own.get(key, usual) for key, usual in numbers.items())
    for key, value in zip(numbers, (base, factor), strict=True):
        require_positive(f"the header's {name}.{key}", value)
    scaling: Any = None
    if kind == "linear":
        scaling = Linear(factor)
    elif kind == "yarn":
        length = 1.0 + 0.1 * np.log(factor) if factor > 1 else 1.0
        scaling = Yarn(factor, whole("rope.scaling.original_context_length"), length=float(length))
    elif kind != "none":
        _refuse(f"{name}.rope.scaling.type", f"is {shown(kind)}; linear and yarn are offered")
    if _ROPE_DIVISORS in file.tensors:  # Llama 3.1 and later: already worked out
        scaling = LongRope(tuple(file.numbers(_ROPE_DIVISORS).reshape(-1).tolist()))
    turned = whole("rope.dimension_count", None) if "rope.dimension_count" in own else None
    return Rotary(float(base), turned, scaling=scaling)


def _refuse(key: str, reason: str) -> NoReturn:
    message = f"the header's {key} {reason}."
    raise ConfigurationError(message)


def _arrays(file: GGUFFile, config: ModelConfig) -> dict[str, np.ndarray]:
    """Our dotted names -> float32, kernels [in, out]."""
    wanted = shapes(config)
    require_bytes(2 * 4 * count(config), f"unpacking {file.path.name}, {count(config):,} parameters")
    sources = {name: _sources(name) for name in wanted}
    used = {part for parts in sources.values() for part in parts} | {_ROPE_DIVISORS}
    missing = sorted(used - file.tensors.keys() - {_ROPE_DIVISORS})
    unexpected = sorted(file.tensors.keys() - used)
    for title, names in (("Missing", missing), ("Unexpected", unexpected)):
        if names:
            message = f"the tensors do not fit the header. {title}: {listed(list(map(shown, names)))}."
            raise ConfigurationError(message)
    found = {}
    for name, shape in wanted.items():
        array = np.concatenate([_turned_back(file, part, config) for part in sources[name]])
        array = array.T if name.endswith(".kernel") else array
        if array.shape != shape:
            message = f"the tensors {' and '.join(sources[name])} are {list(array.shape)}, not {list(shape)}."
            raise ConfigurationError(message)
        found[name] = array
    return found


def _sources(name: str) -> list[str]:
    """The tensors that lie one below the other in one of our parameters."""
    if name in _OUTSIDE:
        return [_OUTSIDE[name]]
    _, layer, inner = name.split(".", 2)
    if inner.startswith("attn.qkv."):
        leaf = "weight" if inner.endswith("kernel") else "bias"
        return [f"blk.{layer}.attn_{one}.{leaf}" for one in "qkv"]
    return [f"blk.{layer}.{_INSIDE[inner]}"]


def _turned_back(file: GGUFFile, name: str, config: ModelConfig) -> np.ndarray:
    """The tensor. llama.cpp turns neighbours as pairs for the architecture llama, and so has the rows of its queries
    and keys head by head in another order than transformers, which turns halves."""
    array, attention = file.numbers(name), config.blocks[0].attention
    turned = re.match(r"blk\.\d+\.attn_([qk])\.", name)
    if turned is None or file.values["general.architecture"] != "llama":
        return array
    heads = attention.num_heads if turned[1] == "q" else attention.num_kv_heads
    if array.shape[0] != heads * attention.head_size:
        message = f"{name} has {array.shape[0]} rows, not {heads} heads of {attention.head_size}."
        raise ConfigurationError(message)
    form = (heads, attention.head_size // 2, 2, *array.shape[1:])
    return array.reshape(form).swapaxes(1, 2).reshape(array.shape)


def tokenizer_files(file: GGUFFile) -> dict[str, str]:
    """tokenizer.json and tokenizer_config.json; none for a tokenizer that is not byte-level BPE of a known split."""
    values = {key.removeprefix("tokenizer.ggml."): value for key, value in file.values.items()}
    tokens, merges, kinds, pre = (values.get(key, []) for key in ("tokens", "merges", "token_type", "pre"))
    if values.get("model") != "gpt2" or pre not in ("gpt-2", "smollm", *_SPLITS):
        return {}
    if not (_texts(tokens) and _texts(merges) and isinstance(kinds, list) and len(kinds) == len(tokens)):
        message = f"{file.path} is not a usable GGUF file: its tokenizer's tokens, kinds and merges do not fit."
        raise InputFileError(message)
    added = [
        {"id": number, "content": token, "special": kind == _CONTROL, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_CONTROL, _OWN)
    ]
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": pre not in _SPLITS}
    steps: list[dict[str, Any]] = [bytes_]
    if pre == "smollm":
        steps.insert(0, {"type": "Digits", "individual_digits": True})
    elif pre in _SPLITS:
        split = {"type": "Split", "pattern": {"Regex": _SPLITS[pre]}, "behavior": "Isolated", "invert": False}
        steps.insert(0, split)
    model = {"type": "BPE", "vocab": {token: number for number, token in enumerate(tokens)}, "merges": merges}
    model |= {"dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    model |= {"fuse_unk": False, "byte_fallback": False, "ignore_merges": pre in ("llama-bpe", "llama3")}
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": _begins_with(values, tokens),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": model,
    }
    roles = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "pad_token": "padding_token_id"}
    own: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for role, key in roles.items():
        if type(values.get(key)) is int and 0 <= values[key] < len(tokens):
            own[role] = tokens[values[key]]
    template = file.values.get("tokenizer.chat_template")
    own |= {"chat_template": template} if isinstance(template, str) else {}
    return {"tokenizer.json": json.dumps(whole), "tokenizer_config.json": json.dumps(own, indent=2)}


def _texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(one, str) for one in values)


def _begins_with(values: dict[str, Any], tokens: list[str]) -> dict[str, Any] | None:
    """The template that puts the first token before a text, if the file asks for it."""
    begin = values.get("bos_token_id")
    if values.get("add_bos_token") is not True or type(begin) is not int or not 0 <= begin < len(tokens):
        return None
    special = {"SpecialToken": {"id": tokens[begin], "type_id": 0}}
    text = [{"Sequence": {"id": letter, "type_id": 0}} for letter in "AB"]
    return {
        "type": "TemplateProcessing",
        "single": [special, text[0]],
        "pair": [special, text[0], text[1]],
        "special_tokens": {tokens[begin]: {"id": tokens[begin], "ids": [begin], "tokens": [tokens[begin]]}},
    }
