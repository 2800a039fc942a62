"""The top of the page: the verdict in a word, an icon and a sentence, and the first divergence."""

import base64
from dataclasses import dataclass

from transformer_lab.comparison.reporting.number_words import DASH, number
from transformer_lab.comparison.reporting.page.cells import Report
from transformer_lab.comparison.reporting.page.html import Html, code, definitions, name, paragraph, text

SOUND_ICON = '<circle cx="16" cy="16" r="13"/><path d="M9.5 16.5l4.5 4.5 8.5-9.5"/>'
DEFECT_ICON = '<path d="M16 3.5L30 28H2z"/><path d="M16 12v8M16 24v.1"/>'
UNJUDGED_ICON = (
    '<path d="M16 3a13 13 0 0 1 13 13M29 16a13 13 0 0 1-13 13M16 29a13 13 0 0 1-13-13" stroke-dasharray="6 4"/>'
    '<path d="M12 12.4a4.2 4.2 0 1 1 6 3.8c-1.4.7-2 1.4-2 2.9M16 23.4v.1"/>'
)


@dataclass(frozen=True)
class Look:
    """Of a verdict: the class of its box, its heading, its icon, and the icon's colour in a list of tabs."""

    css: str
    heading: str
    icon: str
    colour: str


LOOKS = {
    "sound": Look("sound", "Sound", SOUND_ICON, "#0a7a55"),
    "defect": Look("defect", "A defect was found", DEFECT_ICON, "#c22"),
    "not judged": Look("open", "Not judged", UNJUDGED_ICON, "#a86a00"),
}


def look(report: Report) -> Look:
    return LOOKS[report["verdict"]["status"]]


def favicon(report: Report) -> str:
    svg = (
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32' fill='none' stroke-width='3' "
        f"stroke='{look(report).colour}'>{look(report).icon}</svg>"
    )
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def verdict_box(report: Report) -> Html:
    verdict, shown = report["verdict"], look(report)
    silent = verdict["exact_identical"] is None
    exact = paragraph("Exact mode was not compared, so nothing is said of the definition.", "note") if silent else ""
    return Html(
        f'<section class="verdict {shown.css}" aria-labelledby="verdict">'
        f'<svg class="icon" viewBox="0 0 32 32" aria-hidden="true">{shown.icon}</svg>\n'
        f'<div><h2 id="verdict">{shown.heading}</h2>\n'
        f"{paragraph(verdict['sentence'].removeprefix(f'{shown.heading}: '))}{exact}"
        f"{_first_divergence(report)}</div></section>\n"
    )


def _first_divergence(report: Report) -> Html:
    found = report["first_divergence"]
    if not found:
        return Html("")
    value, expected, who = found["value"], found["expected"], str(found["participant"])
    precision = "" if str(found["precision"]) in who else f", {found['precision']}"
    pairs: list[tuple[str, object]] = [
        ("Where", Html(f"{code(found['tap'])} on {name(who)}{text(precision)}")),
        ("Error over bound", Html(f'<strong class="over">{number(found["ratio"])}</strong>')),
        ("Element", f"{found['position']} of prompt {found['prompt'] + 1}" if found["prompt"] is not None else DASH),
        ("Value", number(value, 8)),
        ("Expected", f"{number(expected, 8)}, from the same inputs in float64"),
        ("Bound", f"{number(found['bound'])}, the farthest that rounding can take it"),
    ]
    return Html(f"<h3>First divergence</h3>\n{definitions(pairs)}")
