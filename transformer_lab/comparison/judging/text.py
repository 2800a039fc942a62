"""Continuations beside each other. It knows only ids."""

from collections.abc import Sequence
from dataclasses import dataclass


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


def text_agreement(continuations: Sequence[Sequence[int]], truth: Sequence[Sequence[int]]) -> TextAgreement:
    """Of the token ids of one continuation per prompt, in the same order of prompts."""
    differences, agreement = [], 0
    for ids, true in zip(continuations, truth, strict=True):
        same = 0
        while same < min(len(ids), len(true)) and ids[same] == true[same]:
            same += 1
        agreement += same
        if len(ids) != len(true) or same < len(true):
            differences.append(same)
    return TextAgreement(min(differences, default=None), agreement, sum(map(len, truth)))


def distinct(runs: Sequence[Sequence[int]]) -> int:
    """How many different continuations are among those of several runs."""
    return len({tuple(ids) for ids in runs})
