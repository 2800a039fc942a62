"""Layers that see everything and layers with a window, as config.json says it: `layer_types` and `sliding_window`."""

from typing import Any

from transformer_lab.checkpoints.config_fields import Fields
from transformer_lab.errors import shown
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.limits import LIMITS

FULL, SLIDING = "full_attention", "sliding_attention"


def read_window(fields: Fields, context_length: int, default: int | None = None) -> int | None:
    """`sliding_window`: how many keys a query sees; None where that is the whole context."""
    value = fields.values.get("sliding_window", default)
    if value is None:
        return None
    window = fields.whole("sliding_window", value, LIMITS["context_length"])
    return window if window < context_length else None


def read_kinds(fields: Fields, layers: int, usual: list[str] | None = None) -> list[str]:
    """`layer_types`, one of FULL and SLIDING for each layer; absent, `usual`, or FULL for all."""
    kinds = fields.values.get("layer_types")
    if kinds is None:
        return usual or [FULL] * layers
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in (FULL, SLIDING) for kind in kinds):
        fields.refuse("layer_types", f"is {shown(kinds)}; it must name {FULL} or {SLIDING} for each of {layers} layers")
    return kinds


def window_fields(config: ModelConfig) -> dict[str, Any]:
    """The inverse, for layers whose windows are alike."""
    windows = [block.attention.window for block in config.blocks]
    return {
        "sliding_window": next((window for window in windows if window is not None), None),
        "layer_types": [FULL if window is None else SLIDING for window in windows],
    }
