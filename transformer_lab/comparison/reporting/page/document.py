"""report.html: one self-contained page made from a report's dict alone, so also from a report.json of another day.

`report.html` is its template, with `tables.html` for the tables in it and `style.css`. The page needs no script and
loads nothing. Long tables are cut where it would grow too large, and say so. It measures nothing.
"""

import base64
import hashlib
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from transformer_lab.comparison.reporting import number_words, summary
from transformer_lab.comparison.reporting.page import charts
from transformer_lab.errors import printable

FOLDER = Path(__file__).parent
LONGEST = 160  # letters of a name or a cell
TEXT = 1200  # letters of a text


def page(report: Mapping[str, Any]) -> str:
    """The page as text, for a file in UTF-8. `report` is what Report.to_dict() gives, or a report.json read back."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, finalize=text, undefined=StrictUndefined, trim_blocks=True
    )
    style = (FOLDER / "style.css").read_text(encoding="utf-8")
    overview, one_by_one = charts.overview(report), charts.one_by_one(report)
    styles = {style, *styles_in("".join(overview + one_by_one))}
    plain = summary.exact_by_nature(report)
    return environment.get_template("report.html").render(
        report=report,
        style=Markup(style),
        policy=Markup(policy(styles)),
        overview=overview,
        one_by_one=one_by_one,
        left_out=len(report["participants"]) - len(charts.drawn_participants(report)),
        largest=summary.largest_ratio([row for row in report["taps"] if row["participant"] not in plain]),
        flips=[{"participant": row["participant"], **flip} for row in report["logits"] for flip in row["flips"]],
        command=shlex.join(report["environment"]["command"] or ()),
        summary=summary,
        **{each.__name__: each for each in (text, parting, knows, worst, number_words.share, number_words.cosine)},
    )


def text(value: object, longest: int = LONGEST) -> Markup:
    """What becomes of every value that the template shows, as nobody vouches for it: numbers in words, the rest cut,
    with control characters and marks of direction written out, and escaped. Only markup stays as it is."""
    if isinstance(value, Markup):
        return value
    said = number_words.number(value)
    return escape(printable(said[:longest]) + ("…" if len(said) > longest else ""))


def parting(given: str, first: str) -> tuple[Markup, Markup | None, Markup]:
    """What stands before, in and after the word in which `given` leaves `first`; there is no word if it does not."""
    given, first, rest = given[:TEXT], first[:TEXT], "…" if len(given) > TEXT else ""
    if given == first:
        return text(given + rest, TEXT + 1), None, Markup("")
    same = next((i for i, (a, b) in enumerate(zip(given, first, strict=False)) if a != b), min(len(given), len(first)))
    start = given.rfind(" ", 0, same) + 1  # a token often begins with the space before its word
    end = next((i for i in range(same + 1, len(given)) if given[i].isspace()), len(given))
    return text(given[:start], TEXT), text(given[start:end], TEXT), text(given[end:] + rest, TEXT + 1)


def knows(rows: Iterable[Mapping[str, Any]], field: str) -> bool:
    """Whether any row has it; a column in which nothing would stand is left out."""
    return any(row.get(field) is not None for row in rows)


def worst(rows: Sequence[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """The rows, in their order; of more than `most`, those with the largest ratios."""

    def ratio(row: Mapping[str, Any]) -> float:
        if row["ratio"] is None:  # of a tap that was judged: it was no number
            return math.inf if row.get("unjudged", "") is None else -1.0
        return row["ratio"]

    kept = {id(row) for row in sorted(rows, key=ratio, reverse=True)[:most]}
    return [row for row in rows if id(row) in kept]


def styles_in(markup: str) -> list[str]:
    """What stands in its style elements: figures bring their own."""
    return re.findall("<style>(.*?)</style>", markup, re.DOTALL)


def policy(styles: Iterable[str]) -> str:
    """Styles are allowed by their hash: nothing else on the page may load, run or send anything."""
    hashes = sorted(base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() for style in styles)
    allowed = " ".join(f"'sha256-{found}'" for found in hashes)
    return f"default-src 'none'; style-src {allowed}; img-src data:; base-uri 'none'; form-action 'none'"
