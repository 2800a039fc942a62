"""docs/command_line.md: its commands run and end with the exit code that it gives, and its tables are complete."""

import io
import re
import shlex
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "command_line.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
    if "eval" not in line
]


def test_the_page_has_commands():
    assert len(COMMANDS) > 15


@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_run(run, monkeypatch, line):
    shell, _, comment = line.partition("  #")
    if "|" in shell:
        typed, shell = shell.split("|")
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(shlex.split(typed)[1].encode())))
    program, *words = shlex.split(shell)
    expected = re.search(r"exit code (\d+)", comment)
    assert program == "transformer-lab"
    outcome = run(*words)
    assert outcome.code == (int(expected[1]) if expected else 0), outcome.err
    assert outcome.out or expected


def test_the_table_of_the_record_is_complete(run_tiny):
    table = set(re.findall(r"`(\w+)`", PAGE.partition("key of result.json")[2].partition("For `job=generate`")[0]))
    found = run_tiny("prompt=a").record
    assert "error" in table
    assert {*found, *found["backend"], *found["model"], *found["environment"], *found["timing"]} <= table
