"""ReMoE's balancer: an L1 penalty on the gates, whose coefficient grows until the experts are as sparse as wanted.

Wang et al. 2024, arXiv 2412.14711, equations 7 to 10. Where more than `k` of the experts are active the coefficient is
multiplied by `factor`, else divided by it; each expert's gates weigh as much as it is used, so that it balances too.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from transformer_lab.errors import ConfigurationError
from transformer_lab.ffn.losses import counted
from transformer_lab.model.axes import Shape
from transformer_lab.model.limits import LIMITS, require_positive, require_whole


@dataclass(frozen=True)
class AdaptiveL1:
    """coefficient = first * factor^steps, of the state `steps` [1], which goes up or down by 1 with each step.

    k: how many experts a token shall have in the mean.
    """

    moves: ClassVar[str] = "sparsity"  # of the router

    k: int = 2
    first: float = 1e-8
    factor: float = 1.2

    def __post_init__(self) -> None:
        require_whole("balancer.k", self.k, LIMITS["num_experts"])
        require_positive("balancer.first", self.first)
        if isinstance(self.factor, bool) or not 1.0 < self.factor < math.inf:
            message = f"balancer.factor is {self.factor!r}; it must be above 1."
            raise ConfigurationError(message)

    def states(self, experts: int) -> dict[str, Shape]:
        require_whole("balancer.k", self.k, experts)
        return {"steps": (1,)}

    def training_terms(
        self, ops: Any, router: Any, state: Mapping[str, Any], taps: Mapping[str, Any], share: Any
    ) -> tuple[Any, dict[str, Any]]:
        """The loss is coefficient * sum_i f_i R_i, R_i the mean gate of expert i and f_i how often it is active, over
        how often it would be (equation 10). The f_i are those of these tokens."""
        xp, gates = ops.xp, taps["router.weights"]  # [B, T, E]
        active = xp.sum(counted(ops, taps["router.kept"], share), axis=0)  # [E]
        tokens = xp.clip(xp.sum(counted(ops, share > 0.0, share)), 1.0, None)
        often = active * gates.shape[-1] / (self.k * tokens)
        coefficient = self.first * xp.exp(state["steps"][0] * math.log(self.factor))
        return coefficient * xp.sum(often * xp.sum(gates * share[..., None], axis=(0, 1))), {}

    def moved(self, ops: Any, state: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
        more = ops.xp.sign(found["kept"] - self.k * found["tokens"])
        return {"steps": state["steps"] + more}
