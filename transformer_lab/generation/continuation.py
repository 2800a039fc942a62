"""One row of a generation: what was chosen so far, the text of it, and when it ends."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from transformer_lab.errors import ConfigurationError
from transformer_lab.generation.stopping import StopStrings


@dataclass(frozen=True)
class Timing:
    """Seconds and rates of one call of generate. compile_s is 0 where nothing is compiled.

    first_token_s: from the call to the first token of all rows, compilation included. prefill_tokens_per_s and
    decode_tokens_per_s count the tokens of all rows and leave compilation out; decode is None for a single token.
    """

    compile_s: float
    first_token_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float | None


@dataclass(frozen=True)
class Generation:
    """A continuation, without its prompt and without the end token.

    text: decode(prompt + token_ids) without its beginning decode(prompt), so that prompt and text fit together; None if
    the model has no tokenizer. An id that the tokenizer does not have is U+FFFD in it. logprobs: log
    softmax of the raw logits at each id, in nats. finish_reason: "length", "stop" (a stop string came; text ends before
    it, token_ids with the token that completed it), "end_of_text" (an end token of the model came), or None in the
    result of a stream that is still under way. logits_sha256: over the little-endian float32 bytes of the raw logit
    rows from which each token, an end token included, was chosen; None unless it was asked for.
    """

    text: str | None
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str | None
    prompt_token_ids: list[int]
    logits_sha256: str | None
    timing: Timing


class Continuation:
    """A row under way."""

    def __init__(
        self,
        prompt: Sequence[int],
        limit: int,
        seed: int,
        end_of_text_ids: Collection[int],
        tokenizer: Any,
        stop: Sequence[str],
        hash_logits: bool,
    ) -> None:
        self.prompt = list(prompt)
        self.limit = limit
        self.noise = np.random.default_rng(seed)
        self.end_of_text_ids = end_of_text_ids
        self.history = list(prompt)  # the prompt and everything generated
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.finish_reason: str | None = None
        self.hash = hashlib.sha256() if hash_logits else None
        self._decoder = tokenizer.stream_decoder(prompt) if tokenizer else None
        self._stop = StopStrings(stop)
        self._text: list[str] = []

    def accept(self, token: int, logprob: float, logits: np.ndarray | None) -> str:
        """Takes the next token; returns the text that can now be shown. Not to be called after the end."""
        if self.hash is not None and logits is not None:
            self.hash.update(np.ascontiguousarray(logits, dtype="<f4").tobytes())
        if token in self.end_of_text_ids:
            return self._finish("end_of_text")
        self.token_ids.append(token)
        self.history.append(token)
        self.logprobs.append(logprob)
        piece = self._show(self._decoded(token))
        if self._stop.found:
            self.finish_reason = "stop"
        elif len(self.token_ids) == self.limit:
            piece += self._finish("length")
        return piece

    def _decoded(self, token: int) -> str:
        """The text that the token completes. A model's vocabulary may be larger than its tokenizer's."""
        if self._decoder is None:
            return ""
        try:
            return str(self._decoder.push(token))
        except ConfigurationError:
            return str(self._decoder.push_unknown())

    def _finish(self, reason: str) -> str:
        rest = self._show(self._decoder.flush()) if self._decoder else ""
        if self._stop.found:
            reason = "stop"
        self.finish_reason = reason
        held = self._stop.flush()
        self._text.append(held)
        return rest + held

    def _show(self, text: str) -> str:
        piece = self._stop.push(text)
        self._text.append(piece)
        return piece

    def result(self, timing: Timing) -> Generation:
        """What has come so far. The row can go on after this."""
        return Generation(
            text="".join(self._text) if self._decoder else None,
            token_ids=self.token_ids.copy(),
            logprobs=self.logprobs.copy(),
            finish_reason=self.finish_reason,
            prompt_token_ids=self.prompt.copy(),
            logits_sha256=self.hash.hexdigest() if self.hash else None,
            timing=timing,
        )
