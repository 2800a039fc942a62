"""Where the numbers of a training run are shown beside metrics.jsonl: nowhere, TensorBoard, MLflow, trackio or wandb.

Nothing is sent anywhere unless it is asked for: TensorBoard, MLflow and trackio write local files, and wandb begins
offline. A tracker is a convenience: metrics.jsonl (metrics_file.py) is the truth, and `Guarded` keeps a tracker that
fails from ending the training. Nothing here knows what is trained, or what the numbers mean.
"""

import json
import os
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

from transformer_lab.errors import ConfigurationError, LabError, UnavailableError, printable


class Tracker(Protocol):
    """What shows a run. The methods are called in this order: start once, log many times, finish once."""

    def start(self, folder: Path, settings: dict[str, Any]) -> None:
        """Begins, or goes on after an interruption if `folder` is the same. settings: what the run was told."""

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def finish(self, status: str) -> None:
        """status: "ok", "error" or "interrupted", as in result.json."""


class Guarded:
    """A tracker that can fail without ending hours of training: once it has, it is told once and left alone.

    At the start nothing is lost yet, so there a failure is an error.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._works = False

    def start(self, folder: Path, settings: dict[str, Any]) -> None:
        try:
            self._tracker.start(folder, settings)
        except LabError:
            raise
        except Exception as error:
            message = (
                f"{type(self._tracker).__name__} cannot start: {_in_short(error)}. "
                "With tracking=none the run writes metrics.jsonl alone."
            )
            raise UnavailableError(message) from error
        self._works = True

    def log(self, step: int, values: dict[str, float]) -> None:
        if self._works:
            try:
                self._tracker.log(step, values)
            except Exception as error:
                self._give_up(error)

    def finish(self, status: str) -> None:
        if self._works:
            try:
                self._tracker.finish(status)
            except Exception as error:
                self._give_up(error)
            self._works = False

    def _give_up(self, error: Exception) -> None:
        self._works = False
        said = printable(f"{type(self._tracker).__name__} failed: {_in_short(error)}")
        print(f"Warning: {said}. The run goes on, and metrics.jsonl has all of it.", file=sys.stderr)


@dataclass(frozen=True)
class NoTracking:
    """metrics.jsonl is enough."""

    def start(self, folder: Path, settings: dict[str, Any]) -> None:
        pass

    def log(self, step: int, values: dict[str, float]) -> None:
        pass

    def finish(self, status: str) -> None:
        pass


@dataclass(frozen=True)
class TensorBoard:
    """Event files in the run's folder, written by tensorboardX; `tensorboard --logdir FOLDER` shows them."""

    flush_seconds: int = 10
    # Frozen, since it is what was chosen; what is open during a run is in these.
    _begun: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def start(self, folder: Path, settings: dict[str, Any]) -> None:
        self._begun.update(module=_imported("tensorboardX", "tensorboard"), folder=folder, settings=settings)

    def log(self, step: int, values: dict[str, float]) -> None:
        if "writer" not in self._begun:
            # Only now is it known where the run goes on: purge_step tells TensorBoard to forget what an interrupted
            # run wrote from this step on. The suffix: a file of the same second would be written over.
            writer = self._begun["module"].SummaryWriter(
                str(self._begun["folder"]), purge_step=step, flush_secs=self.flush_seconds, filename_suffix=f".{step}"
            )
            self._begun["writer"] = writer
            shown = json.dumps(self._begun["settings"], indent=2, default=str)
            writer.add_text("settings", "\n".join("    " + line for line in shown.splitlines()), step)
        for name, value in values.items():
            self._begun["writer"].add_scalar(name, value, step)

    def finish(self, status: str) -> None:
        if "writer" in self._begun:
            self._begun["writer"].close()
        self._begun.clear()


@dataclass(frozen=True)
class MLflow:
    """A run of MLflow, in an SQLite file unless `uri` names a server; `mlflow ui --backend-store-uri URI` shows it."""

    uri: str = "sqlite:///outputs/mlflow.db"
    project: str = "transformer_lab"
    _begun: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def start(self, folder: Path, settings: dict[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it is read at the import
        mlflow = _imported("mlflow", "mlflow")
        entities = _imported("mlflow.entities", "mlflow")
        if self.uri.startswith("sqlite:///"):
            Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        client = mlflow.MlflowClient(tracking_uri=self.uri)
        experiment = client.get_experiment_by_name(self.project)
        number = experiment.experiment_id if experiment else client.create_experiment(self.project)
        name = _run_name(folder)
        earlier = client.search_runs([number], f"attributes.run_name = '{name}'", max_results=1)
        if earlier:
            run = earlier[0].info.run_id
            client.update_run(run, status="RUNNING")
        else:
            run = client.create_run(number, run_name=name).info.run_id
            parameters = [entities.Param(key, str(value)) for key, value in _flat(settings)]
            for first in range(0, len(parameters), 100):  # as many as MLflow takes at once
                client.log_batch(run, params=parameters[first : first + 100])
        self._begun.update(client=client, run=run, entities=entities)

    def log(self, step: int, values: dict[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._begun["entities"].Metric(name, value, now, step) for name, value in values.items()]
        self._begun["client"].log_batch(self._begun["run"], metrics=metrics)

    def finish(self, status: str) -> None:
        word = {"ok": "FINISHED", "interrupted": "KILLED"}.get(status, "FAILED")
        self._begun["client"].set_terminated(self._begun["run"], word)
        self._begun.clear()


@dataclass(frozen=True)
class WandbLike:
    """A run of wandb, or of trackio, which has the same interface and keeps its numbers on this machine.

    mode: "offline" sends nothing; "online" lets wandb send to its server, and trackio to where its own variables of
    the environment say.
    """

    module: Literal["trackio", "wandb"] = "trackio"
    project: str = "transformer_lab"
    mode: Literal["offline", "online"] = "offline"
    _begun: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def start(self, folder: Path, settings: dict[str, Any]) -> None:
        if self.mode == "offline":
            self._stay_here()
        library = _imported(self.module, self.module)
        name = _run_name(folder)
        # The settings go through JSON: neither library takes a Path in them.
        values = {"project": self.project, "name": name, "config": json.loads(json.dumps(settings, default=str))}
        if self.module == "wandb":
            # Neither what the terminal shows nor the machine's load is a number of the run.
            quiet = library.Settings(console="off", silent=True, x_disable_stats=True)
            values |= {"id": name, "dir": str(folder), "mode": self.mode, "settings": quiet}
        else:
            values |= {"embed": False, "auto_log_cpu": False, "auto_log_gpu": False}
        with redirect_stdout(sys.stderr):  # trackio greets on standard output, which belongs to the result
            run = library.init(resume="allow", **values)
        self._begun.update(library=library, run=run)

    def log(self, step: int, values: dict[str, float]) -> None:
        self._begun["run"].log(values, step=step)

    def finish(self, status: str) -> None:
        with redirect_stdout(sys.stderr):
            if self.module == "wandb":
                self._begun["library"].finish(exit_code=0 if status == "ok" else 1)
            else:
                self._begun["library"].finish()
        self._begun.clear()

    def _stay_here(self) -> None:
        if self.module == "wandb":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # or it tells its makers of its own failures
            return
        for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
            if os.environ.get(name):
                message = f"{name} is set, so trackio would send the run there. Unset it, or set tracking.mode=online."
                raise ConfigurationError(message)


def _in_short(error: Exception) -> str:
    """What happened, on one line; what databases and servers add to it may be a page."""
    said = textwrap.shorten(str(error), 250, placeholder=" …").rstrip(".")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _imported(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        message = (
            f"tracking={extra} needs the package {error.name}, which is not installed. "
            f"Run: pip install 'transformer_lab[{extra}]'"
        )
        raise UnavailableError(message) from error


def _run_name(folder: Path) -> str:
    """A name that is the same when a run goes on in its folder: training_2026-01-31_12-00-00."""
    parts = folder.absolute().parts[-3:]
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in "_".join(parts)).strip("_")


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """{"model": {"layers": 2}} as ("model.layers", 2), as MLflow keeps parameters."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
