"""What text comes out: greedy continuations beside the truth's, and every check of how it was generated.

Logits that agree do not yet make the same text: decoding goes through a cache and a sampler of its own. So each chosen
token is held against the logits of an uncached pass over the same tokens, and a sampled continuation is drawn a second
time from the very logits that it was drawn from, by another implementation of the rules. `generation.py` looks at
batches, seeds, ends and a full cache in the same way, `sampler.py` at the rules alone.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from transformer_lab.comparison.judging.check import Check, Untried, Wrong, asked, checked
from transformer_lab.comparison.judging.examination import difference
from transformer_lab.comparison.judging.generation import Generations
from transformer_lab.comparison.judging.resampling import sampler_agrees
from transformer_lab.comparison.judging.sampler import sampler_rules
from transformer_lab.comparison.judging.text import TextAgreement, distinct, text_agreement
from transformer_lab.comparison.judging.uncached import CACHED_SLACK, ROUNDING, ROUNDING_OF_FLOAT32, Uncached
from transformer_lab.generation.sampling import Sampling
from transformer_lab.language_model import LanguageModel

# Every rule at once.
SAMPLED = Sampling(temperature=0.9, top_k=50, top_p=0.95, min_p=0.01, repetition_penalty=1.1)


UNSEEN_SLACK = 100.0  # how many times their error the logits of another text may have


@dataclass(frozen=True)
class Continuations:
    """The greedy continuations of one participant.

    tokens: of every prompt, without the end token. agreement: with those of the truth. distinct: the most different
    continuations of one prompt in `runs` runs. sampler: whether the sampled continuation is the one that the rules
    draw; None if rounding leaves it open. wrong: what does not follow from the logits, in sentences. checks: all that
    was looked at, and what could not be.
    """

    participant: str
    tokens: list[list[int]]
    texts: list[str | None]
    agreement: TextAgreement
    distinct: int
    runs: int
    sampler: bool | None
    wrong: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)


def greedy(model: LanguageModel, prompts: Sequence[np.ndarray], new_tokens: int) -> list[Any]:
    """A Generation for each prompt, alone, so that none is padded."""
    return [model.generate(ids.tolist(), max_new_tokens=new_tokens) for ids in prompts]


def continuations(
    model: LanguageModel,
    participant: str,
    truth: LanguageModel,
    true_tokens: Sequence[Sequence[int]],
    prompts: Sequence[np.ndarray],
    new_tokens: int,
    runs: int,
    shown: float,
    seed: int = 0,
) -> Continuations:
    """new_tokens greedy ones after each prompt (token ids [T]), `runs` times, and as many sampled after the first.
    shown: the largest error of the logits that were judged tap by tap, of all prompts."""
    uncached = Uncached(model, truth)
    engine = Generations(model, participant, uncached, prompts, new_tokens, seed)
    several: list[list[Any]] = []
    sampler: bool | None = None

    def look_at_the_greedy() -> str:
        for _ in range(runs):
            several.append(asked(f"greedy decoding on {participant}", lambda: greedy(model, prompts, new_tokens)))
        for number, run in enumerate(several):
            for prompt, generation in enumerate(run):
                if (fault := uncached.unexplained(generation, ends=model.end_of_text_ids)) is not None:
                    finding = (
                        f"greedy decoding on {participant} chose token {fault[0]} after prompt {prompt} against its "
                        f"own logits ({fault[1]}); its cache or its choice of the likeliest differs."
                    )
                    raise Wrong(finding)
                what = f"the continuation of prompt {prompt} (run {number})"
                engine.judge(what, generation, prompts[prompt].tolist(), new_tokens, ends=model.end_of_text_ids)
        count = sum(len(generation.token_ids) for generation in several[0])
        return f"{count} tokens after {len(prompts)} prompts, {runs} times."

    def look_at_the_sampled() -> str:
        nonlocal sampler
        sampler, place = asked(f"sampling on {participant}", lambda: check_sampler(model, prompts[0], new_tokens, seed))
        if sampler is None:
            finding = "It ended at once, or rounding leaves each of its tokens open."
            raise Untried(finding)
        if not sampler:
            finding = (
                f"the sampler on {participant} drew another token than its rules do from the same logits, token "
                f"{place} after the first prompt."
            )
            raise Wrong(finding)
        return f"As many as {new_tokens} tokens after the first prompt, with every rule at once, were drawn again."

    def look_at_the_logits() -> str:
        """What was generated is held against these: so they must be as good as those that were judged."""
        unseen = np.array(engine.pool[: engine.context])
        for number, ids in enumerate([*prompts, unseen]):
            own, true = (asked(f"logits on {participant}", partial(one.logits, ids))[0] for one in (model, truth))
            apart, size = float(np.abs(difference(own, true)).max()), float(np.abs(true).max())
            rounding = ROUNDING.get(model.backend.precision, 4.0 * ROUNDING_OF_FLOAT32) * size
            # Nobody has judged any of the last, which fills a short context.
            slack = CACHED_SLACK if number < len(prompts) else UNSEEN_SLACK
            if not apart <= slack * shown + rounding:
                finding = (
                    f"model.logits on {participant} is off by {apart:.3g} in {len(ids)} tokens; what its taps showed "
                    f"of logits by {shown:.3g}."
                )
                raise Wrong(finding)
        return (
            f"After all these calls, of {len(prompts)} prompts and of one of {len(ids)} tokens: as good as was judged."
        )

    checks = [
        checked("greedy continuations", look_at_the_greedy),
        checked("a sampled continuation", look_at_the_sampled),
        sampler_rules(participant, seed),
        *engine.checks(),
        checked("logits of a whole pass", look_at_the_logits),
    ]
    # Where one raised an error, there is none.
    tokens = [generation.token_ids for generation in several[0]] if several else [[] for _ in prompts]
    return Continuations(
        participant,
        tokens,
        [generation.text for generation in several[0]] if several else [None for _ in prompts],
        text_agreement(tokens, true_tokens),
        max(distinct([run[number].token_ids for run in several]) for number in range(len(prompts))) if several else 0,
        runs,
        sampler,
        [check.wrong for check in checks if check.wrong is not None],
        checks,
    )


def check_sampler(
    model: LanguageModel, prompt: np.ndarray, new_tokens: int, seed: int
) -> tuple[bool | None, int | None]:
    """Samples, and draws again from the logits that each token was drawn from -> (whether they agree, where not)."""
    generation: Any = model.generate(prompt.tolist(), max_new_tokens=new_tokens, seed=seed, **asdict(SAMPLED))
    tokens = generation.token_ids
    sequences = model.engine.begin([prompt.tolist()], new_tokens)  # the very calls that generate makes
    rows = []
    for place, token in enumerate(tokens):
        rows.append(sequences.logits[0].copy())
        if place + 1 < len(tokens):
            sequences.feed([token])
    return sampler_agrees(tokens, np.array(rows), SAMPLED, seed, prompt.tolist())
