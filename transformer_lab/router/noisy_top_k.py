"""The first sparse gate (Shazeer et al. 2017, arXiv 1701.06538, equations 3 to 11): the k best of scores with noise.

How much noise a token's expert gets is learned. Outside training there is none.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from transformer_lab.ffn.losses import squared_variation
from transformer_lab.model.axes import Shape
from transformer_lab.model.limits import require_coefficient
from transformer_lab.router.gates import at, softplus
from transformer_lab.router.router import Router

LEAST_SPREAD = 2.0**-20  # that a difference of scores is divided by


@dataclass(frozen=True)
class NoisyTopK(Router):
    """H = x W + noise * softplus(x W_noise), with noise from a normal distribution; softmax over the k largest of H.

    In training importance_loss times CV^2 of the experts' weights and load_loss times CV^2 of how many tokens each
    may expect are added to the loss, both summed over the tokens of a piece; CV is deviation over mean.
    """

    noise: ClassVar[str | None] = "normal"
    taps: ClassVar[tuple[str, ...]] = ("clean", "spread")
    renormalises: ClassVar[bool] = True

    k: int = 4
    importance_loss: float = 0.1
    load_loss: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_coefficient("ffn.router.importance_loss", self.importance_loss)
        require_coefficient("ffn.router.load_loss", self.load_loss)

    def shapes(self, hidden_size: int, experts: int) -> dict[str, Shape]:
        gate = super().shapes(hidden_size, experts)["gate"]
        return {"gate": gate, "noise.gate": gate}

    def logits(self, ops: Any, params: Any, x: Any, tap: Any, tokens: Any) -> Any:
        """H, [B, T, E]. Taps: clean, without noise, and spread, the noise's deviation, both [B, T, E]."""
        clean = tap("clean", super().logits(ops, params, x, tap, tokens))
        spread = tap("spread", softplus(ops, super().logits(ops, params["noise"], x, tap, tokens)))
        return clean if tokens.noise is None else clean + tokens.noise * spread

    def weigh(self, ops: Any, params: Any, logits: Any, ids: Any) -> Any:
        return ops.softmax(at(ops, logits, ids))

    def training_loss(self, ops: Any, taps: Any, share: Any) -> Any:
        """Equations 6, 7 and 11, with the weights before any capacity. A piece weighs as much as its tokens."""
        xp, noisy, ids = ops.xp, taps["router.logits"], taps["router.expert_ids"]
        numbers = xp.arange(noisy.shape[-1], dtype=ids.dtype, device=ops.array_device)
        chosen = ids[..., None] == numbers  # [B, T, k, E]
        gates = xp.sum(xp.where(chosen, self.weigh(ops, {}, noisy, ids)[..., None], 0.0), axis=2)
        loss = self.importance_loss * squared_variation(ops, gates, share)
        if self.k < noisy.shape[-1]:
            likely = self._likely(ops, taps, xp.any(chosen, axis=2))
            loss = loss + self.load_loss * squared_variation(ops, likely, share)
        return loss

    def _likely(self, ops: Any, taps: Any, chosen: Any) -> Any:
        """P(x, i) of equations 8 and 9, [B, T, E]: how likely i is among the k best if its noise is drawn anew and
        that of the others is as it was. It has to beat the k-th of the others: who is chosen the best that was not,
        who is not the last that was."""
        xp, noisy = ops.xp, taps["router.logits"]
        last_in = xp.min(xp.where(chosen, noisy, math.inf), axis=-1, keepdims=True)
        first_out = xp.max(xp.where(chosen, -math.inf, noisy), axis=-1, keepdims=True)
        ahead = taps["router.clean"] - xp.where(chosen, first_out, last_in)
        return 0.5 * ops.erfc(-ahead / (math.sqrt(2.0) * xp.clip(taps["router.spread"], LEAST_SPREAD, None)))
