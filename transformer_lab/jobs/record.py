"""result.json: what a run used, how long it took and what came out.

A record is written to a temporary name and renamed, so that there is a whole one or none. The record of a failure
never replaces anything.
"""

import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformer_lab.atomic_file import write_json
from transformer_lab.config import Settings
from transformer_lab.environment import environment
from transformer_lab.errors import UnavailableError

FILE_NAME = "result.json"
SCHEMA = 1
TIMINGS = ("load_s", "compile_s", "first_token_s", "prefill_tokens_per_s", "decode_tokens_per_s")


@dataclass(frozen=True)
class Result:
    """What a job hands back. output: its own part of the record. model: the LanguageModel it used, if it used one.

    timing: values for the names in TIMINGS, as far as the job has them. exit_code: of a run that did its work; not 0
    says that it found something which a script should see.
    """

    output: Mapping[str, Any]
    model: Any = None
    timing: Mapping[str, float | None] = field(default_factory=dict)
    exit_code: int = 0


def finished(settings: Settings, result: Result) -> dict[str, Any]:
    model = result.model
    timing = dict.fromkeys(TIMINGS) | dict(result.timing)
    return _head(settings, "ok") | {
        "backend": None if model is None else _backend(model.backend),
        "model": None if model is None else _model(model),
        "timing": timing | {"peak_memory_bytes": peak_memory_bytes()},
        "environment": environment(),
        "output": dict(result.output),
    }


def failed(settings: Settings, error: BaseException, exit_code: int) -> dict[str, Any]:
    stopped = isinstance(error, (KeyboardInterrupt, BrokenPipeError))
    said = {"type": type(error).__name__, "message": str(error), "exit_code": exit_code}
    return _head(settings, "interrupted" if stopped else "error") | {"error": said, "environment": environment()}


def write(folder: Path, record: Mapping[str, Any]) -> Path:
    """Writes `record` as result.json into `folder`: the path. Raises UnavailableError where the disk refuses."""
    path = folder / FILE_NAME
    write_json(path, record)
    return path


def write_failure(folder: Path, settings: Settings, error: BaseException, exit_code: int) -> None:
    """Leaves the record of a failed run, if there is a place for it and no record in it."""
    if not (folder / FILE_NAME).exists():
        with suppress(UnavailableError):
            write(folder, failed(settings, error, exit_code))


def peak_memory_bytes() -> int | None:
    """The most memory this process has held so far; None where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _head(settings: Settings, status: str) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "job": settings.choices["job"],
        "status": status,
        "choices": dict(settings.choices),
        "settings": settings.as_dict(),
    }


def _backend(backend: Any) -> dict[str, Any]:
    return {
        "name": backend.name,
        "version": backend.version,
        "device": backend.device,
        "precision": backend.precision,
        "ops": dict(backend.ops),
    }


def _model(model: Any) -> dict[str, Any]:
    return {
        "source": model.source,
        "sha256": model.weights_sha256(),
        "parameters": model.parameters_count,
        "active_parameters": model.active_parameters_count,
    }
