"""The `pattern` of a Split or a Replace in a tokenizer.json, in and out: {"String": ...} or {"Regex": ...}."""

from pathlib import Path
from typing import Any

from transformer_lab.errors import ConfigurationError
from transformer_lab.tokenizers.expressions import Expression, Literal
from transformer_lab.tokenizers.json_fields import other_kind


def read_pattern(value: object, file: Path, field: str) -> Literal | Expression:
    """The pattern in `value`. Raises InputFileError, also for an expression that may mean something else here."""
    match value:
        case {"String": str(literal), **other} if not other:
            return Literal(literal)
        case {"Regex": str(expression), **other} if not other:
            try:
                return Expression(expression)
            except ConfigurationError as error:
                expected = "the common part of the two regex engines"
                raise other_kind(file, f"{field}.Regex", expression, f"{expected}: {error}") from None
    raise other_kind(file, field, value, "a String or a Regex")


def pattern_json(pattern: Literal | Expression) -> dict[str, Any]:
    """The inverse."""
    return {"String": pattern.text} if isinstance(pattern, Literal) else {"Regex": pattern.source}
