"""The experts of a token from a table (hash layers, Roller et al. 2021, arXiv 2106.04426; DeepSeek-V4's first layers).

What a token is decides who is asked, so nothing can collapse; how much each expert weighs is still learned, as in V4.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from transformer_lab.model.axes import Shape
from transformer_lab.model.limits import LIMITS, require_whole
from transformer_lab.model.state import State
from transformer_lab.router.deepseek_v4 import DeepSeekV4


class Rows(State):
    """The shape [V, k] of a table of E experts. It begins with the experts dealt out, one after the other."""

    experts: int

    def begin(self) -> np.ndarray:
        rows, slots = self
        return (np.arange(rows * slots).reshape(rows, slots) % self.experts).astype(np.float32)


@dataclass(frozen=True)
class Table(DeepSeekV4):
    """The experts of token id i are the row i modulo `vocab_size`, k whole numbers that differ, kept as floats."""

    renormalises: ClassVar[bool] = False  # they are, but with k = 1 there is nothing that it had to learn

    balanced: ClassVar[tuple[str, ...]] = ()

    vocab_size: int = 50257

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole("ffn.router.vocab_size", self.vocab_size, LIMITS["vocab_size"])

    def shapes(self, hidden_size: int, experts: int) -> dict[str, Shape]:
        rows = Rows((self.vocab_size, self.k))
        rows.experts = experts
        return super().shapes(hidden_size, experts) | {"table": rows}

    def choose(self, ops: Any, params: Any, logits: Any, state: Any, tokens: Any) -> Any:
        """In the order of the row."""
        return ops.cast(ops.embed(params["table"], tokens.ids % self.vocab_size), ops.index_dtype)
