"""Learned positions: a row for each is added to the embedding. `position=learned` builds it."""

from dataclasses import dataclass
from typing import Any, ClassVar

from transformer_lab.errors import ConfigurationError, shown
from transformer_lab.model.axes import Axis, Shape
from transformer_lab.model.limits import LIMITS


@dataclass(frozen=True)
class Learned:
    """As in GPT-2 (Radford et al. 2019). skipped: rows at the beginning of the table that are no position's (OPT)."""

    in_attention: ClassVar[bool] = False

    skipped: int = 0

    def __post_init__(self) -> None:
        if type(self.skipped) is not int or not 0 <= self.skipped <= LIMITS["context_length"]:
            message = f"position.skipped is {shown(self.skipped)}; it must be a whole number of at least 0."
            raise ConfigurationError(message)

    def shape(self, context_length: int, hidden_size: int) -> Shape:
        """That of the table, which is called `embed.position`."""
        return (context_length + self.skipped, Axis(hidden_size, "embed"))

    def __call__(self, ops: Any, table: Any, positions: Any) -> Any:
        """table [C + skipped, D], positions [B, T] -> what is added to the embedding, [B, T, D]."""
        return ops.embed(table, positions + self.skipped if self.skipped else positions)
