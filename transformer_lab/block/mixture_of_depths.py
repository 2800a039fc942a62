"""A mixture of depths: some tokens go through the block, the others pass it by. `block=mixture_of_depths` builds it.

Raposo et al. 2024, arXiv 2404.02258. Which block the chosen tokens go through is not its affair: any other will do.
B batch, T tokens, D hidden size, R the most: how many tokens are computed of each sequence.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from transformer_lab.backends.plain.manual import identity
from transformer_lab.block.sequential import Sequential
from transformer_lab.errors import ConfigurationError, shown
from transformer_lab.model.axes import Shape
from transformer_lab.model.limits import require_part
from transformer_lab.model.outside_part import OutsidePart
from transformer_lab.model.tokens import Tokens
from transformer_lab.router.gates import softplus
from transformer_lab.router.room import room

_SEQUENTIAL = Sequential(None, None, None)


@dataclass(frozen=True)
class MixtureOfDepths:
    """x + score * (inner(x) - x) for the chosen tokens, x for the others, with score = x w (equation 1: what the block
    adds to the stream is multiplied by the score itself, neither squashed nor renormalised, so that w has a gradient).

    inner: the block that chosen tokens go through, with attention, ffn and norm of this one. They see each other alone,
    in their order, and keep their own positions: rotary angles are theirs, but a window and ALiBi count chosen tokens.

    Which are chosen: of a sequence that is there as a whole the ceil(capacity * T) best scores (T without padding, of
    equal ones the first), which hangs on what is behind a token. Over a cache, as in generation, each token with
    score > 0, that is sigmoid(score) > 0.5, which hangs on the token alone. selection_loss times the binary
    cross-entropy between the two is added to the loss in training, so that they come to agree: the first of the paper's
    two ways to sample. The coefficient is ours.

    As a whole only the chosen tokens are computed; over a cache all are, as a fixed shape asks for.
    """

    same_in_pieces: ClassVar[bool] = False  # `model/causality.py`
    chooses_tokens: ClassVar[bool] = True  # the cache keeps which
    taps: ClassVar[tuple[str, ...]] = ("router.scores", "router.chosen", "inner.out", "resid_post")

    attention: Any
    ffn: Any
    norm: Any
    capacity: float = 0.125
    selection_loss: float = 0.1
    inner: Any = _SEQUENTIAL

    def __post_init__(self) -> None:
        if isinstance(self.capacity, bool) or not isinstance(self.capacity, (int, float)) or not 0 < self.capacity <= 1:
            message = (
                f"block.capacity is {shown(self.capacity)}; it must be a share of the tokens, above 0 and at most 1."
            )
            raise ConfigurationError(message)
        loss = self.selection_loss
        if isinstance(loss, bool) or not isinstance(loss, (int, float)) or not 0.0 <= loss < math.inf:
            message = f"block.selection_loss is {shown(loss)}; it must be a number that is not negative."
            raise ConfigurationError(message)
        if not isinstance(self.ffn, OutsidePart) and hasattr(self.ffn, "training_terms"):
            message = (
                f"ffn is {type(self.ffn).__name__}, which adds to the loss of training; inside of a mixture of depths "
                "no network can. Choose another one, such as ffn=dense, or another block for this layer."
            )
            raise ConfigurationError(message)
        if not isinstance(self.inner, OutsidePart):
            how = "In Python it is a block without parts, such as Parallel(None, None, None)."
            require_part("block.inner", self.inner, ("shapes", "attention"), how)
            # its parts are ours, so that equal blocks are equal
            object.__setattr__(self, "inner", replace(self.inner, attention=None, ffn=None, norm=None))

    @property
    def _block(self) -> Any:
        return replace(self.inner, attention=self.attention, ffn=self.ffn, norm=self.norm)

    def shapes(self, hidden_size: int) -> dict[str, Shape]:
        """The parameters below `blocks.{i}`: those of the inner block, and the w of the scores. It is no kernel: it is
        float32 in every precision, because scores of fewer bits choose other tokens."""
        shapes: dict[str, Shape] = {"router.gate": (hidden_size, 1)}
        return shapes | self._block.shapes(hidden_size)

    def __call__(
        self, ops: Any, params: Any, x: Any, tokens: Tokens, cache: Any, tap: Callable[[str, Any], Any]
    ) -> tuple[Any, Any]:
        """x [B, T, D] -> ([B, T, D], the layer's cache).

        Taps: router.scores [B, T]; router.chosen, booleans [B, T] (if more are forced than there is room for, the first
        ones count); inner.out [B, T, D], what the inner block adds to the stream, before it is multiplied, and 0 for
        tokens that are not chosen; resid_post [B, T, D].
        """
        xp, (batch, length, width), whole = ops.xp, x.shape, cache is None
        scores = xp.reshape(xp.matmul(xp.reshape(x, (-1, width)), params["router"]["gate"]), (batch, length))
        scores = tap("router.scores", scores)
        chosen = tap("router.chosen", (self._best if whole else self._positive)(ops, scores, tokens))
        before = xp.zeros_like(tokens.start)
        if not whole:
            cache, before = cache.choose(ops, chosen, tokens.start)
        most = room(self.capacity, length) if whole else length
        number = ops.cast(chosen, ops.index_dtype)
        # The chosen tokens first, in their order. What stands behind them is computed in vain: it is as padding.
        order = xp.argsort(1 - number, axis=-1, stable=True)[:, :most]  # [B, R]
        given = _at(ops, x, order)
        inside = self._inside(ops, tokens, chosen, order, before)
        out, kept = self._block(ops, params, given, inside, None if whole else cache.layer, identity)
        cache = None if whole else cache._replace(layer=kept)
        place = xp.cumulative_sum(number, axis=-1) - 1  # [B, T], where in the order a chosen token stands
        added = _at(ops, out - given, xp.clip(place, 0, most - 1))
        added = tap("inner.out", xp.where((chosen & (place < most))[..., None], added, 0.0))
        return tap("resid_post", x + scores[..., None] * added), cache

    def _best(self, ops: Any, scores: Any, tokens: Tokens) -> Any:
        """Which tokens of a whole sequence are chosen: scores [B, T] -> booleans [B, T]."""
        xp, length = ops.xp, scores.shape[1]
        if tokens.real is not None:
            scores = xp.where(tokens.real, scores, -xp.inf)
        order = xp.argsort(scores, axis=-1, descending=True, stable=True)
        rank = xp.argsort(order, axis=-1, stable=True)
        if tokens.real is None:
            return rank < room(self.capacity, length)
        real = xp.sum(ops.cast(tokens.real, ops.index_dtype), axis=-1)  # [B]
        rooms = [room(self.capacity, count) for count in range(length + 1)]
        return rank < xp.take(ops.asarray(rooms), real, axis=0)[:, None]

    def _positive(self, ops: Any, scores: Any, tokens: Tokens) -> Any:
        """Which tokens are chosen by themselves: scores [B, T] -> booleans [B, T]."""
        return scores > 0.0 if tokens.real is None else (scores > 0.0) & tokens.real

    def _inside(self, ops: Any, tokens: Tokens, chosen: Any, order: Any, before: Any) -> Tokens:
        """The tokens of the inner block, at order [B, R]; before [B]: how many chosen ones of each row came before."""
        at = ops.xp.take_along_axis
        angles = tokens.angles and tuple(_at(ops, part, order) for part in tokens.angles)
        return Tokens(
            at(tokens.ids, order, axis=-1),
            before,
            at(tokens.positions, order, axis=-1),
            at(chosen, order, axis=-1),
            angles,
        )

    def training_terms(
        self, ops: Any, state: Any, taps: Mapping[str, Any], share: Any, of_step: Any
    ) -> tuple[Any, dict[str, Any]]:
        """(what is added to the loss, what is told): as of a mixture of experts, from this block's own taps.

        Sums over tokens. Whole numbers: "tokens"; "chosen"; "agreeing", tokens of which both rules say the same.
        "selection", of each token its share: the binary cross-entropy.
        """
        xp, scores, chosen = ops.xp, taps["router.scores"], taps["router.chosen"]
        # -log sigmoid(score) where it is chosen, -log(1 - sigmoid(score)) where not
        entropy = softplus(ops, xp.where(chosen, -scores, scores))
        selection = xp.sum(entropy * share)
        real = share > 0.0

        def count(which: Any) -> Any:
            return xp.sum(ops.cast(which & real, share.dtype))

        told = {"tokens": count(real), "chosen": count(chosen), "agreeing": count(chosen == (scores > 0.0))}
        return self.selection_loss * selection, told | {"selection": selection}


def _at(ops: Any, x: Any, order: Any) -> Any:
    """The rows order [B, R] of x [B, T, N] -> [B, R, N]."""
    index = ops.xp.broadcast_to(order[..., None], (*order.shape, x.shape[-1]))
    return ops.xp.take_along_axis(x, index, axis=1)
