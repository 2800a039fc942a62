"""What is asked of `generate` by the engine that users run: single prompts, batches, seeds, ends, a full cache.

`judged_generate.py` says of each generation whether it is right. This knows `generate` and `stream` from outside; it
feeds an engine itself in one place alone, to sample again from the very logits that were sampled from.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import permutations
from typing import Any

import numpy as np

from transformer_lab.comparison.judging.beside_bounds import difference
from transformer_lab.comparison.judging.generation.check import (
    Check,
    Wrong,
    asked,
    checked,
    require,
    require_possible,
)
from transformer_lab.comparison.judging.generation.judged_generate import JudgedGenerate, ending_at
from transformer_lab.comparison.judging.generation.sampler import sampler_rules
from transformer_lab.comparison.judging.generation.second_sampler import sampler_agrees
from transformer_lab.comparison.judging.generation.text import TextBehind
from transformer_lab.comparison.judging.generation.uncached import CACHED_SLACK, ROUNDING, ROUNDING_OF_FLOAT32
from transformer_lab.generation.continuation import Generation
from transformer_lab.generation.sampling import Sampling

DRAWN = Sampling(temperature=0.8, top_k=8)  # without the many rare tokens, which noise would leave open
# Every rule at once.
SAMPLED = Sampling(temperature=0.9, top_k=50, top_p=0.95, min_p=0.01, repetition_penalty=1.1)
# The first makes a row avoid what it has seen, the second return to it; in both, what another row saw would be noticed.
PENALTIES = (1.8, 0.4)
LONGEST = 16  # tokens of the longest row, where a cache is as long as what is asked for, and so always filled
CONTEXT = 256  # the longest context that is filled
NEW, FEW, LAST = 10, 5, 4  # tokens: of a continuation, of a sampled one, of one that ends a context
BATCH = 5  # more than four, which many kernels take at once
UNSEEN_SLACK = 100.0  # how many times their error the logits of another text may have


class GenerateChecks:
    """The checks of one model. prompts: token ids [T] each, at least one. new_tokens: to continue each of them by.

    runs: the greedy continuations of every prompt, each time. sampler: see `Continuations`.
    """

    def __init__(self, generate: JudgedGenerate, prompts: Sequence[np.ndarray], new_tokens: int, seed: int) -> None:
        self.generate, self.prompts, self.new_tokens, self.seed = generate, prompts, new_tokens, seed
        self.model, self.participant, self.uncached = generate.model, generate.participant, generate.uncached
        self.runs: list[list[Generation]] = []
        self.sampler: bool | None = None
        self.context = self.model.config.context_length
        # Where shapes are compiled, all that is asked for here fits into one bucket, and the longest row fills it.
        bucket = self.model.backend.bucket(2, self.context)
        self.compiled = bucket > 2
        room = bucket if self.compiled else self.context
        steps = self.model.backend.steps_per_call
        self.new = min(new_tokens, NEW if steps == 1 else steps + 2, room // 2)
        self.few = min(self.new, FEW)
        longest = room - self.new if self.compiled else min(LONGEST, room - self.new)
        self.pool = _token_ids(prompts, max(3 * longest + BATCH, CONTEXT), self.model.config.vocab_size)
        lengths = [max(int(longest * share), 1) for share in (1 / 4, 1, 1 / 15, 1 / 2, 3 / 4)]
        starts = np.cumsum([0, *lengths[:-1]])
        self.rows = [self.pool[start : start + length] for start, length in zip(starts, lengths, strict=True)]
        self.unequal: list[Generation] = []  # the batch that the first check found sound

    def checks(self, runs: int, shown: float) -> list[Check]:
        """In an order that lets the later ones rely on what the first found. runs: of the greedy continuations. shown:
        the largest error of the logits that were judged tap by tap."""
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
        found = [
            checked("greedy continuations", partial(self._greedy, runs)),
            checked("a sampled continuation", self._sampled),
            sampler_rules(self.participant, self.seed),
        ]
        with ending_at(self.model, ()):
            found += [checked(name, look) for name, look in looks.items()]
        return [*found, checked("logits of a whole pass", partial(self._logits, shown))]

    def _greedy(self, runs: int) -> str:
        who = f"greedy decoding on {self.participant}"
        given, new = [ids.tolist() for ids in self.prompts], self.new_tokens
        for _ in range(runs):  # each alone, so that none is padded
            self.runs.append(asked(who, lambda: [self.model.generate(prompt, new) for prompt in given]))
        for number, run in enumerate(self.runs):
            for prompt, found in enumerate(run):
                if (fault := self.uncached.unexplained(found)) is not None:
                    finding = (
                        f"{who} chose token {fault[0]} after prompt {prompt} against its own logits ({fault[1]}); its "
                        "cache or its choice of the likeliest differs."
                    )
                    raise Wrong(finding)
                self.generate.judge(f"the continuation of prompt {prompt} (run {number})", found, given[prompt], new)
        count = sum(len(found.token_ids) for found in self.runs[0])
        return f"{count} tokens after {len(given)} prompts, {runs} times."

    def _sampled(self) -> str:
        """A continuation is drawn a second time from the very logits that it was drawn from."""
        prompt, new = self.prompts[0].tolist(), self.new_tokens

        def sample() -> tuple[bool | None, int | None]:
            found: Any = self.model.generate(prompt, new, seed=self.seed, **asdict(SAMPLED))
            sequences = self.model.engine.begin([prompt], new)  # the very calls that generate makes
            rows = []
            for token in found.token_ids:
                rows.append(sequences.logits[0].copy())
                if len(rows) < len(found.token_ids):
                    sequences.feed([token])
            return sampler_agrees(found.token_ids, np.array(rows), SAMPLED, self.seed, prompt)

        self.sampler, place = asked(f"sampling on {self.participant}", sample)
        require_possible(self.sampler is not None, "It ended at once, or rounding leaves each of its tokens open.")
        finding = (
            f"the sampler on {self.participant} drew another token than its rules do from the same logits, token "
            f"{place} after the first prompt."
        )
        require(bool(self.sampler), finding)
        return f"As many as {new} tokens after the first prompt, with every rule at once, were drawn again."

    def _unequal_rows(self) -> str:
        lengths = ", ".join(str(len(row)) for row in self.rows)
        short = f"The context of {self.context} positions is too short for {BATCH} rows of different lengths."
        require_possible(len({*map(len, self.rows)}) == BATCH, short)
        together = self.generate.batch("a batch of unequal rows", self.rows, self.new)
        for row, (prompt, one) in enumerate(zip(self.rows, together, strict=True)) if self.uncached.exact else ():
            alone = self.generate.one(f"row {row} of unequal rows alone", prompt, self.new)
            self.generate.same(f"row {row} of a batch of unequal rows", one, alone, "alone")
        self.unequal = together
        return f"{BATCH} rows of {lengths} tokens in one batch, {self.new} new ones each; the longest fills the cache."

    def _generators(self) -> str:
        first, second, third = (self.rows[row] for row in (0, 3, 2))
        seeds = [self.seed, self.seed + 1, self.seed, self.seed + 2, self.seed + 3]
        with_one, with_several = "a sampled batch with one seed", "a sampled batch with a seed for each row"
        self.uncached.decided = self.uncached.open = 0
        one = self.generate.batch(with_one, [first, second, third, first, second], self.few, DRAWN, self.seed)
        several = self.generate.batch(with_several, [first, first, first, second, first], self.few, DRAWN, seeds)
        alone = self.generate.one("row 1 of a sampled batch alone", first, self.few, DRAWN, seeds[1])
        self.generate.same(f"row 3 of {with_one}", one[3], one[0], "as row 0, its equal")
        self.generate.same(f"row 2 of {with_several}", several[2], several[0], "as row 0")
        self.generate.same(f"row 1 of {with_several}", several[1], alone, "alone")
        return (
            f"Batches of {len(seeds)} with one seed and with seeds {seeds}, and a row alone: {self.uncached.decided} "
            f"sampled tokens were drawn again; rounding left {self.uncached.open} more open."
        )

    def _penalties(self) -> str:
        first, second = self.rows[0], self.rows[3]
        greedy = self.unequal[0] if self.unequal else self.generate.one("a greedy continuation", first, self.few)
        likely = greedy.token_ids
        # A row that has seen what the first will want to say, and one that is a step ahead of it.
        rows = [first, likely, [*first, likely[0]], second]
        self.uncached.decided = self.uncached.open = 0
        for penalty in PENALTIES:
            rule = Sampling(repetition_penalty=penalty)
            self.generate.batch(f"a batch with a repetition penalty of {penalty}", rows, self.few, rule, self.seed)
        return (
            f"{len(rows)} rows that begin with what others say, penalties {PENALTIES[0]} and {PENALTIES[1]}: "
            f"{self.uncached.decided} tokens were chosen again; rounding left {self.uncached.open} more open."
        )

    def _ends(self) -> str:
        self._require_unequal()
        ends = _end_tokens([one.token_ids for one in self.unequal])
        what = "a batch with end tokens"
        with ending_at(self.model, ends):
            together = self.generate.batch(what, self.rows, self.new)
            if self.model.backend.steps_per_call > 1:  # hashing goes token by token
                self.generate.batch(f"{what}, hashed", self.rows, self.new, hash_logits=True)
            for row, (prompt, one) in enumerate(zip(self.rows, together, strict=True)):
                alone = self.generate.one(f"row {row} with end tokens alone", prompt, self.new)
                self.generate.same(f"row {row} of {what}", one, alone, "alone")
        lengths = sorted(len(one.token_ids) for one in together if one.finish_reason == "end_of_text")
        limits = sum(one.finish_reason == "length" for one in together)
        return (
            f"{len(ends)} end tokens, in a batch and alone: rows ended after {', '.join(map(str, lengths)) or 'no'} "
            f"tokens, {limits} at the limit of {self.new}."
        )

    def _stop_strings(self) -> str:
        tokenizer: Any = self.model.tokenizer
        require_possible(tokenizer is not None, "The model has no tokenizer, so it has no text.")
        require_possible(tokenizer.is_byte_level, "In this tokenizer the text of a token depends on its neighbours.")
        self._require_unequal()
        texts = {row: TextBehind(tokenizer, self.rows[row]) for row in (3, 0, 1, 4, 2)}
        usable = {row: text.stop_strings(self.unequal[row].token_ids) for row, text in texts.items()}
        row, stops = next(((row, stops) for row, stops in usable.items() if stops), (0, []))
        require_possible(bool(stops), "No continuation has two tokens of readable text.")
        held, prompt = texts[row].held_back(self.unequal[row].token_ids), self.rows[row]
        together = self.generate.batch("a batch with stop strings", self.rows, self.new, stop=[*stops, *held])
        self.generate.stream(f"a stream with stop strings after row {row}", prompt, self.new, stops)
        if held:
            half = f"a stream that ends in half a stop string, after row {row}"
            self.generate.stream(half, prompt, self.new, held)
        stopped = sum(one.finish_reason == "stop" for one in together)
        also = ", and half a stop string at the limit" if held else ""
        return f"{stopped} of {BATCH} rows of a batch, and a stream, ended before {stops[0]!r}{also}."

    def _calls(self) -> str:
        long, short = self.rows[1], self.rows[2]
        # What is kept of a beginning is not the rest.
        twin = [*long[:-1], (long[-1] + 1) % self.model.config.vocab_size]
        found = [
            self.generate.one("the first call", long, self.few),
            self.generate.one("a shorter prompt after a longer one", short, self.few),
            self.generate.one("the first call again", long, self.few),
            self.generate.one("a prompt that begins like the first", twin, self.few),
            self.generate.one("a sampled call", short, self.few, DRAWN, self.seed),
            self.generate.one("a sampled call again", short, self.few, DRAWN, self.seed),
        ]
        self.generate.batch("a batch after single calls", self.rows, self.few)
        self.generate.same("the first call again", found[2], found[0], "as before")
        self.generate.same("a sampled call again", found[5], found[4], "as before")
        return (
            f"A prompt of {len(long)} tokens, one of {len(short)}, the first again, one that begins like it, one "
            "sampled twice, then a batch."
        )

    def _full_cache(self) -> str:
        places, new = len(self.rows[1]) + self.new, self.new
        if not self.compiled and self.context <= CONTEXT:
            places, new = self.context, min(self.new, LAST)
        self.generate.one(f"a generation that fills {places} positions", self.pool[: places - new], new)
        rest = "which is the whole context" if places == self.context else f"of a context of {self.context}"
        return f"A prompt of {places - new} tokens and {new} new ones: {places} positions, {rest}."

    def _logprobs(self) -> str:
        require(self.generate.wrong_logprob is None, str(self.generate.wrong_logprob))
        require_possible(self.generate.handed_out > 0, "No generation came so far.")
        return f"{self.generate.handed_out} of them, of all generations here, against log softmax of uncached logits."

    def _logits(self, shown: float) -> str:
        """What was generated is held against these: so they must be as good as those that were judged."""
        unseen = np.array(self.pool[: self.context])
        for ids in (*self.prompts, unseen):
            who = f"logits on {self.participant}"
            own, true = (asked(who, partial(one.logits, ids))[0] for one in (self.model, self.uncached.truth))
            apart, size = float(np.abs(difference(own, true)).max()), float(np.abs(true).max())
            rounding = ROUNDING.get(self.model.backend.precision, 4.0 * ROUNDING_OF_FLOAT32) * size
            # Nobody has judged any of the last, which fills a short context.
            slack = UNSEEN_SLACK if ids is unseen else CACHED_SLACK
            finding = (
                f"model.{who} is off by {apart:.3g} in {len(ids)} tokens; what its taps showed of logits by "
                f"{shown:.3g}."
            )
            require(apart <= slack * shown + rounding, finding)
        return (
            f"After all these calls, of {len(self.prompts)} prompts and of one of {len(unseen)} tokens: as good as was "
            "judged."
        )

    def _require_unequal(self) -> None:
        reason = "The batch of unequal rows, from which it starts, could not be made or is wrong."
        require_possible(bool(self.unequal), reason)


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
