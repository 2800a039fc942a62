"""Turns token ids into text one by one: text comes out as soon as it is complete, never half a character.

Knows nothing of how ids become bytes; it is handed that function.
"""

import codecs
from collections.abc import Callable, Sequence


class StreamDecoder:
    """Text of a growing sequence of ids. All pushes and the flush together give `decode` of all ids, always.

    Bytes that are no valid UTF-8 come out as U+FFFD, as many as `bytes.decode("utf-8", "replace")` gives. One decoder
    serves one sequence; after `flush` it is ready for the next.
    """

    def __init__(self, decode_bytes: Callable[[Sequence[int]], bytes]) -> None:
        self._decode_bytes = decode_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes, often "" in the middle of a character."""
        return self._utf8.decode(self._decode_bytes((token_id,)))

    def flush(self) -> str:
        """What is left at the end: U+FFFD if the ids stop within a character, else ""."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


class RedecodingStreamDecoder:
    """The same for vocabularies that are not byte-level, where the text of a token depends on its neighbours.

    Each push decodes everything again and gives what was added. Where a token changes earlier text that was already
    given (some decoders join punctuation to the word before), nothing is given until the end, and the whole then
    differs from `decode` there; a byte-level tokenizer never does this.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._given = ""

    def push(self, token_id: int) -> str:
        """The text that `token_id` adds, "" while it may still change."""
        text = self._decode([*self._ids, token_id])
        self._ids.append(token_id)
        return "" if text.endswith("\ufffd") else self._give(text)

    def flush(self) -> str:
        """What is left at the end."""
        rest = self._give(self._decode(self._ids)) if self._ids else ""
        self._ids, self._given = [], ""
        return rest

    def _give(self, text: str) -> str:
        if not text.startswith(self._given):
            return ""
        new = text[len(self._given) :]
        self._given = text
        return new
