"""A slope by central differences, for holding a gradient against what knows nothing of gradients."""

from collections.abc import Callable

import numpy as np

STEP = 1e-5  # relative to the size of what is moved: their own error is some 1e-9 of the slope then,
FINER = 0.1  # and where the function is too curved for it, a step finer by this says how far they may be off


def contradicted(terms: Callable[[float], np.ndarray], gradient: float, step: float, slack: float) -> float | None:
    """The slope of sum(terms(x)) at x = 0 if it is farther than slack from the gradient; None if both agree.

    Differences are taken before the sum, so that a large sum does not swallow them.
    """

    def slope(step: float) -> float:
        return float(np.sum(terms(step) - terms(-step))) / (2.0 * step)

    coarse = slope(step)
    if abs(coarse - gradient) <= slack:
        return None
    fine = slope(FINER * step)
    return None if abs(fine - gradient) <= slack + abs(fine - coarse) else fine
