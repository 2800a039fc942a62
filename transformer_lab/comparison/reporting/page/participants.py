"""The section on participants: a row for each, and what the numbers of the page mean."""

from collections.abc import Mapping
from typing import Any

from transformer_lab.comparison.reporting.number_words import DASH, number, share
from transformer_lab.comparison.reporting.page.cells import ROWS, Report, cut, known, ratio_cell
from transformer_lab.comparison.reporting.page.html import Column, Html, code, definitions, folded, name, table, text
from transformer_lab.comparison.reporting.summary import Summary, summaries


def participants_section(report: Report) -> Html:
    columns = [
        Column("Participant"),
        Column("Error / bound"),
        Column("Where", words=True),
        Column("Nearest to the truth"),
        Column("RMS error at the logits"),
        Column("KL from the truth, nats"),
        Column("Top-1 agreement"),
        Column("First differing token", words=True),
    ]
    by_name = {participant["name"]: participant for participant in report["participants"]}
    shown, more = cut(summaries(report), ROWS)
    rows = [
        [
            Html(f"{name(row.name)}<br/><small>{text(_what(by_name[row.name]))}</small>{_unjudged(row)}"),
            ratio_cell(row.ratio),
            known(row.where, code),
            f"{row.nearest} of {row.taps} taps" if row.taps else DASH,
            number(row.rms),
            number(row.kl),
            share(row.top_1),
            _first_difference(row),
        ]
        for row in shown
    ]
    caption = "Each participant against the truth: the float64 run by the plain operations"
    return Html(table(caption, columns, rows, more) + folded("How to read these numbers", _glossary()))


def _what(participant: Mapping[str, Any]) -> str:
    precision = participant["precision"] if str(participant["precision"]) not in participant["name"] else None
    details = (participant["kind"], participant["version"], participant["device"], precision)
    return ", ".join(str(value) for value in details if value is not None)


def _unjudged(row: Summary) -> Html:
    if not row.unjudged:
        return Html("")
    return Html(f'<br/><small class="unjudged">{row.unjudged:,} of {row.taps:,} taps not judged</small>')


def _first_difference(row: Summary) -> str:
    """At which generated token a participant leaves the truth, in the prompt where that is earliest."""
    if row.first_difference is not None:
        return f"token {row.first_difference + 1:,}"
    return DASH if row.tokens is None else f"none in {row.tokens:,}"


def _glossary() -> Html:
    return definitions(
        (
            ("The truth", "the float64 run of the same model, by the plain operations on NumPy"),
            ("Total error", "a participant's value minus the truth's"),
            ("Added error", "its value minus what float64 makes of the very inputs that the operation was given"),
            ("Inherited error", "the rest: what earlier operations had put into those inputs"),
            ("Bound", "how far rounding can take the operation in its precision, from its dimensions and its inputs"),
            ("Error / bound", "the added error over the bound, the largest element; above 1 it cannot be rounding"),
            ("Likely error", "what roundings that are independent make of it; more than 8 of these are no accident"),
            ("Not judged", "no bound of use is known there: too little was shown before it, or a function has none"),
            ("Margin", "of a choice: how far apart the numbers were that decided it, over the sum of their bounds"),
            ("Exact mode", "rounds once, and its bound is that one rounding: its error / bound comes close to 1"),
            ("ULP", "units in the last place: how many numbers of the precision lie between"),
            ("SNR", "signal to noise: 20 log10 of the RMS of the values over the RMS of the error, in dB"),
            ("KL", "from the truth: how much the participant's distribution loses against the truth's, in nats"),
            ("Doubtful", "an exact-mode rounding too close to a boundary for float64; it is computed again in full"),
        )
    )
