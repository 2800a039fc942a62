"""What generate does beyond one prompt and one call, by the engine that users run: batches, seeds, ends, a full cache.

Each generation is held against the model's own logits of a pass without a cache, and what was sampled against a second
sampler; so it does not matter what a batch, a call before or a padded row should have changed: nothing may. It knows
`generate` and `stream` from outside and feeds nothing itself.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import groupby, permutations
from typing import Any

import numpy as np

from transformer_lab.comparison.judging.check import Check, Untried, Wrong, asked, checked
from transformer_lab.comparison.judging.uncached import GREEDY, Uncached
from transformer_lab.errors import ConfigurationError
from transformer_lab.generation.continuation import Generation
from transformer_lab.generation.sampling import Sampling
from transformer_lab.language_model import LanguageModel

DRAWN = Sampling(temperature=0.8, top_k=8)  # without the many rare tokens, which noise would leave open
# The first makes a row avoid what it has seen, the second return to it; in both, what another row saw would be noticed.
PENALTIES = (1.8, 0.4)
LONGEST = 16  # tokens of the longest row, where a cache is as long as what is asked for, and so always filled
CONTEXT = 256  # the longest context that is filled
NEW, FEW, LAST = 10, 5, 4  # tokens: of a continuation, of a sampled one, of one that ends a context
BATCH = 5  # more than four, which many kernels take at once


class Generations:
    """The checks of one model. participant: its name, for sentences. prompts: token ids [T] each, at least one."""

    def __init__(
        self,
        model: LanguageModel,
        participant: str,
        uncached: Uncached,
        prompts: Sequence[np.ndarray],
        new_tokens: int,
        seed: int,
    ) -> None:
        self.model, self.participant, self.uncached, self.seed = model, participant, uncached, seed
        self.context = model.config.context_length
        # Where shapes are compiled, all that is asked for here fits into one bucket, and the longest row fills it.
        bucket = model.backend.bucket(2, self.context)
        self.compiled = bucket > 2
        room = bucket if self.compiled else self.context
        steps = model.backend.steps_per_call
        self.new = min(new_tokens, NEW if steps == 1 else steps + 2, room // 2)
        self.few = min(self.new, FEW)
        longest = room - self.new if self.compiled else min(LONGEST, room - self.new)
        self.pool = _token_ids(prompts, max(3 * longest + BATCH, CONTEXT), model.config.vocab_size)
        self.rows, at = [], 0
        for share in (1 / 4, 1, 1 / 15, 1 / 2, 3 / 4):
            length = max(int(longest * share), 1)
            self.rows.append(self.pool[at : at + length])
            at += length
        self.unequal: list[Generation] = []  # the batch that the first check found sound
        self.handed_out = 0  # log-probabilities
        self.wrong_logprob: str | None = None

    def checks(self) -> list[Check]:
        """In an order that lets the later ones rely on what the first found."""
        looks: dict[str, Callable[[], str]] = {
            "rows of unequal lengths": self._unequal_rows,
            "generators of rows": self._generators,
            "repetition penalty of rows": self._penalties,
            "end tokens and the limit": self._ends,
            "stop strings": self._stop_strings,
            "calls after each other": self._calls,
            "a full cache": self._full_cache,
            "log-probabilities": self._logprobs,
        }
        return [checked(name, look) for name, look in looks.items()]

    # --- the checks -------------------------------------------------------------------------------------------------

    def _unequal_rows(self) -> str:
        lengths = ", ".join(str(len(row)) for row in self.rows)
        if len({*map(len, self.rows)}) < BATCH:
            finding = f"The context of {self.context} positions is too short for {BATCH} rows of different lengths."
            raise Untried(finding)
        with ending_at(self.model, ()):
            together = self.batch("a batch of unequal rows", self.rows, self.new)
            if self.uncached.exact:
                for row, (prompt, one) in enumerate(zip(self.rows, together, strict=True)):
                    alone = self.one(f"row {row} of unequal rows alone", prompt, self.new)
                    self._same(f"row {row} of a batch of unequal rows", one, alone, "alone")
        self.unequal = together
        return f"{BATCH} rows of {lengths} tokens in one batch, {self.new} new ones each; the longest fills the cache."

    def _generators(self) -> str:
        first, second, third = (self.rows[row] for row in (0, 3, 2))
        before = self.uncached.decided, self.uncached.open
        seeds = [self.seed, self.seed + 1, self.seed, self.seed + 2, self.seed + 3]
        with ending_at(self.model, ()):
            one = self.batch(
                "a sampled batch with one seed", [first, second, third, first, second], self.few, DRAWN, self.seed
            )
            several = self.batch(
                "a sampled batch with a seed for each row", [first, first, first, second, first], self.few, DRAWN, seeds
            )
            alone = self.one("row 1 of a sampled batch alone", first, self.few, DRAWN, seeds[1])
        if self.uncached.exact:
            self._same("row 3 of a sampled batch with one seed", one[3], one[0], "as row 0, its equal")
            self._same("row 2 of a sampled batch with a seed for each row", several[2], several[0], "as row 0")
            self._same("row 1 of a sampled batch with a seed for each row", several[1], alone, "alone")
        decided, left = self.uncached.decided - before[0], self.uncached.open - before[1]
        return (
            f"Batches of {len(seeds)} with one seed and with seeds {seeds}, and a row alone: {decided} sampled tokens "
            f"were drawn again; rounding left {left} more open."
        )

    def _penalties(self) -> str:
        first, second = self.rows[0], self.rows[3]
        likely = self._greedy_tokens(first)
        # A row that has seen what the first will want to say, and one that is a step ahead of it.
        rows = [first, likely, [*first, likely[0]], second]
        before = self.uncached.decided, self.uncached.open
        with ending_at(self.model, ()):
            for penalty in PENALTIES:
                rule = Sampling(repetition_penalty=penalty)
                self.batch(f"a batch with a repetition penalty of {penalty}", rows, self.few, rule, self.seed)
        decided, left = self.uncached.decided - before[0], self.uncached.open - before[1]
        return (
            f"{len(rows)} rows that begin with what others say, penalties {PENALTIES[0]} and {PENALTIES[1]}: {decided} "
            f"tokens were chosen again; rounding left {left} more open."
        )

    def _ends(self) -> str:
        self._require_unequal()
        ends = _end_tokens([one.token_ids for one in self.unequal])
        with ending_at(self.model, ends):
            runs = [self.batch("a batch with end tokens", self.rows, self.new, ends=ends)]
            if self.model.backend.steps_per_call > 1:  # hashing goes token by token
                runs.append(
                    self.batch("a batch with end tokens, hashed", self.rows, self.new, ends=ends, hash_logits=True)
                )
            runs.append(
                [
                    self.one(f"row {row} with end tokens alone", prompt, self.new, ends=ends)
                    for row, prompt in enumerate(self.rows)
                ]
            )
        if self.uncached.exact:
            for row, (together, alone) in enumerate(zip(runs[0], runs[-1], strict=True)):
                self._same(f"row {row} of a batch with end tokens", together, alone, "alone")
        lengths = [len(one.token_ids) for one in runs[0] if one.finish_reason == "end_of_text"]
        limits = sum(one.finish_reason == "length" for one in runs[0])
        return (
            f"{len(ends)} end tokens, in a batch and alone: rows ended after {_listed(lengths)} tokens, {limits} at "
            f"the limit of {self.new}."
        )

    def _stop_strings(self) -> str:
        tokenizer: Any = self.model.tokenizer
        if tokenizer is None:
            finding = "The model has no tokenizer, so it has no text."
            raise Untried(finding)
        if not tokenizer.is_byte_level:
            finding = "In this tokenizer the text of a token depends on its neighbours."
            raise Untried(finding)
        self._require_unequal()
        for row in (3, 0, 1, 4, 2):
            if stops := _stop_strings(tokenizer, self.rows[row], self.unequal[row].token_ids):
                break
        else:
            finding = "No continuation has two tokens of readable text."
            raise Untried(finding)
        held = _held_back(tokenizer, self.rows[row], self.unequal[row].token_ids)
        with ending_at(self.model, ()):
            together = self.batch("a batch with stop strings", self.rows, self.new, stop=[*stops, *held])
            self._stream(f"a stream with stop strings after row {row}", self.rows[row], stops)
            if held:
                self._stream(
                    f"a stream that ends in half a stop string, after row {row}", self.rows[row], held, limit=True
                )
        stopped = sum(one.finish_reason == "stop" for one in together)
        also = ", and half a stop string at the limit" if held else ""
        return f"{stopped} of {BATCH} rows of a batch, and a stream, ended before {stops[0]!r}{also}."

    def _calls(self) -> str:
        long, short = self.rows[1], self.rows[2]
        # What is kept of a beginning is not the rest.
        twin = [*long[:-1], (long[-1] + 1) % self.model.config.vocab_size]
        with ending_at(self.model, ()):
            found = [
                self.one("the first call", long, self.few),
                self.one("a shorter prompt after a longer one", short, self.few),
                self.one("the first call again", long, self.few),
                self.one("a prompt that begins like the first", twin, self.few),
                self.one("a sampled call", short, self.few, DRAWN, self.seed),
                self.one("a sampled call again", short, self.few, DRAWN, self.seed),
            ]
            self.batch("a batch after single calls", self.rows, self.few)
        if self.uncached.exact:
            self._same("the first call again", found[2], found[0], "as before")
            self._same("a sampled call again", found[5], found[4], "as before")
        return (
            f"A prompt of {len(long)} tokens, one of {len(short)}, the first again, one that begins like it, one "
            "sampled twice, then a batch."
        )

    def _full_cache(self) -> str:
        places, new = len(self.rows[1]) + self.new, self.new
        if not self.compiled and self.context <= CONTEXT:
            places, new = self.context, min(self.new, LAST)
        with ending_at(self.model, ()):
            self.one(f"a generation that fills {places} positions", self.pool[: places - new], new)
        rest = "which is the whole context" if places == self.context else f"of a context of {self.context}"
        return f"A prompt of {places - new} tokens and {new} new ones: {places} positions, {rest}."

    def _logprobs(self) -> str:
        if self.wrong_logprob is not None:
            raise Wrong(self.wrong_logprob)
        if not self.handed_out:
            finding = "No generation came so far."
            raise Untried(finding)
        return f"{self.handed_out} of them, of all generations here, against log softmax of uncached logits."

    # --- one generation ---------------------------------------------------------------------------------------------

    def batch(
        self,
        what: str,
        prompts: Sequence[list[int]],
        new: int,
        sampling: Sampling = GREEDY,
        seed: int | Sequence[int] = 0,
        ends: Collection[int] = (),
        stop: Sequence[str] | None = None,
        **more: Any,
    ) -> list[Generation]:
        """generate, judged."""
        found: Any = self._asked(what, lambda: self._generate(list(prompts), new, sampling, seed, stop, **more))
        if len(found) != len(prompts):
            finding = f"{what} on {self.participant} has {len(found)} continuations of {len(prompts)} prompts."
            raise Wrong(finding)
        seeds = [seed] * len(prompts) if isinstance(seed, int) else seed
        for row, (one, prompt, number) in enumerate(zip(found, prompts, seeds, strict=True)):
            self.judge(f"row {row} of {what}", one, prompt, new, sampling, number, ends, stop or ())
        return list(found)

    def one(
        self,
        what: str,
        prompt: list[int],
        new: int,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        ends: Collection[int] = (),
    ) -> Generation:
        """The same for one prompt."""
        found: Any = self._asked(what, lambda: self._generate(prompt, new, sampling, seed, None))
        self.judge(what, found, prompt, new, sampling, seed, ends)
        return found

    def _stream(self, what: str, prompt: list[int], stop: Sequence[str], limit: bool = False) -> None:
        """limit: the stop strings never become complete."""
        stream = self._asked(what, lambda: self.model.stream(prompt, self.new, stop=list(stop)))
        shown = self._asked(what, lambda: "".join(stream))
        self.judge(what, stream.result, prompt, self.new, stop=stop)
        if shown != stream.result.text:
            finding = f"{what} on {self.participant} showed {shown!r} and has the text {stream.result.text!r}."
            raise Wrong(finding)

    def judge(
        self,
        what: str,
        found: Generation,
        prompt: list[int],
        limit: int,
        sampling: Sampling = GREEDY,
        seed: int = 0,
        ends: Collection[int] = (),
        stop: Sequence[str] = (),
    ) -> None:
        """Raises Wrong where the generation is not one of this prompt, these rules and these ends."""
        who, tokens, reason = f"{what} on {self.participant}", found.token_ids, found.finish_reason
        if found.prompt_token_ids != list(prompt):
            finding = f"{who} is the continuation of another prompt."
            raise Wrong(finding)
        if (fault := self.uncached.unexplained(found, sampling, seed, ends)) is not None:
            place, how = fault
            finding = f"{who} has at token {place} another one than the model's uncached logits and the rules ({how})."
            raise Wrong(finding)
        kept = next((place for place, token in enumerate(tokens) if token in ends), None)
        if kept is not None:
            finding = f"{who} did not end before the end token {tokens[kept]}, at token {kept}."
            raise Wrong(finding)
        text, needed = self._text(prompt, tokens, stop)
        expected = "length" if len(tokens) == limit else "end_of_text" if ends else "no end before the limit"
        if needed is not None:
            expected = "stop"
        if len(tokens) > limit or reason != expected or (needed is not None and needed != len(tokens)):
            finding = f"{who} ended after {len(tokens)} of {limit} tokens with {reason!r}; expected was {expected!r}."
            raise Wrong(finding)
        if text is not None and found.text != text:
            finding = f"{who} has the text {found.text!r}; its {len(tokens)} tokens say {text!r}."
            raise Wrong(finding)
        if self.uncached.exact and not self.uncached.has_hash(found):
            finding = f"{who} was chosen from other logits than uncached ones: their sha256 differ."
            raise Wrong(finding)
        self.note_logprobs(who, found)

    def note_logprobs(self, who: str, found: Generation) -> None:
        """The first that is wrong is kept. It is a fault of what is looked at now, too, if all before were right."""
        if self.wrong_logprob is None and (fault := self.uncached.wrong_logprob(found)) is not None:
            place, gap = fault
            self.wrong_logprob = (
                f"the log-probability of token {place} in {who} is not that of the model's uncached logits "
                f"(off by {gap:.3g})."
            )
            if self.handed_out:
                raise Wrong(self.wrong_logprob)
        self.handed_out += len(found.logprobs)

    # --- help -------------------------------------------------------------------------------------------------------

    def _generate(
        self,
        prompt: Any,
        new: int,
        sampling: Sampling,
        seed: int | Sequence[int],
        stop: Sequence[str] | None,
        **more: Any,
    ) -> Any:
        return self.model.generate(prompt, new, seed=seed, stop=stop, **asdict(sampling), **more)

    def _asked(self, what: str, call: Callable[[], Any]) -> Any:
        return asked(f"{what} on {self.participant}", call)

    def _same(self, what: str, one: Generation, other: Generation, how: str) -> None:
        """In exact mode all is the same, bit for bit."""
        for name in ("token_ids", "logprobs", "text", "finish_reason", "logits_sha256"):
            left, right = getattr(one, name), getattr(other, name)
            if left != right:
                where = ""
                if name in ("token_ids", "logprobs"):
                    pairs = zip(left, right, strict=False)
                    place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
                    where = f" from token {place} on"
                finding = f"{what} on {self.participant} is not the same {how}: {name} differ{where}, in exact mode."
                raise Wrong(finding)

    def _require_unequal(self) -> None:
        if not self.unequal:
            finding = "The batch of unequal rows, from which it starts, could not be made or is wrong."
            raise Untried(finding)

    def _greedy_tokens(self, prompt: list[int]) -> list[int]:
        if self.unequal:
            return self.unequal[0].token_ids
        with ending_at(self.model, ()):
            return self.one("a greedy continuation", prompt, self.few).token_ids

    def _text(self, prompt: Sequence[int], tokens: Sequence[int], stop: Sequence[str]) -> tuple[str | None, int | None]:
        """The text of the tokens behind the prompt, and how many complete a stop string; None if there is none."""
        if self.model.tokenizer is None:
            return None, None
        text = _decoded(self.model.tokenizer, prompt, tokens)
        ended = min(((place + len(one), place) for one in stop if (place := text.find(one)) >= 0), default=None)
        if ended is None:
            return text, None
        end, begin = ended
        counts = range(len(tokens) + 1)
        settled = (len(_settled(self.model.tokenizer, prompt, tokens[:count], text)) for count in counts)
        return text[:begin], next(count for count, length in enumerate(settled) if length >= end)


@contextmanager
def ending_at(model: LanguageModel, ids: Sequence[int]) -> Iterator[None]:
    """The model with other end tokens for a while."""
    before = model.end_of_text_ids
    model.end_of_text_ids = tuple(ids)
    try:
        yield
    finally:
        model.end_of_text_ids = before


def _token_ids(prompts: Sequence[np.ndarray], count: int, vocabulary: int) -> list[int]:
    """So many ids: those of the prompts, and then random ones."""
    own = np.concatenate([np.asarray(prompt, np.int64) for prompt in prompts])[:count]
    return [*own.tolist(), *np.random.default_rng(0).integers(0, vocabulary, count - len(own)).tolist()]


def _end_tokens(rows: Sequence[Sequence[int]]) -> list[int]:
    """Ids that end these continuations at places as different as can be: one at once, one never."""

    def of(order: Sequence[Sequence[int]]) -> list[int]:
        """That end the first of these at once, two others later, and the last never, if there are such ids."""
        ends: list[int] = []
        for tokens, least in zip(order, (0, len(order[0]) // 3, 2 * len(order[0]) // 3), strict=False):
            fresh = [token for place, token in enumerate(tokens) if tokens.index(token) == place >= least]
            ends += [token for token in fresh if token not in ends and token not in order[-1]][:1]
        return ends

    def variety(ends: Sequence[int]) -> int:
        cut = [next((i for i, token in enumerate(tokens) if token in ends), len(tokens)) for tokens in rows]
        used = {tokens[length] for tokens, length in zip(rows, cut, strict=True) if length < len(tokens)}
        return len({*cut}) + len(used) + 3 * (0 in cut) + 3 * (len(rows[0]) in cut)

    return max((of(order) for order in permutations(rows)), key=variety) or [rows[0][0]]


def _decoded(tokenizer: Any, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """The text of the tokens behind the prompt; U+FFFD for each that the model has and the tokenizer does not."""

    def known(token: int) -> bool:
        try:
            tokenizer.decode([token])
        except ConfigurationError:
            return False
        return True

    def text(ids: Sequence[int]) -> str:
        runs = groupby(ids, known)
        return "".join(tokenizer.decode(run) if known else "\ufffd" * len(list(run)) for known, run in runs)

    whole = text([*prompt, *tokens])
    return whole[len(_common_beginning(whole, text(prompt))) :]


def _common_beginning(one: str, other: str) -> str:
    pairs = enumerate(zip(one, other, strict=False))
    return one[: next((place for place, (left, right) in pairs if left != right), len(other))]


def _settled(tokenizer: Any, prompt: Sequence[int], tokens: Sequence[int], text: str) -> str:
    """What is sure of `text` once these tokens have come; half a character at their end may still change."""
    return _common_beginning(text, _decoded(tokenizer, prompt, tokens))


def _stop_strings(tokenizer: Any, prompt: Sequence[int], tokens: Sequence[int]) -> list[str]:
    """Strings across the border of two tokens, that end at one place, and one that never comes. Empty if none can be.

    They are ASCII, which no incomplete character can touch.
    """
    text = _decoded(tokenizer, prompt, tokens)
    for count in range(len(tokens) // 2, len(tokens)):
        border = len(_settled(tokenizer, prompt, tokens[:count], text))
        short, long = text[border - 1 : border + 1], text[max(border - 2, 0) : border + 1]
        if border >= 1 and len(short) == 2 and long.isascii():
            return [short, long, text[:border] + "\0"]
    return []


def _held_back(tokenizer: Any, prompt: Sequence[int], tokens: Sequence[int]) -> list[str]:
    """A string whose beginning is the end of the text, and which never comes."""
    text = _decoded(tokenizer, prompt, tokens)[-2:]
    return [text + "\0never"] if text.isascii() and text else []


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, sorted(numbers))) or "no"
