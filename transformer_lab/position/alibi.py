"""ALiBi: no positions, but scores that fall with the distance. `position=alibi` builds it."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from transformer_lab.backends.plain.manual import by_query


@dataclass(frozen=True)
class Alibi:
    """Attention with linear biases (Press et al. 2021, arXiv 2108.12409): slope * key's position is added to a score.

    The distance itself would change each score of a query by the same number, and so nothing.
    """

    in_attention: ClassVar[bool] = True

    def slopes(self, heads: int) -> np.ndarray:
        """float64 [H]: 2^(-8 h / H) for h from 1, if H is a power of two; between two powers the steps of the next."""
        power = 2 ** math.floor(math.log2(heads))
        first = 2.0 ** (-8.0 * np.arange(1, power + 1) / power)
        between = 2.0 ** (-4.0 * np.arange(1, 2 * (heads - power), 2) / power)
        return np.concatenate([first, between])

    def bias(self, ops: Any, heads: int, keys: int, places: Any = None) -> Any:
        """[1, H, 1, S], which is added to scores [B, H, T, S]; [B, H, 1, S] for keys at positions places [B, S],
        [B, H, T, S] if these differ by query, [B, T, S]."""
        if places is not None:
            slopes = ops.asarray(self.slopes(heads).astype(np.float32))
            return slopes[None, :, None, None] * ops.cast(by_query(places), ops.float_dtype)[:, None, ...]
        found = self.slopes(heads)[:, None].astype(np.float32) * np.arange(keys, dtype=np.float32)
        return ops.asarray(found[None, :, None, :])
