"""The section on sweeps: what one change of the circumstances changes."""

from transformer_lab.comparison.reporting.number_words import number
from transformer_lab.comparison.reporting.page.cells import ROWS, Report, cut, known, ratio_cell
from transformer_lab.comparison.reporting.page.html import Column, Html, code, name, paragraph, table, text


def sweeps_section(report: Report) -> Html:
    if not report["sweeps"]:
        return Html("")
    columns = [
        Column("Change", words=True),
        Column("Participant", words=True),
        Column("Elements that differ"),
        Column("Largest difference"),
        Column("at the logits"),
        Column("Error / bound"),
        Column("Where", words=True),
        Column("Note", words=True),
    ]
    shown, more = cut(report["sweeps"], ROWS)
    rows = [
        [
            text(row["change"]),
            name(row["participant"]),
            _differing(row["differing"], row["elements"]),
            number(row["max_abs"]),
            number(row["logits_max_abs"]),
            ratio_cell(row["ratio"]),
            known(row["tap"], code),
            known(row["note"], lambda note: Html(f'<span class="wrap">{text(note)}</span>')),
        ]
        for row in shown
    ]
    said = paragraph(
        "The same participant once more, with one thing changed. In exact mode nothing may differ. Another precision "
        "differs, and is judged by its own bounds."
    )
    return Html(said + table("What a change of circumstances changes", columns, rows, more, "tall"))


def _differing(differing: int | None, elements: int | None) -> str:
    if not differing or not elements:
        return number(differing)
    return f"{differing:,} of {elements:,}"
