"""A table of numbers as a heat map: a self-contained SVG, as text, the darker the larger in light and in dark.

It knows nothing of what the numbers are. Where there is room each cell also says its number; all say it to those who
point at them.
"""

import hashlib
import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from transformer_lab.charts.line_chart import BACKGROUND, TEXT, WIDE_TEXT
from transformer_lab.errors import ConfigurationError, printable

LETTER = 0.56  # the width of an average letter, in heights
ROOMY = 38.0  # pixels of a cell in which a number has room
INK, FAINT = ("#1c2530", "#e6ebf0"), ("#4d5865", "#a9b4c0")
FILL = ("#4f9ad8", "#2b6ca3")  # of the largest; the ink can be read on it and on all that is paler


def heat_map(
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    x_label: str = "",
    *,
    largest: float | None = None,
    width: int = 640,
) -> str:
    """The map as SVG. values: a row of numbers, not negative, for each of `rows`; None is an empty cell.

    largest: what has the full colour; what is beyond it has it too. None is the largest value. Raises
    ConfigurationError if there is no cell, or rows and columns are not as many as the values.
    """
    if not rows or not columns or len(values) != len(rows) or any(len(row) != len(columns) for row in values):
        message = f"A heat map of {len(rows)} rows and {len(columns)} columns needs a value for each of its cells."
        raise ConfigurationError(message)
    known = [value for row in values for value in row if value is not None and math.isfinite(value)]
    full = max(known, default=0.0) if largest is None else largest
    row_words = [printable(row)[:24] for row in rows]
    left = 16 + math.ceil(max(map(len, row_words)) * LETTER * WIDE_TEXT)
    top, cell = 48, (width - left - 12) / len(columns)
    tall = min(max(cell, 18.0), 30.0)
    height = math.ceil(top + tall * len(rows) + 34 + (24 if x_label else 0))
    parts = [f'<rect class="back" width="{width}" height="{height}"/>']
    parts.append(f'<text class="heading" x="{left}" y="28">{escape(printable(title))}</text>')
    for down, (name, numbers) in enumerate(zip(row_words, values, strict=True)):
        y = top + tall * down
        parts.append(f'<text class="y" x="{left - 7}" y="{y + tall / 2:.1f}" dy="0.35em">{escape(name)}</text>')
        for across, value in enumerate(numbers):
            if value is None or not math.isfinite(value):
                continue
            x, share = left + cell * across, min(max(value / full, 0.0), 1.0) if full > 0.0 else 0.0
            place = f'x="{x:.2f}" y="{y:.1f}" width="{max(cell - 1, cell * 0.8):.2f}" height="{tall - 1:.1f}"'
            said = escape(printable(f"{rows[down]}, {columns[across]}: {_words(value)}"))
            parts.append(f'<rect class="cell" {place} fill-opacity="{share:.3f}"><title>{said}</title></rect>')
            if cell >= ROOMY:
                middle = f'x="{x + cell / 2:.1f}" y="{y + tall / 2:.1f}" dy="0.35em"'
                parts.append(f'<text class="number" {middle}>{_words(value)}</text>')
    every = max(1, math.ceil(max(len(str(name)) for name in columns) * LETTER * WIDE_TEXT * 1.4 / cell))
    for across in range(0, len(columns), every):
        x = left + cell * (across + 0.5)
        words = escape(printable(columns[across])[:24])
        parts.append(f'<text class="x" x="{x:.1f}" y="{top + tall * len(rows) + 20:.1f}">{words}</text>')
    if x_label:
        middle = f'x="{(left + width) / 2:.1f}" y="{height - 8}"'
        parts.append(f'<text class="label" {middle}>{escape(printable(x_label))}</text>')
    body = "\n".join(parts)
    unique = "map-" + hashlib.sha256(body.encode()).hexdigest()[:12]
    said = f"{len(rows)} rows, {len(columns)} columns; the largest number is {_words(max(known, default=0.0))}."
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="heat-map" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-labelledby="{unique}-title {unique}-desc">\n'
        f'<title id="{unique}-title">{escape(printable(title))}</title>\n'
        f'<desc id="{unique}-desc">{escape(said)}</desc>\n'
        f"<style>{_style()}</style>\n{body}\n</svg>\n"
    )


def _words(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:.2g}"


def _style() -> str:
    """Every rule begins with the map's class, so that none reaches the page around it."""
    chart = ".heat-map"

    def colours(mode: int) -> str:
        return (
            f"{chart} .back{{fill:{BACKGROUND[mode]}}}{chart} text{{fill:{INK[mode]}}}"
            f"{chart} .label,{chart} .x,{chart} .y{{fill:{FAINT[mode]}}}"
            f"{chart} .cell{{fill:{FILL[mode]};stroke:{FAINT[mode]}}}"
        )

    return (
        f"{chart}{{max-width:100%;height:auto;font-family:system-ui,sans-serif;font-size:{TEXT}px}}"
        f"{chart} .heading{{font-size:1.2em;font-weight:600}}"
        f"{chart} .label,{chart} .x,{chart} .number{{text-anchor:middle}}{chart} .y{{text-anchor:end}}"
        f"{chart} .cell{{stroke-width:.4;stroke-opacity:.5}}"
        f"{colours(0)}@media(prefers-color-scheme:dark){{{colours(1)}}}"
        f"@media(max-width:480px){{{chart}{{font-size:{WIDE_TEXT}px}}{chart} .number{{display:none}}}}"
    )
