"""Runs the fuzzer for a few seconds, in a process of its own so that its memory can be measured."""

import subprocess
import sys
from pathlib import Path

FUZZER = Path(__file__).parents[1] / "fuzz" / "fuzz_checkpoints.py"


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-W", "error", str(FUZZER), *arguments], capture_output=True, text=True, timeout=120
    )


def test_a_few_seconds_of_damaged_files():
    done = run("--seconds", "5", "--seed", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 failures" in done.stdout


def test_the_fuzzer_finds_a_planted_fault():
    done = run("--seconds", "5", "--seed", "1", "--plant")
    assert done.returncode == 1 and "planted" in done.stdout, done.stdout + done.stderr
