"""The loop of a training run: batches through steps, with evaluations, samples and checkpoints on the way.

It is a generator: each step that has something to tell gives a Report, and who runs it decides what is shown. Which
texts a step sees follows from the seed and the step's number alone, so a run that goes on from a checkpoint continues
as if it had never stopped.
"""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transformer_lab.errors import ConfigurationError, UnavailableError
from transformer_lab.language_model import LanguageModel
from transformer_lab.training import checkpoint
from transformer_lab.training.evaluation import Evaluation, evaluate
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

    learning_rate: of this step. tokens: in its batch. evaluation, sample, checkpoint: if there was one.
    """

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    tokens: int
    tokens_per_s: float
    evaluation: Evaluation | None = None
    sample: str | None = None
    checkpoint: Path | None = None


class TrainingRun:
    """One run: `model` is what evaluates and samples (its weights are replaced each time), `training` what learns.

    identity: what must be the same when the run goes on from a checkpoint; it is kept in each of them.
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
    ) -> None:
        self.folder, self.plan, self.training, self.model = folder, plan, training, model
        self.batches, self.validation, self.schedule, self.identity = batches, validation, schedule, identity
        self.done = 0
        self.best: dict[str, Any] | None = None

    def resume(self, found: checkpoint.Checkpoint) -> None:
        """Goes on after the step of a checkpoint. Raises ConfigurationError if it belongs to another run."""
        for name, value in self.identity.items():
            before = found.facts.get("identity", {}).get(name)
            if before != value:
                message = (
                    f"{found.path} was trained with {name}={before!r}, and now it is {value!r}. "
                    "Say the same again, or start a new run."
                )
                raise ConfigurationError(message)
        dtype = np.float64 if self.training.ops.precision == "float64" else np.float32
        self.training.restore(checkpoint.load(found, self.model.config, dtype))
        self.done, self.best = found.step, found.facts.get("best")

    def reports(self) -> Iterator[Report]:
        """Trains to the last step of the plan. Ctrl-C ends it after the step under way, with a checkpoint.

        Raises UnavailableError if the loss or the gradients stop being finite, KeyboardInterrupt after Ctrl-C.
        """
        plan = self.plan
        length = self.batches.length
        with _interrupts() as interrupted:
            while self.done < plan.steps:
                step = self.done + 1
                ids, weights = self._pieces(self.done)
                begin = time.perf_counter()
                share = self.schedule.share(step, plan.steps)
                loss, norm = self.training.run(ids, weights, step, share)
                seconds = time.perf_counter() - begin
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    raise UnavailableError(self._not_finite(step, loss, ids))
                if loss > EXPLODED * math.log(self.model.config.vocab_size):
                    raise UnavailableError(self._exploded(step, loss))
                self.done = step
                last = step == plan.steps
                evaluation = sample = path = None
                if last or _due(step, plan.evaluate_every):
                    evaluation = self._evaluate(None if last else plan.evaluation_tokens)
                improved = evaluation is not None and (self.best is None or evaluation.loss < self.best["loss"])
                if evaluation is not None and improved:
                    self.best = {"step": step, "loss": evaluation.loss}
                if _due(step, plan.sample_every) or (last and plan.sample_every):
                    sample = self._sample(step)
                if last or improved or _due(step, plan.checkpoint_every) or interrupted():
                    path = self._save(step)
                tokens = plan.accumulate * plan.batch_size * length
                rate = self.training.optimizer.learning_rate * share
                yield Report(step, loss, norm, rate, tokens, tokens / seconds, evaluation, sample, path)
                if interrupted():
                    raise KeyboardInterrupt

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

    def _save(self, step: int) -> Path:
        facts = {"identity": self.identity, "best": self.best}
        path = checkpoint.save(self.folder, step, self.model.config, self.training.trees(), facts, self.model.tokenizer)
        checkpoint.prune(self.folder, self.plan.keep_last, self.best["step"] if self.best else None)
        return path

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


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@contextmanager
def _interrupts() -> Iterator[Any]:
    """Yields a function that says whether Ctrl-C was pressed; pressed again, it interrupts at once.

    A step must not be cut in two: a backend that consumes its arguments would be left without weights.
    """
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
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
