"""Rotary positions: their angles, computed once on the host (RoPE, Su et al. 2021, arXiv 2104.09864).

Applying it is the operation `rotary` of the backends. Learned positions need nothing but a row of a table.
"""

import numpy as np

from transformer_lab.model.config import ModelConfig


def rotary_angles(config: ModelConfig) -> np.ndarray:
    """float64 [C, N / 2]: position * base^(-2 i / N) for pair i.

    The pairs are the two halves of a head, (x[i], x[i + N / 2]), as published Llama checkpoints have them.
    """
    size = config.head_size or 0
    frequencies = config.rotary_base ** (-2.0 * np.arange(size // 2) / size)
    return np.arange(config.context_length)[:, None] * frequencies


def rotary_table(config: ModelConfig) -> dict[str, np.ndarray]:
    """{"cos", "sin"} of the angles, float64 [C, N / 2]."""
    angles = rotary_angles(config)
    return {"cos": np.cos(angles), "sin": np.sin(angles)}
