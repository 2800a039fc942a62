"""From the scores of the chosen experts to their weights: the small steps that named routers are put together from."""

from typing import Any

TINY = 1e-20  # what is added to a sum of scores, so that a token whose scores are all 0 gets weights of 0


def at(ops: Any, scores: Any, ids: Any) -> Any:
    """Those of the chosen experts: scores [B, T, E], ids [B, T, k] -> [B, T, k]. Gradients go through."""
    return ops.xp.take_along_axis(scores, ids, axis=-1)


def renormalised(ops: Any, weights: Any, epsilon: float = 0.0) -> Any:
    """weights [B, T, k] over their sum, plus epsilon."""
    if epsilon:
        # A gradient divides by the sum's square, which float32 does not hold near 1e-20. A power of two changes no bit.
        weights, epsilon = weights * 2.0**40, epsilon * 2.0**40
    total = ops.xp.sum(weights, axis=-1, keepdims=True)
    return weights / (total + epsilon if epsilon else total)


def softplus(ops: Any, x: Any) -> Any:
    """log(1 + exp(x)), where x is large too."""
    xp = ops.xp
    return xp.maximum(x, 0.0) + xp.log1p(xp.exp(-xp.abs(x)))
