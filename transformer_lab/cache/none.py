"""No cache: every token is computed from the whole text before it. Slow and obvious: the judge of the others."""

from dataclasses import dataclass
from typing import Any

from transformer_lab.cache.policy import CachePolicy
from transformer_lab.model.config import ModelConfig


@dataclass(frozen=True)
class NoCache(CachePolicy):
    """It is what `cache=none` builds; decoding then runs the whole sequence again for each token."""

    def allocate(self, ops: Any, config: ModelConfig, batch: int, capacity: int) -> None:
        return None
