"""What stands in the cells of several tables of the page, and which rows a table shows."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from transformer_lab.comparison.reporting.number_words import DASH, number
from transformer_lab.comparison.reporting.page.html import Html, text

Report = Mapping[str, Any]
ROWS = 200  # of a table; that keeps the page below 1 MB
PARTICIPANTS = 20  # in tables with a column or a text for each
TEXT = 1200  # letters of a text


def cut(rows: Iterable[Any], most: int) -> tuple[list[Any], int]:
    """The first `most` rows, and how many are left out."""
    rows = list(rows)
    return rows[:most], max(0, len(rows) - most)


def names_of(report: Report, mentioned: Iterable[str]) -> list[str]:
    """Those mentioned, each once and not too many, the participants first and in their order."""
    found = dict.fromkeys(mentioned)
    order = [participant["name"] for participant in report["participants"] if participant["name"] in found]
    return list(dict.fromkeys([*order, *found]))[:PARTICIPANTS]


def known(value: Any, write: Callable[[Any], object] = text) -> object:
    return DASH if value is None else write(value)


def ratio_cell(value: float | None, unjudged: object = None) -> object:
    """Above 1 it differs in more than its colour. unjudged: why there is none."""
    if unjudged:
        return Html('<span class="unjudged">not judged</span>')
    if value is None or not value > 1:
        return number(value)
    spoken = '<span aria-hidden="true">▲</span><span class="hidden">above the bound</span>'
    return Html(f'<span class="over">{number(value)} {spoken}</span>')
