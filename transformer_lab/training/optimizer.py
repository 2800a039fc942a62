"""AdamW and the exponential average of weights, as pure functions over parameter trees, the same on every backend.

A tree here is flat: a dict from dotted names to arrays. Nothing is changed in place; what a function returns is new.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from transformer_lab.errors import ConfigurationError

Tree = dict[str, Any]


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Kingma and Ba 2014, arXiv 1412.6980; Loshchilov and Hutter 2017, 1711.05101).

    learning_rate: the peak; the schedule gives each step's share of it. weight_decay: of kernels and embeddings, not of
    norms and biases (`is_decayed`). clip_norm: gradients are scaled down to this norm over all parameters (Pascanu et
    al. 2012, arXiv 1211.5063); null leaves them alone.
    """

    learning_rate: float = 1e-3
    beta_1: float = 0.9
    beta_2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        positive = {"learning_rate": self.learning_rate, "epsilon": self.epsilon}
        if self.clip_norm is not None:
            positive["clip_norm"] = self.clip_norm
        for name, value in positive.items():
            if not 0.0 < value < math.inf:
                message = f"optimizer.{name} is {value}; it must be greater than 0."
                raise ConfigurationError(message)
        for name in ("beta_1", "beta_2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                message = f"optimizer.{name} is {getattr(self, name)}; it must be at least 0 and below 1."
                raise ConfigurationError(message)
        if not 0.0 <= self.weight_decay < math.inf:
            message = f"optimizer.weight_decay is {self.weight_decay}; it must not be negative."
            raise ConfigurationError(message)

    def begin(self, ops: Any, params: Tree) -> dict[str, Tree]:
        """The moments before the first step: zeros."""
        return {
            moment: {name: ops.zeros(tuple(array.shape)) for name, array in params.items()}
            for moment in ("first", "second")
        }

    def rates(self, step: int, share: float) -> np.ndarray:
        """The numbers that change from step to step (from 1), for `update`: float64 [3], computed on the host.

        The learning rate, and the two corrections for moments that began at zero.
        """
        return np.array([self.learning_rate * share, 1 / (1 - self.beta_1**step), 1 / (1 - self.beta_2**step)])

    def update(
        self, ops: Any, params: Tree, gradients: Tree, moments: dict[str, Tree], rates: Any
    ) -> tuple[Tree, dict[str, Tree], Any]:
        """One step: (new params, new moments, the norm of the gradients before clipping).

        Gradients that are not finite leave params and moments as they are; the norm then says so.
        """
        xp = ops.xp
        norm = global_norm(ops, gradients)
        good = xp.isfinite(norm)
        clip = 1.0 if self.clip_norm is None else xp.clip(self.clip_norm / (norm + 1e-6), None, 1.0)
        rate, correct_1, correct_2 = rates[0], rates[1], rates[2]
        new: Tree = {}
        first: Tree = {}
        second: Tree = {}
        for name, gradient in gradients.items():
            gradient = gradient * clip
            m = self.beta_1 * moments["first"][name] + (1.0 - self.beta_1) * gradient
            v = self.beta_2 * moments["second"][name] + (1.0 - self.beta_2) * (gradient * gradient)
            change = (m * correct_1) / (xp.sqrt(v * correct_2) + self.epsilon)
            if self.weight_decay and is_decayed(name, gradient.ndim):
                change = change + self.weight_decay * params[name]
            new[name] = xp.where(good, params[name] - rate * change, params[name])
            first[name] = xp.where(good, m, moments["first"][name])
            second[name] = xp.where(good, v, moments["second"][name])
        return new, {"first": first, "second": second}, norm


def is_decayed(name: str, axes: int) -> bool:
    """Whether weight decay touches a parameter: no norm and no bias, also not those of experts, which have two axes."""
    return axes > 1 and not name.endswith((".bias", ".offset", ".weight"))


def global_norm(ops: Any, tree: Tree) -> Any:
    """The square root of the sum of all squares: a scalar array.

    In the order of the names: a tree that comes from a checkpoint has another order than a new one, and the last bit of
    a float32 sum depends on it.
    """
    return ops.xp.sqrt(sum(ops.xp.sum(tree[name] * tree[name]) for name in sorted(tree)))


def moving_average(average: Tree, params: Tree, decay: Any) -> Tree:
    """decay * average + (1 - decay) * params (Polyak and Juditsky 1992 in its exponential form)."""
    return {name: decay * average[name] + (1.0 - decay) * array for name, array in params.items()}
