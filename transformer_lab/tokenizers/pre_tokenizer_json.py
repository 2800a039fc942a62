"""The `pre_tokenizer` of a tokenizer.json, in and out: what its objects mean in the steps of `pre_tokenization.py`."""

from itertools import islice
from pathlib import Path
from typing import Any, get_args

from transformer_lab.tokenizers.json_fields import MOST_STEPS, choice, flag, flattened, other_kind, require_few, text
from transformer_lab.tokenizers.pattern_json import pattern_json, read_pattern
from transformer_lab.tokenizers.pre_tokenization import (
    Behavior,
    ByteLevel,
    Digits,
    Metaspace,
    PreTokenizerStep,
    Punctuation,
    Split,
    Whitespace,
    WhitespaceSplit,
)

_BEHAVIORS: tuple[str, ...] = get_args(Behavior)


def read_pre_tokenizer(value: object, file: Path) -> tuple[PreTokenizerStep, ...]:
    """The steps of a pre-tokenizer. Raises InputFileError for a kind that is not read."""
    if value is None:
        return ()
    objects = list(islice(flattened(value, file, "pre_tokenizer", "pretokenizers"), MOST_STEPS + 1))
    require_few(len(objects), MOST_STEPS, file, "pre_tokenizer")
    return tuple(_step(data, file, field) for data, field in objects)


def _step(data: dict[str, Any], file: Path, field: str) -> PreTokenizerStep:
    prefix = f"{field}."
    match data.get("type"):
        case "ByteLevel":
            prefix_space = flag(data, "add_prefix_space", file, True, prefix)
            return ByteLevel(prefix_space, flag(data, "use_regex", file, True, prefix))
        case "Split":
            pattern = read_pattern(data.get("pattern"), file, f"{field}.pattern")
            behavior = choice(data, "behavior", file, None, prefix, _BEHAVIORS)
            return Split(pattern, behavior, flag(data, "invert", file, False, prefix))
        case "Metaspace":
            return _metaspace(data, file, prefix)
        case "Digits":
            return Digits(flag(data, "individual_digits", file, False, prefix))
        case "Punctuation":
            return Punctuation(choice(data, "behavior", file, "Isolated", prefix, _BEHAVIORS))
        case "Whitespace":
            return Whitespace()
        case "WhitespaceSplit":
            return WhitespaceSplit()
        case kind:
            known = "ByteLevel, Split, Metaspace, Digits, Punctuation, Whitespace, WhitespaceSplit"
            raise other_kind(file, f"{field}.type", kind, f"{known} or a Sequence of these")


def _metaspace(data: dict[str, Any], file: Path, prefix: str) -> Metaspace:
    scheme = choice(data, "prepend_scheme", file, "always", prefix, ("always", "first", "never"))
    replacement = text(data, "replacement", file, None, prefix)
    # Older files say add_prefix_space instead; where both are there, they must agree, as in the library.
    if len(replacement) != 1:
        raise other_kind(file, f"{prefix}replacement", replacement, "one character")
    if not flag(data, "add_prefix_space", file, True, prefix) and scheme != "never":
        raise other_kind(file, f"{prefix}add_prefix_space", False, 'a prepend_scheme of "never" with it')
    return Metaspace(replacement, scheme, flag(data, "split", file, True, prefix))


def pre_tokenizer_json(steps: tuple[PreTokenizerStep, ...]) -> dict[str, Any] | None:
    """The inverse."""
    objects = [_object(step) for step in steps]
    if len(objects) == 1:
        return objects[0]
    return {"type": "Sequence", "pretokenizers": objects} if objects else None


def _object(step: PreTokenizerStep) -> dict[str, Any]:
    match step:
        case ByteLevel(add_prefix_space, use_regex):
            prefix = {"type": "ByteLevel", "add_prefix_space": add_prefix_space}
            return {**prefix, "trim_offsets": True, "use_regex": use_regex}
        case Split(pattern, behavior, invert):
            return {"type": "Split", "pattern": pattern_json(pattern), "behavior": behavior, "invert": invert}
        case Metaspace(replacement, prepend_scheme, split):
            return {"type": "Metaspace", "replacement": replacement, "prepend_scheme": prepend_scheme, "split": split}
        case Digits(individual):
            return {"type": "Digits", "individual_digits": individual}
        case Punctuation(behavior):
            return {"type": "Punctuation", "behavior": behavior}
        case Whitespace() | WhitespaceSplit():
            return {"type": type(step).__name__}
