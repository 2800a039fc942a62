"""The charts: ratio, errors and signal-to-noise along the depth of the model, as figures of HTML."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from transformer_lab.charts.line_chart import Point, line_chart
from transformer_lab.comparison.reporting.summary import exact_by_nature, largest_ratio, named, rows_of, telling
from transformer_lab.errors import ConfigurationError

MOST_LINES = 6  # more participants than that are left out of the charts; those with the largest ratios stay
WIDTH, HEIGHT = 540, 340  # half of a wide page; letters are still read where it is all of a narrow one
MOST_POINTS = 400  # of a line; beyond it, neighbours share a point
RATIO: dict[str, Any] = {"y_label": "error / bound", "logarithmic": True, "reference": (1.0, "the bound")}
_BLOCK = re.compile(r"blocks\.(\d+)\.")

Report = Mapping[str, Any]


def overview(report: Report) -> list[Markup]:
    """All participants: the largest ratio of each block, and the signal-to-noise ratio."""
    names, left_out = drawn_participants(report), exact_by_nature(report)
    ratios = {name: _largest_of_each_block(_points(report, name, "ratio")) for name in names if name not in left_out}
    signals = {name: _points(report, name, "snr_db") for name in names}
    how_far = (
        "How far operations are off by themselves, over what rounding can do: the largest of each block. Above 1 it is "
        "a defect."
    )
    if left_out:
        how_far += " Exact mode is left out: its bound is the one rounding that it makes."
    how_clear = "How far the values stand out of their error. 20 dB more is ten times less error."
    return [
        *_figure(report, ratios, "Error / bound, by block", how_far, marked=names, **RATIO),
        *_figure(report, signals, "Signal-to-noise ratio", how_clear, y_label="dB"),
    ]


def one_by_one(report: Report) -> list[Markup]:
    """Two for each participant: its ratio at every tap; its total error, and what of it is added and inherited."""
    figures, left_out = [], exact_by_nature(report)
    fields = {"total": "rms", "added": "added_rms", "inherited": "inherited_rms"}
    for who in drawn_participants(report):
        lines = {title: _points(report, who, field) for title, field in fields.items()}
        # At the first tap nothing is inherited but float64's own rounding; drawn, it would press all else together.
        largest = max((y for _, y in lines["total"] if y is not None and math.isfinite(y)), default=0.0)
        lines["inherited"] = [(x, y) for x, y in lines["inherited"] if y is None or y > 1e-6 * largest]
        if who not in left_out:
            ratios = {"error / bound": _points(report, who, "ratio")}
            figures += _figure(report, ratios, f"{who}: error / bound", **RATIO)
        figures += _figure(report, lines, f"{who}: RMS error", y_label="RMS error", logarithmic=True)
    return figures


def drawn_participants(report: Report) -> list[str]:
    """The participants in the charts: all, or of many those with the largest ratios, in their order."""
    names = named(report, (row["participant"] for row in report["taps"]))
    largest = {name: (largest_ratio(rows_of(report["taps"], name)) or {"ratio": -1.0})["ratio"] for name in names}
    kept = sorted(names, key=lambda name: largest[name], reverse=True)[:MOST_LINES]
    return [name for name in names if name in kept]


def depths(taps: Sequence[str]) -> dict[str, float]:
    """Where each tap lies on an axis of blocks: block 3 between 3 and 4, what comes after the blocks behind them.

    Taps without blocks, of somebody's own program, are numbered.
    """
    order = list(dict.fromkeys(taps))
    blocks = {tap: int(found[1]) for tap in order if (found := _BLOCK.match(tap))}
    if not blocks:
        return {tap: float(place) for place, tap in enumerate(order)}
    groups: dict[int, list[str]] = {}
    last, behind = -1, max(blocks.values()) + 1  # -1: what stands before the first block is the end of an empty one
    for tap in order:
        last = blocks.get(tap, behind if last >= 0 else -1)
        groups.setdefault(last, []).append(tap)
    return {
        tap: max(block, 0) + (place / len(members) if block >= 0 else 0.0)
        for block, members in groups.items()
        for place, tap in enumerate(members)
    }


def _points(report: Report, name: str, field: str) -> list[Point]:
    """One for each tap. Of neighbours that share a point, the largest: none that lies above the bound is lost."""
    places = depths([row["tap"] for row in report["taps"]])
    rows = [row for row in rows_of(report["taps"], name) if field != "ratio" or telling(row)]
    points: list[Point] = [(places[row["tap"]], row[field]) for row in rows]
    size = max(1, math.ceil(len(points) / MOST_POINTS))
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [max(group, key=lambda point: -math.inf if point[1] is None else point[1]) for group in groups]


def _largest_of_each_block(points: Sequence[Point]) -> list[Point]:
    groups: dict[int, list[float]] = {}
    for x, y in points:
        if y is not None and math.isfinite(y):
            groups.setdefault(int(x), []).append(y)
    return [(block, max(group)) for block, group in groups.items()]


def _figure(
    report: Report, lines: Mapping[str, Sequence[Point]], title: str, said: str = "", **options: Any
) -> list[Markup]:
    """The chart, which escapes what stands in it, above what is said of it; none if there is nothing to draw."""
    axis = "block" if any(_BLOCK.match(row["tap"]) for row in report["taps"]) else "tap"
    try:
        svg = line_chart(lines, title[:80], axis, width=WIDTH, height=HEIGHT, **options)
    except ConfigurationError:
        return []
    caption = Markup("<figcaption>{}</figcaption>").format(said) if said else ""
    return [Markup("<figure>{}{}</figure>\n").format(Markup(svg), caption)]
