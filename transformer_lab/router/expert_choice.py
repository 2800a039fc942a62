"""Expert choice (Zhou et al. 2022, arXiv 2202.09368): each expert takes the tokens that score best with it.

All experts have the same load by construction, and a token may have none of them or all. Whether a token is taken hangs
on the tokens behind it, so a decoder that generates with it does something else than the one that was trained.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from transformer_lab.model.limits import require_positive
from transformer_lab.router.every_expert import EveryExpert


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
        xp, scores, (_, length, experts) = ops.xp, ops.softmax(logits), logits.shape
        real = None if tokens.real is None else tokens.real[:, :, None]
        if length * self.factor < experts:  # as in decoding, a token at a time
            best = min(experts, max(1, round(self.factor)))
            chosen = _rank(ops, scores, axis=-1) < best
            return chosen if real is None else chosen & real
        scores = scores if real is None else xp.where(real, scores, -1.0)
        rank = _rank(ops, scores, axis=1)
        if real is None:
            return rank < -int(-self.factor * length // experts)
        count = xp.sum(ops.cast(real, ops.index_dtype), axis=1, keepdims=True)  # [B, 1, 1], of the real tokens
        places = ops.asarray([-int(-self.factor * tokens_of_row // experts) for tokens_of_row in range(length + 1)])
        return (rank < xp.take(places, xp.reshape(count, (-1,)), axis=0)[:, None, None]) & real


def _rank(ops: Any, scores: Any, axis: int) -> Any:
    """How many are before each along the axis, the largest first, ties by the lower index."""
    order = ops.xp.argsort(scores, axis=axis, descending=True, stable=True)
    return ops.xp.argsort(order, axis=axis, stable=True)
