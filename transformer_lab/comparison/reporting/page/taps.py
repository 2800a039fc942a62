"""The sections on every tap and on the gradients of parameters: a folded table of errors for each participant."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformer_lab.comparison.reporting.number_words import cosine, number
from transformer_lab.comparison.reporting.page.cells import Report, names_of, ratio_cell
from transformer_lab.comparison.reporting.page.html import Column, Html, code, folded, joined, paragraph, table, text
from transformer_lab.comparison.reporting.summary import largest_ratio, rows_of

# So many rows are shown in all; they keep the page below 1 MB. GPT-2 small with five participants fits.
TAP_ROWS, GRADIENT_ROWS = 900, 760

# The columns that a tap and the gradient of a parameter have in common: field, heading, how it is written.
ERRORS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("max_abs", "max abs", number),
    ("max_rel", "max rel", number),
    ("ulp_max", "ULP max", number),
    ("ulp_p99", "ULP p99", number),
    ("rms", "RMS", number),
    ("snr_db", "SNR, dB", number),
    ("cosine", "cosine", cosine),
)
PARTS = (
    ("added_max_abs", "max abs", "added error"),
    ("added_rms", "RMS", "added error"),
    ("inherited_max_abs", "max abs", "inherited error"),
    ("inherited_rms", "RMS", "inherited error"),
)


def taps_section(report: Report) -> Html:
    columns = [
        Column("Tap"),
        Column("error / bound"),
        Column("nearest"),
        *(Column(title, group="total error") for _, title, _ in ERRORS),
        *(Column(title, group=group) for _, title, group in PARTS),
    ]

    def cells(row: Mapping[str, Any]) -> list[object]:
        nearest = Html('<span class="yes">nearest</span>') if row["nearest"] else ""
        errors = [write(row[field]) for field, _, write in ERRORS]
        return [
            code(row["tap"]),
            ratio_cell(row["ratio"]),
            nearest,
            *errors,
            *(number(row[field]) for field, *_ in PARTS),
        ]

    return _per_participant(report, "taps", "taps", columns, cells, TAP_ROWS)


def gradients_section(report: Report) -> Html:
    columns = [Column("Parameter"), Column("error / bound"), *(Column(title) for _, title, _ in ERRORS)]

    def cells(row: Mapping[str, Any]) -> list[object]:
        return [code(row["parameter"]), ratio_cell(row["ratio"]), *(write(row[field]) for field, _, write in ERRORS)]

    return _per_participant(report, "gradients", "gradients", columns, cells, GRADIENT_ROWS)


def _per_participant(
    report: Report,
    field: str,
    what: str,
    columns: Sequence[Column],
    cells: Callable[[Mapping[str, Any]], list[object]],
    most: int,
) -> Html:
    """A folded table for each participant. They share `most` rows; of more, those with the largest ratios stay."""
    names = names_of(report, [row["participant"] for row in report[field]])
    if not names:
        return Html("")
    each = most // len(names)
    parts = []
    for who in names:
        rows = rows_of(report[field], who)
        kept = rows
        if len(rows) > each:
            order = sorted(range(len(rows)), key=lambda place: rows[place]["ratio"] or 0.0, reverse=True)
            kept = [rows[place] for place in sorted(order[:each])]
        largest = largest_ratio(rows)
        said = f"{text(who)}: {len(rows):,} {what}"
        if largest:
            place = largest["tap" if field == "taps" else "parameter"]
            said += f", error / bound at most {number(largest['ratio'])}, at {text(place)}"
        made = table(
            f"{what.capitalize()} of {who}", columns, [cells(row) for row in kept], len(rows) - len(kept), "tall"
        )
        parts.append(folded(Html(said), made))
    left_out = len({row["participant"] for row in report[field]} - set(names))
    if left_out:
        parts.append(paragraph(f"and {left_out:,} more participants in report.json", "more"))
    return joined(parts)
