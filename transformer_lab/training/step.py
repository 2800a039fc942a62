"""One step of training: loss, gradients over one or more pieces of a batch, AdamW, and the average of the weights.

Pure functions over flat parameter trees, written once for every backend and compiled as a whole where the backend
compiles. Nothing here knows data, files or schedules.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from transformer_lab.errors import ConfigurationError
from transformer_lab.language_model.placing import rotary_tables
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.decoder import forward
from transformer_lab.model.parameters import nest
from transformer_lab.training.optimizer import AdamW, Tree, moving_average

TRAINABLE_PRECISIONS = ("float32", "float64", "bfloat16")


def weighted_loss(ops: Any, config: ModelConfig, params: Any, token_ids: Any, weights: Any) -> Any:
    """The sum of the next-token cross-entropies of token_ids [B, T + 1] times weights [B, T]: a scalar, in nats."""
    start = ops.xp.zeros((token_ids.shape[0],), dtype=ops.index_dtype, device=ops.array_device)
    logits, _ = forward(ops, config, params, token_ids[:, :-1], start)
    return ops.xp.sum(ops.cross_entropy(logits, token_ids[:, 1:]) * weights)


def require_trainable(ops: Any) -> None:
    """Raises ConfigurationError if this backend, or its precision, has no gradients."""
    if not ops.can_train:
        message = f"The {ops.name} backend has no gradients. Choose backend=torch or backend=jax to train."
        raise ConfigurationError(message)
    if ops.precision not in TRAINABLE_PRECISIONS:
        message = (
            f"precision={ops.precision} cannot be trained in; choose one of {', '.join(TRAINABLE_PRECISIONS)} "
            "(bfloat16 computes in bfloat16 and keeps the weights in float32)."
        )
        raise ConfigurationError(message)


class TrainingStep:
    """The state of a training run on one backend, and the step that changes it.

    params: flat, dotted name -> array of this backend, kernels plain [in, out]. moments: of AdamW, {"first", "second"}.
    average: the exponential moving average of params, or None without `average_decay`.
    """

    def __init__(
        self,
        ops: Any,
        config: ModelConfig,
        arrays: dict[str, np.ndarray],
        optimizer: AdamW,
        average_decay: float | None = None,
    ) -> None:
        require_trainable(ops)
        self.ops, self.optimizer, self.average_decay = ops, optimizer, average_decay
        self.params: Tree = {name: ops.asarray(array) for name, array in arrays.items()}
        self.moments = optimizer.begin(ops, self.params)
        # A copy: on a backend that donates its arguments, one array cannot be given twice.
        self.average: Tree | None = (
            None if average_decay is None else {name: ops.asarray(array.copy()) for name, array in arrays.items()}
        )
        self._constants = {"rotary": rotary_tables(config, ops)}
        self._step = ops.compile(make_step(ops, config, optimizer), donate=(0, 1, 2))

    def run(self, token_ids: np.ndarray, weights: np.ndarray, step: int, share: float) -> tuple[float, float]:
        """token_ids [A, B, T + 1] and weights [A, B, T] in A pieces -> (loss before the step, norm of the gradients).

        step counts from 1; share is the schedule's. The loss is the mean over all targets whose weight is 1. If loss or
        norm are not finite, nothing was changed.
        """
        ops = self.ops
        share_of_each = weights / weights.sum(dtype=np.float64)
        self.params, self.moments, self.average, loss, norm = self._step(
            self.params,
            self.moments,
            self.average,
            self._constants,
            ops.asarray(token_ids),
            ops.asarray(share_of_each),
            ops.asarray(np.append(self.optimizer.rates(step, share), self._average_decay_at(step))),
        )
        return float(ops.to_numpy(loss)), float(ops.to_numpy(norm))

    def _average_decay_at(self, step: int) -> float:
        """Less at first, so that the random weights of the beginning are soon forgotten."""
        return min(self.average_decay or 0.0, (1 + step) / (10 + step))

    def trees(self) -> dict[str, dict[str, np.ndarray]]:
        """Everything that changes, as NumPy arrays: {"params", "first", "second"} and "average" if there is one."""
        trees = {"params": self.params, **self.moments}
        if self.average is not None:
            trees["average"] = self.average
        return {
            title: {name: np.array(self.ops.to_numpy(array)) for name, array in tree.items()}
            for title, tree in trees.items()
        }

    def restore(self, trees: dict[str, dict[str, np.ndarray]]) -> None:
        """The inverse of `trees`."""
        placed = {
            title: {name: self.ops.asarray(array) for name, array in tree.items()} for title, tree in trees.items()
        }
        self.params = placed["params"]
        self.moments = {moment: placed[moment] for moment in ("first", "second")}
        self.average = placed.get("average")


def make_step(ops: Any, config: ModelConfig, optimizer: AdamW) -> Callable[..., Any]:
    """(params, moments, average, constants, token_ids, weights, rates) -> (params, moments, average, loss, norm)."""

    def loss_of(params: Any, constants: Any, token_ids: Any, weights: Any) -> Any:
        return weighted_loss(ops, config, nest(params) | constants, token_ids, weights)

    loss_and_gradients = ops.value_and_grad(loss_of)

    def step(
        params: Tree, moments: dict[str, Tree], average: Tree | None, constants: Any, ids: Any, weights: Any, rates: Any
    ) -> Any:
        def add_piece(index: Any, sums: Any) -> Any:
            more, further = loss_and_gradients(params, constants, ids[index + 1], weights[index + 1])
            return sums[0] + more, {name: gradient + further[name] for name, gradient in sums[1].items()}

        loss, gradients = loss_and_gradients(params, constants, ids[0], weights[0])
        if ids.shape[0] > 1:  # a loop that a compiler sees once, however many pieces
            loss, gradients = ops.repeat(add_piece, ids.shape[0] - 1, (loss, gradients))
        params, moments, norm = optimizer.update(ops, params, gradients, moments, rates)
        if average is not None:
            average = moving_average(average, params, rates[3])
        return params, moments, average, loss, norm

    return step
