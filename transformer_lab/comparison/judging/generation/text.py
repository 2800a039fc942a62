"""The text that tokens make, by the tokenizer's plain decoding, and the stop strings that can be tried in it.

It knows ids and a tokenizer, and nothing of how a generation is made.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from transformer_lab.tokenizers.stream_decoder import RedecodingStreamDecoder


def has_plain_text(tokenizer: Any) -> bool:
    """Whether the text of a token does not depend on its neighbours. tokenizer: may be None."""
    return tokenizer is not None and not isinstance(tokenizer.stream_decoder(), RedecodingStreamDecoder)


def text_until(tokenizer: Any, tokens: Sequence[int], stop: Sequence[str]) -> tuple[str, int | None]:
    """The text of the tokens up to the first stop string, and how many complete that; None if there is none."""
    text = decoded(tokenizer, tokens)
    ended = min(((place + len(one), place) for one in stop if (place := text.find(one)) >= 0), default=None)
    if ended is None:
        return text, None
    end, begin = ended
    counts = range(len(tokens) + 1)
    return text[:begin], next(n for n in counts if len(_settled(tokenizer, tokens[:n], text)) >= end)


def decoded(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The text of the tokens; U+FFFD for each that the model has and the tokenizer does not."""
    parts = []
    for known, run in groupby(tokens, lambda token: token < tokenizer.vocab_size):
        ids = list(run)
        parts.append(tokenizer.decode(ids) if known else "\ufffd" * len(ids))
    return "".join(parts)


def stop_strings(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    """Strings across the border of two tokens, that end at one place, and one that never comes. Empty if none can be.

    They are ASCII, which no incomplete character can touch.
    """
    text = decoded(tokenizer, tokens)
    for count in range(len(tokens) // 2, len(tokens)):
        border = len(_settled(tokenizer, tokens[:count], text))
        short, long = text[border - 1 : border + 1], text[max(border - 2, 0) : border + 1]
        if border >= 1 and len(short) == 2 and long.isascii():
            return [short, long, text[:border] + "\0"]
    return []


def held_back(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    """A string whose beginning is the end of the text, and which never comes."""
    text = decoded(tokenizer, tokens)[-2:]
    return [text + "\0never"] if text.isascii() and text else []


def _settled(tokenizer: Any, tokens: Sequence[int], text: str) -> str:
    """What is sure of `text` once these tokens have come; half a character at their end may still change."""
    now = decoded(tokenizer, tokens)
    pairs = enumerate(zip(now, text, strict=False))
    return text[: next((place for place, (one, other) in pairs if one != other), len(now))]
