"""What tokenizer_config.json and special_tokens_map.json add to the tokenizer.json beside them.

transformers reads them together, and a published folder may hold half of its added tokens in each. What is missing is
put into the parsed tokenizer.json, as if it had stood there, so that every kind of tokenizer reads the same. Knows
nothing of how a tokenizer works.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformer_lab.errors import InputFileError, shown
from transformer_lab.tokenizers.tokenizer_class import prefix_space
from transformer_lab.tokenizers.tokenizer_files import json_type, optional_json_object

CONFIG, ROLES = "tokenizer_config.json", "special_tokens_map.json"
# What a token may be to the model; the keys under which both files name one.
TOKEN_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Lists of further special tokens, by the names of transformers 4 and 5.
_MORE = ("additional_special_tokens", "extra_special_tokens")
_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False}


def role_texts(folder: Path) -> dict[str, str]:
    """role -> text of its token, for those of TOKEN_ROLES that the files name; tokenizer_config.json counts first."""
    texts: dict[str, str] = {}
    for name in (CONFIG, ROLES):
        values = optional_json_object(folder / name)
        for role in TOKEN_ROLES:
            text = _text(values.get(role), folder / name, role)
            if text is not None:
                texts.setdefault(role, text)
    return texts


def special_texts(values: Mapping[str, Any], file: Path) -> list[str]:
    """The texts of all tokens that the object in `file` names as special, the roles first."""
    named = [(role, values.get(role)) for role in TOKEN_ROLES]
    for key in _MORE:
        more = values.get(key)
        if isinstance(more, dict):  # transformers 5 may give them names
            more = list(more.values())
        if more is not None and not isinstance(more, list):
            message = f"{file}, field {key}: expected a list, found {json_type(more)}."
            raise InputFileError(message)
        named += [(key, token) for token in more or []]
    return [text for key, token in named if (text := _text(token, file, key)) is not None]


def with_tokenizer_config(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The parsed tokenizer.json with the added tokens, special tokens and `add_prefix_space` of the files beside it.

    A token that is new gets the id that the `tokenizers` library gives it, the next one; a file that says another is
    refused with an InputFileError.
    """
    config = optional_json_object(folder / CONFIG)
    special = special_texts(config, folder / CONFIG)
    special += special_texts(optional_json_object(folder / ROLES), folder / ROLES)
    listed = data.get("added_tokens")
    if not isinstance(data.get("model"), dict) or not isinstance(listed, list | None):
        return dict(data)  # for whoever reads it to refuse
    added = [dict(token) if isinstance(token, dict) else token for token in listed or []]
    texts = [token.get("content") if isinstance(token, dict) else None for token in added]
    by_text = {text: token for text, token in zip(texts, added, strict=True) if isinstance(text, str)}
    vocab = data["model"].get("vocab")
    vocab = vocab if isinstance(vocab, dict) else {}
    ids = [token_id for token in by_text.values() if type(token_id := token.get("id")) is int]
    following = max([len(vocab), *(token_id + 1 for token_id in ids)])

    def add(text: str, stated: int | None, flags: Mapping[str, Any], where: str) -> None:
        nonlocal following
        token_id = vocab.get(text, following)
        if stated not in (None, token_id):
            message = f"{folder / CONFIG}, field {where}: the id of {shown(text)} would be {shown(token_id)}."
            raise InputFileError(message)
        following += token_id == following
        by_text[text] = {"id": token_id, "content": text, **_FLAGS, **flags}
        added.append(by_text[text])

    for stated, text, flags in _decoder_entries(config, folder / CONFIG):
        if text not in by_text:
            add(text, stated, flags, f"added_tokens_decoder.{stated}")
    for text in dict.fromkeys(special):
        if text not in by_text:
            add(text, None, {"normalized": False}, "special tokens")
        by_text[text]["special"] = True
    return _with_prefix_space({**data, "added_tokens": added}, config)


def _decoder_entries(config: Mapping[str, Any], file: Path) -> list[tuple[int, str, dict[str, bool]]]:
    """(id, text, flags) of the tokens in `added_tokens_decoder`, in the order of the ids."""
    field = "added_tokens_decoder"
    entries = config.get(field) or {}
    if not isinstance(entries, dict):
        message = f"{file}, field {field}: expected an object, found {json_type(entries)}."
        raise InputFileError(message)
    found = []
    for key, entry in entries.items():
        where = f"{field}.{shown(key)[1:-1]}"
        if not (key.isascii() and key.isdigit() and len(key) <= 15):
            message = f"{file}, field {where}: the key must be a token id."
            raise InputFileError(message)
        text = _text(entry, file, where) if isinstance(entry, dict) else None
        if text is None:
            message = f"{file}, field {where}: an added token needs a text as content."
            raise InputFileError(message)
        flags = {name: entry[name] for name in (*_FLAGS, "special", "normalized") if isinstance(entry.get(name), bool)}
        found.append((int(key), text, {"special": False, "normalized": not flags.get("special", False)} | flags))
    return sorted(found)


def _with_prefix_space(data: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """transformers builds byte-level classes anew from vocabulary and merges, and this is a setting of the class."""
    name, asked = config.get("tokenizer_class"), config.get("add_prefix_space")
    space = prefix_space(name, asked if isinstance(asked, bool) else None) if isinstance(name, str) else None
    step = data.get("pre_tokenizer")
    if space is None or not isinstance(step, dict):
        return data
    return {**data, "pre_tokenizer": _with_space(step, space)}


def _with_space(step: Mapping[str, Any], space: bool) -> dict[str, Any]:
    """The pre-tokenizer with this `add_prefix_space` where it is ByteLevel, or ends with one."""
    if step.get("type") == "ByteLevel":
        return {**step, "add_prefix_space": space}
    steps = step.get("pretokenizers")
    if step.get("type") == "Sequence" and isinstance(steps, list) and steps and isinstance(steps[-1], dict):
        last = steps[-1]
        if last.get("type") == "ByteLevel":
            return {**step, "pretokenizers": [*steps[:-1], {**last, "add_prefix_space": space}]}
    return dict(step)


def _text(token: object, file: Path, field: str) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    if text is not None and not isinstance(text, str):
        message = f"{file}, field {field}: expected the text of a token, found {json_type(text)}."
        raise InputFileError(message)
    return text
