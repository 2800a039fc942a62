"""The first sparse gate (Shazeer et al. 2017, arXiv 1701.06538, equations 3 to 5): the k best of scores with noise.

How much noise a token's expert gets is learned. Outside training there is none.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from transformer_lab.model.axes import Shape
from transformer_lab.router.gates import at, softplus
from transformer_lab.router.router import Router


@dataclass(frozen=True)
class NoisyTopK(Router):
    """H = x W + noise * softplus(x W_noise), with noise from a normal distribution; softmax over the k largest of H."""

    noise: ClassVar[str | None] = "normal"
    renormalises: ClassVar[bool] = True

    k: int = 4

    def shapes(self, hidden_size: int, experts: int) -> dict[str, Shape]:
        gate = super().shapes(hidden_size, experts)["gate"]
        return {"gate": gate, "noise.gate": gate}

    def logits(self, ops: Any, params: Any, x: Any, tokens: Any) -> Any:
        """H, [B, T, E]."""
        clean = super().logits(ops, params, x, tokens)
        if tokens.noise is None:
            return clean
        return clean + tokens.noise * softplus(ops, super().logits(ops, params["noise"], x, tokens))

    def weigh(self, ops: Any, params: Any, logits: Any, ids: Any) -> Any:
        return ops.softmax(at(ops, logits, ids))
