"""One row per participant: what a reader wants to know first, gathered from a report's dict. It measures nothing."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformer_lab.comparison.judging.examination import ADDITIONS


@dataclass(frozen=True)
class Summary:
    """name, precision: the participant's. ratio: its largest measured / bound, and where, a tap's name.

    taps: how many were compared; unjudged: at how many of them no bound was known; nearest: at how many it is nearest
    to the truth. rms, snr_db: of the total error at the logits. kl: from the truth, in nats. top_1: share of positions
    with the truth's most likely token.
    agreement, tokens: how many generated tokens agree with the truth's before the first that differs, of how many,
    summed over the prompts; first_difference: the smallest index, from 0, of one that differs.
    What is not known is None.
    """

    name: str
    precision: str
    ratio: float | None
    where: str | None
    taps: int
    unjudged: int
    nearest: int
    rms: float | None
    snr_db: float | None
    kl: float | None
    top_1: float | None
    agreement: int | None
    tokens: int | None
    first_difference: int | None


def summaries(report: Mapping[str, Any]) -> list[Summary]:
    """In the order of the participants."""
    return [_summary(report, participant) for participant in report["participants"]]


def _summary(report: Mapping[str, Any], participant: Mapping[str, Any]) -> Summary:
    name = participant["name"]
    taps = rows_of(report["taps"], name)
    largest = largest_ratio(taps) or {"ratio": None, "tap": None}
    divergence = report["first_divergence"] or {}
    # A ratio that is no number is kept as null; where it happened is known nevertheless.
    not_finite = divergence.get("participant") == name and divergence.get("ratio") is None
    at_logits = next((row for row in taps if row["tap"] == "logits"), {})
    logits = next(iter(rows_of(report["logits"], name)), {})
    text = next(iter(rows_of(report["text"], name)), {})
    return Summary(
        name=name,
        precision=participant["precision"],
        ratio=math.inf if not_finite else largest["ratio"],
        where=divergence["tap"] if not_finite else largest["tap"],
        taps=len(taps),
        unjudged=sum(row.get("unjudged") is not None for row in taps),
        nearest=sum(bool(row["nearest"]) for row in taps),
        rms=at_logits.get("rms"),
        snr_db=at_logits.get("snr_db"),
        kl=logits.get("kl_from_truth"),
        top_1=logits.get("top_1"),
        agreement=text.get("agreement"),
        tokens=text.get("tokens"),
        first_difference=text.get("first_difference"),
    )


def rows_of(rows: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    """The rows of the participant called `name`, in their order."""
    return [row for row in rows if row["participant"] == name]


def largest_ratio(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The row with the largest ratio, if any ratio is known; of rows of taps, among those that say something."""
    known = [row for row in rows if row["ratio"] is not None and not math.isnan(row["ratio"]) and telling(row)]
    return max(known, key=lambda row: row["ratio"], default=None)


def lengths_in_words(reached: Mapping[str, Any]) -> str:
    """How long the prompts were: one length, or from the shortest to the longest."""
    lengths = reached["lengths"]
    span = f"{min(lengths):,} to {max(lengths):,}" if min(lengths) < max(lengths) else f"{max(lengths):,}"
    return f"{span} tokens" if lengths != [1] else "1 token"


def exact_by_nature(report: Mapping[str, Any]) -> set[str]:
    """The participants in exact mode without a defect: all their ratios come close to 1, which is the one rounding."""
    exact = {row["name"] for row in report["participants"] if row["precision"] == "exact"}
    above = {row["participant"] for row in report["taps"] if row["ratio"] is not None and not row["ratio"] <= 1.0}
    return exact - above


def telling(row: Mapping[str, Any]) -> bool:
    """Whether the ratio of a tap says something: a single addition is always as near to its bound as it can be."""
    addition = row.get("tap", "").split(".")[-1] in ADDITIONS
    return not addition or row["ratio"] is None or not row["ratio"] <= 1.0
