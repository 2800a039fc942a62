"""Random weights for a configuration, large enough that nothing is near its rounding by chance."""

import numpy as np

from transformer_lab.model.parameters import shapes


def random_arrays(config, seed, size):
    """dotted name -> float32 array: normal with deviation `size`, norm weights around 1."""
    generator = np.random.default_rng(seed)
    arrays = {}
    for name, shape in shapes(config).items():
        array = generator.standard_normal(shape) * size
        arrays[name] = (array + 1.0 if name.endswith(".weight") else array).astype(np.float32)
    return arrays
