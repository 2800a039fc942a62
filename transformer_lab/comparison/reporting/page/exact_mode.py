"""The section on exact mode: the certificate, tap by tap, and what is not the same on all participants."""

from transformer_lab.comparison.reporting.number_words import number
from transformer_lab.comparison.reporting.page.cells import Report, cut, names_of
from transformer_lab.comparison.reporting.page.html import Column, Html, code, folded, name, paragraph, table

TAPS = 400  # that are shown


def exact_section(report: Report) -> Html:
    exact = report["exact"]
    if not exact:
        return Html("")
    names = exact["participants"]
    taps = sum(row["roundings"] is not None for row in exact["taps"])  # gradients have no certificate
    gradients = taps < len(exact["taps"])
    everywhere = "at every tap and for every gradient" if gradients else "at every tap"
    same = f"gave the same bits {everywhere}" if exact["identical"] else "did not give the same bits"
    same = same if len(names) > 1 else "is alone in exact mode: there is nothing to hold its bits against"
    said = f"{', '.join(map(str, names))} {same}."
    if exact["roundings"]:
        said += (
            f" Certificate: {exact['roundings']:,} values were rounded; {number(exact['doubtful'])} of them lay closer "
            "to a boundary between two float32 than float64 can tell, and were computed again in full."
        )
    others = names_of(report, [name for row in exact["taps"] for name in row["differing"]])
    group = "elements that differ from the first participant" if others else ""
    columns = [Column("Tap"), Column("Roundings"), Column("Doubtful"), *(Column(name, group=group) for name in others)]
    missing = any(row["missing"] for row in exact["taps"])
    if missing:
        columns.append(Column("Missing on", words=True))
    shown, more = cut(exact["taps"], TAPS)
    rows = [
        [code(row["tap"]), number(row["roundings"]), number(row["doubtful"])]
        + [_zero_expected(row["differing"].get(name)) for name in others]
        + ([Html(f'<span class="over">{", ".join(map(name, row["missing"]))}</span>')] if missing else [])
        for row in shown
    ]
    made = table("Exact mode, tap by tap", columns, rows, more, "tall")
    return Html(
        paragraph(said)
        + folded(f"The certificate of {taps:,} taps{', and all gradients' if gradients else ''}", made, len(rows) <= 12)
    )


def _zero_expected(value: int | None) -> object:
    return Html(f'<span class="over">{number(value)} ▲</span>') if value else number(value)
