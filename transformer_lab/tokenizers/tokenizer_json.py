"""The two file formats of a byte-level BPE tokenizer, in and out: vocab.json + merges.txt, and tokenizer.json.

vocab.json is a JSON object token -> id; merges.txt has one pair per line, the most urgent first, under a version
line: this is how GPT-2 was published. tokenizer.json is the one-file format of the `tokenizers` library; here only the
part of it that means byte-level BPE is read, and anything else is refused by name.

Knows nothing of how a tokenizer works, and not where its folder comes from (`loading.py`).
"""

import json
import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from sys import intern
from typing import Any

from transformer_lab.errors import ConfigurationError, InputFileError, shown
from transformer_lab.tokenizers.added_tokens import AddedToken
from transformer_lab.tokenizers.definition import END_OF_TEXT, TokenizerDefinition
from transformer_lab.tokenizers.pre_tokenization import GPT2_SPLIT, is_supported
from transformer_lab.tokenizers.tokenizer_files import json_type, read_json_object, read_text, write_files

_ELSEWHERE = 'The huggingface tokenizer (kind="huggingface") may load it.'
_MERGES_HEADER = "#version: 0.2"
# Above what was ever published; a file with more is refused before it fills the memory.
MOST_MERGES = 550_000  # published: 515,000
MOST_ADDED_TOKENS = 50_000
MOST_SPLITS = 50
# The keys of tokenizer_config.json and special_tokens_map.json that name special tokens.
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


# Reading vocab.json and merges.txt


def read_vocab_and_merges(vocab_file: Path, merges_file: Path) -> TokenizerDefinition:
    """The definition in a GPT-2 style pair of files and the small JSON files beside them, if any.

    From tokenizer_config.json, special_tokens_map.json and added_tokens.json come the added tokens (those that have an
    id there or in the vocabulary) and `add_prefix_space`; a vocabulary entry `<|endoftext|>` is always special.
    Raises InputFileError naming the file and the field.
    """
    folder = vocab_file.parent
    vocab = _vocabulary(read_json_object(vocab_file), vocab_file, "")
    merges = read_merges(merges_file)
    config = _optional_object(folder / "tokenizer_config.json")
    prefix_space = _flag(config, "add_prefix_space", folder / "tokenizer_config.json", False)
    added = _added_tokens_beside(folder, config, vocab)
    return _build(vocab_file, vocab=vocab, merges=merges, added_tokens=added, add_prefix_space=prefix_space)


def read_merges(file: Path) -> list[tuple[str, str]]:
    """The pairs in a merges.txt, in order."""
    merges = []
    text = read_text(file)
    require_few(text.count("\n"), MOST_MERGES, file, "merges")
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, space, right = line.partition(" ")
        if not left or not space or not right or " " in right:
            message = f"{file}, line {number}: expected two tokens with one space between, found {shown(line)}."
            raise InputFileError(message)
        merges.append((intern(left), intern(right)))  # a token stands in many merges: one object for all of them
    return merges


def _added_tokens_beside(folder: Path, config: Mapping[str, Any], vocab: Mapping[str, int]) -> list[AddedToken]:
    config_file = folder / "tokenizer_config.json"
    tokens: dict[str, AddedToken] = {}
    if END_OF_TEXT in vocab:
        tokens[END_OF_TEXT] = AddedToken(END_OF_TEXT, vocab[END_OF_TEXT])

    added_file = folder / "added_tokens.json"
    beside = _vocabulary(_optional_object(added_file), added_file, "")
    require_few(len(beside), MOST_ADDED_TOKENS, added_file, "added_tokens")
    for token, token_id in beside.items():
        tokens[token] = AddedToken(token, token_id, special=False, normalized=True)

    field = "added_tokens_decoder"
    listed = _object(config.get(field, {}), config_file, field)
    require_few(len(listed), MOST_ADDED_TOKENS, config_file, field)
    for key, entry in listed.items():
        where = f"{field}.{shown(key)[1:-1]}"
        if not (key.isascii() and key.isdigit() and len(key) <= 15):
            message = f"{config_file}, field {where}: the key must be a token id."
            raise InputFileError(message)
        added = _added_token(_object(entry, config_file, where), int(key), config_file, where)
        tokens[added.text] = added

    known = {**vocab, **{token.text: token.id for token in tokens.values()}}
    roles_file = folder / "special_tokens_map.json"
    for file, roles in ((config_file, config), (roles_file, _optional_object(roles_file))):
        for text in _role_tokens(roles, file):
            if text in known and not (text in tokens and tokens[text].special):
                old = tokens.get(text)
                tokens[text] = AddedToken(
                    text, known[text], lstrip=bool(old and old.lstrip), rstrip=bool(old and old.rstrip)
                )
    return list(tokens.values())


def _role_tokens(roles: Mapping[str, Any], file: Path) -> list[str]:
    """The texts of the tokens that the file names as special."""
    named = [(role, roles.get(role)) for role in _ROLES]
    more = roles.get("additional_special_tokens")
    if more is not None and not isinstance(more, list):
        message = f"{file}, field additional_special_tokens: expected a list, found {json_type(more)}."
        raise InputFileError(message)
    named += [("additional_special_tokens", token) for token in more or []]
    texts = []
    for role, token in named:
        text = token.get("content") if isinstance(token, dict) else token
        if text is None:
            continue
        if not isinstance(text, str):
            message = f"{file}, field {role}: expected the text of a token, found {json_type(text)}."
            raise InputFileError(message)
        texts.append(text)
    return texts


# Reading tokenizer.json


def read_tokenizer_json(file: Path) -> TokenizerDefinition:
    """The definition in a tokenizer.json of a byte-level BPE tokenizer.

    Read: model BPE (merges as strings or pairs, `ignore_merges`), pre_tokenizer ByteLevel or a Sequence of Split with a
    Regex and then ByteLevel, normalizer none or NFC, added_tokens. Whatever else would change the ids is refused with
    an InputFileError naming the file and the field. The post_processor is left out: encode puts no tokens around a
    text. So are truncation and padding.
    """
    return read_tokenizer_json_object(read_json_object(file), file)


def read_tokenizer_json_object(data: Mapping[str, Any], file: Path) -> TokenizerDefinition:
    """The same from the parsed contents; `file` is the name for messages."""
    model = _object(data.get("model"), file, "model")
    # Very old files have no type; they hold BPE.
    if model.get("type", "BPE") != "BPE":
        raise _other_kind(file, "model.type", model["type"], "BPE")
    for field, harmless in (
        ("dropout", (None, 0)),
        ("continuing_subword_prefix", (None, "")),
        ("end_of_word_suffix", (None, "")),
        ("byte_fallback", (None, False)),
    ):
        value = model.get(field)
        if value not in harmless or (value is not None and isinstance(value, dict | list)):
            raise _other_kind(file, f"model.{field}", value, "nothing there")

    vocab = _vocabulary(model.get("vocab"), file, "model.vocab")
    merges = _merges(model.get("merges"), file)
    splits, prefix_space = _pre_tokenizer(data.get("pre_tokenizer"), file)
    return _build(
        file,
        vocab=vocab,
        merges=merges,
        added_tokens=_added_tokens(data.get("added_tokens"), file),
        split_expressions=splits,
        add_prefix_space=prefix_space,
        ignore_merges=_flag(model, "ignore_merges", file, False, "model."),
        normalize_nfc=_normalizer(data.get("normalizer"), file),
    )


def _merges(value: object, file: Path) -> list[tuple[str, str]]:
    if not isinstance(value, list):
        message = f"{file}, field model.merges: expected a list, found {json_type(value)}."
        raise InputFileError(message)
    require_few(len(value), MOST_MERGES, file, "model.merges")
    merges = []
    for number, entry in enumerate(value):
        pair = entry.split(" ") if isinstance(entry, str) else entry
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(token, str) for token in pair):
            message = (
                f"{file}, field model.merges[{number}]: expected two tokens, as 'a b' or ['a', 'b'], "
                f"found {shown(entry)}."
            )
            raise InputFileError(message)
        merges.append((intern(pair[0]), intern(pair[1])))
    return merges


def _added_tokens(value: object, file: Path) -> list[AddedToken]:
    if value is None:
        return []
    if not isinstance(value, list):
        message = f"{file}, field added_tokens: expected a list, found {json_type(value)}."
        raise InputFileError(message)
    require_few(len(value), MOST_ADDED_TOKENS, file, "added_tokens")
    tokens = []
    for number, entry in enumerate(value):
        where = f"added_tokens[{number}]"
        token = _object(entry, file, where)
        tokens.append(_added_token(token, token.get("id"), file, where))
    return tokens


def _added_token(entry: Mapping[str, Any], token_id: object, file: Path, where: str) -> AddedToken:
    text = entry.get("content")
    if not isinstance(text, str) or type(token_id) is not int:
        message = f"{file}, field {where}: an added token needs a text as content and a whole number as id."
        raise InputFileError(message)
    if _flag(entry, "single_word", file, False, f"{where}."):
        raise _other_kind(file, f"{where}.single_word", True, "false")
    special = _flag(entry, "special", file, False, f"{where}.")
    return AddedToken(
        text,
        token_id,
        special=special,
        lstrip=_flag(entry, "lstrip", file, False, f"{where}."),
        rstrip=_flag(entry, "rstrip", file, False, f"{where}."),
        normalized=_flag(entry, "normalized", file, not special, f"{where}."),
    )


def _normalizer(value: object, file: Path) -> bool:
    """True for NFC, False for none."""
    if value is None:
        return False
    normalizer = _object(value, file, "normalizer")
    if normalizer.get("type") == "Sequence" and isinstance(normalizer.get("normalizers"), list):
        steps = [_object(step, file, "normalizer.normalizers") for step in normalizer["normalizers"]]
    else:
        steps = [normalizer]
    for step in steps:
        if step.get("type") != "NFC":
            raise _other_kind(file, "normalizer.type", step.get("type"), "none or NFC")
    return bool(steps)


def _pre_tokenizer(value: object, file: Path) -> tuple[tuple[str, ...], bool]:
    """(split expressions, add_prefix_space)."""
    field = "pre_tokenizer"
    outer = _object(value, file, field)
    steps: list[dict[str, Any]] = [outer]
    if outer.get("type") == "Sequence":
        inner = outer.get("pretokenizers")
        if not isinstance(inner, list):
            message = f"{file}, field {field}.pretokenizers: expected a list, found {json_type(inner)}."
            raise InputFileError(message)
        require_few(len(inner), MOST_SPLITS, file, f"{field}.pretokenizers")
        steps = [_object(step, file, f"{field}.pretokenizers[{i}]") for i, step in enumerate(inner)]
    if not steps or steps[-1].get("type") != "ByteLevel":
        raise _other_kind(file, f"{field}.type", steps[-1].get("type") if steps else None, "ByteLevel as the last step")

    expressions = tuple(_split_expression(step, file, field) for step in steps[:-1])
    last = steps[-1]
    prefix_space = _flag(last, "add_prefix_space", file, True, f"{field}.")
    if _flag(last, "use_regex", file, True, f"{field}."):
        expressions = (*expressions, GPT2_SPLIT)
    if prefix_space and len(steps) > 1:
        raise _other_kind(file, f"{field}.add_prefix_space", True, "false behind a Split")
    return expressions, prefix_space


def _split_expression(step: Mapping[str, Any], file: Path, field: str) -> str:
    if step.get("type") != "Split":
        raise _other_kind(file, f"{field}.type", step.get("type"), "Split before the last step")
    pattern = step.get("pattern")
    expression = pattern.get("Regex") if isinstance(pattern, dict) else None
    if not isinstance(expression, str):
        raise _other_kind(file, f"{field}.pattern", pattern, "a Regex")
    # Isolated: every match is a piece, and so is what lies between. Removed + invert drops what lies between, which is
    # the same only if the expression matches everything; ending with white space is how the published ones do.
    isolated = step.get("behavior") == "Isolated"
    removed = step.get("behavior") == "Removed" and step.get("invert") is True and expression.endswith(r"|\s+")
    if not (isolated or removed):
        raise _other_kind(file, f"{field}.behavior", step.get("behavior"), "Isolated")
    if not is_supported(expression):
        raise _other_kind(file, f"{field}.pattern.Regex", expression, "the common part of the two regex engines")
    return expression


# Shared checks


def _build(file: Path, **parts: Any) -> TokenizerDefinition:
    try:
        return TokenizerDefinition(**parts)
    except ConfigurationError as error:
        message = f"{file}, field {error}"
        raise InputFileError(message) from None


def _vocabulary(value: object, file: Path, field: str) -> dict[str, int]:
    vocab = _object(value, file, field)
    for token, token_id in vocab.items():
        if type(token_id) is not int:
            named = f"field {field}.{shown(token)}" if field else f"field {shown(token)}"
            message = f"{file}, {named}: expected a token id, found {shown(token_id)}."
            raise InputFileError(message)
    return vocab


def require_few(count: int, most: int, file: Path, field: str) -> None:
    """Refuses a list that would fill the memory of whoever reads it."""
    if count > most:
        message = f"{file}, field {field}: {count:,} entries; more than {most:,} are not read."
        raise InputFileError(message)


def _object(value: object, file: Path, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        message = f"{file}, field {field}: expected an object, found {json_type(value)}."
        raise InputFileError(message)
    return value


def _flag(data: Mapping[str, Any], key: str, file: Path, default: bool, prefix: str = "") -> bool:
    value = data.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        message = f"{file}, field {prefix}{key}: expected true or false, found {json_type(value)}."
        raise InputFileError(message)
    return value


def _optional_object(file: Path) -> dict[str, Any]:
    return read_json_object(file) if os.path.lexists(file) else {}


def _other_kind(file: Path, field: str, found: object, expected: str) -> InputFileError:
    return InputFileError(f"{file}, field {field}: found {shown(found)}, but byte_bpe needs {expected}. {_ELSEWHERE}")


# Writing


def to_tokenizer_json(definition: TokenizerDefinition) -> dict[str, Any]:
    """The definition as the JSON object that the `tokenizers` library reads."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    pre_tokenizer: dict[str, Any] = {**byte_level, "add_prefix_space": definition.add_prefix_space}
    if definition.split_expressions != (GPT2_SPLIT,):
        pre_tokenizer["use_regex"] = False
        splits = [
            {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
            for expression in definition.split_expressions
        ]
        if splits:
            pre_tokenizer = {"type": "Sequence", "pretokenizers": [*splits, pre_tokenizer]}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": token.id, "content": token.text, "single_word": False, **_token_flags(token)}
            for token in sorted(definition.added_tokens, key=lambda token: token.id)
        ],
        "normalizer": {"type": "NFC"} if definition.normalize_nfc else None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": {**byte_level, "trim_offsets": False},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": definition.ignore_merges,
            "vocab": dict(definition.vocab),
            "merges": [list(pair) for pair in definition.merges],
        },
    }


def _token_flags(token: AddedToken) -> dict[str, bool]:
    return {
        "lstrip": token.lstrip,
        "rstrip": token.rstrip,
        "normalized": token.normalized,
        "special": token.special,
    }


def _tokenizer_config(definition: TokenizerDefinition) -> dict[str, Any]:
    end_of_text = END_OF_TEXT if END_OF_TEXT in definition.special_tokens else None
    # transformers builds its GPT2Tokenizer with GPT-2's own split and an end-of-text token, whatever the files say.
    like_gpt2 = end_of_text is not None and definition.split_expressions == (GPT2_SPLIT,)
    return {
        "tokenizer_class": "GPT2Tokenizer" if like_gpt2 else "PreTrainedTokenizerFast",
        "add_prefix_space": definition.add_prefix_space,
        "bos_token": end_of_text,
        "eos_token": end_of_text,
        "unk_token": end_of_text,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {
            str(token.id): {"content": token.text, "single_word": False, **_token_flags(token)}
            for token in definition.added_tokens
        },
    }


def save_definition(definition: TokenizerDefinition, folder: str | PathLike[str]) -> None:
    """Writes both formats into `folder`; see `ByteBPE.save`.

    vocab.json also holds the added tokens, so that a reader that knows only vocab.json and merges.txt has all ids.
    """
    added = {token.text: token.id for token in definition.added_tokens}
    vocab = dict(sorted({**definition.vocab, **added}.items(), key=lambda item: item[1]))
    merges = [_MERGES_HEADER, *(f"{left} {right}" for left, right in definition.merges)]
    write_files(
        Path(folder),
        {
            "vocab.json": json.dumps(vocab, ensure_ascii=False),
            "merges.txt": "\n".join(merges) + "\n",
            "tokenizer_config.json": json.dumps(_tokenizer_config(definition), ensure_ascii=False, indent=2) + "\n",
            "tokenizer.json": json.dumps(to_tokenizer_json(definition), ensure_ascii=False),
        },
    )
