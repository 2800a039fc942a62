"""The section of charts: ratio, errors and signal-to-noise along the depth of the model."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformer_lab.charts.line_chart import Point, line_chart
from transformer_lab.comparison.reporting.number_words import number
from transformer_lab.comparison.reporting.page.cells import Report
from transformer_lab.comparison.reporting.page.html import Html, code, joined, name, paragraph, text
from transformer_lab.comparison.reporting.summary import exact_by_nature, largest_ratio, rows_of, telling

MOST_LINES = 6  # more participants than that are left out of the charts; those with the largest ratios stay
WIDTH, HEIGHT = 540, 340  # half of a wide page; letters are still read where it is all of a narrow one
BOUND = (1.0, "the bound")
MOST_POINTS = 400  # of a line; beyond it, neighbours share a point
_BLOCK = re.compile(r"blocks\.(\d+)\.")


def charts_section(report: Report) -> Html:
    all_together, one_by_one = overview(report), participant_charts(report)
    if not (all_together or one_by_one):
        return Html("")
    plain = exact_by_nature(report)
    largest = largest_ratio([row for row in report["taps"] if row["participant"] not in plain])
    said = ""
    if largest:
        who, where = name(largest["participant"]), code(largest["tap"])
        said = paragraph(Html(f"Largest error over its bound: {text(number(largest['ratio']))}, at {where} on {who}."))
    heading = "<h3>One by one: the ratio of every tap; the error that operations add, inherit, and both together</h3>\n"
    left_out = len(report["participants"]) - len(drawn_participants(report))
    more = paragraph(f"and {left_out:,} more participants in report.json", "more") if left_out > 0 else ""
    return joined((said, all_together, Html(heading if one_by_one else ""), one_by_one, more))


def depths(taps: Sequence[str]) -> dict[str, float]:
    """Where each tap lies on an axis of blocks: block 3 between 3 and 4, what comes after the blocks behind them.

    Taps without blocks, of somebody's own program, are numbered.
    """
    order = list(dict.fromkeys(taps))
    blocks = [int(found[1]) if (found := _BLOCK.match(tap)) else None for tap in order]
    known = [block for block in blocks if block is not None]
    if not known:
        return {tap: float(place) for place, tap in enumerate(order)}
    groups: dict[int, list[str]] = {}
    last = -1  # what stands before the first block counts as the end of an empty one before it
    for tap, block in zip(order, blocks, strict=True):
        last = block if block is not None else max(known) + 1 if last >= 0 else -1
        groups.setdefault(last, []).append(tap)
    return {
        tap: max(block, 0) + (place / len(members) if block >= 0 else 0.0)
        for block, members in groups.items()
        for place, tap in enumerate(members)
    }


def drawn_participants(report: Report) -> list[str]:
    """The participants in the charts: all, or of many those with the largest ratios, in their order."""
    names = [participant["name"] for participant in report["participants"]]
    names = [name for name in names if rows_of(report["taps"], name)]
    largest = {name: (largest_ratio(rows_of(report["taps"], name)) or {"ratio": -1.0})["ratio"] for name in names}
    kept = sorted(names, key=lambda name: largest[name], reverse=True)[:MOST_LINES]
    return [name for name in names if name in kept]


def overview(report: Report) -> Html:
    """All participants: the largest ratio of each block, and the signal-to-noise ratio."""
    names = drawn_participants(report)
    places, axis = _places(report)
    left_out = exact_by_nature(report)
    ratios = {
        name: _largest_of_each_block(_points(report, name, "ratio", places)) for name in names if name not in left_out
    }
    signals = {name: _points(report, name, "snr_db", places) for name in names}
    return _grid(
        _figure(
            ratios,
            "Error / bound, by block",
            "How far operations are off by themselves, over what rounding can do: the largest of each block. "
            "Above 1 it is a defect."
            + (" Exact mode is left out: its bound is the one rounding that it makes." if left_out else ""),
            x_label=axis,
            y_label="error / bound",
            logarithmic=True,
            reference=BOUND,
            marked=names,
        ),
        _figure(
            signals,
            "Signal-to-noise ratio",
            "How far the values stand out of their error. 20 dB more is ten times less error.",
            x_label=axis,
            y_label="dB",
        ),
    )


def participant_charts(report: Report) -> Html:
    """Two for each participant: its ratio at every tap; its total error, and what of it is added and inherited."""
    figures = []
    places, axis = _places(report)
    left_out = exact_by_nature(report)
    for who in drawn_participants(report):
        lines = {
            "total": _points(report, who, "rms", places),
            "added": _points(report, who, "added_rms", places),
            "inherited": _points(report, who, "inherited_rms", places),
        }
        # At the first tap nothing is inherited but float64's own rounding; drawn, it would press all else together.
        largest = max((y for _, y in lines["total"] if y is not None and math.isfinite(y)), default=0.0)
        lines["inherited"] = [(x, y) for x, y in lines["inherited"] if y is None or y > 1e-6 * largest]
        if who not in left_out:
            figures.append(
                _figure(
                    {"error / bound": _points(report, who, "ratio", places)},
                    f"{who}: error / bound",
                    x_label=axis,
                    y_label="error / bound",
                    logarithmic=True,
                    reference=BOUND,
                )
            )
        figures.append(_figure(lines, f"{who}: RMS error", x_label=axis, y_label="RMS error", logarithmic=True))
    return _grid(*figures)


def _places(report: Report) -> tuple[dict[str, float], str]:
    """`depths`, and what the axis counts."""
    taps = [row["tap"] for row in report["taps"]]
    return depths(taps), "block" if any(_BLOCK.match(tap) for tap in taps) else "tap"


def _points(report: Report, name: str, field: str, places: Mapping[str, float]) -> list[Point]:
    rows = [row for row in rows_of(report["taps"], name) if field != "ratio" or telling(row)]
    points: list[Point] = [(places[row["tap"]], row[field]) for row in rows]
    size = -(-len(points) // MOST_POINTS)
    if size <= 1:
        return points
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    # Of neighbours that share a point, the largest is shown: none that lies above the bound is lost.
    return [max(group, key=lambda point: -math.inf if point[1] is None else point[1]) for group in groups]


def _largest_of_each_block(points: Sequence[Point]) -> list[Point]:
    groups: dict[int, list[float]] = {}
    for x, y in points:
        if y is not None and math.isfinite(y):
            groups.setdefault(int(x), []).append(y)
    return [(block, max(group)) for block, group in groups.items()]


def _figure(
    lines: Mapping[str, Sequence[Point]], title: str, said: str = "", *, logarithmic: bool = False, **options: Any
) -> Html:
    """Nothing, if there is no number that could be drawn."""
    values = [y for points in lines.values() for _, y in points if y is not None and math.isfinite(y)]
    if not any(1e-300 < value < 1e300 if logarithmic else abs(value) < 1e300 for value in values):
        return Html("")
    svg = line_chart(lines, title[:80], logarithmic=logarithmic, width=WIDTH, height=HEIGHT, **options)
    caption = f"<figcaption>{text(said, 400)}</figcaption>" if said else ""
    return Html(f"<figure>{svg}{caption}</figure>\n")


def _grid(*figures: Html) -> Html:
    return Html(f'<div class="charts">{"".join(figures)}</div>\n' if any(figures) else "")
