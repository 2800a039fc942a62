"""The tokens that a tokenizer puts around a text that stands alone: `<s>` before it, perhaps `</s>` behind it.

They are the `post_processor` of a tokenizer.json. `encode` leaves them out, since a text may be a part; who has a
whole prompt puts them around it, as transformers does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformer_lab.errors import InputFileError, shown
from transformer_lab.tokenizers.tokenizer_files import json_type

_MOST_TOKENS = 100


@dataclass(frozen=True)
class TextTemplate:
    """Token ids before and behind a text."""

    before: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()

    def around(self, token_ids: list[int]) -> list[int]:
        """The ids of a text with those of the template."""
        return [*self.before, *token_ids, *self.behind]


def text_template(processor: object, file: Path) -> TextTemplate:
    """The template in the `post_processor` object of a tokenizer.json; InputFileError if it is damaged or unknown."""
    if processor is None:
        return TextTemplate()
    if not isinstance(processor, dict):
        message = f"{file}, field post_processor: expected an object, found {json_type(processor)}."
        raise InputFileError(message)
    match processor.get("type"):
        case "ByteLevel":  # it moves offsets, and no tokens
            return TextTemplate()
        case "Sequence":
            return _sequence(processor.get("processors"), file)
        case "TemplateProcessing":
            return _single(processor, file)
        case "BertProcessing" | "RobertaProcessing":
            return TextTemplate((_pair_id(processor, "cls", file),), (_pair_id(processor, "sep", file),))
    message = f"{file}, field post_processor.type: {shown(processor.get('type'))} is not known here."
    raise InputFileError(message)


def _sequence(steps: object, file: Path) -> TextTemplate:
    """Each step puts its tokens around what the ones before it have made."""
    if not isinstance(steps, list) or len(steps) > _MOST_TOKENS:
        raise _wrong(file, "processors", steps)
    before: tuple[int, ...] = ()
    behind: tuple[int, ...] = ()
    for step in steps:
        if isinstance(step, dict) and step.get("type") == "Sequence":
            raise _wrong(file, "processors", "a sequence in a sequence")
        template = text_template(step, file)
        before, behind = template.before + before, behind + template.behind
    return TextTemplate(before, behind)


def _single(processor: Mapping[str, Any], file: Path) -> TextTemplate:
    pieces, tokens = processor.get("single"), processor.get("special_tokens")
    if not isinstance(pieces, list) or not isinstance(tokens, dict) or len(pieces) > _MOST_TOKENS:
        raise _wrong(file, "single", pieces)
    sides: list[list[int]] = [[]]
    for piece in pieces:
        kind, value = next(iter(piece.items())) if isinstance(piece, dict) and len(piece) == 1 else (None, None)
        name = value.get("id") if isinstance(value, dict) else None
        if kind == "Sequence":
            sides.append([])
            continue
        token = tokens.get(name) if kind == "SpecialToken" and isinstance(name, str) else None
        ids = token.get("ids") if isinstance(token, dict) else None
        if not isinstance(ids, list) or len(ids) > _MOST_TOKENS or not all(type(i) is int and i >= 0 for i in ids):
            raise _wrong(file, "single", piece)
        sides[-1] += ids
    if len(sides) != 2:
        raise _wrong(file, "single", "not one text")
    return TextTemplate(tuple(sides[0]), tuple(sides[1]))


def _pair_id(processor: Mapping[str, Any], name: str, file: Path) -> int:
    pair = processor.get(name)
    if not isinstance(pair, list) or len(pair) != 2 or type(pair[1]) is not int or pair[1] < 0:
        raise _wrong(file, name, pair)
    return pair[1]


def _wrong(file: Path, field: str, found: object) -> InputFileError:
    message = f"{file}, field post_processor.{field}: {shown(found)} is no template of one text and special tokens."
    return InputFileError(message)
