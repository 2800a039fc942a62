"""A cache's promise on the console: the verdict and the numbers, for 80 columns."""

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from transformer_lab.errors import printable


def print_contract(report: Mapping[str, Any], console: Console) -> None:
    """What `CacheReport.to_dict` says."""
    model, cache = report["model"], report["cache"]
    console.print(Text(printable(report["verdict"]), style="bold"))
    if "numbers" not in report:
        return
    title = printable(f"{cache['policy']}: {model['source']}, {model['backend']}, {model['precision']}")
    table = Table(
        title=Text(f"\n{title}"),
        title_justify="left",
        box=SIMPLE_HEAD,
        show_header=False,
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("what", overflow="fold")
    table.add_column("number", justify="right")
    table.add_column("95 %", justify="right")
    numbers = report["numbers"]
    table.add_row("tokens, of so many texts", f"{numbers['tokens']:,}", str(report["texts"]))
    table.add_row("logits that differ", f"{numbers['differing']:,} of {numbers['elements']:,}", "")
    table.add_row("largest difference of a logit", _number(numbers["max_abs"]), "")
    table.add_row("KL(uncached || cached), nats", _number(numbers["kl"]), _interval(numbers["kl_interval"]))
    table.add_row("  largest of a token", _number(numbers["kl_max"]), "")
    table.add_row("same likeliest token", f"{100 * numbers['top_1']:.2f} %", _interval(numbers["top_1_interval"]))
    if numbers["perplexity"] is not None:
        both = " ".join(_number(one, ".4f") for one in numbers["perplexity"])
        table.add_row("perplexity, uncached and cached", both, "")
        table.add_row(
            "  more loss, nats", _number(numbers["loss_increase"]), _interval(numbers["loss_increase_interval"])
        )
    size, plain = report["bytes"]["cache"], report["bytes"]["contiguous"]
    table.add_row("bytes of the cache", f"{size:,}", f"{100 * size / plain:.0f} % of contiguous")
    for place, tokens in report.get("found", {}).items():
        where = "found again" if place == "again" else "found below the device"
        table.add_row(f"tokens of prompts {where}", f"{tokens:,}", "")
    if "exact" in report:
        bits = report["exact"]
        found = sum(count for name, count in bits.items() if name != "elements")
        table.add_row("logits that differ in exact mode", f"{found:,}", "")
    if "bounds" in report:
        bounds = report["bounds"]
        table.add_row("worst operation, of its bound", _number(bounds["ratio"]), bounds["tap"] or "")
    if "stored" in report:
        stored = report["stored"]
        table.add_row("numbers read again, off by", _number(stored["largest"]), f"at most {_number(stored['epsilon'])}")
    if "stored_below" in report:
        table.add_row("  from below the device", _number(report["stored_below"]["largest"]), "")
    console.print(table)


def _number(value: float | None, form: str = ".3g") -> str:
    """A dash for what is not finite, which JSON has no word for."""
    return "-" if value is None else format(value, form)


def _interval(ends: Any) -> str:
    return "" if ends is None else f"{_number(ends[0])} to {_number(ends[1])}"
