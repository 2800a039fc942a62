"""Participants of a benchmark, each a process of its own that answers in lines of JSON.

One that dies, even by a signal (an engine compiled for another processor dies of SIGILL), loses its own row, and is
named with the reason. The others go on.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import IO, Any

Answer = dict[str, Any]


class Died(Exception):
    """A participant gave no answer; the text says how it ended."""


class Participant:
    """A process that is asked again and again. `first`: what it says when it has started."""

    def __init__(self, command: list[str], variables: Mapping[str, str] | None = None) -> None:
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  # `end` closes it
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
        self._process = subprocess.Popen(command, text=True, env=os.environ | dict(variables or {}), **pipes)
        self.first = self._answer()

    def ask(self, question: str) -> Answer:
        """Its answer; raises Died."""
        with suppress(BrokenPipeError):  # it is dead already, and the next line says so
            self._process.stdin.write(question + "\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Answer:
        line = self._process.stdout.readline()
        try:
            if not line.endswith("\n"):
                raise Died(how_it_ended(self._process.wait(), self._errors))
            return dict(json.loads(line))
        except (Died, ValueError) as error:
            self.end()
            how = str(error) if isinstance(error, Died) else f"answered {line[:80]!r}"
            raise Died(how) from None

    def end(self) -> None:
        self._process.kill()
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._errors.close()


class Participants:
    """Those that are `alive`, until the `with` block ends. `lost`: name -> how it ended."""

    def __init__(self, commands: Mapping[str, list[str]], variables: Mapping[str, str] | None = None) -> None:
        self.lost: dict[str, str] = {}
        self.alive: dict[str, Participant] = {}
        for name, command in commands.items():
            try:
                self.alive[name] = Participant(command, variables)
            except Died as death:
                self._lose(name, death)

    def ask(self, question: str) -> Iterator[tuple[str, Answer]]:
        """(name, answer) of each in turn; who dies is not asked again."""
        for name, participant in list(self.alive.items()):
            try:
                yield name, participant.ask(question)
            except Died as death:
                del self.alive[name]
                self._lose(name, death)

    def _lose(self, name: str, death: Died) -> None:
        self.lost[name] = str(death)
        print(f"lost: {name} {death}", file=sys.stderr, flush=True)

    def __enter__(self) -> "Participants":
        return self

    def __exit__(self, *_: object) -> None:
        for participant in self.alive.values():
            participant.end()


def measured(command: list[str], variables: Mapping[str, str] | None = None) -> Answer:
    """The last line of a process that runs once, as JSON; raises Died."""
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        environment = os.environ | dict(variables or {})
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, check=False)
        lines = done.stdout.splitlines()
        if done.returncode or not lines:
            raise Died(how_it_ended(done.returncode, errors))
    return dict(json.loads(lines[-1]))


def how_it_ended(code: int, errors: IO[str]) -> str:
    """An exit code as subprocess gives it, and the last line that was said on standard error."""
    errors.seek(0)
    said = [line.strip() for line in errors if line.strip()]
    last = f": {said[-1][:200]}" if said else ""
    if code >= 0:
        return f"ended with code {code}{last}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown"
    return f"was killed by signal {-code} ({name}){last}"
