"""A model's configuration with other parts: the `ffn`, `attention`, ... of `load_model`, and of the command line."""

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Any

from transformer_lab.config import component, construct, names
from transformer_lab.errors import ConfigurationError, shown
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.outside_part import OutsidePart
from transformer_lab.position.none import NoPosition

PARTS = ("block", "attention", "position", "norm", "ffn", "router", "balancer")


def with_parts(config: ModelConfig, **parts: Any) -> ModelConfig:
    """The configuration with other parts in every layer; None leaves a part as it is.

    ffn, attention: another component, or a mapping of fields to change in the layer's own. position: a component; it
    takes the place of every position that the model has. norm: a component, in the blocks and before the head. block: a
    callable that makes a block of attention=, ffn= and norm=, such as `Parallel`. router, balancer: those
    of a mixture of experts. Each may be the name of a choice, as on the command line: norm="rms_norm".

    A wrong name of a part or of a field is answered with the nearest one.
    """
    parts = {name: given(name, part) for name, part in parts.items() if part is not None}
    blocks = tuple(_changed(block, parts) for block in config.blocks)
    config = replace(config, blocks=blocks)
    if "position" in parts:
        at_embedding = not parts["position"].in_attention and not isinstance(parts["position"], NoPosition)
        config = replace(config, position=parts["position"] if at_embedding else None)
    return replace(config, norm=parts["norm"]) if "norm" in parts else config


# What a part is asked for, which tells it from what is none.
_ASKED = {
    "block": ("__call__",),
    "attention": ("shapes", "taps", "num_kv_heads", "head_size"),
    "position": ("in_attention",),
    "norm": ("shapes", "__call__"),
    "ffn": ("shapes", "taps", "__call__"),
    "router": ("shapes", "logits", "choose", "weigh"),
    "balancer": ("states", "moved"),
}


def given(name: str, part: Any) -> Any:
    """The part, or the one of that name. ConfigurationError for what is none."""
    if isinstance(part, str):
        if name == "block" and part in names(name):
            return partial(component, name, part)
        return component(name, part)
    if isinstance(part, Mapping) and name in ("attention", "ffn"):
        return part
    missing = [asked for asked in _ASKED[name] if not hasattr(part, asked)]
    if missing or (isinstance(part, type) and name != "block"):
        lacks = f"it lacks {', '.join(missing)}" if missing else "it is a class, not one of them"
        message = f"{name} is {shown(part)}, which is no part: {lacks}."
        raise ConfigurationError(message)
    return part


def _changed(block: Any, parts: Mapping[str, Any]) -> Any:
    if isinstance(block, OutsidePart):
        return _given_again(block, parts)
    attention, ffn = (_with_fields(name, getattr(block, name), parts.get(name)) for name in ("attention", "ffn"))
    routing = {name: parts[name] for name in ("router", "balancer") if name in parts}
    for name, part in routing.items():
        if not hasattr(ffn, name):
            message = f"{name} cannot be chosen: {type(ffn).__name__} has no field of that name. Say ffn=moe too."
            raise ConfigurationError(message)
        if isinstance(saved := getattr(ffn, name), OutsidePart):
            saved.require(part)
    if routing:  # together, since they must be for each other
        ffn = replace(ffn, **routing)
    if "position" in parts:
        if not hasattr(attention, "position"):
            message = f"position cannot be chosen: {type(attention).__name__} has no field of that name."
            raise ConfigurationError(message)
        saved = None if isinstance(block.attention, OutsidePart) else block.attention.position
        position = parts["position"] if parts["position"].in_attention else None
        attention = replace(attention, position=position)
        if isinstance(saved, OutsidePart):
            saved.require(attention.position)
    norm = parts.get("norm", block.norm)
    if isinstance(block.norm, OutsidePart) and norm is not block.norm:
        block.norm.require(norm)
    own = {"attention": attention, "ffn": ffn, "norm": norm}
    make: Callable[..., Any] | None = parts.get("block")
    return replace(block, **own) if make is None else make(**own)


def _given_again(block: OutsidePart, parts: Mapping[str, Any]) -> Any:
    """A block from outside, made anew of the parts that were saved with it; ConfigurationError if it is not given."""
    own = {name: part for name, part in block.fields if name in ("attention", "ffn", "norm")}
    given = parts["block"](**own) if "block" in parts else None
    block.require(given)
    return given


def _with_fields(name: str, part: Any, change: Any) -> Any:
    """The part with some fields changed, or the one that takes its place, or as it is."""
    if isinstance(part, OutsidePart) and change is not None:
        part.require(change)
    if not isinstance(change, Mapping):
        return part if change is None else change
    own = {field.name: getattr(part, field.name) for field in fields(part)}
    return construct(type(part), _still_own(own, change) | dict(change), name)


def _still_own(own: dict[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """The fields without those that were filled in from one that changes now, which are then filled in again."""
    own = dict(own)
    if "num_heads" in change and own.get("num_kv_heads") == own.get("num_heads"):
        del own["num_kv_heads"]
    if "head_size" in change and (size := own.get("head_size")):
        if own.get("scale") == 1.0 / math.sqrt(size):
            del own["scale"]
        position: Any = own.get("position")
        if getattr(position, "size", None) == size:
            own["position"] = replace(position, size=None)
    return own
