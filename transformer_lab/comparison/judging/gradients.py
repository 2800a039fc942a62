"""Gradients beside the truth, in the same form as the forward pass: the whole error, and what an operation adds to it.

The whole error: the gradient of the mean next-token loss with respect to every parameter, as training computes it. What
an operation adds: its backward pass alone, run again on the truth's inputs and on the truth's gradient at its result,
both rounded to the participant's precision, and compared with `gradient_bounds.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from transformer_lab.backends.readings.bounded import gradients as gradient_bounds
from transformer_lab.backends.readings.bounded.bounds import UNITS, Bounded
from transformer_lab.comparison.judging.examination import difference
from transformer_lab.comparison.judging.gradient_calls import Call, next_token_weights, noted_gradients, parameters_of
from transformer_lab.comparison.judging.metrics import Errors, errors_of, merge
from transformer_lab.language_model import LanguageModel
from transformer_lab.model.parameters import nest
from transformer_lab.training.step import TRAINABLE_PRECISIONS, weighted_loss


@dataclass(frozen=True)
class GradientRow:
    """The gradient of one parameter, or of one input of one operation.

    parameter: a parameter's dotted name; or the operation and its input, such as "blocks.3.norm_1: weight" or
    "blocks.3.attn: query" (`gradient_calls.Call` says how operations are named).
    errors: against the truth's gradient of the loss; of an operation, against its backward pass in float64.
    ratio: of an operation, the largest |error| / bound; above 1 it is a defect. None for a parameter.
    """

    participant: str
    parameter: str
    errors: Errors
    ratio: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As the report has it, flat."""
        return {
            "participant": self.participant,
            "parameter": self.parameter,
            **self.errors.measures(),
            "ratio": self.ratio,
        }


def compare_gradients(
    model: LanguageModel,
    truth: LanguageModel,
    participant: str,
    token_ids: np.ndarray,
    look_on: Callable[[str, np.ndarray], object] | None = None,
    operations: bool = True,
) -> list[GradientRow]:
    """The gradients of the mean next-token loss of token_ids [T], at least 2 of them.

    model: on any backend. truth: the same weights on NumPy, in float64, with ops=manual. participant: its name in the
    rows. Rows of parameters come first, in the order of the computation; then those of operations, in the order of the
    backward pass: from the loss to the embedding. look_on(name, gradient) sees that of each parameter as it is, in the
    order of the backward pass too. operations: whether these have rows.

    A backend without gradients, and a precision that has none (int8), give no rows.
    """
    ops = model.backend
    if not ops.can_train or ops.precision not in (*TRAINABLE_PRECISIONS, "exact"):
        return []
    ids = np.asarray(token_ids, np.int64)[None]
    calls, true = noted_gradients(truth, ids)
    found = parameter_gradients(model, ids)
    if look_on is not None:
        for name in reversed(true):
            look_on(name, found[name])
    rows = [
        GradientRow(participant, name, errors_of(found.pop(name), true.pop(name), ops.precision)) for name in list(true)
    ]
    alone = Alone(ops)
    for call in reversed(calls if operations else []):
        rows += _rows_of(alone, call, participant)
    return rows


def first_gradient_divergence(rows: Sequence[GradientRow]) -> GradientRow | None:
    """The first operation above its bound, in the order of the backward pass; of its inputs the worst."""
    above = [row for row in rows if row.ratio is not None and not row.ratio <= 1.0]
    if not above:
        return None
    first = _operation(above[0])
    return max((row for row in above if _operation(row) == first), key=lambda row: row.ratio or 0.0)


def _operation(row: GradientRow) -> tuple[str, str]:
    return row.participant, row.parameter.partition(":")[0]


def parameter_gradients(model: LanguageModel, token_ids: np.ndarray) -> dict[str, np.ndarray]:
    """The gradient of the mean next-token loss of token_ids [B, T + 1] for every parameter, by the model's backend."""
    ops, config = model.backend, model.config
    params = {name: ops.asarray(array) for name, array in parameters_of(model).items()}
    constants = {"rotary": model.params["rotary"]} if "rotary" in model.params else {}

    def loss(params: Any, constants: Any, ids: Any, weights: Any) -> Any:
        return weighted_loss(ops, config, nest(params) | constants, ids, weights)

    run = ops.compile(ops.value_and_grad(loss))
    _, found = run(params, constants, ops.asarray(token_ids), ops.asarray(next_token_weights(token_ids)))
    return {name: ops.to_numpy(array) for name, array in found.items()}


class Alone:
    """The backward pass of one operation at a time, on a backend. Where that compiles, it does so once for all layers:
    what differs from layer to layer are the numbers.
    """

    def __init__(self, ops: Any) -> None:
        self.ops = ops
        self._compiled: dict[Any, Any] = {}

    def gradients(self, call: Call, inputs: dict[str, Any], cotangent: np.ndarray) -> dict[str, np.ndarray]:
        """{input: dL/dx} at dL/dy = cotangent, that is of sum(y * cotangent), for the inputs that are learned."""
        ops, names = self.ops, list(inputs)
        options = {name: x for name, x in inputs.items() if not isinstance(x, np.ndarray)}
        key = (call.operation, *call.learned, *names, *options.items())

        def weighted(learned: Any, others: Any, cotangent: Any) -> Any:
            given = learned | others | options
            result = getattr(ops, call.operation)(*(given[name] for name in names))
            return ops.xp.sum(result * cotangent)

        if key not in self._compiled:
            self._compiled[key] = ops.compile(ops.value_and_grad(weighted))
        arrays = {name: ops.asarray(x) for name, x in inputs.items() if name not in options}
        learned = {name: arrays.pop(name) for name in call.learned}
        _, found = self._compiled[key](learned, arrays, ops.asarray(cotangent))
        return {name: ops.to_numpy(array) for name, array in found.items()}


def _rows_of(alone: Alone, call: Call, participant: str) -> Iterator[GradientRow]:
    """One row for each learned input of an operation."""
    precision = alone.ops.precision
    inputs = {name: _rounded(x, precision) for name, x in call.inputs.items()}
    cotangent = _rounded(call.cotangent, precision)
    found = alone.gradients(call, inputs, cotangent)
    errors: dict[str, list[Errors]] = {name: [] for name in call.learned}
    ratios = dict.fromkeys(call.learned, 0.0)
    backward = getattr(gradient_bounds, call.operation)
    # Exact mode rounds to float32 at some points inside a backward pass, as its docstrings say.
    units = UNITS["float32" if precision == "exact" else precision]
    for name, place, expected in backward(*inputs.values(), g=cotangent.astype(np.float64), units=units):
        if name in found:
            here = found[name][place]
            errors[name].append(errors_of(here, expected.value, precision))
            ratios[name] = max(ratios[name], _largest_ratio(here, expected))
    for name in call.learned:
        yield GradientRow(participant, f"{call.name}: {name}", merge(errors[name]), ratios[name])


def _rounded(x: Any, precision: str) -> Any:
    """An array of floats in the precision that its participant holds it in; anything else as it is."""
    if not isinstance(x, np.ndarray) or x.dtype.kind != "f":
        return x
    with np.errstate(over="ignore"):
        return x.astype(np.float64 if precision == "float64" else np.float32)


def _largest_ratio(found: np.ndarray, expected: Bounded) -> float:
    """The largest |found - value| / error; infinite where there is a difference and nothing may be rounded."""
    off = np.abs(difference(found, expected.value))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(off == 0.0, 0.0, off / expected.error)
    return float(np.where(np.isnan(ratio), np.inf, ratio).max(initial=0.0))
