"""What the page and the console both say, gathered from a report's dict: a row per participant, why the verdict is what
it is, the first divergence. It measures nothing."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformer_lab.comparison.judging.examination import ADDITIONS
from transformer_lab.comparison.reporting.number_words import DASH, number


@dataclass(frozen=True)
class Summary:
    """details: what kind of participant it is, in words. ratio: its largest measured / bound; where: at which tap.

    taps: how many were compared; unjudged: at how many of them no bound was known; nearest: at how many it is nearest
    to the truth. rms: of the total error at the logits. kl: from the truth, in nats. top_1: share of positions
    with the truth's most likely token.
    agreement, tokens: how many generated tokens agree with the truth's before the first that differs, of how many,
    summed over the prompts; first_difference: the smallest index, from 0, of one that differs.
    What is not known is None.
    """

    name: str
    details: str
    ratio: float | None
    where: str | None
    taps: int
    unjudged: int
    nearest: int
    rms: float | None
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
    precision = None if participant["precision"] in name else participant["precision"]
    details = (participant["kind"], participant["version"], participant["device"], precision)
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
        details=", ".join(str(each) for each in details if each is not None),
        ratio=math.inf if not_finite else largest["ratio"],
        where=divergence["tap"] if not_finite else largest["tap"],
        taps=len(taps),
        unjudged=sum(row.get("unjudged") is not None for row in taps),
        nearest=sum(bool(row["nearest"]) for row in taps),
        rms=at_logits.get("rms"),
        kl=logits.get("kl_from_truth"),
        top_1=logits.get("top_1"),
        agreement=text.get("agreement"),
        tokens=text.get("tokens"),
        first_difference=text.get("first_difference"),
    )


def sentence(report: Mapping[str, Any]) -> str:
    """Why the verdict is what it is, without the status: that stands before it."""
    verdict = report["verdict"]
    return verdict["sentence"].removeprefix(f"{verdict['status'].capitalize()}: ")


def divergence_in_words(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The first divergence: what is said of it, and how."""
    precision = "" if found["precision"] in found["participant"] else f", {found['precision']}"
    element = f"{found['position']} of prompt {found['prompt'] + 1}" if found["prompt"] is not None else DASH
    return [
        ("Where", f"{found['tap']} on {found['participant']}{precision}"),
        ("Error over bound", number(math.inf if found["ratio"] is None else found["ratio"])),
        ("Element", element),
        ("Value", number(found["value"], 8)),
        ("Expected", f"{number(found['expected'], 8)}, from the same inputs in float64"),
        ("Bound", f"{number(found['bound'])}, the farthest that rounding can take it"),
    ]


def named(report: Mapping[str, Any], mentioned: Iterable[str]) -> list[str]:
    """The names of the participants that are mentioned, in their order."""
    found = set(mentioned)
    return [participant["name"] for participant in report["participants"] if participant["name"] in found]


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


def weights_in_words(report: Mapping[str, Any]) -> str | None:
    """Where the weights come from, if not from files."""
    drawn = report["model"].get("weights") == "shaken"
    return "drawn at random, and shaken: norms are not 1 and biases not 0" if drawn else None


def exact_by_nature(report: Mapping[str, Any]) -> set[str]:
    """The participants in exact mode without a defect: all their ratios come close to 1, which is the one rounding."""
    exact = {row["name"] for row in report["participants"] if row["precision"] == "exact"}
    above = {row["participant"] for row in report["taps"] if row["ratio"] is not None and not row["ratio"] <= 1.0}
    return exact - above


def telling(row: Mapping[str, Any]) -> bool:
    """Whether the ratio of a tap says something: a single addition is always as near to its bound as it can be."""
    addition = row.get("tap", "").split(".")[-1] in ADDITIONS
    return not addition or row["ratio"] is None or not row["ratio"] <= 1.0
