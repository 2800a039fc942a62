"""The loss as training computes it, on any backend: its value held against a plain one, and its gradients."""

from functools import partial
from typing import Any

import numpy as np

from transformer_lab.backends.readings.bounded.units import KEPT_IN_BFLOAT16, UNITS
from transformer_lab.language_model import LanguageModel
from transformer_lab.language_model.placing import constants
from transformer_lab.model.decoder import forward
from transformer_lab.model.parameters import flatten, nest, shapes
from transformer_lab.training.step import TRAINABLE_PRECISIONS, weighted_loss

LOSS_SLACK = 64.0  # roundings that a mean of cross-entropies may be apart from the same in float64


def parameters_of(model: LanguageModel) -> dict[str, np.ndarray]:
    """Its learned parameters, dotted name -> NumPy array, kernels [in, out]."""
    leaves = dict(flatten(model.params))  # among them some that are none: angles, and a tied head in fast form
    return {name: model.backend.recover(name, leaves[name]) for name in shapes(model.config)}


def next_token_weights(token_ids: np.ndarray) -> np.ndarray:
    """Of a mean over all next tokens of token_ids [B, T + 1]: [B, T]."""
    shape = (token_ids.shape[0], token_ids.shape[1] - 1)
    return np.full(shape, 1.0 / (shape[0] * shape[1]))


def loss_of(model: LanguageModel, params: Any, fixed: Any, ids: Any, weights: Any) -> Any:
    """The loss as training computes it, of flat parameters and `constants`. All are arrays of the model's backend."""
    return weighted_loss(model.backend, model.config, nest(params) | fixed, ids, weights)


def _parameters_and_constants(model: LanguageModel) -> tuple[dict[str, Any], dict[str, Any]]:
    params = {name: model.backend.asarray(array) for name, array in parameters_of(model).items()}
    return params, constants(model.params)


def parameter_gradients(model: LanguageModel, token_ids: np.ndarray) -> dict[str, np.ndarray]:
    """The gradient of the mean next-token loss of token_ids [B, T + 1] for every parameter, by the model's backend."""
    ops, (params, fixed) = model.backend, _parameters_and_constants(model)
    run = ops.compile(ops.value_and_grad(partial(loss_of, model)))
    _, found = run(params, fixed, ops.asarray(token_ids), ops.asarray(next_token_weights(token_ids)))
    return {name: ops.to_numpy(array) for name, array in found.items()}


def wrong_loss(model: LanguageModel, participant: str, token_ids: np.ndarray, training: bool = True) -> list[str]:
    """Sentences on a loss that is not the mean cross-entropy of the next tokens, by the logits that it comes from.
    training: whether that of training is looked at, too, with weights that are not all the same. Of two rows."""
    row = np.asarray(token_ids, np.int64)
    ids = np.stack([row, row[::-1]])
    even = next_token_weights(ids)
    handed_out = {"model.loss": (model.loss(ids), model.logits(ids[:, :-1]), even)}
    if training and model.backend.can_train and model.backend.precision in TRAINABLE_PRECISIONS:
        # In few bits the kernels of training are rounded later than those of a model that is loaded: other logits.
        uneven = even * (1.0 + np.arange(even.shape[1]) % 3)
        handed_out["the weighted loss of training"] = (*_loss_and_logits(model, ids, uneven), uneven)
    unit = max(UNITS[model.backend.precision].inner, 2.0**-24 if model.backend.precision == "exact" else 0.0)
    # A compiler may keep bfloat16 in more bits in one program, and not in the other.
    if model.backend.precision == "bfloat16":
        unit = KEPT_IN_BFLOAT16.inner + KEPT_IN_BFLOAT16.kernel / LOSS_SLACK
    said = []
    for name, (value, given, weights) in handed_out.items():
        logits = np.asarray(given, np.float64)
        below = logits - logits.max(axis=-1, keepdims=True)
        losses = np.log(np.exp(below).sum(axis=-1)) - np.take_along_axis(below, ids[:, 1:, None], axis=-1)[..., 0]
        right = float(np.sum(losses * weights))
        if not abs(value - right) <= LOSS_SLACK * unit * (1.0 + float(np.abs(below).max()) + right):
            said.append(
                f"A defect: {name} on {participant} is {value:.6g}, and the cross-entropy of the next tokens by its "
                f"own logits is {right:.6g}."
            )
    return said


def _loss_and_logits(model: LanguageModel, token_ids: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """The loss as training computes it, of weights [B, T], and the logits of the same parameters."""
    ops, (params, fixed) = model.backend, _parameters_and_constants(model)
    ids, start = ops.asarray(token_ids), ops.asarray(np.zeros(len(token_ids), np.int64))

    def logits(params: Any, fixed: Any, ids: Any, start: Any) -> Any:
        return forward(ops, model.config, nest(params) | fixed, ids[:, :-1], start)[0]

    found = ops.compile(partial(loss_of, model))(params, fixed, ids, ops.asarray(weights))
    return float(ops.to_numpy(found)), ops.to_numpy(ops.compile(logits)(params, fixed, ids, start))
