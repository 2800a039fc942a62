"""Runs the fuzzer in a process of its own, so that its memory can be measured: a few seconds, or ten minutes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FUZZER = Path(__file__).parent / "fuzz_files.py"
KINDS = ("adapter", "beside", "chat", "checkpoint", "config", "folder", "index", "library", "merges.txt", "safetensors")
KINDS += ("tokenizer.json",)


def run(*arguments, timeout=120):
    return subprocess.run(
        [sys.executable, "-W", "error", str(FUZZER), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_a_few_damaged_files_of_each_kind():
    done = run("--rounds", "25", "--seed", "82")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 failures" in done.stdout
    for kind in KINDS:
        for outcome in ("loaded", "refused"):
            assert any(line.split()[:2] == [kind, outcome] for line in done.stdout.splitlines()), done.stdout


def test_the_fuzzer_finds_a_planted_fault():
    done = run("--seconds", "5", "--seed", "1", "--plant")
    assert done.returncode == 1 and "planted" in done.stdout, done.stdout + done.stderr


@pytest.mark.full
def test_ten_minutes_of_damaged_files():
    done = run("--seconds", "600", timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
