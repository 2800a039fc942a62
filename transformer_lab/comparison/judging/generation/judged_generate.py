"""`generate` and `stream` of one model, and each generation that they give judged: its tokens, end, text and numbers.

A generation is held against the model's own logits of a pass without a cache, and what was sampled against a second
sampler; so it does not matter what a batch, a call before or a padded row should have changed: nothing may.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from transformer_lab.comparison.judging.generation.check import Wrong, asked, require
from transformer_lab.comparison.judging.generation.text import TextBehind
from transformer_lab.comparison.judging.generation.uncached import GREEDY, Uncached
from transformer_lab.generation.continuation import Generation
from transformer_lab.generation.sampling import Sampling
from transformer_lab.language_model import LanguageModel


class JudgedGenerate:
    """All its methods raise `Wrong` at the first defect. participant: the model's name, for sentences.

    handed_out: log-probabilities so far. wrong_logprob: the first that was wrong, in a sentence, or None.
    """

    def __init__(self, model: LanguageModel, truth: LanguageModel, participant: str) -> None:
        self.model, self.participant, self.uncached = model, participant, Uncached(model, truth)
        self.handed_out = 0
        self.wrong_logprob: str | None = None

    def batch(
        self,
        what: str,
        prompts: Sequence[list[int]],
        new: int,
        sampling: Sampling = GREEDY,
        seed: int | Sequence[int] = 0,
        stop: Sequence[str] = (),
        **more: Any,
    ) -> list[Generation]:
        """One for each prompt, in one call. what: is asked for, in a sentence. new: tokens. more: to `generate`."""
        found: list[Generation] = self._asked(what, list(prompts), new, sampling, seed, stop=stop, **more)
        finding = f"{what} on {self.participant} has {len(found)} continuations of {len(prompts)} prompts."
        require(len(found) == len(prompts), finding)
        seeds = [seed] * len(prompts) if isinstance(seed, int) else seed
        for row, (one, prompt, number) in enumerate(zip(found, prompts, seeds, strict=True)):
            self.judge(f"row {row} of {what}", one, prompt, new, sampling, number, stop)
        return found

    def one(self, what: str, prompt: list[int], new: int, sampling: Sampling = GREEDY, seed: int = 0) -> Generation:
        """The same for one prompt."""
        found: Generation = self._asked(what, prompt, new, sampling, seed)
        self.judge(what, found, prompt, new, sampling, seed)
        return found

    def _asked(self, what: str, prompt: Any, new: int, sampling: Sampling, seed: Any, **more: Any) -> Any:
        rules = asdict(sampling)
        return asked(
            f"{what} on {self.participant}", lambda: self.model.generate(prompt, new, seed=seed, **rules, **more)
        )

    def stream(self, what: str, prompt: list[int], new: int, stop: Sequence[str]) -> None:
        """Greedy, and the pieces that it shows must be its text."""
        who = f"{what} on {self.participant}"
        stream = asked(who, lambda: self.model.stream(prompt, new, stop=list(stop)))
        shown = asked(who, lambda: "".join(stream))
        self.judge(what, stream.result, prompt, new, stop=stop)
        require(shown == stream.result.text, f"{who} showed {shown!r} and has the text {stream.result.text!r}.")

    def judge(
        self,
        what: str,
        found: Generation,
        prompt: list[int],
        limit: int,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> None:
        """That it is a generation of this prompt, by these rules, and with the end that these and the model ask for."""
        who, tokens, ends = f"{what} on {self.participant}", found.token_ids, self.model.end_of_text_ids
        require(found.prompt_token_ids == prompt, f"{who} is the continuation of another prompt.")
        if (fault := self.uncached.unexplained(found, sampling, seed)) is not None:
            place, how = fault
            finding = f"{who} has at token {place} another one than the model's uncached logits and the rules ({how})."
            raise Wrong(finding)
        for place, token in enumerate(tokens):
            require(token not in ends, f"{who} did not end before the end token {token}, at token {place}.")
        text, needed = None, None
        if self.model.tokenizer is not None:
            text, needed = TextBehind(self.model.tokenizer, prompt).until(tokens, stop)
        expected = "length" if len(tokens) == limit else "end_of_text" if ends else "no end before the limit"
        expected = expected if needed is None else "stop"
        ended = f"{who} ended after {len(tokens)} of {limit} tokens with {found.finish_reason!r}"
        as_expected = found.finish_reason == expected and needed in (None, len(tokens)) and len(tokens) <= limit
        require(as_expected, f"{ended}; expected was {expected!r}.")
        said = f"{who} has the text {found.text!r}; its {len(tokens)} tokens say {text!r}."
        require(text is None or found.text == text, said)
        if self.uncached.exact:
            same = self.uncached.has_hash(found)
            require(same, f"{who} was chosen from other logits than uncached ones: their sha256 differ.")
        self._note_logprobs(who, found)

    def _note_logprobs(self, who: str, found: Generation) -> None:
        """The first that is wrong is kept. It is a fault of what is looked at now, too, if all before were right."""
        if self.wrong_logprob is None and (fault := self.uncached.wrong_logprob(found)) is not None:
            self.wrong_logprob = (
                f"the log-probability of token {fault[0]} in {who} is not that of the model's uncached "
            )
            self.wrong_logprob += f"logits (off by {fault[1]:.3g})."
            require(not self.handed_out, self.wrong_logprob)
        self.handed_out += len(found.logprobs)

    def same(self, what: str, one: Generation, other: Generation, how: str) -> None:
        """In exact mode all is the same, bit for bit."""
        for name in ("token_ids", "logprobs", "text", "finish_reason", "logits_sha256") if self.uncached.exact else ():
            left, right = getattr(one, name), getattr(other, name)
            where = ""
            if isinstance(left, list):
                pairs = zip(left, right, strict=False)
                place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
                where = f" from token {place} on"
            finding = f"{what} on {self.participant} is not the same {how}: {name} differ{where}, in exact mode."
            require(left == right, finding)


@contextmanager
def ending_at(model: LanguageModel, ids: Sequence[int]) -> Iterator[None]:
    """The model with other end tokens for a while."""
    before = model.end_of_text_ids
    model.end_of_text_ids = tuple(ids)
    try:
        yield
    finally:
        model.end_of_text_ids = before
