"""How a block calls its feed-forward network, whoever wrote it.

A component has `taps`, the names that it shows in order; `shapes(hidden_size)`, its parameters; and a call
(ops, params, x, tap) -> the same shape as x. With `sees_tokens` it is given the `Tokens` of the pass too, by name.
"""

from collections.abc import Callable
from typing import Any

from transformer_lab.model.taps import within
from transformer_lab.model.tokens import Tokens


def network_taps(ffn: Any) -> list[str]:
    return [*(f"ffn.{name}" for name in ffn.taps), "ffn.out"]


def network(ffn: Any, ops: Any, params: Any, x: Any, tokens: Tokens, tap: Callable[[str, Any], Any]) -> Any:
    """x [B, T, D] -> [B, T, D]."""
    more = {"tokens": tokens} if getattr(ffn, "sees_tokens", False) else {}
    return tap("ffn.out", ffn(ops, params, x, within(tap, "ffn."), **more))
