"""routing.html: one self-contained page made from a report's dict alone, in the style of a comparison's.

`routing.html` is its template; the macros for tables, the style and the escaping are those of report.html. It needs no
script, loads nothing and measures nothing.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from transformer_lab.charts.heat_map import heat_map
from transformer_lab.comparison.reporting.number_words import share
from transformer_lab.comparison.reporting.page.document import FOLDER as SHARED
from transformer_lab.comparison.reporting.page.document import policy, styles_in, text

FOLDER = Path(__file__).parent
LAYERS = 64  # that have maps of their own
EXPERTS = 64  # with more of them, which go together is left to result.json: the map would be larger than all the rest


def page(report: Mapping[str, Any]) -> str:
    """The page as text, for a file in UTF-8. report: what RoutingReport.to_dict() gives."""
    environment = Environment(
        loader=FileSystemLoader([FOLDER, SHARED]),
        autoescape=True,
        finalize=text,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    style = (SHARED / "style.css").read_text(encoding="utf-8")
    loads = _loads(report)
    maps = [(layer["layer"], _of_layer(layer)) for layer in report["layers"][:LAYERS]]
    drawn = [*loads, *(figure for _, figures in maps for figure in figures)]
    return environment.get_template("routing.html").render(
        report=report,
        style=Markup(style),
        policy=Markup(policy({style, *styles_in("".join(drawn))})),
        loads=loads,
        maps=maps,
        share=share,
    )


def _loads(report: Mapping[str, Any]) -> list[Markup]:
    """Layers by experts, a map for each number of experts: the load over the mean."""
    figures = []
    for experts in dict.fromkeys(layer["experts"] for layer in report["layers"]):
        rows = [layer for layer in report["layers"] if layer["experts"] == experts]
        values = [_over_mean(layer["asked"]) for layer in rows]
        names = [f"layer {layer['layer']}" for layer in rows]
        title = "Load over the mean, by layer and expert"
        figures.append(_figure(values, names, experts, title, "1 is even use. The full colour is four times that."))
    return figures


def _of_layer(layer: Mapping[str, Any]) -> list[Markup]:
    """Two for a layer: classes by experts, and experts by experts."""
    figures, number = [], layer["layer"]
    if layer["by_class"]:
        rows = [_over_mean(found["asked"]) for found in layer["by_class"].values()]
        names = [f"{name} ({found['tokens']:,})" for name, found in layer["by_class"].items()]
        said = "How much of each class goes to an expert, over what it would be if all went to each alike."
        figures.append(_figure(rows, names, layer["experts"], f"Layer {number}: who uses which expert", said))
    if layer["experts"] <= EXPERTS and layer["slots"] > 1:
        load = [layer["together"][i][i] for i in range(layer["experts"])]
        rows = [
            [None if i == j or not load[i] else count / load[i] for j, count in enumerate(row)]
            for i, row in enumerate(layer["together"])
        ]
        names = [f"expert {i}" for i in range(layer["experts"])]
        said = "Of the tokens of the expert in the row, the share that also has the one in the column."
        title = f"Layer {number}: which experts go together"
        figures.append(_figure(rows, names, layer["experts"], title, said, largest=1.0))
    return figures


def _over_mean(counts: list[int]) -> list[float | None]:
    mean = sum(counts) / len(counts)
    return [count / mean if mean else None for count in counts]


def _figure(
    values: list[list[float | None]], rows: list[str], experts: int, title: str, said: str, largest: float = 4.0
) -> Markup:
    svg = heat_map(values, rows, [str(expert) for expert in range(experts)], title, "expert", largest=largest)
    return Markup("<figure>{}<figcaption>{}</figcaption></figure>\n").format(Markup(svg), said)
