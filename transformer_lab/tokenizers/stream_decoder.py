"""Token ids to text one by one, behind a prompt: text comes out when it is certain, and is never taken back or lost.

One rule for all tokenizers: the text of a continuation is decode(prompt + continuation) without its beginning
decode(prompt). Where the continuation completes a character that the prompt left open, the two begin alike only up to
there, and the text is what follows. Knows nothing of how ids become text; it is handed a decoder at work.
"""

import codecs
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from transformer_lab.errors import ConfigurationError
from transformer_lab.tokenizers.decoding import Rule, Steps

UNKNOWN = "\ufffd"  # the text of an id that the tokenizer does not have; a model's vocabulary may be larger


class Decoding(Protocol):
    """A decoder at work on one text."""

    def push(self, token_id: int) -> str:
        """The text that `token_id` makes certain, often "". Raises ConfigurationError for an id that does not exist."""

    def push_unknown(self) -> str:
        """The same for an id that does not exist: UNKNOWN."""

    def rest(self) -> str:
        """What is left if the text ends here; nothing is changed."""


class StreamDecoder:
    """Text of a growing sequence of ids behind those of a prompt. `push` and `push_unknown` as in Decoding.

    All pushes and the flush together give the text of the continuation. One decoder serves one sequence.
    """

    def __init__(self, decoding: Decoding, prompt: Iterable[int] = ()) -> None:
        self._decoding = decoding
        for token_id in prompt:
            try:
                decoding.push(token_id)
            except ConfigurationError:
                decoding.push_unknown()
        # The end of decode(prompt), which is not certain and so comes again with the continuation.
        self._known = decoding.rest()

    def push(self, token_id: int) -> str:
        return self._beyond_prompt(self._decoding.push(token_id))

    def push_unknown(self) -> str:
        return self._beyond_prompt(self._decoding.push_unknown())

    def flush(self) -> str:
        """What is left at the end."""
        return self._beyond_prompt(self._decoding.rest())

    def _beyond_prompt(self, text: str) -> str:
        if not self._known or not text:
            return text
        same = 0
        while same < min(len(text), len(self._known)) and text[same] == self._known[same]:
            same += 1
        self._known = self._known[same:] if same == len(text) else ""
        return text[same:]


class BytesDecoding:
    """For byte-level vocabularies: the bytes of the tokens, read as UTF-8; what is not valid comes out as U+FFFD,
    as often as `bytes.decode("utf-8", "replace")` gives it.
    """

    def __init__(self, bytes_of: Callable[[int], bytes]) -> None:
        self._bytes_of = bytes_of
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._utf8.decode(self._bytes_of(token_id))

    def push_unknown(self) -> str:
        return self._utf8.decode(UNKNOWN.encode())

    def rest(self) -> str:
        return self._utf8.getstate()[0].decode("utf-8", "replace")


class TokensDecoding:
    """For all others: the texts of the tokens, through the steps of the tokenizer's decoder."""

    def __init__(self, token_of: Callable[[int], str], rules: Sequence[Rule]) -> None:
        self._token_of, self._steps = token_of, Steps(rules)

    def push(self, token_id: int) -> str:
        return self._steps.push(self._token_of(token_id))

    def push_unknown(self) -> str:
        return self._steps.push(UNKNOWN)

    def rest(self) -> str:
        return self._steps.rest()


class WholeDecoding:
    """For a decoder that cannot be run token by token here: everything comes at the end, by the library."""

    def __init__(self, decode: Callable[[list[int]], str], checked: Callable[[int], int]) -> None:
        self._decode, self._checked = decode, checked
        self._runs: list[list[int]] = [[]]  # between two of them stands an UNKNOWN

    def push(self, token_id: int) -> str:
        self._runs[-1].append(self._checked(token_id))
        return ""

    def push_unknown(self) -> str:
        self._runs.append([])
        return ""

    def rest(self) -> str:
        return UNKNOWN.join(map(self._decode, self._runs))
