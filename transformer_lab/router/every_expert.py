"""Routers without a fixed number of experts for a token: it has a slot for each, and `kept` says which are used."""

from typing import Any, ClassVar

from transformer_lab.router.router import Router


class EveryExpert(Router):
    """A named one says with `kept` which slots are used, and may give them weights by `weigh`."""

    balanced: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        """There is no k that could be wrong."""

    @property
    def learns(self) -> bool:
        """There is no single weight that always is 1."""
        return True

    def slots(self, experts: int) -> int:
        return experts

    def choose(self, ops: Any, params: Any, logits: Any, state: Any, tokens: Any) -> Any:
        numbers = ops.xp.arange(logits.shape[-1], dtype=ops.index_dtype, device=ops.array_device)
        return ops.xp.broadcast_to(numbers, logits.shape)

    def weigh(self, ops: Any, params: Any, logits: Any, ids: Any) -> Any:
        """The softmax over all experts."""
        return ops.softmax(logits)
