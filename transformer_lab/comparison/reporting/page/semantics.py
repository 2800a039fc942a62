"""The section on differences in meaning: what the configurations of the participants say differently."""

from transformer_lab.comparison.reporting.page.cells import ROWS, Report, cut, known, names_of
from transformer_lab.comparison.reporting.page.html import Column, Html, code, paragraph, table


def semantics_section(report: Report) -> Html:
    if not report["semantics"]:
        return Html("")
    names = names_of(report, [name for row in report["semantics"] for name in row["values"]])
    columns = [Column("Field"), *(Column(name, words=True) for name in names)]
    shown, more = cut(report["semantics"], ROWS)
    rows = [[code(row["field"]), *(known(row["values"].get(name), code) for name in names)] for row in shown]
    said = paragraph("These configurations do not mean the same; no arithmetic makes up for it.")
    return Html(said + table("What the configurations say differently", columns, rows, more))
