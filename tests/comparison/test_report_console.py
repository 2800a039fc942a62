"""The report on the console: it fits 80 columns, cuts nothing off, steers no terminal, and has the report's numbers."""

import io
from pathlib import Path

import pytest
import report_cases
from report_cases import defect, hostile, large, sound, unjudged
from rich.console import Console

from transformer_lab.comparison.reporting.console import print_report, tables


def printed(report, width=80, page=None, **options):
    file = io.StringIO()
    print_report(report, Console(file=file, width=width, **options), page)
    return file.getvalue()


def cells(line):
    """The cells of a row: they stand two blanks apart."""
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def row_of(text, begin):
    return next(cells(line) for line in text.splitlines() if line.lstrip().startswith(begin))


@pytest.mark.parametrize("case", ["sound", "defect", "unjudged", "hostile", "empty", "large"])
def test_it_fits_80_columns_and_steers_nothing(case):
    text = printed(getattr(report_cases, case)())
    assert max(map(len, text.splitlines())) <= 80
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert "…" not in text  # nothing was cut to fit
    for participant in getattr(report_cases, case)()["participants"]:
        if case == "large":
            assert participant["name"].split()[0] in text


@pytest.mark.parametrize("case", ["sound", "large"])
def test_the_verdict_first_and_one_row_for_each_participant(case):
    report = getattr(report_cases, case)()
    text = printed(report)
    assert " ".join(text.split()).startswith(f"Sound. {report['verdict']['sentence']}")
    row = row_of(text, "torch float32")
    taps = [tap for tap in report["taps"] if tap["participant"] == "torch float32"]
    largest = max(taps, key=lambda tap: tap["ratio"])
    assert row[0] == "torch float32" and row[2] == largest["tap"]
    numbers = [float(row[1]), float(row[3]), float(row[4])]
    assert numbers == pytest.approx([largest["ratio"], taps[-1]["rms"], 5e-13], rel=0.06)
    assert row[5:] == ["99.74%", "32/32"]


def test_a_defect_says_where_and_how_much():
    text = printed(defect())
    assert text.startswith("Defect. A defect: blocks.2.attn.scores on torch float32 differs by")
    assert row_of(text, "Where") == ["Where", "blocks.2.attn.scores on torch float32"]
    float64, rounding = "from the same inputs in float64", "the farthest that rounding can take it"
    for begin, said in (("Value", "0.0213"), ("Expected", f"0.1204, {float64}"), ("Bound", f"1.22e-4, {rounding}")):
        assert row_of(text, begin) == [begin, said]
    assert row_of(text, "Error over bound") == ["Error over bound", "812"]
    assert row_of(text, "Element") == ["Element", "[0, 3, 2, 1] of prompt 2"]
    assert "First divergence" not in printed(sound())


def test_sweeps_stand_below_their_participant():
    lines = printed(sound()).splitlines()
    place = max(i for i, line in enumerate(lines) if line.startswith("torch float32"))
    assert cells(lines[place + 1]) == ["1 thread", "0", "0", "0", "-"]
    assert cells(lines[place + 2]) == ["batch of 3", "4,321", "2.0e-6", "0.1", "blocks.0.attn.out"]
    report = sound()
    report["sweeps"] *= 20
    assert "And 120 more rows in report.json." in " ".join(printed(report).split())
    report["sweeps"] = []
    assert "one thing changed" not in printed(report) and len(tables(report)) == 3


def test_what_was_not_judged_is_said_once_and_what_was_reached_in_a_line_or_two():
    text = " ".join(printed(unjudged()).split())
    assert text.startswith("Not judged. logits on theirs bfloat16: too little is shown before it; show blocks.3.")
    lines = printed(unjudged()).rstrip().splitlines()
    begin = next(place for place, line in enumerate(lines) if line.startswith("Reached: "))
    assert len(lines) - begin <= 5
    said = " ".join(" ".join(lines[begin:]).split())
    assert said == (
        "Reached: prompts of 16 to 24 tokens, positions up to 24 of 1,024, 1.23% of the vocabulary, values up to 12; "
        "bfloat16, exact, float32. Not shown: 53 taps. Without a bound: asinh, erfinv. Checks of generation: 3 tried, "
        "3 not."
    )
    report = sound()
    report["reached"] |= {"lengths": [1], "positions": 1, "hidden": {}, "checks": []}
    assert " ".join(printed(report).split()).endswith(
        "Reached: prompts of 1 token, positions up to 1 of 1,024, 1.23% of the vocabulary, values up to 12; float32."
    )
    del report["reached"]
    assert "Reached" not in printed(report)


def test_what_was_not_tried_says_why_once():
    report = sound()
    for row in report["sweeps"][:2]:
        row |= {"ratio": None, "note": "[red]the prompt is one token"}
    text = printed(report)
    assert text.count("not tried: [red]the prompt is one token") == 1
    assert row_of(text, "1 thread") == ["1 thread", "-", "-", "-", "not tried"]
    assert "Another precision" not in text
    report["sweeps"][0]["judged_by"] = "int8"
    assert "Another precision has bounds of its own" in " ".join(printed(report).split())


def test_a_change_that_is_broken_stays_below_its_participant():
    report = sound()
    report["sweeps"][0]["change"] = "many words about what was changed " * 3
    lines = printed(report).splitlines()
    first, after = (next(i for i, line in enumerate(lines) if word in line) for word in ("  many", "  batch of 3"))
    assert after - first > 2
    assert all(line.startswith("  ") and line[2] != " " for line in lines[first:after])


def test_the_path_of_the_page_stays_in_one_piece():
    path = Path("/") / ("long" * 40) / "report.html"
    assert printed(sound(), page=path).splitlines()[-1] == f"The whole report: {path}"
    assert "The whole report" not in printed(sound())


def test_names_are_no_commands():
    report = sound(names=("[red]a[/red] [link=x]float32", "b float32"))
    assert "[red]a[/red] [link=x]" in printed(report)
    shown = printed(hostile())
    assert "\\x1b[31m" in shown and "\x1b" not in shown
    assert "\x1b[" in printed(large(), force_terminal=True)  # in a terminal it has colours


def test_a_pipe_that_knows_only_ascii_gets_ascii():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print_report(defect(), Console(file=file, width=80), Path("report.html"))
    file.flush()
    assert b"First divergence" in file.buffer.getvalue()


def test_a_ratio_that_is_no_number_is_not_lost():
    report = defect()
    for row in report["taps"]:
        if row["participant"] == "torch float32" and row["tap"] == "blocks.2.attn.scores":
            row["ratio"] = None
    report["first_divergence"]["ratio"] = report["first_divergence"]["value"] = None
    text = printed(report)
    assert row_of(text, "torch float32")[1:3] == ["infinite", "blocks.2.attn.scores"]
    assert row_of(text, "Error over bound") == ["Error over bound", "infinite"]
    assert row_of(text, "Value") == ["Value", "-"]
