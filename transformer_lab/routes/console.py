"""Routes on the console: a row for each layer, and the parts of a difference; for 80 columns."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from transformer_lab.comparison.reporting.number_words import DASH, number, share
from transformer_lab.errors import printable

ROWS = 64  # layers, or flips


def print_routing(report: Mapping[str, Any], console: Console) -> None:
    """What `RoutingReport.to_dict` says."""
    model = report["model"]
    title = f"{model['source']}: {report['tokens']:,} tokens; {model['backend']}, {model['precision']}"
    caption = (
        "max/mean: what the busiest expert was asked for over the mean; entropy: of the same, 1 is even. dropped: "
        "slots asked for that found no room. gate: the entropy of a token's probabilities (nats). margin: 5% of tokens "
        "have a smaller one."
    )
    table = _table(title, caption)
    for name in ("layer", "experts", "max/mean", "entropy", "dead", "dropped", "balance", "z", "gate", "margin"):
        table.add_column(name, justify="right")
    for layer in report["layers"][:ROWS]:
        margins = layer["margins"] or {}
        table.add_row(
            str(layer["layer"]),
            f"{layer['experts_per_token']:.3g} of {layer['experts']}",
            _number(layer["max_over_mean"]),
            _number(layer["load_entropy"]),
            str(len(layer["dead"])),
            _dashed(share(layer["dropped_slots"])),
            *(_number(layer[name]) for name in ("balance_loss", "z", "gate_entropy")),
            _number(margins.get("0.05")),
        )
    console.print(table)


def print_split(split: Mapping[str, Any], console: Console) -> None:
    """What `RoutingSplit.to_dict` says."""
    names = split["participants"]
    runs = _table(
        f"{names['b']} (b) beside {names['a']} (a): {split['tokens']:,} tokens",
        "KL (nats) and top-1 of b against a, and the largest difference of a logit.",
    )
    runs.add_column("b runs", overflow="fold")
    for name in ("KL", "largest", "top-1"):
        runs.add_column(name, justify="right")
    for row in split["runs"]:
        runs.add_row(row["run"], _number(row["kl"]), _number(row["max_abs"]), _dashed(share(row["top_1"])))
    console.print(runs)
    layers = _table(
        "Who goes elsewhere",
        "flips: tokens with other experts in b; own: not inherited from a flip before. error: of a score, by "
        "arithmetic alone. certified: tokens whose margin is more than twice that.",
    )
    for name in ("layer", "flips", "own", "error", "certified", "smallest margin"):
        layers.add_column(name, justify="right")
    for row in split["layers"][:ROWS]:
        numbers = (_number(row["error"]), _dashed(share(row["certified"])), _number(row["smallest_margin"]))
        layers.add_row(str(row["layer"]), str(row["flips"]), str(row["own"]), *numbers)
    if len(split["layers"]) > 1 and split["certified"] is not None:
        layers.add_row("all", "", "", "", _dashed(share(split["certified"])), "")
    console.print(layers)


def _table(title: str, caption: str) -> Table:
    return Table(
        title=Text(f"\n{printable(title)}"),
        caption=caption,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )


def _number(value: object) -> str:
    return _dashed(number(value, 3))


def _dashed(words: str) -> str:
    return words.replace(DASH, "-")
