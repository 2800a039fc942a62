"""`job=train`: trains a model from random weights or from a checkpoint, and leaves RUN/model for `model.source=`.

RUN is the folder of the run: metrics.jsonl (a line for each step), loss.svg, checkpoints/ and model/. What happens
between two lines is in `training`; here stand the choices that a run is made of, what is shown of it, and its end. The
end follows from the last checkpoint: a run that was killed before its end was whole comes to it when it goes on.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from transformer_lab import checkpoints
from transformer_lab.atomic_file import write_text
from transformer_lab.attention.softmax import SoftmaxAttention
from transformer_lab.block.sequential import Sequential
from transformer_lab.charts.line_chart import line_chart
from transformer_lab.config import Settings
from transformer_lab.environment import environment
from transformer_lab.errors import ConfigurationError, InputFileError, UnavailableError, printable
from transformer_lab.ffn.dense import Dense
from transformer_lab.jobs.loading import chosen_parts, chosen_tokenizer, progress_bar
from transformer_lab.jobs.record import Result
from transformer_lab.language_model import assemble, with_parts
from transformer_lab.left_over import locked, remove_left_over
from transformer_lab.memory import enough_memory, require_bytes
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.init import initialise
from transformer_lab.model.limits import LIMITS, require_choice, require_whole
from transformer_lab.model.parameters import count, flatten, nest
from transformer_lab.norm.layer_norm import LayerNorm
from transformer_lab.paths import expanded
from transformer_lab.position.learned import Learned
from transformer_lab.sources import ModelFiles, config_folder, model_files
from transformer_lab.tokenizers import load_tokenizer_folder
from transformer_lab.training import checkpoint, metrics_file
from transformer_lab.training.loop import Plan, Report, TrainingRun
from transformer_lab.training.step import TrainingStep, require_learning, require_trainable
from transformer_lab.training.tracking import Guarded
from transformer_lab.training.windows import Batches

MODEL, LOSSES = "model", "loss.svg"
DEFAULT_TOKENIZER = "storybook"
Start = tuple[ModelConfig, Any, dict[str, np.ndarray], checkpoints.Original | None]


@dataclass(frozen=True)
class Train(Plan):
    """context: tokens in a window; None is the model's whole context. average_decay: of the weights' moving average.

    resume: the folder of an interrupted run to go on with. The rest is Plan's.
    """

    unused: ClassVar[tuple[str, ...]] = ("cache", "residency")

    context: int | None
    average_decay: float | None
    resume: str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.average_decay is not None and not 0.0 < self.average_decay < 1.0:
            message = f"job.average_decay is {self.average_decay}; it must be greater than 0 and below 1, or null."
            raise ConfigurationError(message)

    def run(self, settings: Settings) -> Result:
        folder = self._folder(settings)
        with _alone(folder):
            for place in (folder, folder / checkpoint.FOLDER):
                remove_left_over(place)
            return self._train(settings, folder)

    def _train(self, settings: Settings, folder: Path) -> Result:
        precision = settings.sections["precision"]["name"]
        ops = settings.build("backend", precision=precision, ops=settings.sections["ops"])
        require_trainable(ops)
        optimizer, schedule = settings.build("optimizer"), settings.build("schedule")
        tracker = Guarded(settings.build("tracking"))
        data = settings.build("data")
        with progress_bar() as progress:
            config, tokenizer, arrays, original = _start(settings, ops)
            text, validation = data.prepare(tokenizer, settings.seed, progress, config.end_of_text_id)
        length = config.context_length if self.context is None else self.context
        if not 1 <= length <= config.context_length:
            message = f"job.context is {length}; this model's context holds 1 to {config.context_length} tokens."
            raise ConfigurationError(message)
        logits = self.batch_size * length * config.vocab_size * np.dtype(_dtype(ops)).itemsize
        require_bytes(3 * logits, f"training with job.batch_size={self.batch_size}")
        batches = Batches(text, length, self.accumulate * self.batch_size, settings.seed, data.cross_documents)
        model = assemble(config, arrays, ops, tokenizer, original)
        identity = {
            "backend": ops.name,
            "backend.device": ops.device.partition(":")[0],  # a second GPU like the first gives the same bits
            "precision": ops.precision,
            **_named("ops", settings.sections["ops"]),
            "model": checkpoints.to_hf(config, "transformer_lab"),  # field by field, whatever family will hold it
            "model.source": str(settings.sections["model"]["source"]),
            "seed": settings.seed,  # before the text, which it also splits
            "text_sha256": text.head.get("text_sha256"),
            "tokenizer_sha256": text.head.get("tokenizer_sha256"),
            "data.validation_share": text.head.get("held_out_share"),
            "data.cross_documents": data.cross_documents,
            "job.batch_size": self.batch_size,
            "job.accumulate": self.accumulate,
            "job.context": length,
            "job.average_decay": self.average_decay,
            **_named("optimizer", {"_target_": type(optimizer).__name__} | asdict(optimizer)),
            **_named("schedule", {"_target_": type(schedule).__name__} | asdict(schedule)),
        }
        with enough_memory(f"training {count(config):,} parameters with job.batch_size={self.batch_size}"):
            training = TrainingStep(ops, config, arrays, optimizer, self.average_decay, settings.seed)
            surroundings = _surroundings(ops, validation)
            run = TrainingRun(
                folder, self._plan(), training, model, batches, validation, schedule, _plain(identity), surroundings
            )
            said = [] if self.resume is None else run.resume()
            if run.done > self.steps:
                message = f"{folder} has already done {run.done} steps. Ask for more with job.steps."
                raise ConfigurationError(message)
            print(self._in_words(ops, config, text, validation, run), file=sys.stderr)
            for sentence in said:
                print(f"Warning: {printable(sentence)}", file=sys.stderr)
            tracker.start(folder, settings.as_dict())
            reports = self._steps(folder, run, tracker)
        if not reports:
            words = f"{folder} has already done {run.done:,} steps. Ask for more with job.steps."
            print(printable(words), file=sys.stderr)
        # Also where nothing was left to train: the run may have been killed just here.
        _draw_losses(folder)
        weights = training.trees()
        tokenizer.save(folder / MODEL)  # first, so that there is no model without it
        checkpoints.save_folder(
            folder / MODEL, config, nest(weights.get("average", weights["params"])), original=model.original
        )
        print(f"The model is in {printable(str(folder / MODEL))}", file=sys.stderr)
        return Result(output=self._output(folder, run, reports), model=model)

    def _steps(self, folder: Path, run: TrainingRun, tracker: Guarded) -> list[Report]:
        """Trains, and keeps and shows what is reported of each step."""
        reports: list[Report] = []
        status = "failed"
        try:
            with metrics_file.MetricsFile(folder) as metrics, _shown(run, self.steps) as show:
                metrics.resume(run.done)
                _warn_of_another_schedule(folder, run)
                for report in run.reports(metrics.sync):
                    values = _values(report)
                    metrics.write(report.step, **values)
                    tracker.log(report.step, {k: v for k, v in values.items() if isinstance(v, (int, float))})
                    show(report)
                    reports.append(report)
                    if report.evaluation is not None:
                        _draw_losses(folder)
            status = "ok"
        except KeyboardInterrupt:
            status = "interrupted"
            print(f"Stopped. Go on with the same words and job.resume={printable(str(folder))}", file=sys.stderr)
            raise
        finally:
            tracker.finish(status)
        return reports

    def _plan(self) -> Plan:
        return Plan(**{field.name: getattr(self, field.name) for field in fields(Plan)})

    def _folder(self, settings: Settings) -> Path:
        """Where this run writes: that of the run to go on with, or its own."""
        if self.resume is not None:
            folder = expanded(self.resume)
            if not os.path.isdir(folder) or not checkpoint.found(folder):
                message = f"{folder} has no checkpoints to go on from. Expected the folder of a run of job=train."
                raise InputFileError(message)
            return folder
        folder = settings.folder or Path.cwd()
        if checkpoint.found(folder):
            message = (
                f"{folder} holds another run's checkpoints. Go on with job.resume={folder}, or choose another folder."
            )
            raise ConfigurationError(message)
        return folder

    def _in_words(self, ops: Any, config: ModelConfig, text: Any, validation: Any, run: TrainingRun) -> str:
        tokens = self.batch_size * self.accumulate * run.batches.length
        words = (
            f"{count(config):,} parameters on {ops.name}, {ops.precision}; {text.count:,} tokens of "
            f"{text.documents:,} documents, {validation.count:,} of {validation.documents:,} to validate with; "
            f"{self.steps:,} steps of {tokens:,} tokens, {run.batches.epoch(self.steps):.2f} epochs"
        )
        return f"{words}; going on after step {run.done:,}" if run.done else words

    def _output(self, folder: Path, run: TrainingRun, reports: list[Report]) -> dict[str, Any]:
        tokens = self.batch_size * self.accumulate * run.batches.length
        seconds = [report.tokens / report.tokens_per_s for report in reports[1:]]
        return {
            "folder": str(folder),
            "model": str(folder / MODEL),
            "checkpoints": [str(found.path) for found in checkpoint.found(folder)],
            "steps": run.done,
            "tokens": run.done * tokens,
            "loss": run.loss,
            "evaluation": run.evaluation,
            "best": run.best,
            "another_schedule_until": _another_schedule_until(folder, run),
            "tokens_per_s": None if not seconds else tokens / float(np.median(seconds)),
        }


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps other processes from training in `folder` meanwhile, where the system can."""
    with ExitStack() as held:
        try:
            held.enter_context(locked(folder))
        except BlockingIOError as error:
            message = f"Another process is training in {folder}. Wait until it has ended, or take another folder."
            raise UnavailableError(message) from error
        yield


def _named(group: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{group}.{name}": value for name, value in values.items()}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as they come back from JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return plain


def _surroundings(ops: Any, validation: Any) -> dict[str, Any]:
    """What may change numbers and is no reason to stop: another machine, other versions, another validation text."""
    facts = environment()
    return _plain(
        {
            "data.validation": validation.head.get("text_sha256"),
            "transformer_lab": facts["packages"]["transformer_lab"],
            "numpy": np.__version__,
            ops.name: ops.version,
            "processor": facts["processor"],
            "threads": facts["threads"],
            "variables": facts["variables"],
            **_named("the version of", ops.ops),
        }
    )


def _another_schedule_until(folder: Path, run: TrainingRun) -> int | None:
    """The last step whose learning rate is not what the schedule gives it now, with the number of steps of now."""
    return max(
        (
            line["step"]
            for line in metrics_file.read(folder / metrics_file.FILE_NAME)
            if (rate := line.get("learning_rate")) is not None
            and not math.isclose(rate, run.learning_rate(line["step"]), rel_tol=1e-9)
        ),
        default=None,
    )


def _warn_of_another_schedule(folder: Path, run: TrainingRun) -> None:
    step = _another_schedule_until(folder, run)
    if step is not None:
        words = (
            f"up to step {step:,} the learning rates were those of another schedule, that of another number of steps. "
            f"From here on they are those of {run.plan.steps:,} steps; one run of as many would end with other weights."
        )
        print(f"Warning: {words}", file=sys.stderr)


def _start(settings: Settings, ops: Any) -> Start:
    """(configuration, tokenizer, weights: dotted name -> NumPy array, what else a folder said) to begin with."""
    chosen, kind = settings.sections["model"], settings.sections["tokenizer"]["name"]
    source, tokenizer_source = chosen["source"], settings.sections["tokenizer"]["source"]
    dtype, original = _dtype(ops), None
    require_choice("model.weights", chosen["weights"], ("pretrained", "random"))
    if source is None:
        tokenizer = chosen_tokenizer(tokenizer_source or DEFAULT_TOKENIZER, kind)
        config = _new_config(chosen, tokenizer, settings)
        folder = adapter = None
    else:
        random = chosen["weights"] == "random"
        revision = chosen["revision"]
        folder, adapter = ModelFiles(config_folder(source, revision), None) if random else model_files(source, revision)
        config = with_parts(checkpoints.read_config(folder), **chosen_parts(settings))
        original = checkpoints.read_original(folder)
        if tokenizer_source is not None:
            tokenizer = chosen_tokenizer(tokenizer_source, kind, config.vocab_size)
        else:
            found = (load_tokenizer_folder(adapter, kind) if adapter else None) or load_tokenizer_folder(folder, kind)
            tokenizer = found or chosen_tokenizer(str(source), kind, config.vocab_size)
        folder = None if random else folder
    require_learning(config)
    checkpoints.to_hf(config)  # refused now, not after hours: a model that no family can store
    require_bytes(count(config) * 4 * np.dtype(dtype).itemsize, f"training {count(config):,} parameters")
    if folder is None:
        arrays = {name: array.astype(dtype) for name, array in initialise(config, settings.seed)}
    else:
        copied: Callable[[str, Any], Any] = lambda name, array: np.array(array, order="C")  # noqa: E731
        arrays = dict(flatten(checkpoints.load_parameters(folder, config, copied, dtype, adapter=adapter)))
    return config, tokenizer, arrays, original


def _new_config(chosen: Any, tokenizer: Any, settings: Settings) -> ModelConfig:
    """GPT-2's parts in the sizes that were chosen, or the parts that were."""
    hidden, heads, layers = (chosen[name] for name in ("hidden_size", "num_heads", "num_layers"))
    for name, value in (("hidden_size", hidden), ("num_heads", heads), ("num_layers", layers)):
        require_whole(name, value, LIMITS[name])
    if hidden % heads and not chosen["head_size"]:
        message = f"hidden_size {hidden} is not divisible by num_heads {heads}."
        raise ConfigurationError(message)
    attention = SoftmaxAttention(heads, chosen["head_size"] or hidden // heads, chosen["num_kv_heads"])
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=chosen["context_length"],
        hidden_size=hidden,
        blocks=(Sequential(attention, Dense(4 * hidden), LayerNorm()),) * layers,
        norm=LayerNorm(),
        position=Learned(),
        tied_head=chosen["tied_head"],
        end_of_text_id=tokenizer.end_of_text_id,
        begin_of_text_id=tokenizer.end_of_text_id,
    )
    return with_parts(config, **chosen_parts(settings))


def _dtype(ops: Any) -> Any:
    return np.float64 if ops.precision == "float64" else np.float32


def _values(report: Report) -> dict[str, Any]:
    values: dict[str, Any] = {
        "loss": report.loss,
        "gradient_norm": report.gradient_norm,
        "learning_rate": report.learning_rate,
        "tokens_per_s": round(report.tokens_per_s, 1),
        **report.routing,
    }
    if report.loads:
        values["loads"] = report.loads
    if report.evaluation is not None:
        values |= {"validation_loss": report.evaluation.loss, "bits_per_byte": report.evaluation.bits_per_byte}
    if report.sample is not None:
        values["sample"] = report.sample
    return values


def _draw_losses(folder: Path) -> None:
    lines = metrics_file.read(folder / metrics_file.FILE_NAME)
    series = {
        "training": [(line["step"], line["loss"]) for line in lines if line.get("loss") is not None],
        "validation": [(line["step"], line["validation_loss"]) for line in lines if line.get("validation_loss")],
    }
    series = {name: points for name, points in series.items() if points}
    if series:
        chart = line_chart(series, title="Loss", x_label="step", y_label="nats per token", marked=["validation"])
        write_text(folder / LOSSES, chart)


@contextmanager
def _shown(run: TrainingRun, steps: int) -> Iterator[Callable[[Report], None]]:
    """A progress bar on standard error where somebody looks; else a line now and then. Evaluations get a line."""
    begin, first = time.monotonic(), run.done
    said = begin

    def line(report: Report) -> str:
        words = f"step {report.step:,}/{steps:,}  loss {report.loss:.4f}  {report.tokens_per_s:,.0f} tokens/s"
        if report.routing:
            words += f"  {_routing_in_words(report.routing)}"
        left = (time.monotonic() - begin) / (report.step - first) * (steps - report.step)
        words += f"  {_duration(left)} left"
        if report.evaluation is not None:
            words += f"  validation loss {report.evaluation.loss:.4f}"
            if report.evaluation.bits_per_byte is not None:
                words += f", {report.evaluation.bits_per_byte:.4f} bits per byte"
        return words

    if not sys.stderr.isatty():

        def show(report: Report) -> None:
            nonlocal said
            now = time.monotonic()
            if report.evaluation is not None or report.step in (first + 1, steps) or now - said >= 10:
                said = now
                print(line(report), file=sys.stderr, flush=True)
            if report.sample is not None:
                print(f"  {printable(report.sample)}", file=sys.stderr, flush=True)

        yield show
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.text import Text

    console = Console(stderr=True)
    with Progress(BarColumn(), TextColumn("{task.description}", markup=False), console=console, transient=True) as bar:
        task = bar.add_task("", total=steps, completed=first)

        def advance(report: Report) -> None:
            bar.update(task, completed=report.step, description=line(report))
            if report.evaluation is not None:
                console.print(Text(line(report)))
            if report.sample is not None:
                console.print(Text(f"  {printable(report.sample)}"))

        yield advance


def _routing_in_words(numbers: Mapping[str, float]) -> str:
    words = f"balance {numbers['balance_loss']:.3f}, busiest expert {1.0 + numbers['max_violation']:.1f}x"
    return words + (f", {numbers['dead_experts']} dead" if numbers["dead_experts"] else "")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
