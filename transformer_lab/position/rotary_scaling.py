"""Rotary angles stretched, so that a model reads longer texts than it was trained on: the `scaling` of `Rotary`.

Each gives `stretched(frequencies, base)`, float64 [size / 2] (angle per position) to the same, and `length`, the factor
that cosines and sines get, and with its square the scores.
"""

import math
from dataclasses import dataclass

import numpy as np

from transformer_lab.errors import ConfigurationError
from transformer_lab.model.limits import require_positive


@dataclass(frozen=True)
class Linear:
    """Position p is read as p / factor (Chen et al. 2023, arXiv 2306.15595)."""

    factor: float
    length: float = 1.0

    def __post_init__(self) -> None:
        for name in ("factor", "length"):
            require_positive(f"position.scaling.{name}", getattr(self, name))

    def stretched(self, frequencies: np.ndarray, base: float) -> np.ndarray:
        return frequencies / self.factor


@dataclass(frozen=True)
class Llama3:
    """Slow pairs are divided by factor, fast ones stay, between them it is blended (Grattafiori et al. 2024,
    arXiv 2407.21783). trained_length: the context of the training before; fast are those that turn more than
    high times in it, slow those that turn less than low times.
    """

    factor: float
    low: float
    high: float
    trained_length: int
    length: float = 1.0

    def __post_init__(self) -> None:
        for name in ("factor", "low", "high", "trained_length", "length"):
            require_positive(f"position.scaling.{name}", getattr(self, name))
        if not self.low < self.high:
            message = f"position.scaling.low is {self.low}, which is not below high, {self.high}."
            raise ConfigurationError(message)

    def stretched(self, frequencies: np.ndarray, base: float) -> np.ndarray:
        turns = self.trained_length * frequencies / (2.0 * math.pi)
        kept = np.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)  # the share that stays as it is
        return frequencies * (kept + (1.0 - kept) / self.factor)


@dataclass(frozen=True)
class Yarn:
    """YaRN (Peng et al. 2023, arXiv 2309.00071): pairs that turn more than fast times in trained_length stay, those
    below slow are divided by factor, by a ramp over the pairs' numbers in between. length: 0.1 ln(factor) + 1 in the
    paper. whole: the ends of the ramp are rounded to whole pairs.
    """

    factor: float
    trained_length: int
    fast: float = 32.0
    slow: float = 1.0
    length: float = 1.0
    whole: bool = True

    def __post_init__(self) -> None:
        for name in ("factor", "trained_length", "fast", "slow", "length"):
            require_positive(f"position.scaling.{name}", getattr(self, name))
        for name in ("fast", "slow"):
            if not 1e-6 <= getattr(self, name) <= 1e6:
                message = f"position.scaling.{name} is {getattr(self, name)}; it must be from 1e-6 to 1e6."
                raise ConfigurationError(message)

    def stretched(self, frequencies: np.ndarray, base: float) -> np.ndarray:
        pairs = len(frequencies)

        def pair_that_turns(times: float) -> float:
            return pairs * math.log(self.trained_length / (2.0 * math.pi * times)) / math.log(base)

        first, last = pair_that_turns(self.fast), pair_that_turns(self.slow)
        if self.whole:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * pairs - 1)
        last = last + 0.001 if first == last else last  # as in the authors' code
        stretched = np.clip((np.arange(pairs) - first) / (last - first), 0.0, 1.0)
        return frequencies * ((1.0 - stretched) + stretched / self.factor)


@dataclass(frozen=True)
class LongRope:
    """A divisor for each pair (Ding et al. 2024, arXiv 2402.13753). divisors: as many as there are pairs.

    trained_length: how long a text may be, because all of a longer one would have to be turned by others; None is any.
    """

    divisors: tuple[float, ...]
    length: float = 1.0
    trained_length: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "divisors", tuple(self.divisors))
        for divisor in (*self.divisors, self.length):
            require_positive("position.scaling.divisors", divisor)

    def stretched(self, frequencies: np.ndarray, base: float) -> np.ndarray:
        if len(self.divisors) != len(frequencies):
            message = f"position.scaling.divisors are {len(self.divisors)}; there are {len(frequencies)} rotary pairs."
            raise ConfigurationError(message)
        return frequencies / np.array(self.divisors)
