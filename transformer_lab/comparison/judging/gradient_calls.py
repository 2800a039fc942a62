"""The operations that a decoder calls, each with its inputs and with the gradient of the loss at its result.

They are noted while the truth computes its gradients: the model asks a backend for everything, so whoever stands
between the two sees every operation, of a feed-forward network of one's own too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np

from transformer_lab.backends.base import OPERATIONS
from transformer_lab.backends.plain import manual
from transformer_lab.backends.readings.recording import Recorded, plain, record
from transformer_lab.language_model import LanguageModel
from transformer_lab.model.decoder import forward
from transformer_lab.model.parameters import flatten, nest, shapes


@dataclass
class Call:
    """One operation, once.

    name: the tap that shows its result ("blocks.3.norm_1", "logits"; "loss" for the cross-entropy). If no tap does, the
    place of its parameters ("blocks.3.attn.qkv"), or else "blocks.3.attn" for attention and the like of
    "blocks.3.ffn.silu" for others.
    inputs: float64 or integer arrays and numbers, by the names of `backends/plain/manual.py`, in their order.
    learned: the inputs that have a gradient. cotangent: dL/dy, float64, with the shape of the result.
    """

    operation: str
    inputs: dict[str, Any]
    learned: list[str]
    name: str = ""
    cotangent: Any = None


def parameters_of(model: LanguageModel) -> dict[str, np.ndarray]:
    """Its learned parameters, dotted name -> NumPy array, kernels [in, out]."""
    leaves = dict(
        flatten(model.params)
    )  # among them those that are no parameters: angles, and a tied head in fast form
    return {name: model.backend.recover(name, leaves[name]) for name in shapes(model.config)}


def next_token_weights(token_ids: np.ndarray) -> np.ndarray:
    """Of a mean over all next tokens of token_ids [B, T + 1]: [B, T]."""
    shape = (token_ids.shape[0], token_ids.shape[1] - 1)
    return np.full(shape, 1.0 / (shape[0] * shape[1]))


def noted_gradients(truth: LanguageModel, token_ids: np.ndarray) -> tuple[list[Call], dict[str, np.ndarray]]:
    """The calls of token_ids [B, T + 1], in the order of the computation, and the gradient of every parameter.

    truth: a model on NumPy. Calls that do not depend on a parameter, such as the look-up of angles, are left out.
    """
    ops, flat = truth.backend, parameters_of(truth)
    constants = {"rotary": truth.params["rotary"]} if "rotary" in truth.params else {}
    notes = _Notes({id(array): name for name, array in flat.items()})
    noting: Any = _Noting(ops, notes.see)
    weights = next_token_weights(token_ids)

    def loss(params: Mapping[str, Any]) -> Any:
        start = np.zeros(len(token_ids), np.int64)
        logits, _ = forward(noting, truth.config, nest(params) | constants, token_ids[:, :-1], start, tap=notes.tap)
        return ops.xp.sum(notes.tap("loss", noting.cross_entropy(logits, token_ids[:, 1:])) * weights)

    _, gradients = ops.value_and_grad(loss)(flat)
    return notes.calls, gradients


class _Noting:
    """A backend whose operations are seen: see(operation, arguments, result) returns what the model is given."""

    def __init__(self, ops: Any, see: Callable[..., Any]) -> None:
        self._ops = ops
        for operation in OPERATIONS:
            setattr(self, operation, _seen(ops, operation, see))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)


def _seen(ops: Any, operation: str, see: Callable[..., Any]) -> Callable[..., Any]:
    run, plan = getattr(ops, operation), signature(getattr(manual, operation))

    def seen(*arguments: Any, **named: Any) -> Any:
        given = plan.bind(ops, *arguments, **named).arguments
        return see(operation, given, run(*arguments, **named))

    return seen


class _Notes:
    """Notes calls, and names them when taps are seen. places: id of a parameter's array -> its dotted name."""

    def __init__(self, places: dict[int, str]) -> None:
        self.places = places
        self.calls: list[Call] = []
        self.recent: list[tuple[Call, Any]] = []  # since the last taps, with their results

    def see(self, operation: str, arguments: Mapping[str, Any], result: Any) -> Any:
        if not isinstance(result, Recorded):
            return result
        inputs = {name: plain(x) for name, x in arguments.items() if name != "ops" and not (x is None or callable(x))}
        call = Call(operation, inputs, [name for name, x in arguments.items() if isinstance(x, Recorded)])

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
        return part if call.operation == "attention" else f"{part}.{call.operation}"
