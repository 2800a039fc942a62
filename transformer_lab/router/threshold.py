"""Expert threshold (arXiv 2603.11535): an expert takes every token that scores above its threshold, which the balancer
`threshold` moves. As balanced as expert choice in the long run, and causal: no token competes with another.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from transformer_lab.router.every_expert import EveryExpert


@dataclass(frozen=True)
class ExpertThreshold(EveryExpert):
    """y = sum of p_i expert_i(x) over the experts with p_i > threshold_i, p the softmax over all. Without the balancer
    the thresholds would be 0, and every expert would take every token."""

    balanced: ClassVar[tuple[str, ...]] = ("threshold",)
    needs_balancer: ClassVar[bool] = True

    def kept(self, ops: Any, logits: Any, ids: Any, state: Any, tokens: Any) -> Any:
        return ops.softmax(logits) > state.get("threshold", 0.0)
