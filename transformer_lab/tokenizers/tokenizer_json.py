"""tokenizer.json, in and out: the one-file format of the `tokenizers` library, as far as it means BPE.

What is not read is refused by the name of the file and the field; it never leads to other ids without a word.
The objects `normalizer` and `pre_tokenizer` have files of their own. Knows nothing of how a tokenizer works, and not
where its folder comes from (`loading.py`).
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from transformer_lab.errors import ConfigurationError, InputFileError, shown
from transformer_lab.tokenizers.added_tokens import AddedToken
from transformer_lab.tokenizers.decoding import decoder_rules
from transformer_lab.tokenizers.definition import BYTE_LEVEL_DECODER, TokenizerDefinition
from transformer_lab.tokenizers.json_fields import as_list, as_object, flag, other_kind, text, vocabulary
from transformer_lab.tokenizers.merge_list import SECTION, MergeList
from transformer_lab.tokenizers.normalizer_json import normalizer_json, read_normalizer
from transformer_lab.tokenizers.pre_tokenizer_json import pre_tokenizer_json, read_pre_tokenizer

# Above what was ever published; a file with more is refused before it fills the memory.
MOST_MERGES = 700_000  # published: 580,604
MOST_ADDED_TOKENS = 50_000  # published: 6,415


# Reading


def read_tokenizer_json_object(data: Mapping[str, Any], file: Path) -> TokenizerDefinition:
    """The definition in the parsed tokenizer.json of a BPE tokenizer; `file` is its name for messages.

    Whatever would change the ids and is not read is refused with an InputFileError naming the file and the field. The
    post_processor is for `text_template.py`; truncation and padding are left out.
    """
    model = as_object(data.get("model"), file, "model")
    # Very old files have no type; they hold BPE.
    if model.get("type", "BPE") != "BPE":
        raise other_kind(file, "model.type", model["type"], "BPE")
    dropout = model.get("dropout")
    if dropout is not None and (isinstance(dropout, bool) or dropout != 0):
        raise other_kind(file, "model.dropout", dropout, "none: the ids would be drawn by chance")
    decoder = data.get("decoder")
    decoder_rules(decoder, str(file))  # refuses what it does not know
    return checked_definition(
        file,
        vocabulary(model.get("vocab"), file, "model.vocab"),
        _merges(model.get("merges"), file),
        added_tokens=_added_tokens(data.get("added_tokens"), file),
        normalizer=read_normalizer(data.get("normalizer"), file),
        pre_tokenizer=read_pre_tokenizer(data.get("pre_tokenizer"), file),
        decoder=decoder,
        unk_token=None if model.get("unk_token") is None else text(model, "unk_token", file, prefix="model."),
        fuse_unk=flag(model, "fuse_unk", file, False, "model."),
        byte_fallback=flag(model, "byte_fallback", file, False, "model."),
        ignore_merges=flag(model, "ignore_merges", file, False, "model."),
        continuing_subword_prefix=text(model, "continuing_subword_prefix", file, "", "model."),
        end_of_word_suffix=text(model, "end_of_word_suffix", file, "", "model."),
    )


def checked_definition(
    file: Path, vocab: dict[str, int], merges: Iterable[list[str]], continuing_subword_prefix: str = "", **parts: Any
) -> TokenizerDefinition:
    """A TokenizerDefinition, with `file` in front of what it finds wrong. merges: their tokens, as for MergeList."""
    prefix = continuing_subword_prefix
    try:
        merge_list = MergeList(vocab, merges, prefix)
        return TokenizerDefinition(vocab, merge_list, continuing_subword_prefix=prefix, **parts)
    except ConfigurationError as error:
        message = f"{file}, field {error}"
        raise InputFileError(message) from None


def _merges(value: object, file: Path) -> Iterator[list[str]]:
    """The tokens of all merges in a row, by sections. Merges are texts "a b" or lists ["a", "b"]."""
    entries = as_list(value, file, "model.merges", MOST_MERGES)
    return (_tokens(entries[start : start + SECTION], start, file) for start in range(0, len(entries), SECTION))


def _tokens(entries: list[Any], start: int, file: Path) -> list[str]:
    """The tokens of some merges in a row; start: the number of the first."""
    pairs = list(map(str.split, entries, repeat(" "))) if set(map(type, entries)) == {str} else entries
    if set(map(type, pairs)) == {list} and set(map(len, pairs)) == {2}:
        tokens = list(chain.from_iterable(pairs))
        if set(map(type, tokens)) == {str}:
            return tokens
    # Of both forms, or one is wrong.
    return [token for number, entry in enumerate(entries, start) for token in _merge(entry, number, file)]


def _merge(entry: object, number: int, file: Path) -> tuple[str, str]:
    match entry.split(" ") if isinstance(entry, str) else entry:
        case [str(left), str(right)]:
            return left, right
    message = (
        f"{file}, field model.merges[{number}]: expected two tokens, as 'a b' or ['a', 'b'], found {shown(entry)}."
    )
    raise InputFileError(message)


def _added_tokens(value: object, file: Path) -> list[AddedToken]:
    tokens = []
    for number, entry in enumerate(as_list([] if value is None else value, file, "added_tokens", MOST_ADDED_TOKENS)):
        where = f"added_tokens[{number}]"
        token = as_object(entry, file, where)
        tokens.append(read_added_token(token, token.get("id"), file, where))
    return tokens


def read_added_token(entry: Mapping[str, Any], token_id: object, file: Path, where: str) -> AddedToken:
    """The added token in an object with `content` and flags; where: the name of the field."""
    content = entry.get("content")
    if not isinstance(content, str) or type(token_id) is not int:
        message = f"{file}, field {where}: an added token needs a text as content and a whole number as id."
        raise InputFileError(message)
    special = flag(entry, "special", file, False, f"{where}.")
    return AddedToken(
        content,
        token_id,
        special=special,
        lstrip=flag(entry, "lstrip", file, False, f"{where}."),
        rstrip=flag(entry, "rstrip", file, False, f"{where}."),
        normalized=flag(entry, "normalized", file, not special, f"{where}."),
        single_word=flag(entry, "single_word", file, False, f"{where}."),
    )


# Writing


def to_tokenizer_json(definition: TokenizerDefinition) -> dict[str, Any]:
    """The definition as the JSON object that the `tokenizers` library reads."""
    byte_level = {**BYTE_LEVEL_DECODER, "trim_offsets": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        # In their order, since the library numbers on what is not in the vocabulary.
        "added_tokens": [{"id": token.id, **added_token_json(token)} for token in definition.added_tokens],
        "normalizer": normalizer_json(definition.normalizer),
        "pre_tokenizer": pre_tokenizer_json(definition.pre_tokenizer),
        "post_processor": byte_level if definition.writes_bytes else None,
        "decoder": definition.decoder,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": definition.unk_token,
            "continuing_subword_prefix": definition.continuing_subword_prefix,
            "end_of_word_suffix": definition.end_of_word_suffix,
            "fuse_unk": definition.fuse_unk,
            "byte_fallback": definition.byte_fallback,
            "ignore_merges": definition.ignore_merges,
            "vocab": dict(definition.vocab),
            "merges": [list(pair) for pair in definition.merges],
        },
    }


def added_token_json(token: AddedToken) -> dict[str, Any]:
    """Text and flags of an added token."""
    return {
        "content": token.text,
        "single_word": token.single_word,
        "lstrip": token.lstrip,
        "rstrip": token.rstrip,
        "normalized": token.normalized,
        "special": token.special,
    }
