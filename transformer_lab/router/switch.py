"""Switch Transformer's router (Fedus et al. 2021, arXiv 2101.03961, section 2.1): one expert, weighted by p_i."""

from dataclasses import dataclass
from typing import Any

from transformer_lab.router.gates import at
from transformer_lab.router.router import Router


@dataclass(frozen=True)
class Switch(Router):
    """The weight is the expert's part of the softmax over all, not renormalised: else the gate would learn nothing."""

    k: int = 1

    def weigh(self, ops: Any, params: Any, logits: Any, ids: Any) -> Any:
        return at(ops, ops.softmax(logits), ids)
