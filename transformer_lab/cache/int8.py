"""A contiguous cache of 8 bits for each number: a quarter of the bytes. `cache=int8` builds it.

Symmetric, by the largest absolute number of a vector (Dettmers et al. 2022, arXiv 2208.07339, section 2): a scale for
each key or value of a token and a head, so that what is stored of a token hangs on nothing else.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from transformer_lab.cache.contiguous import Contiguous
from transformer_lab.cache.layer import Seen

LARGEST = 127
SMALLEST = 2.0**-126  # scale: the smallest normal number of float32


class Int8Rows(NamedTuple):
    """values int8 [B, K, S, N] and scales float32 [B, K, S, 1]: the number is values * scales."""

    values: Any
    scales: Any

    @classmethod
    def empty(cls, ops: Any, shape: tuple[int, ...]) -> "Int8Rows":
        values = ops.xp.zeros(shape, dtype=ops.xp.int8, device=ops.array_device)
        return cls(values, ops.zeros((*shape[:-1], 1)))

    @classmethod
    def encode(cls, ops: Any, x: Any) -> "Int8Rows":
        """scales: the largest of a vector / 127. One number that is not finite makes the whole vector so."""
        xp = ops.xp
        scales = xp.max(xp.abs(x), axis=-1, keepdims=True) / float(LARGEST)
        scales = xp.where(scales < SMALLEST, SMALLEST, scales)  # of smaller ones a quotient could be more than LARGEST
        steps = xp.round(x / scales)
        return cls(ops.cast(xp.where(steps == steps, steps, 0.0), xp.int8), scales)

    def decode(self, ops: Any) -> Any:
        return ops.cast(self.values, ops.float_dtype) * self.scales

    @classmethod
    def seen(cls, ops: Any, keys: "Int8Rows", values: "Int8Rows", tokens: int) -> Seen:
        """For one token the scales go with scores and pattern, which are N times fewer numbers than keys and values. In
        exact mode that would be another rounding than in a longer pass."""
        if tokens > 1 or ops.precision == "exact":
            return Seen(keys.decode(ops), values.decode(ops))
        return Seen(keys.values, values.values, scales=(keys.scales, values.scales))


@dataclass(frozen=True)
class Int8(Contiguous):
    """epsilon: half a step of 1 / 127, and the rounding of scale, quotient and product in float32."""

    stored: ClassVar[type[Any]] = Int8Rows

    @property
    def contract(self) -> str:
        return "bounded"

    @property
    def epsilon(self) -> float:
        return (0.5 + 2.0**-15) / LARGEST

    def rounding(self, x: np.ndarray) -> np.ndarray:
        return super().rounding(x) + LARGEST * SMALLEST  # what is below the smallest normal number may become 0
