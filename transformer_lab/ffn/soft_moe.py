"""Soft mixtures of experts (Puigcerver et al. 2023, arXiv 2308.00951): experts compute mixtures of tokens, not tokens.

Each expert has slots; what comes into a slot is an average of all tokens of a sequence, and each token gets an average
of what comes out of all slots. Nothing is chosen and nothing dropped, and nothing is causal: it is for encoders, or for
seeing what a choice costs. S slots of each of E experts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from transformer_lab.ffn.dispatch import dispatched
from transformer_lab.model.axes import Shape
from transformer_lab.model.limits import LIMITS, require_whole
from transformer_lab.model.tokens import Tokens


@dataclass(frozen=True)
class SoftMixture:
    """logits = x Phi [B, T, E S]; dispatch = softmax over tokens, combine = softmax over slots; y = combine
    f(dispatch^T x), equations 1 to 3. experts: an `Experts`. slots: S. Padding gives nothing to any slot.
    """

    sees_tokens: ClassVar[bool] = True
    same_in_pieces: ClassVar[bool] = False  # slots are filled from what is fed, and from nothing before it
    taps: ClassVar[tuple[str, ...]] = ("router.logits", "router.dispatch", "router.combine", "experts.out")

    experts: Any
    slots: int = 1

    def __post_init__(self) -> None:
        require_whole("ffn.slots", self.slots, LIMITS["num_experts"])

    def shapes(self, hidden_size: int) -> dict[str, Shape]:
        """The parameters below `blocks.{i}.ffn`."""
        experts = {f"experts.{name}": shape for name, shape in self.experts.shapes(hidden_size).items()}
        return {"router.gate": (hidden_size, self.experts.count * self.slots)} | experts

    def __call__(self, ops: Any, params: Any, x: Any, tap: Callable[[str, Any], Any], tokens: Tokens) -> Any:
        """x [B, T, D] -> [B, T, D]. Taps: router.logits, router.dispatch and router.combine [B, T, E S]; experts.out
        [B, T, D], already combined."""
        xp, (batch, length, width) = ops.xp, x.shape
        logits = xp.matmul(xp.reshape(x, (-1, width)), params["router"]["gate"])
        logits = tap("router.logits", xp.reshape(logits, (batch, length, -1)))
        by_slot = xp.matrix_transpose(logits)  # [B, E S, T]
        if tokens.real is not None:
            by_slot = xp.where(tokens.real[:, None, :], by_slot, HIDDEN)
        dispatch = tap("router.dispatch", xp.matrix_transpose(ops.softmax(by_slot)))
        combine = tap("router.combine", ops.softmax(logits))
        slots = xp.reshape(xp.matmul(xp.matrix_transpose(dispatch), x), (-1, width))  # [B E S, D]
        numbers = xp.arange(self.experts.count, dtype=ops.index_dtype, device=ops.array_device)
        ids = xp.broadcast_to(numbers[None, :, None], (batch, self.experts.count, self.slots))
        made = dispatched(ops, self.experts, params["experts"], slots, xp.reshape(ids, (-1,)), None, batch * self.slots)
        return tap("experts.out", xp.matmul(combine, xp.reshape(made, (batch, -1, width))))


HIDDEN = -1e30  # below every logit; its exponential is 0 beside any other
