"""Expert choice (Zhou et al. 2022, arXiv 2202.09368): each expert takes the tokens that score best with it.

All experts have the same load by construction, and a token may have none of them or all. Whether a token is taken hangs
on the tokens behind it, so a decoder that generates with it does something else than the one that was trained.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from transformer_lab.model.limits import require_positive
from transformer_lab.router.every_expert import EveryExpert
from transformer_lab.router.room import as_written, room


@dataclass(frozen=True)
class ExpertChoice(EveryExpert):
    """Of a sequence of T tokens each of E experts takes ceil(factor * T / E), by the softmax over experts.

    factor: how many experts a token has in the mean. Padding is never taken.
    """

    causal: ClassVar[bool] = False
    decoding: ClassVar[str | None] = (
        "of a piece of text that is fed by itself each expert chooses by itself; where there are fewer places than "
        "experts, each token takes its best"
    )

    factor: float = 2.0

    def __post_init__(self) -> None:
        require_positive("ffn.router.factor", self.factor)

    def kept(self, ops: Any, logits: Any, ids: Any, state: Any, tokens: Any) -> Any:
        """What is padding decides nothing, not even whether a row has few tokens: else the same text would have other
        experts where rows are padded to another length."""
        xp, scores, (_, length, experts) = ops.xp, ops.softmax(logits), logits.shape
        real = None if tokens.real is None else tokens.real[:, :, None]
        most = self._places(length, experts)
        few = most is None
        if few or real is not None:
            best = _rank(ops, scores, axis=-1) < min(experts, max(1, round(self.factor)))
        if few:  # in every row, as in decoding, a token at a time
            return best if real is None else best & real
        if real is None:
            return _rank(ops, scores, axis=1) < most
        rank = _rank(ops, xp.where(real, scores, -1.0), axis=1)
        count = xp.sum(ops.cast(tokens.real, ops.index_dtype), axis=1)  # [B]
        places = np.array([self._places(number, experts) or 0 for number in range(length + 1)])  # by the real tokens
        own = xp.take(ops.asarray(places), count, axis=0)[:, None, None]
        return xp.where(own == 0, best, rank < own) & real

    def _places(self, count: int, experts: int) -> int | None:
        """Of so many tokens each expert takes this many; None where there are fewer places than experts."""
        return None if as_written(self.factor) * count < experts else room(self.factor, count, experts)


def _rank(ops: Any, scores: Any, axis: int) -> Any:
    """How many are before each along the axis, the largest first, ties by the lower index."""
    order = ops.xp.argsort(scores, axis=axis, descending=True, stable=True)
    return ops.xp.argsort(order, axis=axis, stable=True)
