"""Learned positions: a row for each is added to the embedding. `position=learned` builds it."""

from dataclasses import dataclass
from typing import Any, ClassVar

from transformer_lab.model.axes import Axis, Shape


@dataclass(frozen=True)
class Learned:
    """As in GPT-2 (Radford et al. 2019). skipped: rows at the beginning of the table that are no position's (OPT)."""

    in_attention: ClassVar[bool] = False

    skipped: int = 0

    def shape(self, context_length: int, hidden_size: int) -> Shape:
        """That of the table, which is called `embed.position`."""
        return (context_length + self.skipped, Axis(hidden_size, "embed"))

    def __call__(self, ops: Any, table: Any, positions: Any) -> Any:
        """table [C + skipped, D], positions [B, T] -> what is added to the embedding, [B, T, D]."""
        return ops.embed(table, positions + self.skipped if self.skipped else positions)
