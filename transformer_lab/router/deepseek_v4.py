"""DeepSeek-V4's router (DeepSeek-AI 2026, technical report, section 2.1): as V3's without groups, with scores
sqrt(softplus(logits)) that have no upper end."""

from dataclasses import dataclass
from typing import Any, ClassVar

from transformer_lab.model.limits import require_positive
from transformer_lab.router.gates import TINY, at, renormalised, softplus
from transformer_lab.router.router import Router


@dataclass(frozen=True)
class DeepSeekV4(Router):
    """scale * s_i / sum of the chosen s; a balancer's bias chooses, and never weighs."""

    renormalises: ClassVar[bool] = True

    k: int = 6
    scale: float = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive("ffn.router.scale", self.scale)

    def weigh(self, ops: Any, params: Any, logits: Any, ids: Any) -> Any:
        return renormalised(ops, at(ops, self.scores(ops, logits), ids), TINY) * self.scale

    def scores(self, ops: Any, logits: Any) -> Any:
        """Logits below -80 count as -80, a score of 4e-18: where the softplus vanishes its root has no slope."""
        return ops.xp.sqrt(softplus(ops, ops.xp.clip(logits, -80.0, None)))

    def probabilities(self, ops: Any, logits: Any) -> Any:
        return renormalised(ops, self.scores(ops, logits))
