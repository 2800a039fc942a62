"""Finds the files of a tokenizer, by name among the embedded ones or in a folder, and makes it.

Knows nothing of models and of the network: names of models and hub ids are resolved by the caller, who then hands a
folder to `load_tokenizer_folder`.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from transformer_lab.errors import ConfigurationError, InputFileError, shown
from transformer_lab.paths import data_folder, expanded
from transformer_lab.tokenizers.bpe import BPE
from transformer_lab.tokenizers.byte_bpe import ByteBPE
from transformer_lab.tokenizers.definition import TokenizerDefinition
from transformer_lab.tokenizers.interface import Tokenizer
from transformer_lab.tokenizers.original_files import original_files
from transformer_lab.tokenizers.text_template import text_template
from transformer_lab.tokenizers.tokenizer_config import with_tokenizer_config
from transformer_lab.tokenizers.tokenizer_files import json_object
from transformer_lab.tokenizers.tokenizer_json import read_tokenizer_json_object
from transformer_lab.tokenizers.vocab_and_merges import read_merges, read_vocab, read_vocab_and_merges

TOKENIZER_KINDS = ("byte_bpe", "huggingface")
# What a folder is searched for, in this order.
TOKENIZER_FILES = ("tokenizer.json", "vocab.json + merges.txt", "gpt2-vocab.json + gpt2-merges.txt")


def embedded_tokenizer_names() -> list[str]:
    """The names under resources/tokenizer_data, sorted; they need no network."""
    folder = data_folder("resources") / "tokenizer_data"
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []


def is_folder_source(source: str | PathLike[str]) -> bool:
    """True if `source` means a folder: a path object, what starts with '/', '.' or '~', or an existing folder."""
    if not isinstance(source, str):
        return True
    return source.startswith(("/", ".", "~")) or (source != "" and _is_dir(Path(source)))


def load_tokenizer(source: str | PathLike[str], kind: str = "byte_bpe") -> Tokenizer:
    """The tokenizer called or stored at `source`.

    source: a name under resources/tokenizer_data, such as "gpt2", or a folder with tokenizer.json, with vocab.json +
        merges.txt, or with gpt2-vocab.json + gpt2-merges.txt. What starts with "/", "." or "~", or names an existing
        folder, is always a folder. Where a folder has both formats, tokenizer.json counts, because it alone holds all
        the rules; byte_bpe then checks that the pair agrees with it. What tokenizer_config.json and its kin say beyond
        either is added.
    kind: "byte_bpe" (by hand) or "huggingface" (the `tokenizers` library, which reads other kinds of tokenizer too).

    Raises ConfigurationError for an unknown name or kind, InputFileError for missing or damaged files.
    """
    if not isinstance(source, str | PathLike):
        message = f"A tokenizer is named by a text or a path, got {type(source).__name__}."
        raise ConfigurationError(message)
    if isinstance(source, str) and not is_folder_source(source):
        names = embedded_tokenizer_names()
        if source not in names:
            message = (
                f"There is no tokenizer {source!r}. Embedded ones: {', '.join(names) or 'none'}; "
                "a folder is written with ./ or / in front."
            )
            raise ConfigurationError(message)
        source = data_folder("resources") / "tokenizer_data" / source
    folder = expanded(source)
    tokenizer = load_tokenizer_folder(folder, kind)
    if tokenizer is None:
        message = f"{folder} holds no tokenizer; looked for {', '.join(TOKENIZER_FILES)}."
        raise InputFileError(message)
    return tokenizer


def load_tokenizer_folder(folder: str | PathLike[str], kind: str = "byte_bpe") -> Tokenizer | None:
    """The tokenizer in `folder`, or None if it holds none of TOKENIZER_FILES. Errors as in `load_tokenizer`."""
    if kind not in TOKENIZER_KINDS:
        message = f"Unknown kind of tokenizer {kind!r}; expected {' or '.join(TOKENIZER_KINDS)}."
        raise ConfigurationError(message)
    folder = Path(folder)
    if not _is_dir(folder):
        what = "is not a folder" if _exists(folder) else "does not exist"
        message = f"The tokenizer folder {folder} {what}."
        raise InputFileError(message)
    with _no_collection():
        return _load(folder, kind)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Python looks for garbage the more often the more objects are made; here a million are, and all of them stay."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _load(folder: Path, kind: str) -> Tokenizer | None:
    one_file = folder / "tokenizer.json"
    pair = _vocab_and_merges(folder)
    files = original_files(folder) if pair or _exists(one_file) else {}
    if one_file.name in files:
        data = with_tokenizer_config(json_object(files[one_file.name], one_file), folder)
        tokenizer = _of_one_file(data, one_file, kind, pair)
        tokenizer.template = text_template(data.get("post_processor"), one_file)
    elif pair:
        tokenizer = _of_definition(read_vocab_and_merges(*pair), kind)
    else:
        return None
    tokenizer.original_files = files
    return tokenizer


def _of_one_file(data: dict[str, Any], file: Path, kind: str, pair: tuple[Path, Path] | None) -> Tokenizer:
    if kind == "huggingface":
        from transformer_lab.tokenizers.huggingface import HuggingFaceTokenizer

        return HuggingFaceTokenizer.from_tokenizer_json(data, file)
    definition = read_tokenizer_json_object(data, file)
    if pair:
        _check_agreement(definition, file, pair)
    return _by_hand(definition)


def _of_definition(definition: TokenizerDefinition, kind: str) -> Tokenizer:
    if kind == "huggingface":
        from transformer_lab.tokenizers.huggingface import HuggingFaceTokenizer

        return HuggingFaceTokenizer.from_definition(definition)
    return _by_hand(definition)


def _by_hand(definition: TokenizerDefinition) -> BPE:
    return ByteBPE(definition) if definition.is_byte_level else BPE(definition)


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name too long, or one with a null character
        return False


def _exists(path: Path) -> bool:
    """True also for what may not be looked at and for a broken link, so that reading it can say so."""
    try:
        return os.path.lexists(path)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False


def _vocab_and_merges(folder: Path) -> tuple[Path, Path] | None:
    for prefix in ("", "gpt2-"):
        vocab, merges = folder / f"{prefix}vocab.json", folder / f"{prefix}merges.txt"
        # A vocab.json alone belongs to another kind of tokenizer, or to none.
        if _exists(vocab) and _exists(merges):
            return vocab, merges
    return None


def _check_agreement(definition: TokenizerDefinition, one_file: Path, pair: tuple[Path, Path]) -> None:
    """Two files that contradict each other mean that one of them is wrong, and nobody could say which was used."""
    vocab, merges = read_vocab(pair[0]), read_merges(pair[1])
    if list(definition.merges) != merges:
        message = f"{one_file} (field model.merges) and {pair[1]} disagree. Remove the wrong one."
        raise InputFileError(message)
    ids = {**definition.vocab, **{token.text: token.id for token in definition.added_tokens}}
    for token, token_id in vocab.items():
        if ids.get(token) != token_id:
            message = (
                f"{one_file} (field model.vocab) and {pair[0]} disagree about {shown(token)}: "
                f"{shown(ids.get(token))} and {shown(token_id)}. Remove the wrong one."
            )
            raise InputFileError(message)
