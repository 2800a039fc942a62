"""Gradients beside the truth, in the same form as the forward pass: the whole error, and what a step adds to it.

The whole error: the gradient of the mean next-token loss with respect to every parameter, as training computes it. What
a step adds: its backward pass alone, run again on the truth's inputs and on the truth's gradient at its result, both
rounded to the participant's precision. Its bound comes from the bounded reading: for an operation from the sharp rule
of that, for a function of `ops.xp` from its rule on the tape, over bounded arrays.

A path that the definition itself cuts off is cut off in the truth, too: so the truth is held against central
differences.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from transformer_lab.backends.readings.bounded import gradients as bounded_gradients
from transformer_lab.backends.readings.bounded.gradients import Steps
from transformer_lab.backends.readings.bounded.pairs import Bounded
from transformer_lab.backends.readings.bounded.units import UNITS
from transformer_lab.backends.readings.gradient_rules import CONSTANT, RULES
from transformer_lab.backends.readings.recorded import Tape, value_and_grad
from transformer_lab.comparison.judging.beside_bounds import Likelihood, difference, ratios
from transformer_lab.comparison.judging.central_differences import STEP, contradicted
from transformer_lab.comparison.judging.gradient_calls import Call, noted_gradients
from transformer_lab.comparison.judging.metrics import Errors, errors_of, merge
from transformer_lab.comparison.judging.training_loss import (
    loss_of,
    next_token_weights,
    parameter_gradients,
    parameters_of,
)
from transformer_lab.language_model import LanguageModel
from transformer_lab.language_model.placing import constants
from transformer_lab.training.step import TRAINABLE_PRECISIONS

# Functions of xp have more than one formula for their gradient; each takes no more than twice as many roundings.
FORMULAS = 2.0
DIRECTIONS = 2
DETACHED = 1e-3  # of the size of a gradient along a direction: what central differences may be apart


@dataclass
class GradientRow:
    """The gradient of one parameter, or of one input of one step.

    parameter: a parameter's dotted name; or the step and its input, such as "blocks.3.norm_1: weight" or
    "blocks.3.attn: query" (`gradient_calls.Call` says how steps are named).
    pieces: its errors against the truth's gradient of the loss; of a step, against its backward pass in float64.
    ratio: of a step, the largest |error| / bound; above 1 it is a defect. None for a parameter. likelihood: its errors
    in likely ones. unknown: how many elements no bound is known of.
    """

    participant: str
    parameter: str
    pieces: list[Errors] = field(default_factory=list)
    ratio: float | None = None
    likelihood: Likelihood = field(default_factory=Likelihood)
    unknown: int = 0

    def take(self, found: np.ndarray, expected: Bounded, lost: float, precision: str) -> None:
        """A piece of the gradient of a step. lost: what it may be off beside its bound (`_lost_on_the_way`)."""
        # Where nothing is known (a number that float32 does not have, 0 times infinity), nothing is judged.
        known = np.isfinite(expected.error) & np.isfinite(expected.value)
        self.unknown += int(known.size - np.count_nonzero(known))
        found, value = np.where(known, found, 0.0), np.where(known, expected.value, 0.0)
        error, likely = np.where(known, expected.error, 0.0), np.where(known, expected.likely, 0.0)
        off = difference(found, value)
        self.pieces.append(errors_of(found, value, precision))
        self.ratio = max(self.ratio or 0.0, float(ratios(off, error + lost).max(initial=0.0)))
        self.likelihood.take(off, likely + lost)

    @property
    def errors(self) -> Errors:
        return merge(self.pieces)

    @property
    def wrong(self) -> bool:
        return self.ratio is not None and (not self.ratio <= 1.0 or self.likelihood.implausible)

    def to_dict(self) -> dict[str, Any]:
        """As the report has it, flat."""
        return {
            "participant": self.participant,
            "parameter": self.parameter,
            **self.errors.measures(),
            "ratio": self.ratio,
            "largest_likely": None if self.ratio is None else self.likelihood.largest,
            "mean_square_likely": None if self.ratio is None else self.likelihood.mean_square,
        }


class TrueGradients:
    """The truth's gradients for token ids [T], computed once for all participants.

    They stand in two rows, the second from behind: what sums up the first row alone would be right with one.
    infinite: where the gradient itself is not finite first, the name of a step or a parameter, or None.
    """

    def __init__(self, truth: LanguageModel, token_ids: np.ndarray) -> None:
        row = np.asarray(token_ids, np.int64)
        self.truth, self.token_ids = truth, np.stack([row, row[::-1]])
        with np.errstate(all="ignore"):
            calls, self.loss, self.parameters = noted_gradients(truth, self.token_ids)
        self.calls = [call for call in calls if np.isfinite(call.cotangent).all()]
        # Behind the root of a 0, say: nothing can be said about what becomes of it. Or 0 times infinity, which becomes
        # of what was not even taken.
        infinite = [call.name for call in calls if not np.isfinite(call.cotangent).all()]
        infinite = infinite or [name for name, found in self.parameters.items() if not np.isfinite(found).all()]
        self.infinite = infinite[-1] if infinite else None

    def detached(self, seed: int = 0) -> list[str]:
        """Sentences on a part of the gradient that central differences of the loss do not confirm."""
        generator = np.random.default_rng(seed)
        flat = parameters_of(self.truth)
        for _ in range(DIRECTIONS):
            directions = {
                name: generator.standard_normal(array.shape) * (np.sqrt(np.mean(np.square(array))) + 1e-3)
                for name, array in flat.items()
            }
            names = list(flat)
            if self._agrees(flat, directions, names):
                continue
            while len(names) > 1:  # the first half that does not agree
                half = names[: len(names) // 2]
                names = half if not self._agrees(flat, directions, half) else names[len(half) :]
            finding = (
                f"A defect of the definition's gradient: that of {names[0]} is not the slope of the loss (central "
                "differences in float64); a path is cut off, or a derivative is wrong on every backend."
            )
            return [finding]
        return []

    def _agrees(self, flat: dict[str, np.ndarray], directions: dict[str, np.ndarray], names: Sequence[str]) -> bool:
        """Whether the gradient along the directions of these parameters is the slope of the loss."""
        parts = [float(np.sum(self.parameters[name] * directions[name])) for name in names]
        size = float(np.sqrt(sum(np.sum(np.square(self.parameters[name] * directions[name])) for name in names)))
        weights, fixed = next_token_weights(self.token_ids), constants(self.truth.params)

        def loss(step: float) -> np.ndarray:
            moved = flat | {name: flat[name] + step * directions[name] for name in names}
            return np.asarray(loss_of(self.truth, moved, fixed, self.token_ids, weights))

        slack = DETACHED * (size + abs(sum(parts))) + 1e-7 * self.loss
        return contradicted(loss, sum(parts), STEP, slack) is None


@np.errstate(all="ignore")  # what is not finite is in the rows
def compare_gradients(
    model: LanguageModel,
    true: TrueGradients,
    participant: str,
    look_on: Callable[[str, np.ndarray], object] | None = None,
    steps: bool = True,
) -> list[GradientRow]:
    """The gradients of the mean next-token loss, of at least 2 token ids.

    model: on any backend. true: of the same weights on NumPy, in float64, with ops=manual. participant: its name in the
    rows. Rows of parameters come first, in the order of the computation; then those of steps, in the order of the
    backward pass: from the loss to the embedding. look_on(name, gradient) sees that of each parameter as it is, in the
    order of the backward pass too. steps: whether these have rows.

    A backend without gradients, and a precision that has none (int8), give no rows.
    """
    ops = model.backend
    if not ops.can_train or ops.precision not in (*TRAINABLE_PRECISIONS, "exact"):
        return []
    found = parameter_gradients(model, true.token_ids)
    if look_on is not None:
        for name in reversed(true.parameters):
            look_on(name, found[name])
    rows = [
        GradientRow(participant, name, [errors_of(found.pop(name), array, ops.precision)])
        for name, array in true.parameters.items()
    ]
    alone = Alone(ops)
    for call in reversed(true.calls if steps else []):
        rows += _rows_of(alone, call, participant)
    return rows


def first_gradient_divergence(rows: Sequence[GradientRow]) -> GradientRow | None:
    """The first step above its bound, or else not plausible, in the order of the backward pass; of its inputs the
    worst."""
    wrong = [row for row in rows if row.wrong]
    if not wrong:
        return None
    first = _step(wrong[0])
    return max((row for row in wrong if _step(row) == first), key=lambda row: row.ratio or 0.0)


def _step(row: GradientRow) -> tuple[str, str]:
    return row.participant, row.parameter.partition(":")[0]


class Alone:
    """The backward pass of one step at a time, on a backend. Where that compiles, it does so once for all layers:
    what differs from layer to layer are the numbers.
    """

    def __init__(self, ops: Any) -> None:
        self.ops = ops
        self._compiled: dict[Any, Any] = {}

    def gradients(self, call: Call, inputs: dict[str, Any], cotangent: np.ndarray) -> dict[str, np.ndarray]:
        """{input: dL/dx} at dL/dy = cotangent, that is of sum(y * cotangent), for the inputs that are learned."""
        ops, names = self.ops, list(inputs)
        fixed = {name: x for name, x in inputs.items() if not isinstance(x, np.ndarray)}
        key = (call.function, *call.learned, *names, repr(fixed), repr(call.options))

        def weighted(learned: Any, others: Any, cotangent: Any) -> Any:
            given = learned | others | fixed
            return ops.xp.sum(call.run(ops, {name: given[name] for name in names}) * cotangent)

        if key not in self._compiled:
            self._compiled[key] = ops.compile(ops.value_and_grad(weighted))
        arrays = {name: _placed(ops, x) for name, x in inputs.items() if name not in fixed}
        learned = {name: arrays.pop(name) for name in call.learned}
        _, found = self._compiled[key](learned, arrays, ops.asarray(cotangent))
        return {name: ops.to_numpy(array) for name, array in found.items()}


def _placed(ops: Any, x: np.ndarray) -> Any:
    return ops.asarray(x, ops.xp.bool) if x.dtype == bool else ops.asarray(x)


def _rows_of(alone: Alone, call: Call, participant: str) -> Iterator[GradientRow]:
    """One row for each learned input of a step."""
    precision = alone.ops.precision
    inputs = {name: _rounded(x, precision) for name, x in call.inputs.items()}
    cotangent = _rounded(np.asarray(call.cotangent), precision)
    found = alone.gradients(call, inputs, cotangent)
    lost = _lost_on_the_way(inputs, cotangent, precision)
    where = call.name or "loss"  # what follows the last tap is the mean
    prefix = f"{where}: " if call.is_operation else f"{where}: {call.function}, argument "
    rows = {name: GradientRow(participant, prefix + name, ratio=0.0) for name in call.learned}
    for name, place, expected in expected_gradients(call, inputs, cotangent, precision):
        if name in rows:
            rows[name].take(found[name][place], expected, lost, precision)
    yield from rows.values()


def expected_gradients(
    call: Call, inputs: dict[str, Any], cotangent: np.ndarray, precision: str
) -> Iterator[tuple[str, Any, Bounded]]:
    """(input, place, the judge's gradient there with its bound), piece by piece: those of sum(y * cotangent)."""
    # Exact mode rounds to float32 at some points inside a backward pass, as its docstrings say.
    named = "float32" if precision == "exact" else precision
    steps = Steps(UNITS[named], named)
    g = cotangent.astype(np.float64)
    if call.is_operation:
        yield from getattr(bounded_gradients, call.function)(*inputs.values(), g=g, steps=steps)
        return
    learned = {name: steps.exactly(inputs[name]) for name in call.learned}

    def weighted(learned: Any) -> Any:
        return steps.xp.sum(call.run(steps, inputs | learned) * steps.exactly(g))

    def tape() -> Tape:
        return Tape(steps.xp, RULES, CONSTANT, "The bounded reading")

    _, found = value_and_grad(weighted, tape, lambda x: isinstance(x, Bounded))(learned)
    for name, gradient in found.items():
        bounded = steps.asarray(gradient)
        off = tuple(
            FORMULAS * here + units.stored * np.abs(bounded.value)
            for here, units in zip(bounded.errors, steps.kept, strict=True)
        )
        yield name, ..., Bounded(bounded.value, off, steps)


def _rounded(x: Any, precision: str) -> Any:
    """An array of floats in the precision that its participant holds it in; anything else as it is. What is below the
    smallest normal number, which some take for 0, is 0."""
    if not isinstance(x, (np.ndarray, np.floating)) or np.asarray(x).dtype.kind != "f":
        return x
    dtype = np.float64 if precision == "float64" else np.float32
    with np.errstate(over="ignore", under="ignore"):
        narrow = np.asarray(x).astype(dtype)
    return np.where(np.abs(narrow) < np.finfo(dtype).tiny, dtype(0.0), narrow)


def _lost_on_the_way(inputs: dict[str, Any], cotangent: np.ndarray, precision: str) -> float:
    """What a formula may lose because a factor of it is below the smallest normal number: exp(x) / (1 + exp(x))^2 for
    silu, say. Beside it stands no other above the root of the largest number, else that would overflow."""
    sizes = [float(np.abs(x).max(initial=0.0)) for x in inputs.values() if isinstance(x, np.ndarray)]
    smallest = UNITS["float32" if precision == "exact" else precision].smallest
    return float(smallest**0.5 * np.abs(cotangent).max(initial=0.0) * max(1.0, *sizes))
