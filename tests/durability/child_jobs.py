"""What the tests of durability run in processes of their own, so that a kill is a kill and a patch stays there.

A process is forked from a server that has imported the package once, and nothing that starts threads. Each works in a
folder `root` that holds run/, cache/ and tmp/, and nothing else is to be written.
"""

import os
import pickle
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import forkserver, get_context
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest
from fault_layer import Fault, Moments, install

from transformer_lab import cli
from transformer_lab.config import Settings
from transformer_lab.errors import LabError

_ONE_AT_A_TIME = threading.Lock()


def start_server() -> None:
    """Once is enough. In Python 3.11 the server does not learn this process's sys.path but from the environment."""
    forkserver.set_forkserver_preload(["child_jobs", "warmed_up"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()


def forked(work: Callable[..., int], *arguments: Any) -> int:
    """Runs work(*arguments) in a process of its own: the number that it returns, or a signal's, negative."""
    process = get_context("forkserver").Process(target=_leave, args=(work, arguments))
    with _ONE_AT_A_TIME:  # each start also looks after the other processes
        process.start()
    wait([process.sentinel])
    with _ONE_AT_A_TIME:
        process.join()
    assert process.exitcode is not None
    return process.exitcode


def _leave(work: Callable[..., int], arguments: tuple[Any, ...]) -> None:
    sys.exit(work(*arguments))


def make_root(root: Path) -> Path:
    for name in ("run", "cache", "tmp"):
        (root / name).mkdir(parents=True)
    return root


def trained(root: Path, settings: Settings) -> int:
    """A training run in run/."""
    return _job(settings, root / "run")


def recorded(root: Path, file: Path, work: Callable[..., int | None], *arguments: Any) -> int:
    """work(root, *arguments), undisturbed; `file` receives, pickled, the calls and states of its `Moments`."""
    moments = Moments(root)
    _enter(root)
    install(root, moments.before, moments.after)
    code = work(root, *arguments)
    moments.keep()
    file.write_bytes(pickle.dumps((moments.calls, moments.states)))
    return code or 0


def disturbed(root: Path, fault: Fault, work: Callable[..., int | None], *arguments: Any) -> int:
    """The same, with a fault: the exit code."""
    _enter(root)
    install(root, fault)
    try:
        return work(root, *arguments) or 0
    except LabError as error:
        return error.exit_code


def going_on(root: Path, settings: Settings, resuming: Settings, fault: Fault | None = None) -> int:
    """What a user does next: the same words with job.resume, or without if there is no checkpoint yet."""
    _enter(root)
    install(root, fault or Fault("none"))
    if any((root / "run").glob("checkpoints/step-*")):
        (root / "again").mkdir(exist_ok=True)
        return _job(resuming, root / "again")
    return _job(settings, root / "run")


def _enter(root: Path) -> None:
    os.chdir(root)
    os.environ["XDG_CACHE_HOME"] = str(root / "cache")
    tempfile.tempdir = str(root / "tmp")
    sys.stderr = open(root.with_suffix(".log"), "a", encoding="utf-8", buffering=1)  # noqa: SIM115


def _job(settings: Settings, folder: Path) -> int:
    try:
        return cli._run_job(replace(settings, folder=folder), folder, "", debug=True)
    finally:
        sys.stderr.flush()
