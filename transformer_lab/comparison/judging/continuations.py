"""What text comes out: greedy continuations beside the truth's, whether they follow from the logits, and the sampler.

Logits that agree do not yet make the same text: decoding goes through a cache and a sampler of its own. So each chosen
token is held against the logits of an uncached pass over the same tokens, and a sampled continuation is drawn a second
time from the very logits that it was drawn from, by another implementation of the rules.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from transformer_lab.comparison.judging.examination import difference
from transformer_lab.comparison.judging.text import TextAgreement, distinct, sampler_agrees, text_agreement
from transformer_lab.generation.sampling import Sampling
from transformer_lab.language_model import LanguageModel

# Every rule at once.
SAMPLED = Sampling(temperature=0.9, top_k=50, top_p=0.95, min_p=0.01, repetition_penalty=1.1)
# How far the logits of cached decoding may be from those of one pass over the same tokens, in units of the largest
# error that this pass itself has against the truth.
CACHED_SLACK = 8.0


@dataclass(frozen=True)
class Continuations:
    """The greedy continuations of one participant.

    tokens: of every prompt, without the end token. agreement: with those of the truth. distinct: the most different
    continuations of one prompt in `runs` runs. sampler: whether the sampled continuation is the one that the rules
    draw; None if rounding leaves it open. wrong: what does not follow from the logits, in sentences.
    """

    participant: str
    tokens: list[list[int]]
    texts: list[str | None]
    agreement: TextAgreement
    distinct: int
    runs: int
    sampler: bool | None
    wrong: list[str] = field(default_factory=list)


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
    seed: int = 0,
) -> Continuations:
    """new_tokens greedy ones after each prompt (token ids [T]), `runs` times, and as many sampled after the first."""
    several = [greedy(model, prompts, new_tokens) for _ in range(runs)]
    generations = several[0]
    tokens = [generation.token_ids for generation in generations]
    wrong = [
        f"A defect: greedy decoding on {participant} chose token {place} after prompt {number} against its own logits "
        f"(by {gap:.3g}); its cache or its choice of the likeliest differs."
        for number, (ids, chosen) in enumerate(zip(prompts, tokens, strict=True))
        if (found := unexplained(model, truth, ids, chosen)) is not None
        for place, gap in [found]
    ]
    sampler, place = check_sampler(model, prompts[0], new_tokens, seed)
    if sampler is False:
        wrong.append(
            f"A defect: the sampler on {participant} drew another token than its rules do from the same logits, token "
            f"{place} after the first prompt."
        )
    return Continuations(
        participant,
        tokens,
        [generation.text for generation in generations],
        text_agreement(tokens, true_tokens),
        max(distinct([run[number].token_ids for run in several]) for number in range(len(prompts))),
        runs,
        sampler,
        wrong,
    )


def unexplained(
    model: LanguageModel, truth: LanguageModel, prompt: np.ndarray, chosen: Sequence[int]
) -> tuple[int, float] | None:
    """The first chosen token that the model's own uncached logits do not explain: (place, by how much), or None."""
    if not chosen:
        return None
    ids = np.concatenate([prompt, np.asarray(chosen, prompt.dtype)])[:-1]
    own, true = model.logits(ids)[0].astype(np.float64), truth.logits(ids)[0]
    allowed = CACHED_SLACK * float(np.abs(difference(own, true)).max())
    for place, token in enumerate(chosen):
        row = own[len(prompt) - 1 + place]
        gap = float(row.max() - row[token])
        if not gap <= allowed:
            return place, gap
    return None


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
