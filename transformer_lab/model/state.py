"""Parameters that are not learned: what lies beside the weights, is saved with them, and moves by a rule of its own.

The bias of a router that its balancer moves is one. No gradient, decay, clipping or averaging reaches it.
"""

from collections.abc import Mapping

import numpy as np

from transformer_lab.model.axes import Shape


class State(tuple[int, ...]):
    """The shape of such a parameter. In every other way it is the tuple."""

    def begin(self) -> np.ndarray:
        """What it begins as, in float32: zeros."""
        return np.zeros(self, np.float32)


def is_state(shape: Shape) -> bool:
    return isinstance(shape, State)


def without_states(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Those that are learned."""
    return {name: shape for name, shape in shapes.items() if not is_state(shape)}
