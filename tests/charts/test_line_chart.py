"""The line chart: the SVG is parsed back, and its points are compared with the numbers by means of its own ticks."""

import itertools
import math
import random
import re
import time
from xml.etree import ElementTree

import pytest

from transformer_lab.charts.line_chart import BACKGROUND, COLOURS, DASHES, line_chart
from transformer_lab.errors import ConfigurationError

SVG = "{http://www.w3.org/2000/svg}"


class Drawn:
    """A chart, read back. Pixels become numbers by a straight line through the outermost ticks of each axis."""

    def __init__(self, svg, logarithmic=False):
        self.root = ElementTree.fromstring(svg)
        self.logarithmic = logarithmic
        self.x_ticks = [(float(t.get("x")), number(t.text)) for t in self.of_class("text", "x")]
        self.y_ticks = [(float(t.get("y")), number(t.text)) for t in self.of_class("text", "y")]

    def of_class(self, tag, name, parent=None):
        found = (self.root if parent is None else parent).iter(SVG + tag)
        return [element for element in found if name in (element.get("class") or "").split()]

    def series(self):
        return self.of_class("g", "series")

    def pieces(self, index=0):
        """The lines of a series, in numbers: one list of points for each piece between gaps."""
        return [
            [self.numbers(*map(float, place.split())) for place in piece.split("L")]
            for line in self.of_class("path", "line", self.series()[index])
            for piece in line.get("d").split("M")[1:]
        ]

    def marks(self, index=0):
        marks = self.of_class("path", "mark", self.series()[index])
        places = [re.fullmatch(r"translate\(([\d.]+) ([\d.]+)\)", mark.get("transform")).groups() for mark in marks]
        in_legend = self.of_class("path", "sample", self.series()[index])[0].get("d").split("h")[0][1:].split()[1]
        return [self.numbers(float(x), float(y)) for x, y in places if y != in_legend]

    def numbers(self, x, y):
        return between(x, self.x_ticks), between(y, self.y_ticks, self.logarithmic)

    def texts(self, name):
        return ["".join(text.itertext()) for text in self.of_class("text", name)]


def number(text):
    return float(text.replace("\u202f", "").replace("\u2212", "-"))


def between(pixel, ticks, logarithmic=False):
    (first, low), (last, high) = ticks[0], ticks[-1]
    share = (pixel - first) / (last - first)
    return low * (high / low) ** share if logarithmic else low + share * (high - low)


def near(points, width=580, height=270):
    """Equal to a fifth of a pixel: places are written to a tenth."""
    xs, ys = zip(*points, strict=True)
    spans = [0.4 * ((max(values) - min(values)) or 1) / pixels for values, pixels in ((xs, width), (ys, height))]
    return [tuple(pytest.approx(v, abs=span) for v, span in zip(point, spans, strict=True)) for point in points]


def test_the_points_are_where_the_ticks_say():
    curves = {"a": [(x, x * x / 7 - 20) for x in range(60)], "b": [(5.5, 400.0), (31.25, -100.0), (50.0, 0.0)]}
    chart = Drawn(line_chart(curves, "T", "x", "y"))
    everything = near([*curves["a"], *curves["b"]])
    assert chart.pieces(0) == [everything[:60]] and chart.pieces(1) == [everything[60:]]
    wrong = [(x, y + 5) for x, y in curves["b"]]
    assert chart.pieces(1) != [near([*curves["a"], *wrong])[60:]]


def test_logarithmic_points_are_where_the_ticks_say():
    points = [(x, 10 ** (3 - x / 10)) for x in range(1, 60)]
    (piece,) = Drawn(line_chart({"a": points}, "T", logarithmic=True), logarithmic=True).pieces()
    assert [y for _, y in piece] == pytest.approx([y for _, y in points], rel=0.01)


def test_it_says_what_it_shows():
    svg = line_chart({"loss": [(0, 4.0), (10, 1.5), (20, 2.0), (30, math.nan)]}, "The title", "step", "nats")
    root = ElementTree.fromstring(svg)
    title, description = root.find(SVG + "title"), root.find(SVG + "desc")
    assert root.get("role") == "img"
    assert root.get("aria-labelledby").split() == [title.get("id"), description.get("id")]
    assert title.text == "The title"
    assert description.text == (
        "Line chart of nats over step. loss: 3 points, 1 left out, from 4 at 0 to 2 at 20, "
        "lowest 1.5 at 10, highest 4 at 0."
    )


def test_two_charts_in_a_page_share_no_id_and_nothing_is_fetched():
    one, two = (line_chart({"a": [(0, 1), (1, y)]}, "T") for y in (2, 3))
    assert not set(re.findall(r'id="([^"]+)"', one)) & set(re.findall(r'id="([^"]+)"', two))
    assert one == line_chart({"a": [(0, 1), (1, 2)]}, "T")
    assert re.findall(r"https?://[^\"]+", one) == ["http://www.w3.org/2000/svg"]
    assert "url(" not in one and "@import" not in one


@pytest.mark.parametrize("text", ["<script>&amp;\"'", "]]><!--", "nul \0 bell \a", "half \ud800", "ärger 中文 🎉"])
def test_text_is_escaped(text):
    svg = line_chart({text: [(0, 1), (1, 2)]}, text, text, text)
    svg.encode()
    chart = Drawn(svg)
    shown = text.replace("\0", "\\x00").replace("\a", "\\x07").replace("\ud800", "\\ud800")
    assert chart.texts("heading") == chart.texts("name") == [shown]
    assert chart.texts("label") == [shown, shown]
    assert chart.root.find(SVG + "title").text == shown


@pytest.mark.parametrize("logarithmic", [False, True])
def test_a_reference_is_within_the_picture_and_where_the_ticks_say(logarithmic):
    points = [(x, 0.001 * (1 + x)) for x in range(30)]
    chart = Drawn(line_chart({"a": points}, "T", logarithmic=logarithmic, reference=(1.0, "the <limit>")), logarithmic)
    (line,) = chart.of_class("path", "reference")
    x, y, end = map(float, re.fullmatch(r"M([\d.]+) ([\d.]+)H([\d.]+)", line.get("d")).groups())
    assert chart.numbers(x, y)[1] == pytest.approx(1.0, rel=0.02) and end > x + 400
    assert chart.texts("limit") == ["the <limit>"]
    assert chart.root.find(SVG + "desc").text.endswith("A level line marks 1: the <limit>.")
    assert [y for _, y in chart.pieces()[0]] == pytest.approx([y for _, y in points], rel=0.05, abs=0.004)


def test_a_reference_that_has_no_place_is_left_out():
    chart = Drawn(line_chart({"a": [(0, 1.0), (1, 2.0)]}, "T", logarithmic=True, reference=(0.0, "nothing")), True)
    assert not chart.of_class("path", "reference") and "nothing" not in chart.root.find(SVG + "desc").text


def test_long_words_are_broken_or_shortened():
    name = "a name that goes on and on " * 5
    chart = Drawn(line_chart({name: [(0, 1), (1, 2)]}, "A long title. " * 12, "x " * 99, "y " * 99))
    assert len(chart.texts("heading")) > 2
    (text,) = chart.of_class("text", "name")
    assert text.find(SVG + "title").text == name and text.find(SVG + "title").tail.endswith("…")
    assert all(text.endswith("…") for text in chart.texts("label"))


@pytest.mark.parametrize("gap", [math.nan, math.inf, -math.inf, None, 1e301])
def test_what_cannot_be_placed_is_a_gap(gap):
    points = [(0, 1.0), (1, 2.0), (2, gap), (3, 3.0), (4, gap), (5, gap), (6, 1.0), (7, 2.0), (8, gap)]
    chart = Drawn(line_chart({"a": points}, "T"))
    there = near([(0, 1.0), (1, 2.0), (3, 3.0), (6, 1.0), (7, 2.0)])
    assert chart.pieces() == [there[:2], there[3:]]
    assert chart.marks() == [there[2]]  # alone between two gaps, it would not be seen


@pytest.mark.parametrize("gap", [0.0, -1.0, math.nan])
def test_a_logarithmic_axis_has_gaps_where_nothing_is_above_zero(gap):
    points = [(0, 1.0), (1, 10.0), (2, gap), (3, 100.0), (4, 1000.0)]
    assert [len(p) for p in Drawn(line_chart({"a": points}, "T", logarithmic=True), True).pieces()] == [2, 2]


def test_a_single_point_is_a_mark():
    chart = Drawn(line_chart({"a": [(5, 3.25)]}, "T"))
    assert chart.pieces() == []
    assert chart.marks() == [(pytest.approx(5, abs=0.01), pytest.approx(3.25, abs=0.01))]


@pytest.mark.parametrize("value", [0.0, 7.0, -3e-9, 1e12, -1e299, 5e-320])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_a_constant_series_is_a_level_line(value, logarithmic):
    if logarithmic and value < 1e-299:
        return
    chart = Drawn(line_chart({"a": [(0, value), (10, value)]}, "T", logarithmic=logarithmic), logarithmic)
    ((first, second),) = chart.pieces()
    assert first[1] == second[1] == pytest.approx(value, rel=0.02, abs=0.01)
    assert len(chart.y_ticks) >= 2


@pytest.mark.parametrize("series", [{}, {"a": []}, {"a": [(0, math.nan)], "b": [(math.inf, 1.0)]}])
def test_nothing_to_draw_is_refused(series):
    with pytest.raises(ConfigurationError, match="nothing to draw"):
        line_chart(series, "T")


def test_no_number_above_zero_is_refused_on_a_logarithmic_axis():
    with pytest.raises(ConfigurationError, match="above zero"):
        line_chart({"a": [(0, 0.0), (1, -1.0)]}, "T", logarithmic=True)


def test_a_size_that_holds_nothing_is_refused():
    with pytest.raises(ConfigurationError, match="100 by 400 is too small"):
        line_chart({"a": [(0, 1)]}, "T", width=100)


def test_an_empty_series_beside_a_full_one_is_in_the_legend():
    chart = Drawn(line_chart({"full": [(0, 1), (1, 2)], "empty": []}, "T"))
    assert chart.texts("name") == ["full", "empty"] and chart.pieces(1) == []
    assert "empty: nothing to show." in chart.root.find(SVG + "desc").text


@pytest.mark.parametrize("scale", [1e-290, 1e-12, 1e-5, 0.03, 1, 17, 12345, 9.9e6, 1e15, 1e290])
@pytest.mark.parametrize("offset", [0, 1, -0.5, 1000])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_ticks_are_few_distinct_and_round(scale, offset, logarithmic):
    points = [(scale * (offset + i), scale * (offset + i + 1)) for i in range(4)]
    chart = Drawn(line_chart({"a": points}, "T", logarithmic=logarithmic), logarithmic)
    ticks = [chart.x_ticks] if logarithmic else [chart.x_ticks, chart.y_ticks]
    for places in ticks:
        pixels, values = zip(*places, strict=True)
        assert 3 <= len(values) <= 12 and len(set(values)) == len(values)
        steps = [after - before for before, after in itertools.pairwise(values)]
        assert steps == pytest.approx([steps[0]] * len(steps), rel=1e-6)
        assert f"{steps[0]:.3e}"[:5] in ("1.000", "2.000", "5.000")
        gaps = [after - before for before, after in itertools.pairwise(pixels)]
        assert gaps == pytest.approx([gaps[0]] * len(gaps), abs=0.21)
    assert len(set(chart.y_ticks)) == len(chart.y_ticks) >= 2


@pytest.mark.parametrize("decades", [0.01, 0.3, 1, 2, 4, 9, 30, 250])
def test_logarithmic_ticks_are_few_and_their_words_are_exact(decades):
    chart = Drawn(line_chart({"a": [(0, 0.7), (1, 0.7 * 10**decades)]}, "T", logarithmic=True), True)
    assert 3 <= len(chart.y_ticks) <= 12
    (first, low), (last, high) = chart.y_ticks[0], chart.y_ticks[-1]
    for pixel, value in chart.y_ticks:
        expected = first + (last - first) * math.log(value / low) / math.log(high / low)
        assert pixel == pytest.approx(expected, abs=0.3)


def test_everything_lies_within_the_picture():
    names = {f"series number {i}": [(0, i), (1_234_567, -i)] for i in range(12)}
    chart = Drawn(line_chart(names, "T " * 70, "x", "y", marked=["series number 3"]))
    width, height = float(chart.root.get("width")), float(chart.root.get("height"))
    assert chart.root.get("viewBox") == f"0 0 {width:g} {height:g}"
    for text in chart.root.iter(SVG + "text"):
        if text.get("x"):
            assert 0 <= float(text.get("x")) <= width and 0 <= float(text.get("y")) <= height
    legend = [float(text.get("y")) for text in chart.of_class("text", "name")]
    plot = min(float(d) for d in re.findall(r"V([\d.]+)", "".join(p.get("d") for p in chart.of_class("path", "grid"))))
    assert max(legend) < plot < height - 250


def test_marked_series_have_marks_that_do_not_run_together():
    few, many = [(i, i % 3) for i in range(0, 1000, 100)], [(i, 1.0) for i in range(1000)]
    chart = Drawn(line_chart({"few": few, "many": many}, "T", marked=["few", "many"]))
    assert chart.marks(0) == near(few)
    assert 20 < len(chart.marks(1)) < 70
    assert "marked" in chart.series()[0].get("class")


def test_lines_differ_without_colour():
    series = {str(i): [(0, i), (1, i)] for i in range(len(COLOURS) * len(DASHES))}
    chart = Drawn(line_chart(series, "T"))
    looks = [
        (group.get("class"), chart.of_class("path", "line", group)[0].get("stroke-dasharray"))
        for group in chart.series()
    ]
    assert len(set(looks)) == len(looks)
    assert len({dash for _, dash in looks[: len(DASHES)]}) == len(DASHES)
    marked = Drawn(line_chart({name: series[name] for name in "0123"}, "T", marked="0123"))
    assert len({marked.of_class("path", "mark", group)[0].get("d") for group in marked.series()}) == 4


def contrast(one, two):
    """WCAG 2.2: the relative luminances, lighter over darker."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(two)))
    return (light + 0.05) / (dark + 0.05)


def test_colours_can_be_told_from_both_backgrounds():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert all(contrast(pair[mode], BACKGROUND[mode]) >= 3 for pair in COLOURS for mode in (0, 1))
    assert "prefers-color-scheme:dark" in line_chart({"a": [(0, 1)]}, "T")


def test_a_million_points_are_quick_and_small_and_keep_their_extremes():
    noise = random.Random(1)
    points = [(i, noise.gauss(0, 1)) for i in range(1_000_000)]
    points[123_456], points[654_321] = (123_456, 40.0), (654_321, -40.0)
    began = time.process_time()
    svg = line_chart({"a": points}, "T")
    assert time.process_time() - began < 20  # it takes 2 seconds; a slow machine is not a failure
    assert len(svg) < 60_000
    (piece,) = Drawn(svg).pieces()
    assert (pytest.approx(123_456, abs=1800), pytest.approx(40, abs=0.1)) in piece
    assert (pytest.approx(654_321, abs=1800), pytest.approx(-40, abs=0.1)) in piece


def test_thinned_and_whole_series_cover_the_same_pixels():
    """Each column of pixels keeps its lowest and highest point, and its first and last, which join the columns."""
    noise = random.Random(2)
    points = [(i, noise.random()) for i in range(20_000)]
    (thin,) = Drawn(line_chart({"a": points}, "T")).pieces()
    assert len(thin) < 4 * 640
    scale = 19_999 / 640
    for start in range(0, 19_000, 1000):
        inside = [y for x, y in points if start + scale < x < start + 1000 - scale]
        kept = [y for x, y in thin if start <= x <= start + 1000]
        assert min(kept) < min(inside) + 0.005 and max(kept) > max(inside) - 0.005


def test_a_long_series_has_gaps_that_are_wide_enough_to_be_seen():
    points = [(i, math.nan if 10_000 < i < 12_000 or i % 7 == 0 else 1.0 + i) for i in range(20_000)]
    pieces = Drawn(line_chart({"a": points}, "T")).pieces()
    assert len(pieces) == 2
    assert pieces[0][-1][0] == pytest.approx(10_000, abs=70) and pieces[1][0][0] == pytest.approx(12_000, abs=70)
