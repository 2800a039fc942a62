"""Which hits are computed again to see whether they are right, and what came of it. Raising is up to the caller."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from transformer_lab.tiers.block import Arrays


@dataclass
class Outcome:
    """Of one tier; `largest` is the largest absolute difference that was seen."""

    checked: int = 0
    agreed: int = 0
    largest: float = 0.0


@dataclass
class Shadow:
    """`share` of all lookups, from 0 to 1. For one thread.

    `bounds` gives, by tier, the largest absolute difference that is in order; the contract of a tier that is not named
    there is "exact": the same bits.
    """

    share: float
    seed: int = 0
    bounds: Mapping[str, float] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def chosen(self, lookup: int) -> bool:
        """Whether this lookup, by its number, is to be computed again: always the same answer."""
        digest = hashlib.sha256(f"{self.seed}:{lookup}".encode()).digest()
        return int.from_bytes(digest[:8], "little") < self.share * 2**64

    def record(self, tier: str, kept: Arrays, computed: Arrays) -> bool:
        """Compares, notes the outcome, and says whether the contract holds."""
        outcome = self.outcomes.setdefault(tier, Outcome())
        agreed, largest = _alike(kept, computed, self.bounds.get(tier))
        outcome.checked += 1
        outcome.agreed += agreed
        outcome.largest = max(outcome.largest, largest)
        return agreed


def _alike(kept: Arrays, computed: Arrays, bound: float | None) -> tuple[bool, float]:
    if kept.keys() != computed.keys():
        return False, float("inf")
    exact, largest = True, 0.0
    for name, one in kept.items():
        other = computed[name]
        if one.shape != other.shape or one.dtype != other.dtype:
            return False, float("inf")
        if one.tobytes() == other.tobytes():
            continue
        exact = False
        with np.errstate(invalid="ignore"):  # infinity less infinity
            off = float(np.max(np.abs(one.astype(np.float64) - other.astype(np.float64))))
        largest = max(largest, off if off == off else float("inf"))  # NaN agrees with nothing
    return (exact if bound is None else largest <= bound), largest
