"""The section on what was reached: how far the comparison went. What it did not reach, it did not judge."""

from collections.abc import Mapping
from typing import Any

from transformer_lab.comparison.reporting.number_words import number, share
from transformer_lab.comparison.reporting.page.cells import PARTICIPANTS, ROWS, Report, cut
from transformer_lab.comparison.reporting.page.html import (
    Column,
    Html,
    code,
    definitions,
    folded,
    joined,
    name,
    paragraph,
    table,
    text,
)
from transformer_lab.comparison.reporting.summary import lengths_in_words

TAPS = 400  # names of taps that were not shown


def reached_section(report: Report) -> Html:
    reached = report.get("reached")  # a report of an earlier version does not know it
    if not reached:
        return Html("")
    facts: list[tuple[object, object]] = [
        ("Lengths of the prompts", lengths_in_words(reached)),
        ("Positions", f"{number(reached['positions'])} of the {number(reached['context'])} of the context"),
        ("Ids of the vocabulary", share(reached["vocabulary"])),
        ("Largest value", f"{number(reached['largest_value'])}, in the stream between operations"),
        ("Precisions", ", ".join(map(str, reached["precisions"]))),
        ("Functions without a bound", joined(map(code, reached["unbounded"]), ", ") or "none"),
    ]
    parts = [paragraph(reached["judge"]), definitions(facts), _hidden(reached), _checks(reached)]
    return joined(part for part in parts if part)


def _hidden(reached: Mapping[str, Any]) -> Html:
    """The taps that were not shown: judged with what follows them, by a wider bound."""
    parts = []
    for who, taps in list(reached["hidden"].items())[:PARTICIPANTS]:
        kept, more = cut(taps, TAPS)
        rest = f" and {more:,} more in report.json" if more else ""
        made = Html(f"<p>{joined(map(code, kept), ', ')}{rest}</p>\n")
        parts.append(folded(Html(f"{text(who)}: {len(taps):,} taps not shown"), made))
    return joined(parts)


def _checks(reached: Mapping[str, Any]) -> Html:
    """What was tried of generation, and what could not be."""
    shown, more = cut(reached["checks"], ROWS)
    if not shown:
        return Html("")
    columns = [
        Column("Check of generation"),
        Column("Participant", words=True),
        Column("Outcome", words=True),
        Column("What was tried", words=True),
    ]
    rows = [[text(row["check"]), name(row["participant"]), _outcome(row), _tried(row)] for row in shown]
    return table("Checks of generation: what was tried, and what was not", columns, rows, more, "tall")


def _outcome(check: Mapping[str, Any]) -> Html:
    if check["wrong"]:
        return Html('<span class="over">defect <span aria-hidden="true">▲</span></span>')
    return Html('<span class="unjudged">not tried</span>' if check["skipped"] else '<span class="yes">sound</span>')


def _tried(check: Mapping[str, Any]) -> Html:
    said = check["wrong"] or check["skipped"] or check["tried"]
    return Html(f'<span class="wrap">{text(said, 600)}</span>')
