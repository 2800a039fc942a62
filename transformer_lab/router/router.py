"""What a router is asked for. A named one derives from `Router`, says what differs, and is one file beside this one.

B batch, T tokens, D hidden size, E experts, k slots: how many experts a token may have.
"""

from typing import Any, ClassVar

from transformer_lab.errors import ConfigurationError
from transformer_lab.model.axes import Axis, Shape
from transformer_lab.model.limits import LIMITS, require_whole


class Router:
    """Scores, a selection, and weights, in this order, so that a selection that was recorded can be forced in between.

    state: what the layer's balancer keeps, such as {"bias": [E]}; {} without one. causal: whether the experts of a
    token hang on nothing behind it. decoding: what is otherwise where tokens come one by one, in words, or None.
    """

    causal: ClassVar[bool] = True
    balanced: ClassVar[tuple[str, ...]] = ("bias",)  # what of it a balancer may move
    decoding: ClassVar[str | None] = None
    noise: ClassVar[str | None] = None  # "normal", "uniform": in training `noise_size` numbers are drawn for a token
    taps: ClassVar[tuple[str, ...]] = ()  # what its own loss asks for: names that `logits` taps, below `ffn.router`
    renormalises: ClassVar[bool] = False  # whether a token's weights have the same sum, whatever the scores

    k: int

    def __post_init__(self) -> None:
        require_whole("ffn.router.k", getattr(self, "k", None), LIMITS["num_experts"])

    @property
    def drops(self) -> bool:
        """Whether slots may be left unused: where there is a `kept` of its own."""
        return type(self).kept is not Router.kept

    @property
    def learns(self) -> bool:
        """Whether the loss of the text has a gradient at the gate. A single weight that is renormalised has none."""
        return self.k > 1 or not self.renormalises

    def slots(self, experts: int) -> int:
        """How many of E experts a token may have. Raises ConfigurationError if there are not so many."""
        if self.k > experts:
            message = f"ffn.router.k is {self.k}, and ffn.experts.count is {experts}. Lower k, or take more experts."
            raise ConfigurationError(message)
        return self.k

    def shapes(self, hidden_size: int, experts: int) -> dict[str, Shape]:
        """The parameters below `ffn.router`. The gate is no kernel: it is float32 in every precision, because scores of
        fewer bits choose other experts."""
        return {"gate": (hidden_size, Axis(experts, "experts"))}

    def noise_size(self, hidden_size: int, experts: int) -> int:
        return experts

    def logits(self, ops: Any, params: Any, x: Any, tap: Any, tokens: Any) -> Any:
        """x [B, T, D] -> [B, T, E]."""
        rows = ops.xp.reshape(x, (-1, x.shape[-1]))
        return ops.xp.reshape(ops.xp.matmul(rows, params["gate"]), (*x.shape[:-1], -1))

    def choose(self, ops: Any, params: Any, logits: Any, state: Any, tokens: Any) -> Any:
        """logits [B, T, E] -> the numbers of the experts, whole numbers [B, T, k], the best first."""
        return ops.top_k(self.selection(ops, logits, state), self.k)[1]

    def selection(self, ops: Any, logits: Any, state: Any) -> Any:
        """[B, T, E], of which a token takes the k largest."""
        bias = state.get("bias")
        return logits if bias is None else self.scores(ops, logits) + bias

    def weigh(self, ops: Any, params: Any, logits: Any, ids: Any) -> Any:
        """The weights [B, T, k] of the experts `ids` [B, T, k]."""
        message = f"The router {type(self).__name__} has no weigh, which gives the chosen experts their weights."
        raise ConfigurationError(message)

    def kept(self, ops: Any, logits: Any, ids: Any, state: Any, tokens: Any) -> Any:
        """Which slots are used, booleans [B, T, k], or None: all."""
        return None

    def scores(self, ops: Any, logits: Any) -> Any:
        """[B, T, E], what a balancer's bias is added to."""
        return ops.softmax(logits)

    def probabilities(self, ops: Any, logits: Any) -> Any:
        """[B, T, E], not negative, of each token with sum 1: what losses and statistics call a token's share."""
        return ops.softmax(logits)

    def training_loss(self, ops: Any, taps: Any, share: Any) -> Any:
        """What a loss of its own adds to that of training, a number, or None. taps: of its layer, such as
        `router.logits`. share [B, T]: each token's share of the step, 0 for padding (`ffn/losses.py`)."""
        return None
