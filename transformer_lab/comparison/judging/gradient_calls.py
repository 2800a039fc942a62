"""The steps of a computation that have a gradient, each with its inputs and the gradient of the loss at its result.

They are noted while the truth computes its gradients: operations, because the model asks a backend for them, and what a
component computes between them with operators and `ops.xp`, because it is written on a tape.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from typing import Any

import array_api_compat.numpy as array_namespace
import numpy as np

from transformer_lab.backends.plain import manual
from transformer_lab.backends.plain.manual import OPERATIONS
from transformer_lab.backends.readings.gradient_rules import CONSTANT, RULES
from transformer_lab.backends.readings.recorded import Recorded, Tape, mapped, plain, record, value_and_grad
from transformer_lab.comparison.judging.training_loss import next_token_weights, parameters_of
from transformer_lab.language_model import LanguageModel
from transformer_lab.language_model.placing import constants
from transformer_lab.model.decoder import forward
from transformer_lab.model.parameters import nest

# Functions whose gradient only moves numbers: nothing can be rounded there.
MOVES = {
    *("reshape", "permute_dims", "matrix_transpose", "swapaxes", "moveaxis", "flip", "roll", "squeeze", "expand_dims"),
    *("concat", "stack", "unstack", "getitem", "astype", "negative", "positive", "tril", "triu"),
}
PLANS = {operation: signature(getattr(manual, operation)) for operation in OPERATIONS}


@dataclass
class Call:
    """One step, once.

    function: an operation, or a function of the array API standard. name: the tap that shows its result
    ("blocks.3.norm_1", "logits"; "loss" for the cross-entropy). If no tap does, the place of its parameters
    ("blocks.3.attn.qkv"), or else "blocks.3.attn" for attention and the like of "blocks.3.ffn.silu" for others.
    inputs: float64 or integer arrays and other values, in their order; by the names of `plain/manual.py`, or numbered.
    options: by their names. learned: the inputs that have a gradient. cotangent: dL/dy, float64.
    """

    function: str
    inputs: dict[str, Any]
    learned: list[str]
    options: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    cotangent: Any = None

    @property
    def is_operation(self) -> bool:
        return self.function in OPERATIONS

    def run(self, ops: Any, inputs: Mapping[str, Any]) -> Any:
        """The step on a backend."""
        if self.is_operation:
            return getattr(ops, self.function)(*inputs.values())
        run = _OPERATORS.get(self.function) or getattr(ops.xp, self.function)
        return run(*inputs.values(), **self.options)


# Functions of the standard want two arrays; operators take a number beside one, too.
_OPERATORS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
}


def noted_gradients(truth: LanguageModel, token_ids: np.ndarray) -> tuple[list[Call], float, dict[str, np.ndarray]]:
    """The calls of token_ids [B, T + 1], in the order of the computation; the loss; the gradient of every parameter.

    truth: a model on NumPy. Calls that do not depend on a parameter, such as the look-up of angles, are left out.
    """
    ops, flat = truth.backend, parameters_of(truth)
    notes = _Notes({id(array): name for name, array in flat.items()})
    noting: Any = _Noting(ops, notes)
    weights = next_token_weights(token_ids)

    def loss(params: Mapping[str, Any]) -> Any:
        start = np.zeros(len(token_ids), np.int64)
        given = nest(params) | constants(truth.params)
        logits, _ = forward(noting, truth.config, given, token_ids[:, :-1], start, tap=notes.tap)
        return ops.xp.sum(notes.tap("loss", noting.cross_entropy(logits, token_ids[:, 1:])) * weights)

    found, gradients = value_and_grad(loss, lambda: _NotingTape(notes))(flat)
    return [call for call in notes.calls if call.cotangent is not None], float(found), gradients


class _Noting:
    """A backend whose operations are seen."""

    def __init__(self, ops: Any, notes: "_Notes") -> None:
        self._ops, self._notes = ops, notes

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._ops, name)
        return partial(self._seen, name, found) if name in OPERATIONS else found

    def _seen(self, operation: str, run: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        given = dict(PLANS[operation].bind(self._ops, *arguments, **named).arguments)
        del given["ops"]
        inputs = {name: x for name, x in given.items() if x is not None and not callable(x)}
        return self._notes.see(operation, inputs, {}, lambda: run(*arguments, **named))


class _NotingTape(Tape):
    """What is computed between operations is seen, too."""

    def __init__(self, notes: "_Notes") -> None:
        super().__init__(array_namespace, RULES, CONSTANT, "The truth")
        self._notes = notes

    def answer(self, name: str, arguments: Any, options: Any) -> Any:
        inputs = {str(place): x for place, x in enumerate(arguments)}
        return self._notes.see(name, inputs, options, partial(super().answer, name, arguments, options))


class _Notes:
    """Notes calls, and names them when taps are seen. places: id of a parameter's array -> its dotted name."""

    def __init__(self, places: dict[int, str]) -> None:
        self.places = places
        self.calls: list[Call] = []
        self.inside = 0  # a step, whose own steps are not looked at
        self.recent: list[tuple[Call, Any]] = []  # since the last taps, with their results

    def see(
        self, function: str, arguments: Mapping[str, Any], options: Mapping[str, Any], run: Callable[[], Any]
    ) -> Any:
        """run(), which is the step with these arguments."""
        self.inside += 1
        try:
            result = run()
        finally:
            self.inside -= 1
        if self.inside or function in MOVES or not isinstance(result, Recorded):
            return result
        inputs = {name: mapped(plain, x) for name, x in arguments.items()}
        learned = [name for name, x in arguments.items() if isinstance(x, Recorded)]
        call = Call(function, inputs, learned, dict(options))

        def pass_on(g: Any) -> Any:
            call.cotangent = g
            return g

        if self.recent and self.recent[0][0].name:
            self.recent.clear()
        result = record(result.value, (result, pass_on))
        self.recent.append((call, result))
        self.calls.append(call)
        return result

    def tap(self, name: str, x: Any) -> Any:
        for call, result in self.recent:
            if result is x:
                call.name = name
            elif not call.name:
                call.name = self._name_inside(call, name.rpartition(".")[0])
        return x

    def _name_inside(self, call: Call, part: str) -> str:
        """Of a call whose result no tap shows, in this part of the decoder."""
        for name in call.learned:
            if (place := self.places.get(id(call.inputs[name]))) is not None:
                return place.removesuffix(f".{name}")
        return part if call.function == "attention" else f"{part}.{call.function}"
