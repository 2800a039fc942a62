"""DeepSeek-V3's router (DeepSeek-AI 2024, arXiv 2412.19437, equations 12 to 16): sigmoids, groups, and a bias that only
chooses.

Each expert has a score of its own, s = sigmoid(logits). The best are chosen by s plus a balancer's bias; they weigh s.
"""

from dataclasses import dataclass
from typing import Any

from transformer_lab.errors import ConfigurationError
from transformer_lab.model.limits import LIMITS, require_positive, require_whole
from transformer_lab.router.gates import TINY, at, renormalised, softplus
from transformer_lab.router.router import Router


@dataclass(frozen=True)
class DeepSeekV3(Router):
    """scale * s_i / sum of the chosen s, or without the quotient.

    n_groups: the experts lie in so many groups of equal size, one after the other; only those of the `top_groups` best
    can be chosen. A group is as good as the sum of its two best biased scores.
    """

    k: int = 8
    n_groups: int = 1
    top_groups: int = 1
    renormalise: bool = True
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole("ffn.router.n_groups", self.n_groups, LIMITS["num_experts"])
        require_whole("ffn.router.top_groups", self.top_groups, self.n_groups)
        require_positive("ffn.router.scale", self.scale)

    @property
    def learns(self) -> bool:
        return self.k > 1 or not self.renormalise

    def slots(self, experts: int) -> int:
        of_each = experts // self.n_groups
        if self.n_groups > 1 and (experts % self.n_groups or of_each < 2):
            message = (
                f"ffn.router.n_groups is {self.n_groups}, and there are {experts} experts; "
                "every group must have as many, and at least 2."
            )
            raise ConfigurationError(message)
        if self.k > self.top_groups * of_each:
            cure = "Lower k" if self.top_groups == self.n_groups else "Raise top_groups, or lower k"
            message = (
                f"ffn.router.k is {self.k}, and ffn.router.top_groups={self.top_groups} of {self.n_groups} groups of "
                f"{of_each} experts have not so many. {cure}."
            )
            raise ConfigurationError(message)
        return super().slots(experts)

    def choose(self, ops: Any, params: Any, logits: Any, state: Any, tokens: Any) -> Any:
        biased = self.scores(ops, logits)
        if "bias" in state:
            biased = biased + state["bias"]
        if self.top_groups < self.n_groups:
            biased = self._of_the_best_groups(ops, biased)
        return ops.top_k(biased, self.k)[1]

    def _of_the_best_groups(self, ops: Any, biased: Any) -> Any:
        """[B, T, E], -inf outside the best groups."""
        xp = ops.xp
        grouped = xp.reshape(biased, (*biased.shape[:-1], self.n_groups, -1))
        good = xp.sum(ops.top_k(grouped, 2)[0], axis=-1)  # [B, T, G]
        best = ops.top_k(good, self.top_groups)[1]
        numbers = xp.arange(self.n_groups, dtype=best.dtype, device=ops.array_device)
        inside = xp.any(best[..., None] == numbers, axis=-2)  # [B, T, G]
        return xp.reshape(xp.where(inside[..., None], grouped, -xp.inf), biased.shape)

    def weigh(self, ops: Any, params: Any, logits: Any, ids: Any) -> Any:
        weights = at(ops, self.scores(ops, logits), ids)
        return (renormalised(ops, weights, TINY) if self.renormalise else weights) * self.scale

    def scores(self, ops: Any, logits: Any) -> Any:
        return ops.sigmoid(logits)

    def probabilities(self, ops: Any, logits: Any) -> Any:
        """sigmoid / sum of sigmoids, through the logarithm, so that it sums to 1 where all of them vanish."""
        return ops.softmax(-softplus(ops, -logits))
