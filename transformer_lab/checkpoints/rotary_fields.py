"""Rotary positions in a config.json, to `Rotary` and back.

transformers 5 writes `rope_parameters`, with everything inside; before it was `rope_theta` beside `rope_scaling`.
"""

import math
from collections.abc import Mapping
from typing import Any

from transformer_lab.checkpoints.config_fields import Fields
from transformer_lab.errors import ConfigurationError, shown
from transformer_lab.position.rotary import Rotary
from transformer_lab.position.rotary_scaling import Linear, Llama3, LongRope, Yarn

_KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
_KNOWN = {
    *("rope_type", "type", "rope_theta", "factor", "partial_rotary_factor", "original_max_position_embeddings"),
    *("low_freq_factor", "high_freq_factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
    *("truncate", "short_factor", "long_factor", "finetuned"),
}


def read_rotary(
    fields: Fields,
    head_size: int,
    context_length: int,
    base: float = 10000.0,
    share: float | None = None,
    kind: str = "",
) -> Rotary:
    """base: what an absent one means. share: how much of a head is turned where the fields are silent; None is a family
    that always turns all of it. kind: of the layer, where they differ.

    "dynamic" changes nothing within the context of the model, and beyond it nobody comes here.
    """
    name = "rope_scaling" if fields.values.get("rope_scaling") else "rope_parameters"
    parameters = fields.values.get(name) or {}
    if not isinstance(parameters, dict):
        fields.refuse(name, "is not an object")
    if kind and isinstance(parameters.get(kind), dict):
        name, parameters = f"{name}.{kind}", parameters[kind]
    elif any(isinstance(value, dict) for value in parameters.values()):
        fields.refuse(name, "differs between kinds of layers; only one for all is offered for this family")
    inner = fields.holding({f"{name}.{key}": value for key, value in parameters.items()})
    for key in parameters:
        if key not in _KNOWN:
            inner.refuse(f"{name}.{key}", f"is not known; known are {', '.join(sorted(_KNOWN))}")
    size = _turned(fields, inner, name, head_size, share)
    holder, at = (inner, f"{name}.") if f"{name}.rope_theta" in inner.values else (fields, "")
    nested = f"{name}.original_max_position_embeddings"
    trained = trained_length(fields, context_length)
    if kind and name.endswith(kind):
        trained = inner.whole(nested, context_length, 10**8)
    return Rotary(
        holder.positive(f"{at}rope_theta", base), size, scaling=_scaling(inner, name, context_length, trained)
    )


def _turned(fields: Fields, inner: Fields, name: str, head_size: int, share: float | None) -> int:
    """How many numbers of a head are turned."""
    inside = f"{name}.partial_rotary_factor"
    holder, field = (inner, inside) if inside in inner.values else (fields, "partial_rotary_factor")
    if holder.values.get(field) is not None:
        given = holder.positive(field, 1.0)
        if share is None and given != 1:
            holder.refuse(field, f"is {given}; models of this family turn whole heads, so 1 is offered")
        share = given
    size = int(head_size * (share or 1.0))
    if (share or 1.0) == 1 and size % 2:
        fields.refuse("head_dim", f"is {head_size}; rotary positions turn pairs, so it must be even")
    if (share or 1.0) > 1 or size < 2 or size % 2:
        holder.refuse(field, f"is {share}, of a head of {head_size}; rotary positions turn pairs")
    return size


def _scaling(inner: Fields, name: str, context_length: int, trained: int) -> Any:
    kind = inner.values.get(f"{name}.rope_type", inner.values.get(f"{name}.type", "default"))
    if kind not in _KINDS:
        inner.refuse(f"{name}.rope_type", f"is {shown(kind)}; choose one of {', '.join(_KINDS)}")
    if kind in ("default", "dynamic"):
        return None
    if trained < 2:
        inner.refuse(f"{name}.original_max_position_embeddings", f"is {trained}; it must be at least 2")
    factor = inner.values.get(f"{name}.factor")
    if factor is None and kind in ("yarn", "longrope"):
        factor = context_length / trained
    else:
        factor = inner.positive(f"{name}.factor", 0.0)
    if kind == "linear":
        return Linear(factor)
    if kind == "llama3":
        low, high = (inner.positive(f"{name}.{which}_freq_factor", 0.0) for which in ("low", "high"))
        return Llama3(factor, low, high, trained)
    length = inner.values.get(f"{name}.attention_factor")
    if length is not None:
        length = inner.positive(f"{name}.attention_factor", 1.0)
    if kind == "longrope":
        usual = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
        divisors = inner.values.get(f"{name}.short_factor")
        if not isinstance(divisors, list) or not all(type(one) in (int, float) and 0 < one < 1e300 for one in divisors):
            inner.refuse(f"{name}.short_factor", "must be a list of positive numbers")
        return LongRope(tuple(map(float, divisors)), usual if length is None else length, trained)
    weights = [inner.values.get(f"{name}.{which}") for which in ("mscale", "mscale_all_dim")]
    if length is None and all(weights):
        over, under = (inner.positive(f"{name}.{which}", 1.0) for which in ("mscale", "mscale_all_dim"))
        length = _longer(factor, over) / _longer(factor, under)
    fast, slow = (
        inner.positive(f"{name}.beta_{which}", usual) if inner.values.get(f"{name}.beta_{which}") else usual
        for which, usual in (("fast", 32.0), ("slow", 1.0))
    )
    whole = inner.flag(f"{name}.truncate", True)
    return Yarn(factor, trained, fast, slow, _longer(factor, 1.0) if length is None else length, whole)


def _longer(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def trained_length(fields: Fields, context_length: int) -> int:
    """original_max_position_embeddings, beside the rotary fields or among them; without it the whole context."""
    name = "original_max_position_embeddings"
    for holder in (fields.values, fields.values.get("rope_scaling"), fields.values.get("rope_parameters")):
        if isinstance(holder, Mapping) and holder.get(name) is not None:
            return Fields(fields.path, dict(holder)).whole(name, 0, 10**8)
    return context_length


def rotary_fields(rotary: Any, head_size: int) -> dict[str, Any]:
    """The content of `rope_parameters`. ConfigurationError for what transformers has no word for."""
    if not isinstance(rotary, Rotary):
        message = "it has rotary positions"
        raise ConfigurationError(message)
    found: dict[str, Any] = {"rope_type": "default", "rope_theta": float(rotary.base)}
    if rotary.size != head_size:
        found["partial_rotary_factor"] = (rotary.size or 0) / head_size
    scaling = rotary.scaling
    if isinstance(scaling, Linear):
        found |= {"rope_type": "linear", "factor": scaling.factor}
    elif isinstance(scaling, Llama3):
        found |= {"rope_type": "llama3", "factor": scaling.factor, "low_freq_factor": scaling.low}
        found |= {"high_freq_factor": scaling.high, "original_max_position_embeddings": scaling.trained_length}
    elif isinstance(scaling, Yarn):
        found |= {"rope_type": "yarn", "factor": scaling.factor, "beta_fast": scaling.fast, "beta_slow": scaling.slow}
        found |= {"original_max_position_embeddings": scaling.trained_length, "attention_factor": scaling.length}
        found |= {} if scaling.whole else {"truncate": False}
    elif isinstance(scaling, LongRope):
        found |= {"rope_type": "longrope", "attention_factor": scaling.length, "short_factor": list(scaling.divisors)}
        found |= {"long_factor": list(scaling.divisors), "factor": 1.0}
        found |= {"original_max_position_embeddings": scaling.trained_length}
    elif scaling is not None:
        message = f"it knows no {type(scaling).__name__}"
        raise ConfigurationError(message)
    return found
