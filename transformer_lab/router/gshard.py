"""GShard's router (Lepikhin et al. 2020, arXiv 2006.16668, algorithm 1): two experts, the second now and then left out.

In training the second is kept with probability min(1, 2 g2), g2 its renormalised weight; the first keeps its own.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from transformer_lab.router.gates import at, renormalised
from transformer_lab.router.router import Router


@dataclass(frozen=True)
class GShard(Router):
    """The softmax over all, renormalised over the chosen. Without noise, so outside training, every slot is kept."""

    noise: ClassVar[str | None] = "uniform"
    renormalises: ClassVar[bool] = True

    k: int = 2

    def weigh(self, ops: Any, params: Any, logits: Any, ids: Any) -> Any:
        return renormalised(ops, at(ops, ops.softmax(logits), ids))

    def kept(self, ops: Any, logits: Any, ids: Any, state: Any, tokens: Any) -> Any:
        """Each expert after the first has the number of tokens.noise that belongs to it to stay below."""
        xp = ops.xp
        first = xp.arange(ids.shape[-1], dtype=ids.dtype, device=ops.array_device) == 0
        if tokens.noise is None:
            return xp.broadcast_to(first | ~first, ids.shape)
        return first | (at(ops, tokens.noise, ids) < 2.0 * self.weigh(ops, {}, logits, ids))
