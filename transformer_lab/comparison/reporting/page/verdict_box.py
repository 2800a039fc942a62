"""The top of the page: the verdict in a word, an icon and a sentence, and the first divergence."""

import base64

from transformer_lab.comparison.reporting.number_words import DASH, number
from transformer_lab.comparison.reporting.page.cells import Report
from transformer_lab.comparison.reporting.page.html import Html, code, definitions, name, paragraph, text

SOUND_ICON = '<circle cx="16" cy="16" r="13"/><path d="M9.5 16.5l4.5 4.5 8.5-9.5"/>'
DEFECT_ICON = '<path d="M16 3.5L30 28H2z"/><path d="M16 12v8M16 24v.1"/>'


def is_defect(report: Report) -> bool:
    return report["verdict"]["status"] != "sound"


def favicon(report: Report) -> str:
    shape, colour = (DEFECT_ICON, "#c22") if is_defect(report) else (SOUND_ICON, "#0a7a55")
    svg = (
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32' fill='none' stroke-width='3' "
        f"stroke='{colour}'>{shape}</svg>"
    )
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def verdict_box(report: Report) -> Html:
    verdict, defect = report["verdict"], is_defect(report)
    silent = verdict["exact_identical"] is None
    exact = paragraph("Exact mode was not compared, so nothing is said of the definition.", "note") if silent else ""
    return Html(
        f'<section class="verdict {"defect" if defect else "sound"}" aria-labelledby="verdict">'
        f'<svg class="icon" viewBox="0 0 32 32" aria-hidden="true">{DEFECT_ICON if defect else SOUND_ICON}</svg>\n'
        f'<div><h2 id="verdict">{"A defect was found" if defect else "Sound"}</h2>\n'
        f"{paragraph(verdict['sentence'])}{exact}"
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
