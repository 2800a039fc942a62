"""The learning rate over a run: for each step a share of the peak, from 0 to 1. Each schedule begins with a warm-up.

`share(step, steps)` is asked for step = 1 ... steps. No share of a step is 0 unless it was asked for, since such a step
would change nothing: the first after the warm-up has the peak, and the end of a fall is reached after the last step. So
do torch's and transformers' schedules, which count steps from 0. A schedule knows nothing of optimizers.
"""

import math
from dataclasses import dataclass

from transformer_lab.errors import ConfigurationError


@dataclass(frozen=True)
class Schedule:
    """Rises linearly over `warmup_steps` steps, then stays at the peak. The other schedules fall after it.

    final_share: where the fall ends, one step after the last, as a share of the peak.
    """

    warmup_steps: int = 100
    final_share: float = 0.1

    def __post_init__(self) -> None:
        if self.warmup_steps < 0:
            message = f"schedule.warmup_steps is {self.warmup_steps}; it must not be negative."
            raise ConfigurationError(message)
        if not 0.0 <= self.final_share <= 1.0:
            message = f"schedule.final_share is {self.final_share}; it must be from 0 to 1."
            raise ConfigurationError(message)

    def share(self, step: int, steps: int) -> float:
        if step <= self.warmup_steps:
            return step / self.warmup_steps
        falls = max(1.0, self.fall(steps))
        done = 1.0 - (steps - step + 1) / falls  # 0 at the first step of the fall, 1 after the last
        return self.final_share + (1.0 - self.final_share) * self.falling(min(max(done, 0.0), 1.0))

    def fall(self, steps: int) -> float:
        """How many of the last steps fall: all after the warm-up."""
        return steps - self.warmup_steps

    def falling(self, done: float) -> float:
        """From 1 at done = 0 to 0 at done = 1, or 1 throughout."""
        return 1.0


@dataclass(frozen=True)
class Constant(Schedule):
    """The peak after the warm-up."""


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine down (Loshchilov and Hutter 2016, arXiv 1608.03983)."""

    def falling(self, done: float) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Linear(Schedule):
    """A straight line down."""

    def falling(self, done: float) -> float:
        return 1.0 - done


@dataclass(frozen=True)
class WarmupStableDecay(Linear):
    """The peak, and over the last `decay_share` of the run a straight line down (Hu et al. 2024, arXiv 2404.06395).

    The share is of all steps; where the warm-up leaves fewer, it is those.
    """

    decay_share: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.decay_share <= 1.0:
            message = f"schedule.decay_share is {self.decay_share}; it must be greater than 0 and at most 1."
            raise ConfigurationError(message)

    def fall(self, steps: int) -> float:
        return min(self.decay_share * steps, super().fall(steps))
