"""The `normalizer` of a tokenizer.json, in and out: what its objects mean in the steps of `normalization.py`."""

from itertools import islice
from pathlib import Path
from typing import Any

from transformer_lab.tokenizers.expressions import Expression
from transformer_lab.tokenizers.json_fields import MOST_STEPS, flag, flattened, other_kind, require_few, text
from transformer_lab.tokenizers.normalization import (
    Lowercase,
    NormalizerStep,
    Prepend,
    Replace,
    Strip,
    StripAccents,
    UnicodeForm,
)
from transformer_lab.tokenizers.pattern_json import pattern_json, read_pattern


def read_normalizer(value: object, file: Path) -> tuple[NormalizerStep, ...]:
    """The steps of a normalizer. Raises InputFileError for a kind that is not read."""
    if value is None:
        return ()
    objects = list(islice(flattened(value, file, "normalizer", "normalizers"), MOST_STEPS + 1))
    require_few(len(objects), MOST_STEPS, file, "normalizer")
    return tuple(_step(data, file, field) for data, field in objects)


def _step(data: dict[str, Any], file: Path, field: str) -> NormalizerStep:
    match data.get("type"):
        case "NFC" | "NFD" | "NFKC" | "NFKD" as form:
            return UnicodeForm(form)
        case "Lowercase":
            return Lowercase()
        case "StripAccents":
            return StripAccents()
        case "Strip":
            left = flag(data, "strip_left", file, True, f"{field}.")
            return Strip(left, flag(data, "strip_right", file, True, f"{field}."))
        case "Prepend":
            return Prepend(text(data, "prepend", file, prefix=f"{field}."))
        case "Replace":
            pattern = read_pattern(data.get("pattern"), file, f"{field}.pattern")
            content = text(data, "content", file, prefix=f"{field}.")
            if isinstance(pattern, Expression) and "$" in content:
                # To some versions of the library $1 is what the first group matched.
                raise other_kind(file, f"{field}.content", content, "a text without $ for what a Regex matches")
            return Replace(pattern, content)
        case kind:
            known = "NFC, NFD, NFKC, NFKD, Lowercase, Strip, StripAccents, Prepend, Replace or a Sequence of these"
            raise other_kind(file, f"{field}.type", kind, known)


def normalizer_json(steps: tuple[NormalizerStep, ...]) -> dict[str, Any] | None:
    """The inverse."""
    objects = [_object(step) for step in steps]
    if len(objects) == 1:
        return objects[0]
    return {"type": "Sequence", "normalizers": objects} if objects else None


def _object(step: NormalizerStep) -> dict[str, Any]:
    match step:
        case UnicodeForm(form):
            return {"type": form}
        case Strip(left, right):
            return {"type": "Strip", "strip_left": left, "strip_right": right}
        case Prepend(prefix):
            return {"type": "Prepend", "prepend": prefix}
        case Replace(pattern, content):
            return {"type": "Replace", "pattern": pattern_json(pattern), "content": content}
        case Lowercase() | StripAccents():
            return {"type": type(step).__name__}
