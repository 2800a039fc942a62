"""What kind of token each is: a simple classing, to see whether experts keep to kinds. It knows no model.

A token that continues a word stands without a space behind a letter or a digit. What is cut out of the middle of a
character, as byte-level tokenizers do, is its part.
"""

from collections.abc import Sequence
from typing import Any

CLASSES = ("word start", "continuation", "digit", "punctuation", "space", "part of a character", "special")
BROKEN = "\ufffd"


def token_classes(tokenizer: Any, token_ids: Sequence[int]) -> list[str]:
    """The class of each token of one text, one of CLASSES."""
    special = set(tokenizer.special_tokens.values())
    found, before = [], ""
    for place, token_id in enumerate(token_ids):
        text = _text(tokenizer, token_ids, place)
        found.append("special" if token_id in special else _class(text, before))
        before = "" if token_id in special else text
    return found


def _text(tokenizer: Any, token_ids: Sequence[int], place: int) -> str:
    """What a token adds to the text. Where tokens are no bytes of their own that hangs on the one before it."""
    if tokenizer.is_byte_level:
        return str(tokenizer.decode_bytes([token_ids[place]]).decode("utf-8", "replace"))
    known = tokenizer.decode(token_ids[max(place - 1, 0) : place])
    return str(tokenizer.decode(token_ids[max(place - 1, 0) : place + 1]))[len(known) :]


def _class(text: str, before: str) -> str:
    body = text.strip()
    if BROKEN in text:
        return "part of a character"
    if not body:
        return "space"
    if body.isnumeric():
        return "digit"
    if not any(letter.isalnum() for letter in body):
        return "punctuation"
    return "continuation" if before[-1:].isalnum() and not text[0].isspace() else "word start"
