"""The trackers: TensorBoard for real; MLflow, trackio and wandb against stand-ins with the signatures they have.

The stand-ins were compared with mlflow-skinny 3.17.2, trackio 0.43.0 and wandb 0.31.0.
"""

import io
import os
import struct
import sys
from contextlib import redirect_stderr
from dataclasses import FrozenInstanceError
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from transformer_lab.config import component, names
from transformer_lab.errors import ConfigurationError, LabError, UnavailableError
from transformer_lab.training.tracking import Guarded, MLflow, NoTracking, TensorBoard, WandbLike

SETTINGS = {"seed": 1, "model": {"layers": 2, "path": Path("x")}, "prompt": None}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "train" / "2026-01-31" / "12-00-00"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def own_environment(monkeypatch):
    """What a tracker sets for its library is taken back after the test."""
    variables = ("MLFLOW_DISABLE_TELEMETRY", "WANDB_ERROR_REPORTING", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
    for name in variables:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def run(tracker, folder, first=0, last=3, status="ok"):
    tracker.start(folder, SETTINGS)
    for step in range(first, last):
        tracker.log(step, {"loss": 1.0 / (step + 1), "rate": 0.1})
    tracker.finish(status)


# --- What all have in common ---------------------------------------------------------------------------------------


def test_nothing_is_tracked_by_default(folder):
    run(Guarded(component("tracking", "none")), folder)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", names("tracking"))
def test_a_tracker_is_what_was_chosen_and_does_not_change(name):
    tracker = component("tracking", name)
    assert tracker == component("tracking", name)
    with pytest.raises(FrozenInstanceError):
        tracker.project = "other"


@pytest.mark.parametrize(
    ("name", "package"),
    [("tensorboard", "tensorboardX"), ("mlflow", "mlflow"), ("trackio", "trackio"), ("wandb", "wandb")],
)
def test_a_package_that_is_missing_is_named_with_its_extra(name, package, folder, monkeypatch, own_environment):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UnavailableError) as caught:
        Guarded(component("tracking", name)).start(folder, SETTINGS)
    assert f"tracking={name} needs the package {package}, which is not installed" in str(caught.value)
    assert f"pip install 'transformer_lab[{name}]'" in str(caught.value)


class Failing(NoTracking):
    """Fails in one method, with what is given."""

    def __init__(self, where, error):
        object.__setattr__(self, "calls", [])
        for name in ("start", "log", "finish"):
            object.__setattr__(self, name, self.failing(name, error if name == where else None))

    def failing(self, name, error):
        def call(*_):
            self.calls.append(name)
            if error is not None:
                raise error

        return call


@pytest.mark.parametrize(
    ("where", "calls"), [("log", ["start", "log"]), ("finish", ["start", "log", "log", "log", "finish"])]
)
def test_a_failure_is_told_once_and_the_run_goes_on(where, calls, folder):
    tracker = Failing(where, ValueError("no \x1b[31m network.\n" + "SQL " * 999))
    said = io.StringIO()
    with redirect_stderr(said):
        run(Guarded(tracker), folder)
    assert tracker.calls == calls
    assert said.getvalue().startswith("Warning: Failing failed: ValueError: no \\x1b[31m network. SQL SQL")
    assert said.getvalue().endswith("SQL …. The run goes on, and metrics.jsonl has all of it.\n")
    assert said.getvalue().count("\n") == 1 and len(said.getvalue()) < 400


def test_an_interruption_is_not_held_back(folder):
    with pytest.raises(KeyboardInterrupt):
        run(Guarded(Failing("log", KeyboardInterrupt())), folder)


def test_a_failure_at_the_start_is_an_error(folder):
    with pytest.raises(UnavailableError, match=r"Failing cannot start: ValueError: no\. With tracking=none"):
        Guarded(Failing("start", ValueError("no"))).start(folder, {})
    with pytest.raises(LabError, match=r"^as it is$"):
        Guarded(Failing("start", ConfigurationError("as it is"))).start(folder, {})


def test_finishing_what_never_started_is_nothing(folder):
    tracker = Failing("start", ValueError("no"))
    guarded = Guarded(tracker)
    with pytest.raises(UnavailableError):
        guarded.start(folder, {})
    guarded.finish("error")
    assert tracker.calls == ["start"]


# --- TensorBoard ---------------------------------------------------------------------------------------------------


def events(path):
    """The events of a file: records of length, check sum, content, check sum."""
    from tensorboardX.proto.event_pb2 import Event

    content, at = path.read_bytes(), 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        event = Event()
        event.ParseFromString(content[at + 12 : at + 12 + length])
        at += 16 + length
        yield event


def test_tensorboard_writes_what_was_logged(folder):
    pytest.importorskip("tensorboardX")
    run(Guarded(TensorBoard()), folder)
    (path,) = folder.glob("events.out.tfevents.*")
    scalars, texts = [], []
    for event in events(path):
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == "text":
                texts += [text.decode() for text in value.tensor.string_val]
            else:
                scalars.append((event.step, value.tag, value.simple_value))
    expected = [(s, tag, v) for s in range(3) for tag, v in (("loss", 1 / (s + 1)), ("rate", 0.1))]
    assert [s[:2] for s in scalars] == [s[:2] for s in expected]
    assert [s[2] for s in scalars] == pytest.approx([s[2] for s in expected], rel=1e-6)
    assert '"layers": 2' in texts[0] and '"path": "x"' in texts[0]


def test_tensorboard_forgets_what_an_interrupted_run_wrote_later(folder):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import SessionLog

    tracker = TensorBoard()
    run(tracker, folder, 0, 5)
    earlier = set(folder.iterdir())
    run(tracker, folder, 3, 6)
    (second,) = set(folder.iterdir()) - earlier
    started = [event.step for event in events(second) if event.session_log.status == SessionLog.START]
    assert started == [3]


def test_tensorboard_with_nothing_logged_writes_nothing(folder):
    pytest.importorskip("tensorboardX")
    run(TensorBoard(), folder, 0, 0)
    assert list(folder.iterdir()) == []


# --- MLflow --------------------------------------------------------------------------------------------------------


@pytest.fixture
def mlflow(monkeypatch, own_environment):
    """A stand-in: what it was told is in `experiments` and `runs`."""
    experiments, runs = {}, {}

    class MlflowClient:
        def __init__(self, tracking_uri=None, registry_uri=None):
            module.uri = tracking_uri

        def get_experiment_by_name(self, name):
            return SimpleNamespace(experiment_id=experiments[name]) if name in experiments else None

        def create_experiment(self, name, artifact_location=None, tags=None):
            experiments[name] = str(len(experiments) + 1)
            return experiments[name]

        def search_runs(self, experiment_ids, filter_string="", run_view_type=1, max_results=1000):
            found = [run for run in runs.values() if filter_string == f"attributes.run_name = '{run.name}'"]
            return found[:max_results]

        def create_run(self, experiment_id, start_time=None, tags=None, run_name=None):
            info = SimpleNamespace(run_id=f"run{len(runs)}")
            made = SimpleNamespace(info=info, name=run_name, status="RUNNING", params=[], metrics=[], batches=[])
            return runs.setdefault(info.run_id, made)

        def update_run(self, run_id, status=None, name=None):
            runs[run_id].status = status

        def log_batch(self, run_id, metrics=(), params=(), tags=(), synchronous=None):
            assert len(params) <= 100
            runs[run_id].metrics += metrics
            runs[run_id].params += params

        def set_terminated(self, run_id, status=None, end_time=None):
            runs[run_id].status = status

    def metric(key, value, timestamp, step):
        assert isinstance(timestamp, int) and timestamp > 10**12  # milliseconds
        return step, key, value

    module, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    module.MlflowClient, module.experiments, module.runs, module.entities = MlflowClient, experiments, runs, entities
    entities.Metric, entities.Param = metric, lambda key, value: (key, value)
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return module


def test_mlflow_is_told_what_was_logged_and_sends_no_telemetry(mlflow, folder, tmp_path):
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    run(Guarded(MLflow(uri=uri, project="mine")), folder)
    assert mlflow.uri == uri and (tmp_path / "new").is_dir() and mlflow.experiments == {"mine": "1"}
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    (made,) = mlflow.runs.values()
    assert made.name == "train_2026-01-31_12-00-00" and made.status == "FINISHED"
    assert made.params == [("seed", "1"), ("model.layers", "2"), ("model.path", "x"), ("prompt", "None")]
    assert made.metrics == [(s, key, v) for s in range(3) for key, v in (("loss", 1 / (s + 1)), ("rate", 0.1))]


def test_mlflow_goes_on_with_the_run_of_the_folder(mlflow, folder, tmp_path):
    tracker = MLflow(uri=f"sqlite:///{tmp_path}/mlflow.db")
    run(tracker, folder, 0, 2, "interrupted")
    (made,) = mlflow.runs.values()
    assert made.status == "KILLED"
    run(tracker, folder, 2, 3, "error")
    assert len(mlflow.runs) == 1 and made.status == "FAILED" and len(made.params) == 4
    assert [step for step, *_ in made.metrics] == [0, 0, 1, 1, 2, 2]


def test_mlflow_takes_many_settings(mlflow, folder, tmp_path):
    MLflow(uri=f"sqlite:///{tmp_path}/mlflow.db").start(folder, {f"key{number}": number for number in range(250)})
    assert len(mlflow.runs["run0"].params) == 250


# --- trackio and wandb ---------------------------------------------------------------------------------------------


@pytest.fixture
def libraries(monkeypatch, own_environment):
    """Stand-ins for both. The list holds every call."""
    calls = []

    def log(data, step=None):
        calls.append(("log", data, step))

    def trackio_init(project, name=None, config=None, resume="never", embed=True, auto_log_gpu=None, auto_log_cpu=None):
        print("* Trackio project initialized")
        calls.append(("init", locals()))
        return SimpleNamespace(log=log)

    def wandb_init(project=None, dir=None, id=None, name=None, config=None, mode=None, resume=None, settings=None):
        calls.append(("init", locals()))
        return SimpleNamespace(log=log)

    trackio, wandb = ModuleType("trackio"), ModuleType("wandb")
    trackio.init, trackio.finish = trackio_init, lambda: calls.append(("finish",))
    wandb.init, wandb.finish = wandb_init, lambda exit_code=None: calls.append(("finish", exit_code))
    wandb.Settings = lambda **values: values
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return calls


LOGGED = [("log", {"loss": 1 / (step + 1), "rate": 0.1}, step) for step in range(3)]
PLAIN_SETTINGS = {"seed": 1, "model": {"layers": 2, "path": "x"}, "prompt": None}


def test_trackio_is_told_what_was_logged_and_keeps_standard_output_clean(libraries, folder, capsys):
    run(Guarded(component("tracking", "trackio")), folder)
    (_, told), *logged, finished = libraries
    assert logged == LOGGED and finished == ("finish",)
    assert told["name"] == "train_2026-01-31_12-00-00" and told["config"] == PLAIN_SETTINGS
    assert (told["resume"], told["embed"], told["auto_log_gpu"], told["auto_log_cpu"]) == ("allow", False, False, False)
    shown = capsys.readouterr()
    assert shown.out == "" and "Trackio" in shown.err


@pytest.mark.parametrize("variable", ["TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"])
def test_trackio_sends_nothing_unasked(variable, libraries, folder, monkeypatch):
    monkeypatch.setenv(variable, "http://elsewhere")
    with pytest.raises(ConfigurationError, match=rf"{variable} is set.*tracking\.mode=online"):
        Guarded(WandbLike("trackio")).start(folder, {})
    assert libraries == []
    run(WandbLike("trackio", mode="online"), folder)
    assert len(libraries) == 5


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("error", 1), ("interrupted", 1)])
def test_wandb_is_offline_unless_asked(status, code, libraries, folder):
    run(Guarded(component("tracking", "wandb")), folder, status=status)
    (_, told), *logged, finished = libraries
    assert logged == LOGGED and finished == ("finish", code)
    assert told["mode"] == "offline" and os.environ["WANDB_ERROR_REPORTING"] == "false"
    assert told["dir"] == str(folder) and told["id"] == told["name"] == "train_2026-01-31_12-00-00"
    assert told["config"] == PLAIN_SETTINGS and told["settings"]["console"] == "off"


def test_wandb_online_is_asked_for(libraries, folder):
    run(Guarded(WandbLike("wandb", mode="online")), folder)
    assert libraries[0][1]["mode"] == "online" and "WANDB_ERROR_REPORTING" not in os.environ
