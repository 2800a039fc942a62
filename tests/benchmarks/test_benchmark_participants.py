"""One participant of a benchmark that dies, however it dies, loses its own row and is named; the others go on."""

import signal
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from participants import Died, Participants, measured

SOUND = "print('{}', flush=True)\nfor line in sys.stdin: print(json.dumps({'said': line.strip()}), flush=True)"
BODIES = {
    "sound": SOUND,
    "illegal instruction at once": "os.kill(os.getpid(), signal.SIGILL)",
    "killed when asked": "print('{}', flush=True); input(); os.kill(os.getpid(), signal.SIGKILL)",
    "an error": "print('{}', flush=True); input(); raise ValueError('no such kernel')",
    "an end": "pass",
    "half a line": "print('{}', flush=True); input(); print('{\"said\"', end='')",
    "no JSON": "print('{}', flush=True); input(); print('loading ...', flush=True); input()",
    "another sound one": SOUND,
}


def command(name):
    return [sys.executable, "-c", f"import json, os, signal, sys\n{BODIES[name]}"]


def test_the_others_go_on(capfd):
    with Participants({name: command(name) for name in BODIES}) as people:
        assert set(people.lost) == {"illegal instruction at once", "an end"}
        rows = [dict(people.ask(f"case {number}")) for number in range(3)]
    assert rows == [
        {name: {"said": f"case {number}"} for name in ("sound", "another sound one")} for number in range(3)
    ]
    assert set(people.alive) == {"sound", "another sound one"}
    assert people.lost == {
        "illegal instruction at once": "was killed by signal 4 (SIGILL)",
        "killed when asked": "was killed by signal 9 (SIGKILL)",
        "an error": "ended with code 1: ValueError: no such kernel",
        "an end": "ended with code 0",
        "half a line": "ended with code 0",
        "no JSON": r"answered 'loading ...\n'",
    }
    said = capfd.readouterr().err.splitlines()
    assert sorted(said) == sorted(f"lost: {name} {how}" for name, how in people.lost.items())


def test_a_process_that_runs_once():
    assert measured([sys.executable, "-c", "print('words'); print('{\"a\": 1}')"]) == {"a": 1}
    for body, how in (
        ("import os, signal; os.kill(os.getpid(), signal.SIGABRT)", rf"signal {signal.SIGABRT.value} \(SIGABRT\)"),
        ("import sys; print('{}'); sys.exit('no disk')", "code 1: no disk"),
        ("", "code 0"),
    ):
        with pytest.raises(Died, match=how):
            measured([sys.executable, "-c", body])
