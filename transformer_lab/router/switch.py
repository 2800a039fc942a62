"""Switch Transformer's router (Fedus et al. 2021, arXiv 2101.03961, section 2.1): one expert, weighted by p_i."""

from dataclasses import dataclass
from typing import Any, ClassVar

from transformer_lab.errors import ConfigurationError
from transformer_lab.router.gates import at
from transformer_lab.router.router import Router


@dataclass(frozen=True)
class Switch(Router):
    """The weight is the expert's part of the softmax over all, not renormalised: else the gate would learn nothing.

    jitter: in training the router, and it alone, sees each number of x multiplied by one drawn from 1 - jitter to
    1 + jitter (section 2.2 and appendix C).
    """

    noise: ClassVar[str | None] = "uniform"

    k: int = 1
    jitter: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.jitter, bool) or not isinstance(self.jitter, (int, float)) or not 0.0 <= self.jitter < 1.0:
            message = f"ffn.router.jitter is {self.jitter!r}; it must be a number from 0, and below 1."
            raise ConfigurationError(message)

    def noise_size(self, hidden_size: int, experts: int) -> int:
        return hidden_size if self.jitter else 0

    def logits(self, ops: Any, params: Any, x: Any, tap: Any, tokens: Any) -> Any:
        if self.jitter and tokens.noise is not None:
            x = x * (1.0 + self.jitter * (2.0 * tokens.noise - 1.0))
        return super().logits(ops, params, x, tap, tokens)

    def weigh(self, ops: Any, params: Any, logits: Any, ids: Any) -> Any:
        return at(ops, ops.softmax(logits), ids)
