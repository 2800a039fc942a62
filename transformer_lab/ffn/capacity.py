"""How many tokens an expert takes, and who comes first: what is too much is dropped (GShard, arXiv 2006.16668)."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from transformer_lab.model.limits import require_choice, require_positive
from transformer_lab.model.tokens import Tokens
from transformer_lab.router.room import room

ORDERS = ("token", "choice", "priority")
SCOPES = ("sequence", "batch")


@dataclass(frozen=True)
class Capacity:
    """An expert takes ceil(factor * k * T / E) of the slots of T tokens: of each sequence, or of the whole batch.

    order: "token", the slots of earlier tokens first (Megatron, MaxText); "choice", all first choices, then all second
    ones (GShard); "priority", choice by choice, tokens with larger weights first (Riquelme et al. 2021, arXiv
    2106.05974). Padding takes nothing and is not counted in T.
    """

    factor: float = 1.25
    order: str = "token"
    scope: str = "sequence"

    def __post_init__(self) -> None:
        require_positive("ffn.capacity.factor", self.factor)
        require_choice("ffn.capacity.order", self.order, ORDERS)
        require_choice("ffn.capacity.scope", self.scope, SCOPES)

    @property
    def causality(self) -> str:
        """In words, whether the experts of a token hang on what is behind it."""
        if self.order != "token":
            return "sees the future: later tokens can take the place of earlier ones"
        rows = ", but for rows of a batch, of which earlier ones come first" if self.scope == "batch" else ""
        return f"causal at a given length{rows}: a longer text has room for more"

    def most(self, batch: int, length: int, slots: int, experts: int) -> int:
        """No expert takes more, whatever the padding."""
        tokens = length if self.scope == "sequence" else batch * length
        rows = batch if self.scope == "sequence" else 1
        return rows * int(self._rooms(tokens, slots, experts)[-1])

    def kept(self, ops: Any, ids: Any, given: Any, weights: Any, experts: int, tokens: Tokens) -> Any:
        """ids and weights [B, T, k], the best first; given: the slots that are asked for, booleans [B, T, k] or None ->
        those that are kept."""
        xp, (batch, length, slots) = ops.xp, ids.shape
        real = xp.ones(ids.shape[:2], dtype=xp.bool, device=ops.array_device) if tokens.real is None else tokens.real
        asked = xp.broadcast_to(real[:, :, None], ids.shape) if given is None else given & real[:, :, None]
        form = (batch, length) if self.scope == "sequence" else (1, batch * length)
        real, asked = xp.reshape(real, form), xp.reshape(asked, (*form, slots))
        numbers = xp.arange(experts, dtype=ids.dtype, device=ops.array_device)
        # S scopes of N tokens: [S, N, k, E]
        wanted = (xp.reshape(ids, (*form, slots))[..., None] == numbers) & asked[..., None]
        if self.order == "priority":
            largest = xp.where(real, xp.reshape(weights[..., 0], form), -1.0)
            order = xp.argsort(largest, axis=-1, descending=True, stable=True)  # [S, N]
            wanted = _rows_at(ops, wanted, order)
        counted = ops.cast(wanted, ops.index_dtype)
        if self.order == "token":
            in_order = xp.reshape(counted, (form[0], -1, experts))
            before = xp.reshape(xp.cumulative_sum(in_order, axis=1) - in_order, counted.shape)
        else:
            in_order = xp.reshape(xp.permute_dims(counted, (0, 2, 1, 3)), (form[0], -1, experts))
            before = xp.cumulative_sum(in_order, axis=1) - in_order
            before = xp.permute_dims(xp.reshape(before, (form[0], slots, form[1], experts)), (0, 2, 1, 3))
        tokens_of_each = xp.sum(ops.cast(real, ops.index_dtype), axis=-1)  # [S]
        room = xp.take(ops.asarray(self._rooms(form[1], slots, experts)), tokens_of_each, axis=0)
        kept = xp.any(wanted & (before < room[:, None, None, None]), axis=-1)
        if self.order == "priority":
            kept = _rows_at(ops, kept, xp.argsort(order, axis=-1, stable=True))
        return xp.reshape(kept, ids.shape)

    def _rooms(self, longest: int, slots: int, experts: int) -> np.ndarray:
        """ceil(factor * k * T / E) for each T from 0 to the longest: on the host, the same for every backend."""
        return np.array([room(self.factor, slots * count, experts) for count in range(longest + 1)])


def _rows_at(ops: Any, x: Any, order: Any) -> Any:
    """x [S, N, ...] with its rows along the second axis in the order [S, N]."""
    index = ops.xp.reshape(order, (*order.shape, *(1,) * (x.ndim - 2)))
    return ops.xp.take_along_axis(x, ops.xp.broadcast_to(index, x.shape), axis=1)
