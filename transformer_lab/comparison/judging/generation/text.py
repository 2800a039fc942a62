"""The text that tokens make behind a prompt, and the stop strings that can be tried in it.

By the tokenizer's plain decoding of all of it. It knows ids and a tokenizer, and nothing of how a generation is made.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from transformer_lab.errors import ConfigurationError


class TextBehind:
    """The text of tokens behind a prompt: decode(prompt + tokens) without its beginning decode(prompt)."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int]) -> None:
        self._tokenizer, self._prompt = tokenizer, list(prompt)
        self._before = self._decoded(self._prompt)

    def of(self, tokens: Sequence[int]) -> str:
        """U+FFFD stands for each that the model has and the tokenizer does not."""
        whole = self._decoded([*self._prompt, *tokens])
        return whole[len(_common_beginning(whole, self._before)) :]

    def until(self, tokens: Sequence[int], stop: Sequence[str]) -> tuple[str, int | None]:
        """The text of the tokens up to the first stop string, and how many complete that; None if there is none."""
        text = self.of(tokens)
        ended = min(((place + len(one), place) for one in stop if (place := text.find(one)) >= 0), default=None)
        if ended is None:
            return text, None
        end, begin = ended
        counts = range(len(tokens) + 1)
        return text[:begin], next(n for n in counts if len(self._settled(tokens[:n], text)) >= end)

    def stop_strings(self, tokens: Sequence[int]) -> list[str]:
        """Strings across the border of two tokens, that end at one place, and one that never comes. Empty if none can.

        They are ASCII, which no incomplete character can touch.
        """
        text = self.of(tokens)
        for count in range(len(tokens) // 2, len(tokens)):
            border = len(self._settled(tokens[:count], text))
            short, long = text[border - 1 : border + 1], text[max(border - 2, 0) : border + 1]
            if border >= 1 and len(short) == 2 and long.isascii():
                return [short, long, text[:border] + "\0"]
        return []

    def held_back(self, tokens: Sequence[int]) -> list[str]:
        """A string whose beginning is the end of the text, and which never comes."""
        text = self.of(tokens)[-2:]
        return [text + "\0never"] if text.isascii() and text else []

    def _settled(self, tokens: Sequence[int], text: str) -> str:
        """What is sure of `text` once these tokens have come; half a character at their end may still change."""
        return _common_beginning(text, self.of(tokens))

    def _decoded(self, tokens: Sequence[int]) -> str:
        runs = groupby(tokens, self._is_known)
        return "".join(self._tokenizer.decode(run) if known else "\ufffd" * len(list(run)) for known, run in runs)

    def _is_known(self, token: int) -> bool:
        try:
            self._tokenizer.decode([token])
        except ConfigurationError:
            return False
        return True


def _common_beginning(one: str, other: str) -> str:
    pairs = enumerate(zip(one, other, strict=False))
    return one[: next((place for place, (left, right) in pairs if left != right), len(other))]
