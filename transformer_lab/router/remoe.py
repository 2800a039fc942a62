"""ReMoE (Wang et al. 2024, arXiv 2412.14711, equation 5): the gate is relu, so how many experts a token has is learned.

There is no selection, so the whole is differentiable but where a gate is 0. What keeps experts few is the balancer
`adaptive_l1`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from transformer_lab.router.every_expert import EveryExpert


@dataclass(frozen=True)
class ReMoE(EveryExpert):
    """y = sum_i relu(logit_i) expert_i(x)."""

    balanced: ClassVar[tuple[str, ...]] = ("sparsity",)

    def weigh(self, ops: Any, params: Any, logits: Any, ids: Any) -> Any:
        return ops.relu(logits)

    def kept(self, ops: Any, logits: Any, ids: Any, state: Any, tokens: Any) -> Any:
        return logits > 0.0
