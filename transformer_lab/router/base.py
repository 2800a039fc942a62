"""BASE layers (Lewis et al. 2021, arXiv 2103.16716): in training every expert has the same number of tokens, by
assignment instead of a loss; in use each token takes its best expert.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from transformer_lab.errors import ConfigurationError
from transformer_lab.router.balanced import balanced
from transformer_lab.router.gates import at
from transformer_lab.router.router import Router


@dataclass(frozen=True)
class Base(Router):
    """sigmoid(h_e), h = x W, of the one expert of a token (equation 4). The tokens of a whole pass are given out
    together (equation 2), in an order that is drawn, since of equal tokens the first come first."""

    decoding: ClassVar[str | None] = "in training experts are given out among the tokens of a pass; in use they are not"
    noise: ClassVar[str | None] = "uniform"

    balanced: ClassVar[tuple[str, ...]] = ()

    k: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k != 1:
            message = f"ffn.router.k is {self.k}; a BASE layer gives each token 1 expert."
            raise ConfigurationError(message)

    def choose(self, ops: Any, params: Any, logits: Any, state: Any, tokens: Any) -> Any:
        if tokens.noise is None:
            return super().choose(ops, params, logits, state, tokens)
        xp, (batch, length, experts) = ops.xp, logits.shape
        order = xp.argsort(xp.reshape(tokens.noise[..., 0], (-1,)), stable=True)
        scores = xp.take(xp.reshape(logits, (-1, experts)), order, axis=0)
        real = None if tokens.real is None else xp.take(xp.reshape(tokens.real, (-1,)), order, axis=0)
        ids = xp.take(balanced(ops, scores, real), xp.argsort(order, stable=True), axis=0)
        return xp.reshape(ids, (batch, length, 1))

    def weigh(self, ops: Any, params: Any, logits: Any, ids: Any) -> Any:
        return ops.sigmoid(at(ops, logits, ids))
