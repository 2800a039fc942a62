"""The sections on every tap and on gradients: a folded table of errors for each participant.

Columns that would be empty are left out: what is likely, margins of choices, reasons why a tap was not judged.
"""

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
LIKELY = (("largest_likely", "largest"), ("mean_square_likely", "root mean square"))
PARTS = (
    ("added_max_abs", "max abs", "added error"),
    ("added_rms", "RMS", "added error"),
    ("inherited_max_abs", "max abs", "inherited error"),
    ("inherited_rms", "RMS", "inherited error"),
)


def taps_section(report: Report) -> Html:
    rows = report["taps"]
    likely = _telling(rows, LIKELY)
    margin, reasons = _telling(rows, (("margin", "margin / bound"),)), _telling(rows, (("unjudged", "not judged"),))
    columns = [
        Column("Tap"),
        Column("error / bound"),
        Column("nearest"),
        *(Column(title, group="error / likely error") for _, title in likely),
        *(Column(title) for _, title in margin),
        *(Column(title, group="total error") for _, title, _ in ERRORS),
        *(Column(title, group=group) for _, title, group in PARTS),
        *(Column("why it was not judged", words=True) for _ in reasons),
    ]

    def cells(row: Mapping[str, Any]) -> list[object]:
        unjudged = row.get("unjudged")
        nearest = Html('<span class="yes">nearest</span>') if row["nearest"] and not unjudged else ""
        return [
            code(row["tap"]),
            ratio_cell(row["ratio"], unjudged),
            nearest,
            *(number(row.get(field)) for field, _ in (*likely, *margin)),
            *(write(row[field]) for field, _, write in ERRORS),
            *(number(row[field]) for field, *_ in PARTS),
            *(Html(f'<span class="wrap">{text(unjudged or "")}</span>') for _ in reasons),
        ]

    return _per_participant(report, "taps", "taps", columns, cells, TAP_ROWS)


def gradients_section(report: Report) -> Html:
    likely = _telling(report["gradients"], LIKELY)
    columns = [
        Column("Parameter, or step and its input"),
        Column("error / bound"),
        *(Column(title, group="error / likely error") for _, title in likely),
        *(Column(title, group="total error") for _, title, _ in ERRORS),
    ]

    def cells(row: Mapping[str, Any]) -> list[object]:
        return [
            code(row["parameter"]),
            ratio_cell(row["ratio"]),
            *(number(row.get(field)) for field, _ in likely),
            *(write(row[field]) for field, _, write in ERRORS),
        ]

    return _per_participant(report, "gradients", "gradients", columns, cells, GRADIENT_ROWS)


def _telling(rows: Sequence[Mapping[str, Any]], fields: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Those of the fields that any row knows."""
    return [(field, title) for field, title in fields if any(row.get(field) is not None for row in rows)]


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
        if unjudged := sum(row.get("unjudged") is not None for row in rows):
            said += f", {unjudged:,} of them not judged"
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
