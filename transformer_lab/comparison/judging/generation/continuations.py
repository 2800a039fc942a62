"""What text comes out: greedy continuations beside the truth's, and every check of how it was generated.

Logits that agree do not yet make the same text: decoding goes through a cache and a sampler of its own.
`generate_checks.py` looks at them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from transformer_lab.comparison.judging.generation.check import Check
from transformer_lab.comparison.judging.generation.generate_checks import GenerateChecks
from transformer_lab.comparison.judging.generation.judged_generate import JudgedGenerate
from transformer_lab.language_model import LanguageModel


@dataclass(frozen=True)
class TextAgreement:
    """How far continuations are those of the truth, over all prompts.

    first_difference: the smallest index of a token, from 0, that differs in a continuation; the end of the shorter one
    counts as different. None if all are the same. agreement: how many tokens come before the first difference, summed
    over the prompts. tokens: how many the truth has, summed.
    """

    first_difference: int | None
    agreement: int
    tokens: int


@dataclass(frozen=True)
class Continuations:
    """The greedy continuations of one participant.

    tokens: of every prompt, without the end token. agreement: with those of the truth. distinct: the most different
    continuations of one prompt in `runs` runs. sampler: whether the sampled continuation is the one that the rules
    draw; None if rounding leaves it open. checks: all that was looked at, and what could not be.
    """

    participant: str
    tokens: list[list[int]]
    texts: list[str | None]
    agreement: TextAgreement
    distinct: int
    runs: int
    sampler: bool | None
    checks: list[Check]

    @property
    def wrong(self) -> list[str]:
        """What does not follow from the logits, in sentences."""
        return [check.wrong for check in self.checks if check.wrong is not None]


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
    looks = GenerateChecks(JudgedGenerate(model, truth, participant), prompts, new_tokens, seed)
    checks = looks.checks(runs, shown)
    # Where one raised an error, there is none.
    first = looks.runs[0] if looks.runs else []
    tokens = [generation.token_ids for generation in first] or [[] for _ in prompts]
    texts = [generation.text for generation in first] or [None for _ in prompts]
    of_each_prompt = zip(*([one.token_ids for one in run] for run in looks.runs), strict=True)
    most = max(map(distinct, of_each_prompt), default=0)
    agreement = text_agreement(tokens, true_tokens)
    return Continuations(participant, tokens, texts, agreement, most, runs, looks.sampler, checks)


def text_agreement(continuations: Sequence[Sequence[int]], truth: Sequence[Sequence[int]]) -> TextAgreement:
    """Of the token ids of one continuation per prompt, in the same order of prompts."""
    differences, agreement = [], 0
    for ids, true in zip(continuations, truth, strict=True):
        pairs = enumerate(zip(ids, true, strict=False))
        same = next((place for place, (token, right) in pairs if token != right), min(len(ids), len(true)))
        agreement += same
        if not same == len(ids) == len(true):
            differences.append(same)
    return TextAgreement(min(differences, default=None), agreement, sum(map(len, truth)))


def distinct(runs: Sequence[Sequence[int]]) -> int:
    """How many different continuations are among those of several runs."""
    return len({tuple(ids) for ids in runs})
