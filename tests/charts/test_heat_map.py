"""The heat map, parsed back: a cell for each number, darker where it is larger, escaped, quiet outside of itself."""

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from transformer_lab.charts.heat_map import FILL, INK, heat_map
from transformer_lab.charts.line_chart import BACKGROUND
from transformer_lab.errors import ConfigurationError

SVG = "{http://www.w3.org/2000/svg}"


def cells(svg):
    root = ElementTree.fromstring(svg)
    return [one for one in root.iter(SVG + "rect") if one.get("class") == "cell"]


def test_cells_lie_in_a_grid_and_are_darker_where_numbers_are_larger():
    values = np.arange(12.0).reshape(3, 4)
    found = cells(heat_map(values.tolist(), ["a", "b", "c"], list("0123"), "Title", "expert"))
    assert [float(cell.get("fill-opacity")) for cell in found] == [round(value / 11, 3) for value in range(12)]
    places = [(float(cell.get("y")), float(cell.get("x"))) for cell in found]
    assert places == sorted(places) and len({y for y, _ in places}) == 3 and len({x for _, x in places}) == 4
    assert found[5].find(SVG + "title").text == "b, 1: 5"


def test_the_full_colour_may_be_given_and_is_not_passed():
    found = cells(heat_map([[1.0, 2.0, 8.0]], ["a"], list("012"), "t", largest=4.0))
    assert [float(cell.get("fill-opacity")) for cell in found] == [0.25, 0.5, 1.0]


def test_what_is_no_number_is_an_empty_cell():
    assert len(cells(heat_map([[1.0, None, math.nan, math.inf]], ["a"], list("0123"), "t"))) == 1
    assert cells(heat_map([[None]], ["a"], ["0"], "t")) == []
    (cell,) = cells(heat_map([[0.0]], ["a"], ["0"], "t"))
    assert cell.get("fill-opacity") == "0.000"


def test_numbers_stand_in_cells_that_have_room():
    assert ">0.5<" in heat_map([[0.5]], ["a"], ["0"], "t")
    assert 'class="number' not in heat_map([[0.5] * 64], ["a"], [str(i) for i in range(64)], "t")


@pytest.mark.parametrize("columns", [1, 8, 64, 512])
def test_nothing_leaves_the_picture(columns):
    names = [str(number) for number in range(columns)]
    root = ElementTree.fromstring(heat_map([[1.0] * columns] * 2, ["layer 0", "layer 1"], names, "t"))
    width, height = (float(number) for number in root.get("viewBox").split()[2:])
    for one in root.iter(SVG + "rect"):
        assert float(one.get("x", 0)) + float(one.get("width")) <= width + 0.01
        assert float(one.get("y", 0)) + float(one.get("height")) <= height
    assert all(0 <= float(one.get("x")) <= width and float(one.get("y")) <= height for one in root.iter(SVG + "text"))


def test_names_are_escaped_and_styles_stay_inside():
    svg = heat_map([[1.0]], ["<b>&\x1b"], ["</svg>"], "<script>", '"x"')
    root = ElementTree.fromstring(svg)
    assert [element.tag for element in root.iter() if "script" in element.tag] == []
    style = re.search("<style>(.*)</style>", svg)[1]
    rules = re.findall(r"([^{}]+)\{[^{}]*\}", re.sub(r"@media\([^)]*\)\{", "", style))
    assert all(part.startswith(".heat-map") for rule in rules for part in rule.split(","))
    assert "prefers-color-scheme:dark" in style


def test_no_cells():
    for values, rows, columns in (([], [], []), ([[1.0]], ["a"], ["0", "1"]), ([[]], ["a"], [])):
        with pytest.raises(ConfigurationError, match="needs a value for each"):
            heat_map(values, rows, columns, "t")


def luminance(colour):
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("mode", [0, 1])
def test_numbers_can_be_read_on_every_cell(mode):
    """4.5 : 1 (WCAG 2.2, 1.4.3), on the ground and on the full colour, between which all cells lie."""
    ink = luminance(INK[mode])
    for ground in (BACKGROUND[mode], FILL[mode]):
        one, other = sorted((ink, luminance(ground)))
        assert (other + 0.05) / (one + 0.05) >= 4.5
