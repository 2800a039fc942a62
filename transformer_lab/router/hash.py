"""Hash layers (Roller et al. 2021, arXiv 2106.04426): a token's experts follow from its id, and nothing is learned.

The hash is one of a universal family (Carter and Wegman 1979), ((a id + b) mod p) mod E; each further slot takes one
of the experts that are left. All numbers stay below 2^31, so that it is the same on every backend.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from transformer_lab.errors import ConfigurationError
from transformer_lab.model.axes import Shape
from transformer_lab.model.limits import require_whole
from transformer_lab.router.router import Router

_PRIME = 32749  # the largest below 2^15


@dataclass(frozen=True)
class Hash(Router):
    """Every slot has the weight 1 / k. experts: E, how many the layer has. seed: which hash of the family."""

    balanced: ClassVar[tuple[str, ...]] = ()

    k: int = 1
    experts: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole("ffn.router.experts", self.experts, _PRIME)
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            message = f"ffn.router.seed is {self.seed!r}; it must be a whole number from 0."
            raise ConfigurationError(message)

    def slots(self, experts: int) -> int:
        if experts != self.experts:
            message = f"ffn.router.experts is {self.experts}, and the layer has {experts}; give both the same number."
            raise ConfigurationError(message)
        return super().slots(experts)

    def shapes(self, hidden_size: int, experts: int) -> dict[str, Shape]:
        return {}

    def logits(self, ops: Any, params: Any, x: Any, tap: Any, tokens: Any) -> Any:
        """[B, T, E]: 1 for the experts of a token, 0 for the others."""
        ids = self.choose(ops, params, None, {}, tokens)
        numbers = ops.xp.arange(self.experts, dtype=ids.dtype, device=ops.array_device)
        return ops.cast(ops.xp.any(ids[..., None] == numbers, axis=2), ops.float_dtype)

    def choose(self, ops: Any, params: Any, logits: Any, state: Any, tokens: Any) -> Any:
        """[B, T, k]: the first by the hash, each further one by a hash among the experts that are left."""
        draw = np.random.default_rng(self.seed)
        found: list[Any] = []
        for slot in range(self.k):
            a, b = int(draw.integers(1, _PRIME)), int(draw.integers(0, _PRIME))
            place = (tokens.ids % _PRIME * a + b) % _PRIME % (self.experts - slot)  # among those that are left
            if found:
                before = ops.xp.sort(ops.xp.stack(found, axis=-1), axis=-1)
                for earlier in range(slot):  # from the smallest number on, so that each taken one is stepped over
                    place = place + ops.cast(place >= before[..., earlier], place.dtype)
            found.append(place)
        return ops.xp.stack(found, axis=-1)

    def weigh(self, ops: Any, params: Any, logits: Any, ids: Any) -> Any:
        return ops.xp.take_along_axis(logits, ids, axis=-1) / self.k

    def probabilities(self, ops: Any, logits: Any) -> Any:
        return logits / self.k
