"""The fields of a JSON file that a stranger may have made, one by one: of the right type, or an InputFileError that
names the file and the field.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformer_lab.errors import InputFileError, shown
from transformer_lab.tokenizers.tokenizer_files import json_type

MOST_STEPS = 50
_DEEPEST = 10

Named = tuple[dict[str, Any], str]  # an object and the name of the field that it is
# In words of the command line and of `load_model`, and in those of `load_tokenizer`.
_ELSEWHERE = 'The tokenizers library may read it: tokenizer=huggingface, or kind="huggingface" for load_tokenizer.'


def as_object(value: object, file: Path, field: str) -> dict[str, Any]:
    """`value`, if it is a JSON object."""
    if not isinstance(value, dict):
        message = f"{file}, field {field}: expected an object, found {json_type(value)}."
        raise InputFileError(message)
    return value


def as_list(value: object, file: Path, field: str, most: int) -> list[Any]:
    """`value`, if it is a list of at most `most` entries."""
    if not isinstance(value, list):
        message = f"{file}, field {field}: expected a list, found {json_type(value)}."
        raise InputFileError(message)
    require_few(len(value), most, file, field)
    return value


def require_few(count: int, most: int, file: Path, field: str) -> None:
    """Refuses a list that would fill the memory of whoever reads it."""
    if count > most:
        message = f"{file}, field {field}: {count:,} entries; more than {most:,} are not read."
        raise InputFileError(message)


def flag(data: Mapping[str, Any], key: str, file: Path, default: bool, prefix: str = "") -> bool:
    """The field `key`, true or false; `default` where it is missing or null. prefix: what it is a field of."""
    value = data.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        message = f"{file}, field {prefix}{key}: expected true or false, found {json_type(value)}."
        raise InputFileError(message)
    return value


def text(data: Mapping[str, Any], key: str, file: Path, default: str | None = None, prefix: str = "") -> str:
    """The field `key`, a text; `default` where it is missing or null."""
    value = data.get(key)
    value = default if value is None else value
    if not isinstance(value, str):
        message = f"{file}, field {prefix}{key}: expected a text, found {json_type(value)}."
        raise InputFileError(message)
    return value


def choice(
    data: Mapping[str, Any], key: str, file: Path, default: str | None, prefix: str, choices: Iterable[str]
) -> Any:
    """The field `key`, one of the choices; `default` where it is missing or null."""
    value = text(data, key, file, default, prefix)
    if value not in choices:
        raise other_kind(file, f"{prefix}{key}", value, " or ".join(choices))
    return value


def vocabulary(value: object, file: Path, field: str) -> dict[str, int]:
    """An object token -> id."""
    vocab = as_object(value, file, field)
    if set(map(type, vocab.values())) <= {int}:
        return vocab
    token, token_id = next(entry for entry in vocab.items() if type(entry[1]) is not int)
    named = f"field {field}.{shown(token)}" if field else f"field {shown(token)}"
    message = f"{file}, {named}: expected a token id, found {shown(token_id)}."
    raise InputFileError(message)


def other_kind(file: Path, field: str, found: object, expected: str) -> InputFileError:
    """For what is sound, but not read here."""
    return InputFileError(f"{file}, field {field}: found {shown(found)}, but byte_bpe needs {expected}. {_ELSEWHERE}")


def flattened(value: object, file: Path, field: str, inner: str, depth: int = 0) -> Iterator[Named]:
    """The steps of a normalizer or pre-tokenizer, those of every Sequence in their place: (object, field name).

    inner: the field of a Sequence that holds its steps. Raises InputFileError for more than fifty in one list, and for
    Sequences more than ten deep.
    """
    data = as_object(value, file, field)
    if data.get("type") != "Sequence":
        yield data, field
        return
    steps = as_list(data.get(inner), file, f"{field}.{inner}", MOST_STEPS)
    require_few(depth, _DEEPEST, file, f"{field}.{inner}")
    for number, step in enumerate(steps):
        yield from flattened(step, file, f"{field}.{inner}[{number}]", inner, depth + 1)
