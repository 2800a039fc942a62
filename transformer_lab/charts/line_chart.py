"""One or more series of numbers as a line chart: a self-contained SVG, as text.

It needs no package and no network, and says what it shows to those who cannot see it. Lines differ by colour and also
by dashes or by the shape of their marks. It knows nothing of training: who calls it says what the numbers are.
"""

import hashlib
import math
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.sax.saxutils import escape

from transformer_lab.errors import ConfigurationError, printable

Point = tuple[float, float | None]

# Light and dark, each at least 3:1 against its background (WCAG 2.2, 1.4.11). The counts of colours and of dashes have
# no common divisor, so 35 lines differ in one or the other.
COLOURS = (
    ("#0a6cb8", "#5db4f0"),
    ("#c2500a", "#ff9c52"),
    ("#0a7a55", "#3fcf9f"),
    ("#a0357c", "#ee92c8"),
    ("#7d5f00", "#e3c24a"),
    ("#5a4fcf", "#ada2ff"),
    ("#59636e", "#b6c0ca"),
)
BACKGROUND = ("#ffffff", "#14181d")
DASHES = ("", "8 4", "2 3", "10 3 2 3", "14 4")
MARKS = (
    "M-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0-7.2 0z",  # a circle
    "M-3.2-3.2h6.4v6.4h-6.4z",  # a square
    "M0-4.2L4 3H-4z",  # a triangle
    "M0-4.6L4.6 0L0 4.6L-4.6 0z",  # a diamond
)
MARK_SPACE = 9.0  # marks closer than this would run together

TEXT, WIDE_TEXT = 13, 18  # the second where the picture is shown narrow; places are reserved for it
LETTER = 0.56  # the width of an average letter, in heights
LARGEST = 1e300  # beyond it, differences overflow; shown as a gap, like infinity


@dataclass(frozen=True)
class _Axis:
    """Numbers from `low` to `high` on pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def place(self, value: float) -> float:
        if self.logarithmic:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def line_chart(
    series: Mapping[str, Sequence[Point]],
    title: str,
    x_label: str = "",
    y_label: str = "",
    *,
    marked: Collection[str] = (),
    logarithmic: bool = False,
    reference: tuple[float, str] | None = None,
    width: int = 640,
    height: int = 400,
) -> str:
    """The chart as SVG. The points of each series, (x, y), are joined in the order in which they are given.

    marked: the names of series that get a mark at each point and a thicker line, for measurements that are few.
    reference: a value of y and its name, such as a limit: a level line, always within the picture.
    logarithmic: of y. What cannot be placed (None, NaN, infinity, and nothing above zero on a logarithmic axis) is a
    gap. Long series are thinned to the first, lowest, highest and last point of each column of pixels.
    """
    if width < 240 or height < 160:
        message = f"A line chart of {width} by {height} is too small; it must be at least 240 by 160."
        raise ConfigurationError(message)
    xs = [x for points in series.values() for x, y in points if _placeable(x, y, logarithmic)]
    ys = [y for points in series.values() for x, y in points if y is not None and _placeable(x, y, logarithmic)]
    if not xs:
        message = "There is nothing to draw: no series has a point with finite numbers."
        raise ConfigurationError(message + (" A logarithmic axis shows numbers above zero." if logarithmic else ""))
    if reference and _placeable(0.0, reference[0], logarithmic):
        ys.append(reference[0])
    else:
        reference = None
    x_low, x_high = _range(min(xs), max(xs), logarithmic=False, margin=0.0)
    y_low, y_high = _range(min(ys), max(ys), logarithmic=logarithmic, margin=0.05)

    # The labels of the ticks decide how much room there is to the left and the right of the axes.
    y_ticks = _logarithmic_ticks(y_low, y_high) if logarithmic else _ticks(y_low, y_high, max(3, height // 55))
    y_words = _labels(y_ticks)
    left = 14 + (WIDE_TEXT + 4 if y_label else 0) + math.ceil(max(map(len, y_words)) * LETTER * WIDE_TEXT)
    bold = 1.4 * LETTER * WIDE_TEXT  # the width of a letter of the heading, which is also larger
    heading = textwrap.wrap(printable(title), int((width - left) / bold)) or [""]
    entries, legend_rows = _legend_places(list(series), left, width)
    height += 25 * (len(heading) - 1) + 24 * (legend_rows - 1)  # further rows do not take from the picture
    top = 12 + 25 * len(heading) + 24 * legend_rows + 8
    bottom = height - 14 - WIDE_TEXT - (WIDE_TEXT + 4 if x_label else 0)
    x_ticks = _ticks(x_low, x_high, max(3, width // 100))
    x_words = _labels(x_ticks)
    right = width - max(14, math.ceil(len(x_words[-1]) * LETTER * WIDE_TEXT / 2))
    x_axis = _Axis(x_low, x_high, left, right)
    y_axis = _Axis(y_low, y_high, bottom, top, logarithmic)

    parts = [f'<rect class="back" width="{width}" height="{height}"/>']
    for row, line in enumerate(heading):
        parts.append(f'<text class="heading" x="{left}" y="{28 + 25 * row}">{escape(line)}</text>')
    parts += _grid(x_axis, y_axis, list(zip(x_ticks, x_words, strict=True)), list(zip(y_ticks, y_words, strict=True)))
    if x_label:
        place = f'x="{_number((left + right) / 2)}" y="{height - 10}"'
        parts.append(f'<text class="label" {place}>{escape(_shortened(x_label, right - left))}</text>')
    if y_label:
        place = f'transform="translate({WIDE_TEXT} {_number((top + bottom) / 2)}) rotate(-90)"'
        parts.append(f'<text class="label" {place}>{escape(_shortened(y_label, bottom - top))}</text>')
    plain = marks = 0
    for index, (name, points) in enumerate(series.items()):
        with_marks = name in marked
        mark, dash = (MARKS[marks % len(MARKS)], "") if with_marks else ("", DASHES[plain % len(DASHES)])
        marks, plain = marks + with_marks, plain + (not with_marks)
        parts.append(f'<g class="series colour{index % len(COLOURS)}{" marked" if with_marks else ""}">')
        parts += _drawn(points, x_axis, y_axis, mark, dash)
        across, row = entries[index]
        parts.append(_legend_entry(name, across, 27 + 25 * (len(heading) - 1) + 24 * (row + 1), mark, dash, width))
        parts.append("</g>")
    if reference:
        level, words = _number(y_axis.place(reference[0])), _shortened(reference[1], right - left)
        parts.append(f'<path class="reference" d="M{left} {level}H{_number(right)}"/>')
        parts.append(f'<text class="limit" x="{_number(right)}" y="{level}" dy="-0.4em">{escape(words)}</text>')

    body = "\n".join(parts)
    # Two charts in one page must not share an id; the same chart keeps its own.
    unique = "chart-" + hashlib.sha256(body.encode()).hexdigest()[:12]
    said = _description(series, x_label, y_label, logarithmic)
    if reference:
        said += f" A level line marks {reference[0]:.4g}: {printable(reference[1])}."
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="line-chart" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-labelledby="{unique}-title {unique}-desc">\n'
        f'<title id="{unique}-title">{escape(printable(title))}</title>\n'
        f'<desc id="{unique}-desc">{escape(said)}</desc>\n'
        f"<style>{_style()}</style>\n{body}\n</svg>\n"
    )


# --- Axes ----------------------------------------------------------------------------------------------------------


def _placeable(x: float | None, y: float | None, logarithmic: bool) -> bool:
    if x is None or y is None or not -LARGEST < x < LARGEST:  # NaN fails every comparison
        return False
    return 1 / LARGEST < y < LARGEST if logarithmic else -LARGEST < y < LARGEST


def _range(low: float, high: float, *, logarithmic: bool, margin: float) -> tuple[float, float]:
    """What the axis covers: the numbers and a margin; something around them if they are all the same."""
    if logarithmic:
        factor = (high / low) ** margin if high / low > 1 + 1e-9 else 2.0
        return low / factor, high * factor
    if high - low <= max(1e-12 * max(abs(low), abs(high)), 1 / LARGEST):
        around = abs(low) / 10 if margin and abs(low) > 1e-200 else max(1.0, abs(low) * 1e-9)
        return low - around, high + around
    room = (high - low) * margin
    # Nothing below zero is promised where there is nothing.
    return (max(low - room, 0.0) if low >= 0 else low - room), high + room


def _ticks(low: float, high: float, wanted: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within the range, about as many as wanted."""
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _logarithmic_ticks(low: float, high: float) -> list[float]:
    """Powers of ten; also 2 and 5 times them where there are few; plain ticks where even these are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, math.ceil((last - first) / 8))
    factors = (1, 2, 5) if last - first <= 3 else (1,)
    ticks = [factor * 10.0**power for power in range(first, last + 1) if power % every == 0 for factor in factors]
    ticks = [tick for tick in ticks if low <= tick <= high]
    return ticks if len(ticks) >= 3 else _ticks(low, high, 5)


def _labels(ticks: Sequence[float]) -> list[str]:
    """The ticks in words, all with as many digits as tell them apart."""
    largest = max(map(abs, ticks))
    gaps = [abs(after - before) for before, after in pairwise(ticks)]
    step = min(gaps, default=largest) or 1.0
    digits, magnitude = -math.floor(math.log10(step) + 1e-9), math.floor(math.log10(largest or 1.0) + 1e-9)
    even = len(gaps) < 2 or max(gaps) < 1.5 * step
    if (magnitude >= 7 or digits > 5) and (magnitude + digits <= 4 or not even):
        words = [_scientific(tick) for tick in ticks]
    elif even:
        words = [f"{tick:,.{max(0, digits)}f}" for tick in ticks]
    else:  # a logarithmic axis from 0.001 to 100 shall not say 100.000
        words = [f"{tick:,.15g}" for tick in ticks]
    # A narrow no-break space between thousands; a true minus sign.
    return [word.replace(",", "\u202f").replace("-", "\u2212") for word in words]


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.4e}".split("e")
    return "0" if not value else f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def _grid(
    x_axis: _Axis, y_axis: _Axis, x_ticks: Sequence[tuple[float, str]], y_ticks: Sequence[tuple[float, str]]
) -> Iterator[str]:
    left, right, bottom, top = map(_number, (x_axis.start, x_axis.end, y_axis.start, y_axis.end))
    for tick, word in y_ticks:
        y = _number(y_axis.place(tick))
        yield f'<path class="grid" d="M{left} {y}H{right}"/>'
        yield f'<text class="y tick" x="{_number(x_axis.start - 7)}" y="{y}" dy="0.35em">{word}</text>'
    for index, (tick, word) in enumerate(x_ticks):
        x = _number(x_axis.place(tick))
        odd = " odd" if index % 2 else ""  # left out where the picture is narrow and letters are large
        yield f'<path class="grid" d="M{x} {bottom}V{top}"/>'
        yield f'<text class="x tick{odd}" x="{x}" y="{_number(y_axis.start + 20)}">{word}</text>'
    yield f'<path class="axis" d="M{left} {top}V{bottom}H{right}"/>'


# --- Series --------------------------------------------------------------------------------------------------------


def _drawn(points: Sequence[Point], x_axis: _Axis, y_axis: _Axis, mark: str, dash: str) -> Iterator[str]:
    """The lines between gaps, and the marks: of a marked series, and of each point that no line reaches."""
    columns = math.ceil(x_axis.end - x_axis.start)
    pieces = _pieces(points, x_axis, y_axis, columns if len(points) > 4 * columns else None)
    steps, dots = [], []
    last = (-math.inf, -math.inf)
    for piece in pieces:
        if len(piece) > 1:
            steps.append("M" + "L".join(f"{_number(x)} {_number(y)}" for x, y in piece))
        elif not mark:
            dots.append(piece[0])
        if mark:
            for place in piece:
                if math.dist(place, last) >= MARK_SPACE:
                    dots.append(place)
                    last = place
    if steps:
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        yield f'<path class="line" d="{"".join(steps)}"{dashes}/>'
    for x, y in dots:
        yield f'<path class="mark" transform="translate({_number(x)} {_number(y)})" d="{mark or MARKS[0]}"/>'


def _pieces(
    points: Sequence[Point], x_axis: _Axis, y_axis: _Axis, columns: int | None
) -> list[list[tuple[float, float]]]:
    """The points in pixels, in pieces between gaps. With `columns`, those of one column of pixels become four at most.

    First, lowest, highest and last of a column draw the same line as all of its points. A gap that lies within a
    column is too narrow to be seen, and left out.
    """
    pieces: list[list[tuple[float, float]]] = [[]]
    column: list[tuple[float, float]] = []
    current: int | None = None

    def close_column() -> None:
        if column:
            ends = {0, len(column) - 1}
            low = min(range(len(column)), key=lambda index: column[index][1])
            high = max(range(len(column)), key=lambda index: column[index][1])
            pieces[-1].extend(column[index] for index in sorted(ends | {low, high}))
            column.clear()
        elif pieces[-1]:
            pieces.append([])

    scale = (x_axis.end - x_axis.start) / (x_axis.high - x_axis.low)
    for x, y in points:
        fits = _placeable(x, y, y_axis.logarithmic)
        if columns is None:
            if fits and y is not None:
                pieces[-1].append((x_axis.place(x), y_axis.place(y)))
            elif pieces[-1]:
                pieces.append([])
            continue
        if not _placeable(x, 1.0, False):
            continue
        here = int((x - x_axis.low) * scale)
        if here != current:
            if current is not None:
                close_column()
            current = here
        if fits and y is not None:
            column.append((x_axis.place(x), y_axis.place(y)))
    if columns is not None:
        close_column()
    return [piece for piece in pieces if piece]


# --- Legend and words ----------------------------------------------------------------------------------------------


def _legend_places(names: Sequence[str], left: int, width: int) -> tuple[list[tuple[int, int]], int]:
    """(x, row) of each name, in columns of one width, and how many rows there are."""
    longest = max(len(_shortened(name, width - 200)) for name in names)
    cell = 58 + math.ceil(longest * LETTER * WIDE_TEXT)
    columns = max(1, (width - left) // cell)
    return [(left + cell * (i % columns), i // columns) for i in range(len(names))], -(-len(names) // columns)


def _shortened(text: str, pixels: float) -> str:
    shown, most = printable(text), int(pixels / (LETTER * WIDE_TEXT))
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def _legend_entry(name: str, x: int, y: int, mark: str, dash: str, width: int) -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    sample = f'<path class="sample" d="M{x} {y}h30"{dashes}/>'
    if mark:
        sample += f'<path class="mark" transform="translate({x + 15} {y})" d="{mark}"/>'
    shown = _shortened(name, width - 200)
    full = f"<title>{escape(printable(name))}</title>" if shown != printable(name) else ""
    return f'{sample}<text class="name" x="{x + 37}" y="{y}" dy="0.35em">{full}{escape(shown)}</text>'


def _description(series: Mapping[str, Sequence[Point]], x_label: str, y_label: str, logarithmic: bool) -> str:
    """The chart in sentences: where each series begins and ends, and its extremes."""
    axes = f"{printable(y_label) or 'y'} over {printable(x_label) or 'x'}"
    said = [f"Line chart of {axes}{', on a logarithmic scale' if logarithmic else ''}."]
    for name, points in series.items():
        shown = [(x, y) for x, y in points if y is not None and _placeable(x, y, logarithmic)]
        if not shown:
            said.append(f"{printable(name)}: nothing to show.")
            continue
        first, last = shown[0], shown[-1]
        low, high = min(shown, key=lambda point: point[1]), max(shown, key=lambda point: point[1])
        count = "1 point" if len(shown) == 1 else f"{len(shown)} points"
        gaps = f", {len(points) - len(shown)} left out" if len(shown) < len(points) else ""
        said.append(
            f"{printable(name)}: {count}{gaps}, from {first[1]:.4g} at {first[0]:.6g} to {last[1]:.4g} at "
            f"{last[0]:.6g}, lowest {low[1]:.4g} at {low[0]:.6g}, highest {high[1]:.4g} at {high[0]:.6g}."
        )
    return " ".join(said)


def _number(value: float) -> str:
    """A place in pixels, to a tenth, in few letters."""
    return f"{value:.1f}".removesuffix(".0")


def _style() -> str:
    """Every rule begins with the chart's class, so that none reaches the page around it."""
    chart = ".line-chart"
    ink, faint, grid = ("#1c2530", "#e6ebf0"), ("#4d5865", "#a9b4c0"), ("#e3e7ec", "#2b323a")

    def colours(mode: int) -> str:
        rules = [f"{chart} .colour{index}{{color:{pair[mode]}}}" for index, pair in enumerate(COLOURS)]
        return (
            f"{chart} .back{{fill:{BACKGROUND[mode]}}}{chart} text{{fill:{ink[mode]}}}"
            f"{chart} .tick,{chart} .label{{fill:{faint[mode]}}}{chart} .grid{{stroke:{grid[mode]}}}"
            f"{chart} .axis{{stroke:{faint[mode]}}}{chart} .reference{{stroke:{ink[mode]}}}"
            f"{chart} .limit{{stroke:{BACKGROUND[mode]}}}{chart} .mark{{stroke:{BACKGROUND[mode]}}}" + "".join(rules)
        )

    return (
        f"{chart}{{max-width:100%;height:auto;font-family:system-ui,sans-serif;font-size:{TEXT}px}}"
        f"{chart} .heading{{font-size:1.2em;font-weight:600}}"
        f"{chart} .label,{chart} .x{{text-anchor:middle}}{chart} .y{{text-anchor:end}}"
        f"{chart} .grid,{chart} .axis,{chart} .reference,{chart} .line,{chart} .sample{{fill:none}}"
        f"{chart} .reference{{stroke-width:1.6;stroke-dasharray:7 4}}"
        f"{chart} .limit{{text-anchor:end;font-weight:600;stroke-width:4;paint-order:stroke}}"
        f"{chart} .line,{chart} .sample{{stroke:currentColor;stroke-width:1.3;stroke-linejoin:round}}"
        f"{chart} .marked .line,{chart} .marked .sample{{stroke-width:2.2}}"
        f"{chart} .mark{{fill:currentColor;stroke-width:1}}"
        f"{colours(0)}@media(prefers-color-scheme:dark){{{colours(1)}}}"
        f"@media(max-width:480px){{{chart}{{font-size:{WIDE_TEXT}px}}{chart} .odd{{display:none}}"
        f"{chart} .line,{chart} .sample{{stroke-width:2}}"
        f"{chart} .marked .line,{chart} .marked .sample{{stroke-width:3.2}}}}"
    )
