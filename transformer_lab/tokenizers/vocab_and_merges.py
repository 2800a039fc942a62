"""vocab.json and merges.txt, in and out, with the small JSON files beside them: how GPT-2 was published.

vocab.json is a JSON object token -> id; merges.txt has one pair per line, the most urgent first, under a version line.
What else a tokenizer does, the class in tokenizer_config.json says (`tokenizer_class.py`).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from sys import intern
from typing import Any

from transformer_lab.errors import InputFileError, shown
from transformer_lab.tokenizers.added_tokens import AddedToken
from transformer_lab.tokenizers.definition import TokenizerDefinition
from transformer_lab.tokenizers.json_fields import as_object, flag, require_few, text, vocabulary
from transformer_lab.tokenizers.merge_list import sections_of_pairs
from transformer_lab.tokenizers.tokenizer_class import rules_of_class
from transformer_lab.tokenizers.tokenizer_config import special_texts
from transformer_lab.tokenizers.tokenizer_files import optional_json_object, read_json_object, read_text
from transformer_lab.tokenizers.tokenizer_json import (
    MOST_ADDED_TOKENS,
    MOST_MERGES,
    checked_definition,
    read_added_token,
)

_HEADER = "#version: 0.2"


def read_vocab_and_merges(vocab_file: Path, merges_file: Path) -> TokenizerDefinition:
    """The definition in a GPT-2 style pair of files and the small JSON files beside them, if any.

    From tokenizer_config.json come the class (GPT-2's, if none is named) and `add_prefix_space`; from it,
    special_tokens_map.json and added_tokens.json the added tokens, those that have an id there or in the vocabulary.
    Raises InputFileError naming the file and the field.
    """
    folder = vocab_file.parent
    vocab = read_vocab(vocab_file)
    config_file = folder / "tokenizer_config.json"
    config = optional_json_object(config_file)
    has_prefix_space = config.get("add_prefix_space") is not None
    prefix_space = flag(config, "add_prefix_space", config_file, False) if has_prefix_space else None
    name = text(config, "tokenizer_class", config_file, "GPT2Tokenizer")
    parts, special = rules_of_class(name, prefix_space, config_file)
    added = _added_tokens_beside(folder, config, vocab, special)
    merges = sections_of_pairs(read_merges(merges_file))
    return checked_definition(vocab_file, vocab, merges, added_tokens=added, **parts)


def read_vocab(file: Path) -> dict[str, int]:
    """token -> id, in a vocab.json."""
    return vocabulary(read_json_object(file), file, "")


def read_merges(file: Path) -> list[tuple[str, str]]:
    """The pairs in a merges.txt, in order."""
    lines = read_text(file)
    require_few(lines.count("\n"), MOST_MERGES, file, "merges")
    merges = []
    for number, line in enumerate(lines.split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, space, right = line.partition(" ")
        if not left or not space or not right or " " in right:
            message = f"{file}, line {number}: expected two tokens with one space between, found {shown(line)}."
            raise InputFileError(message)
        merges.append((intern(left), intern(right)))  # a token stands in many merges: one object for all of them
    return merges


def merges_text(merges: Iterable[tuple[str, str]]) -> str:
    """The contents of a merges.txt."""
    return "\n".join([_HEADER, *(f"{left} {right}" for left, right in merges)]) + "\n"


def _added_tokens_beside(
    folder: Path, config: Mapping[str, Any], vocab: Mapping[str, int], special: Iterable[str]
) -> list[AddedToken]:
    config_file = folder / "tokenizer_config.json"
    tokens = {token: AddedToken(token, vocab[token]) for token in special if token in vocab}

    added_file = folder / "added_tokens.json"
    added = vocabulary(optional_json_object(added_file), added_file, "")
    require_few(len(added), MOST_ADDED_TOKENS, added_file, "added_tokens")
    for token, token_id in added.items():
        tokens[token] = AddedToken(token, token_id, special=False, normalized=True)

    field = "added_tokens_decoder"
    entries = as_object(config.get(field, {}), config_file, field)
    require_few(len(entries), MOST_ADDED_TOKENS, config_file, field)
    for key, entry in entries.items():
        where = f"{field}.{shown(key)[1:-1]}"
        if not (key.isascii() and key.isdigit() and len(key) <= 15):
            message = f"{config_file}, field {where}: the key must be a token id."
            raise InputFileError(message)
        found = read_added_token(as_object(entry, config_file, where), int(key), config_file, where)
        tokens[found.text] = found

    known = {**vocab, **{token.text: token.id for token in tokens.values()}}
    roles_file = folder / "special_tokens_map.json"
    for file, roles in ((config_file, config), (roles_file, optional_json_object(roles_file))):
        for name in special_texts(roles, file):
            if name in known and not (name in tokens and tokens[name].special):
                old = tokens.get(name)
                tokens[name] = AddedToken(
                    name, known[name], lstrip=bool(old and old.lstrip), rstrip=bool(old and old.rstrip)
                )
    return sorted(tokens.values(), key=lambda token: token.id)
