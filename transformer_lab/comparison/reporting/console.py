"""The report on the console: the verdict, a table of participants, where they part, and the sweeps; for 80 columns."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from transformer_lab.comparison.reporting import summary
from transformer_lab.comparison.reporting.number_words import DASH, number, share
from transformer_lab.errors import printable

Report = Mapping[str, Any]
LONGEST = 200  # letters of a name
SHORT = 24
SWEEPS = 60  # rows


def print_report(report: Report, console: Console, page: Path | None = None) -> None:
    """Prints what `tables` makes, and where report.html lies. Names in the report cannot steer the terminal."""
    for renderable in tables(report):
        console.print(renderable)
    if page is not None:
        console.print(Text(f"\nThe whole report: {_plain(page, 4000)}"), soft_wrap=True)  # a path stays in one piece


def tables(report: Report) -> list[RenderableType]:
    """In this order: the verdict; participants; the first divergence; routing; sweeps; what was reached. The last four
    only where there is something to say."""
    makers = (_verdict, _participants, _first_divergence, _routing, _sweeps, _reached)
    parts = [make(report) for make in makers]
    return [part for part in parts if part is not None]


def _verdict(report: Report) -> RenderableType:
    styles = {"sound": "bold green", "defect": "bold red", "not judged": "bold yellow"}
    status = report["verdict"]["status"]
    return Text.assemble((f"{status.capitalize()}. ", styles[status]), _plain(summary.sentence(report), 2000))


def _participants(report: Report) -> RenderableType:
    rows = summary.summaries(report)
    table = _table("Against the truth: float64, by the plain operations")
    table.add_column("participant", overflow="fold")  # gives way first: a name is broken between its words
    _numbers(table, "ratio")
    _words(table, "where", [row.where for row in rows])
    _numbers(table, "RMS", "KL", "top-1", "text")
    for row in rows:
        numbers = (_number(row.ratio), _cell(row.where), _number(row.rms), _number(row.kl))
        table.add_row(_cell(row.name), *numbers, _dashed(share(row.top_1)), _agreement(row))
    table.caption = (
        "ratio: the largest error of an operation over its bound; above 1 it is a defect. RMS, KL (nats), top-1: at "
        "the logits. text: generated tokens before the first that differs."
    )
    if summary.exact_by_nature(report):
        table.caption += " Exact mode comes close to 1: its bound is the one rounding that it makes."
    return table


def _agreement(row: summary.Summary) -> str:
    return "-" if row.agreement is None or row.tokens is None else f"{row.agreement}/{row.tokens}"


def _first_divergence(report: Report) -> RenderableType | None:
    if not report["first_divergence"]:
        return None
    rows = summary.divergence_in_words(report["first_divergence"])
    return Text("\n".join(("\nFirst divergence", *(f"{term:>16}  {_dashed(_plain(said))}" for term, said in rows))))


def _routing(report: Report) -> RenderableType | None:
    rows = report.get("routing")
    if not rows:
        return None
    table = _table("Experts: what of KL from the truth comes of tokens that went elsewhere")
    _words(table, "participant", [row["participant"] for row in rows])
    _numbers(table, "KL", "experts", "weights", "arithmetic", "flips", "own", "certified")
    for row in rows:
        parts = (_number(row["kl"][part]) for part in ("total", "experts", "weights", "arithmetic"))
        own = sum(layer["own"] for layer in row["layers"])
        counts = (f"{len(row['flips']):,}", f"{own:,}", _dashed(share(row["certified"])))
        table.add_row(_cell(row["participant"]), *parts, *counts)
    table.caption = (
        "flips: tokens of a layer with other experts than the truth's; own: not for an earlier flip. certified: tokens "
        "whose scores lie too far apart for errors of this size to send them elsewhere."
    )
    return table


def _sweeps(report: Report) -> RenderableType | None:
    rows = report["sweeps"][:SWEEPS]
    if not rows:
        return None
    table = _table("The same participant, one thing changed")
    _words(table, "change", ["  " + row["change"] for row in rows])
    _numbers(table, "differing", "at logits", "ratio")
    _words(table, "where", [row["tap"] for row in rows])
    for name in dict.fromkeys(row["participant"] for row in rows):
        table.add_row(Text(_plain(name), style="bold"))
        for row in summary.rows_of(rows, name):
            if row["ratio"] is None and row["note"]:
                table.add_row(_indented(row["change"]), "-", "-", "-", _cell("not tried"))
                continue
            numbers = (_number(row["logits_max_abs"]), _number(row["ratio"]))
            table.add_row(_indented(row["change"]), _dashed(number(row["differing"])), *numbers, _cell(row["tap"]))
    more = len(report["sweeps"]) - len(rows)
    said = "differing: elements of all taps. at logits: the largest difference there."
    if any(row["judged_by"] != row["precision"] for row in rows):
        said += " Another precision has bounds of its own."
    if more:
        said += f" And {more:,} more rows in report.json."
    notes = dict.fromkeys(_plain(row["note"]) for row in rows if row["ratio"] is None and row["note"])
    table.caption = Text("\n".join((said, *(f"not tried: {note}" for note in notes))), style="table.caption")
    return table


def _reached(report: Report) -> RenderableType | None:
    reached = report.get("reached")
    if not reached:
        return None
    said = (
        f"Reached: prompts of {summary.lengths_in_words(reached)}, positions up to {reached['positions']:,} of "
        f"{reached['context']:,}, {share(reached['vocabulary'])} of the vocabulary, values up to "
        f"{_number(reached['largest_value'])}; {', '.join(map(_plain, reached['precisions']))}."
    )
    if weights := summary.weights_in_words(report):
        said += f" Weights: {weights}."
    hidden, checks = sum(map(len, reached["hidden"].values())), reached["checks"]
    if hidden:
        said += f" Not shown: {hidden:,} taps."
    if reached["unbounded"]:
        said += f" Without a bound: {_plain(', '.join(reached['unbounded']))}."
    if checks:
        skipped = sum(check["skipped"] is not None for check in checks)
        said += f" Checks of generation: {len(checks) - skipped:,} tried, {skipped:,} not."
    return Text(f"\n{said}")


# --- Pieces --------------------------------------------------------------------------------------------------------


def _table(title: str) -> Table:
    return Table(
        title=Text(f"\n{title}"),
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )


def _words(table: Table, title: str, words: Sequence[object]) -> None:
    """A column of names: if all are short they stay on one line; else they are broken, none is cut."""
    longest = max((len(_plain(word)) for word in words if word is not None), default=1)
    table.add_column(title, overflow="fold", no_wrap=longest <= SHORT)


def _numbers(table: Table, *titles: str) -> None:
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)


def _cell(value: object) -> Text:
    return Text(_plain(value))  # Text: square brackets in a name are no commands to rich


def _indented(value: object) -> Padding:
    """Below a heading; where it is broken, all its lines are."""
    return Padding(_cell(value), (0, 0, 0, 2))


def _plain(value: object, longest: int = LONGEST) -> str:
    given = "-" if value is None else str(value)
    return printable(given[:longest]) + ("..." if len(given) > longest else "")


def _number(value: object) -> str:
    return _dashed(number(value, 2))


def _dashed(words: str) -> str:
    """The console's dash is ASCII's."""
    return words.replace(DASH, "-")
