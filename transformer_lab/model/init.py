"""Random weights: drawn on the host from a seed, so that every backend starts from the same ones."""

import math
from collections.abc import Iterator

import numpy as np

from transformer_lab.model.config import ModelConfig
from transformer_lab.model.parameters import shapes
from transformer_lab.model.state import State

_INTO_THE_STREAM = ("attn.out.kernel", "ffn.down.kernel", "experts.down.kernel", "shared.down.kernel")


def initialise(config: ModelConfig, seed: int = 0, shaken: bool = False) -> Iterator[tuple[str, np.ndarray]]:
    """(dotted name, float32 array) for every parameter, one at a time.

    GPT-2's scheme (Radford et al. 2019): normal with standard deviation 0.02, that of the projections into the
    residual stream divided by sqrt(2 * num_layers); biases 0, norm weights 1. shaken: biases and norm weights are drawn
    around these, for comparisons; the others stay the same.
    """
    generator, shaking = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    residual = 0.02 / math.sqrt(2 * config.num_layers)
    for name, shape in shapes(config).items():
        if isinstance(shape, State):
            array = shape.begin()
        elif name.endswith((".bias", ".offset")):
            array = np.zeros(shape, np.float32)
        elif name.endswith(".weight"):
            array = np.ones(shape, np.float32)
        else:
            array = generator.standard_normal(shape, np.float32)
            array *= residual if name.endswith(_INTO_THE_STREAM) else 0.02
        if shaken and name.endswith((".bias", ".offset", ".weight")):
            # A router's bias decides who is chosen: so little of it that the tokens still decide, too.
            drawn = shaking.standard_normal(shape, np.float32)
            array = array + (0.001 if isinstance(shape, State) else 0.1) * drawn
        yield name, array
