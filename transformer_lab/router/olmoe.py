"""OLMoE's router (Muennighoff et al. 2024, arXiv 2409.02060, section 2): the softmax over all, not renormalised."""

from dataclasses import dataclass
from typing import Any

from transformer_lab.router.gates import at
from transformer_lab.router.router import Router


@dataclass(frozen=True)
class OLMoE(Router):
    """The weights of the chosen sum to less than 1: how much less says how sure the router is."""

    k: int = 8

    def weigh(self, ops: Any, params: Any, logits: Any, ids: Any) -> Any:
        return at(ops, ops.softmax(logits), ids)
