"""The loop of a training run: batches through steps, with evaluations, samples and checkpoints on the way.

It is a generator: each step that has something to tell gives a Report, and who runs it decides what is shown. Which
texts a step sees follows from the seed and the step's number alone, so a run that goes on from a checkpoint continues
as if it had never stopped.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from transformer_lab.errors import ConfigurationError, InputFileError, UnavailableError, listed, shown
from transformer_lab.language_model import LanguageModel
from transformer_lab.training import checkpoint
from transformer_lab.training.evaluation import Evaluation, evaluate
from transformer_lab.training.routing_metrics import loads_of, routing_numbers
from transformer_lab.training.schedule import Schedule
from transformer_lab.training.step import TrainingStep

EXPLODED = 3  # a loss of so many times log(vocabulary), which is that of guessing, ends a run


@dataclass(frozen=True)
class Plan:
    """How long, how large, and how often.

    steps: of the optimizer. batch_size: windows in one piece of a batch; accumulate: pieces in a batch, whose gradients
    are added up. evaluate_every, checkpoint_every, sample_every: in steps; 0 is never. evaluation_tokens: of the
    validation text, on the way (the last evaluation reads all). keep_last: checkpoints beside the best one.
    """

    steps: int
    batch_size: int
    accumulate: int
    evaluate_every: int
    evaluation_tokens: int
    checkpoint_every: int
    keep_last: int
    sample_every: int
    sample_prompt: str
    sample_tokens: int

    def __post_init__(self) -> None:
        least = dict.fromkeys(
            ("steps", "batch_size", "accumulate", "evaluation_tokens", "keep_last", "sample_tokens"), 1
        )
        least |= dict.fromkeys(("evaluate_every", "checkpoint_every", "sample_every"), 0)
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                message = f"job.{name} is {getattr(self, name)}; it must be at least {smallest}."
                raise ConfigurationError(message)


@dataclass(frozen=True)
class Report:
    """After a step: its loss (in nats per token, before the step), the norm of its gradients, and what else was done.

    learning_rate: of this step. tokens: in its batch. evaluation, sample: if there was one. routing: of a mixture of
    experts, `routing_numbers` of the step; loads: of each layer's experts, where there was an evaluation.
    """

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    tokens: int
    tokens_per_s: float
    evaluation: Evaluation | None = None
    sample: str | None = None
    routing: Mapping[str, float] = field(default_factory=dict)
    loads: Mapping[str, list[int]] = field(default_factory=dict)


class TrainingRun:
    """One run: `model` is what evaluates and samples (its weights are replaced each time), `training` what learns.

    identity: what decides the bits of the weights, by name; it must be the same when the run goes on. surroundings:
    what else may change numbers, by name. Both are kept in each checkpoint, as plain values.

    done: steps so far. best: {"step", "loss"} of the best evaluation so far. loss, evaluation: of the last step.
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        training: TrainingStep,
        model: LanguageModel,
        batches: Any,
        validation: Any,
        schedule: Schedule,
        identity: dict[str, Any],
        surroundings: dict[str, Any],
    ) -> None:
        self.folder, self.plan, self.training, self.model = folder, plan, training, model
        self.batches, self.validation, self.schedule = batches, validation, schedule
        self.identity, self.surroundings = identity, surroundings
        self.done = 0
        self.best: dict[str, Any] | None = None
        self.loss: float | None = None
        self.evaluation: dict[str, Any] | None = None

    def resume(self) -> list[str]:
        """Goes on after the newest checkpoint that is whole: what is to be said about that, a sentence each.

        Raises ConfigurationError if it belongs to another run, InputFileError if none is whole.
        """
        said: list[str] = []
        for found in reversed(checkpoint.found(self.folder)):
            try:
                facts = found.facts()
                self._require_same(found.path, facts)
                dtype = np.float64 if self.training.ops.precision == "float64" else np.float32
                trees = checkpoint.load(found, self.model.config, dtype)
            except InputFileError as error:
                said.append(str(error))
                continue
            self.training.restore(trees)
            self.done, self.best = found.step, facts.get("best")
            self.loss, self.evaluation = facts.get("loss"), facts.get("evaluation")
            checkpoint.prune(self.folder, self.done, self.plan.keep_last, self.best["step"] if self.best else None)
            if said:
                said.append(f"Going on from {found.path}, which is older.")
            return said + self._other_surroundings(facts.get("surroundings", {}))
        message = f"{self.folder} has no checkpoint that this run can go on from. {' '.join(said[:1])}"
        raise InputFileError(message)

    def reports(self, sync: Callable[[], object]) -> Iterator[Report]:
        """Trains to the last step of the plan. Ctrl-C ends it after the step under way, with a checkpoint.

        sync: called before each checkpoint, to bring to the disk what was made of the reports so far: a run that goes
        on begins behind the checkpoint, and does not report these steps again.

        Raises UnavailableError if the loss or the gradients stop being finite, KeyboardInterrupt after Ctrl-C.
        """
        plan = self.plan
        length = self.batches.length
        with _interrupts() as interrupted:
            while self.done < plan.steps:
                step = self.done + 1
                ids, weights = self._pieces(self.done)
                begin = time.perf_counter()
                loss, norm = self.training.run(ids, weights, step, self.schedule.share(step, plan.steps))
                seconds = time.perf_counter() - begin
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    raise UnavailableError(self._not_finite(step, loss, ids))
                if loss > EXPLODED * math.log(self.model.config.vocab_size):
                    raise UnavailableError(self._exploded(step, loss))
                last = step == plan.steps
                evaluation = sample = None
                if last or _due(step, plan.evaluate_every):
                    evaluation = self._evaluate(None if last else plan.evaluation_tokens)
                improved = evaluation is not None and (self.best is None or evaluation.loss < self.best["loss"])
                if evaluation is not None and improved:
                    self.best = {"step": step, "loss": evaluation.loss}
                if _due(step, plan.sample_every) or (last and plan.sample_every):
                    sample = self._sample(step)
                self.done, self.loss = step, loss
                self.evaluation = None if evaluation is None else asdict(evaluation)
                tokens = plan.accumulate * plan.batch_size * length
                rate, told = self.learning_rate(step), self.training.told
                routing, loads = routing_numbers(told), {} if evaluation is None else loads_of(told)
                yield Report(step, loss, norm, rate, tokens, tokens / seconds, evaluation, sample, routing, loads)
                if last or improved or _due(step, plan.checkpoint_every) or interrupted():
                    sync()
                    self._save()
                if interrupted():
                    raise KeyboardInterrupt

    def learning_rate(self, step: int) -> float:
        """That of a step from 1 to the plan's last, by this run's schedule."""
        return self.training.optimizer.learning_rate * self.schedule.share(step, self.plan.steps)

    def _require_same(self, path: Path, facts: Mapping[str, Any]) -> None:
        before = facts.get("identity")
        if not isinstance(before, Mapping):
            message = f"{path / checkpoint.FACTS} does not say of which run it is. The checkpoint is damaged."
            raise InputFileError(message)
        for name, value in self.identity.items():
            if changes := list(_changes(name, before.get(name), value)):
                said = [f"{field}={was}, and now it is {now}" for field, was, now in changes]
                message = f"{path} was trained with {listed(said)}. Say the same again, or start a new run."
                raise ConfigurationError(message)

    def _other_surroundings(self, before: Mapping[str, Any]) -> list[str]:
        """In a sentence, what of the surroundings was otherwise when the checkpoint was written."""
        changes = [
            f"{name} was {before[name]!r} and is {value!r}"
            for name, value in self.surroundings.items()
            if name in before and before[name] != value
        ]
        if not changes:
            return []
        return [f"{'; '.join(changes)}: numbers may differ from those of a run that was never stopped."]

    def _pieces(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """ids [A, B, T + 1] and weights [A, B, T] of the step after `index` steps."""
        plan = self.plan
        ids, weights = self.batches.at(index)
        shape = (plan.accumulate, plan.batch_size)
        return ids.reshape(*shape, -1), weights.reshape(*shape, -1)

    def _weights(self) -> dict[str, np.ndarray]:
        """What is evaluated: the average of the weights if there is one."""
        trees = self.training.trees()
        return trees.get("average", trees["params"])

    def _evaluate(self, max_tokens: int | None) -> Evaluation:
        self.model.replace_weights(self._weights())
        return evaluate(self.model, self.validation, self.plan.batch_size, self.batches.length, max_tokens=max_tokens)

    def _sample(self, step: int) -> str | None:
        """A text at temperature 0.8, as long as the context allows; None if not even the prompt fits in."""
        tokenizer, context = self.model.tokenizer, self.model.config.context_length
        room = 0 if tokenizer is None else context - len(tokenizer.encode(self.plan.sample_prompt))
        if room < 1:
            return None
        self.model.replace_weights(self._weights())
        tokens = min(self.plan.sample_tokens, room)
        found = self.model.generate(self.plan.sample_prompt, max_new_tokens=tokens, temperature=0.8, seed=step)
        return self.plan.sample_prompt + (found.text or "")  # type: ignore[union-attr]

    def _save(self) -> None:
        facts = {
            "identity": self.identity,
            "surroundings": self.surroundings,
            "best": self.best,
            "loss": self.loss,
            "evaluation": self.evaluation,
        }
        trees, model = self.training.trees(), self.model
        checkpoint.save(self.folder, self.done, model.config, trees, facts, model.tokenizer, model.original)
        checkpoint.prune(self.folder, self.done, self.plan.keep_last, self.best["step"] if self.best else None)

    def _not_finite(self, step: int, loss: float, ids: np.ndarray) -> str:
        """Where it began, with the weights before the step, which are still there."""
        self.model.replace_weights(self.training.trees()["params"])
        where = "the gradients alone"
        for piece in ids:
            taps = self.model.record(piece[:, :-1])
            masked = ("attn.scores",)  # minus infinity where a key is not visible
            broken = [
                name
                for name, x in taps.items()
                if not np.isfinite(x[~np.isneginf(x)] if name.endswith(masked) else x).all()
            ]
            if broken:
                where = f"the tap {broken[0]}"
                break
        return (
            f"Step {step} is not finite (loss {loss}): the first value that is not finite lies in {where}. "
            f"{self._last_good()} Take a lower optimizer.learning_rate or a longer schedule.warmup_steps."
        )

    def _exploded(self, step: int, loss: float) -> str:
        return (
            f"The loss exploded: {loss:.4g} at step {step}, more than {EXPLODED} times that of guessing. "
            f"{self._last_good()} Take a lower optimizer.learning_rate or a longer schedule.warmup_steps."
        )

    def _last_good(self) -> str:
        kept = checkpoint.found(self.folder)
        return f"The last good checkpoint is {kept[-1].path}." if kept else "There is no checkpoint yet."


def _changes(name: str, before: Any, now: Any) -> Iterator[tuple[str, str, str]]:
    """(field, what it was, what it is) wherever two values differ, as deep as they are of one kind.

    A part of a model, an object that says which `part` it is, is compared with the same part only, and else named.
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping) and before.get("part") == now.get("part"):
        for key in dict.fromkeys([*before, *now]):
            yield from _changes(f"{name}.{key}", before.get(key), now.get(key))
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for number, (was, one) in enumerate(zip(before, now, strict=True)):
            yield from _changes(f"{name}.{number}", was, one)
    elif before != now:
        was, one = (
            str(value["part"]) if isinstance(value, Mapping) and "part" in value else shown(value)
            for value in (before, now)
        )
        yield name, was, one


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@contextmanager
def _interrupts() -> Iterator[Any]:
    """Yields a function that says whether Ctrl-C was pressed; pressed again, it interrupts at once.

    A step must not be cut in two: a backend that consumes its arguments would be left without weights. Who began this
    process with Ctrl-C ignored, as a shell does in the background, wants it ignored.
    """
    pressed = threading.Event()
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    if ignored or threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return

    def first(number: int, frame: Any) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, first)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
