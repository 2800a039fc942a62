"""What two participants define differently, before any number is compared: an epsilon, an activation, a scale.

Fields have the names of the command line: those of a ModelConfig as they are, those of a part with its group before
them, as in `ffn.activation` or `norm.epsilon`. What differs between the layers of one model is a list, a value for
each. What has no field there may be given under any other name, such as `tie_rule`.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from transformer_lab.checkpoints import families
from transformer_lab.checkpoints.config_fields import ACTIVATIONS, Fields
from transformer_lab.model.config import ModelConfig

# What families call their activation in config.json.
_ACTIVATIONS = ("activation_function", "hidden_act", "hidden_activation", "activation")


def differences(participants: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The fields that differ -> [{"field": name, "values": {participant's name: its value as text}}].

    participants: name -> ModelConfig, a mapping with the same names of fields, or None. What a participant does not say
    is no difference, and it is not listed under that field. Numbers are compared by value.
    """
    said = {name: dict(_flat("", config)) for name, config in participants.items() if config is not None}
    fields = dict.fromkeys(field for known in said.values() for field in known)  # each once, in order
    found = []
    for field in fields:
        values = {name: known[field] for name, known in said.items() if field in known}
        first, *others = values.values()
        if any(value != first for value in others):
            found.append({"field": field, "values": {name: _text(value) for name, value in values.items()}})
    return found


def transformers_fields(config: Any) -> dict[str, Any]:
    """The fields of a configuration of transformers, an object or what stands in a config.json, under our names.

    Of a model type that checkpoints/families does not know, nothing is said: {}. An activation that is not offered
    here keeps its name there. Raises InputFileError for other values that this decoder cannot have, by name.
    """
    read, replaced = transformers_config(config)
    return {} if read is None else dict(_flat("", read)) | replaced


def transformers_config(config: Any) -> tuple[ModelConfig | None, dict[str, Any]]:
    """The same as a ModelConfig, and what it cannot say: an activation that is not offered here, by its field."""
    given = dict(config.to_dict() if hasattr(config, "to_dict") else config)
    kind = given.get("model_type")
    family = families.find(kind) if isinstance(kind, str) else None
    if family is None:
        return None, {}
    replaced = {}
    for name in _ACTIVATIONS:
        if isinstance(given.get(name), str) and given[name] not in ACTIVATIONS:
            replaced = {"ffn.activation": given.pop(name)}  # without it the family takes its default
    return family.config_from(Fields(Path("config.json"), given)), replaced


def _flat(prefix: str, config: Any) -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every field. A component also says which class it is, under its own name."""
    if isinstance(config, ModelConfig):
        yield from _decoder(config)
        return
    if isinstance(config, Mapping):
        items = list(config.items())
    else:
        items = [(field.name, getattr(config, field.name)) for field in dataclasses.fields(config)]
    for name, value in items:
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}{name}.", value)
        elif dataclasses.is_dataclass(value):
            yield f"{prefix}{name}", type(value).__name__
            yield from _flat(f"{prefix}{name}.", value)
        else:
            # a float32 of NumPy would be compared in float32, where 1e-5 is equal to it
            yield f"{prefix}{name}", value.item() if isinstance(value, np.generic) else value


def _decoder(config: ModelConfig) -> Iterator[tuple[str, Any]]:
    own = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    blocks, norm, position = own.pop("blocks"), own.pop("norm"), own.pop("position")
    yield from _flat("", own | {"num_layers": len(blocks)})
    said = {block: dict(_block(block, position)) for block in dict.fromkeys(blocks)}
    for field in dict.fromkeys(field for one in said.values() for field in one):
        values = [said[block].get(field) for block in blocks]
        yield field, values[0] if all(value == values[0] for value in values) else values
    if any(block.norm != norm for block in blocks):
        yield from _flat("", {"final_norm": norm})


def _block(block: Any, position: Any) -> Iterator[tuple[str, Any]]:
    """The fields of a block by the groups of its parts, at whatever depth they lie. position: of the embedding."""
    parts = {"block": block, "attention": block.attention, "norm": block.norm, "ffn": block.ffn}
    parts["position"] = position or getattr(block.attention, "position", None)
    inner = ("block.attention", "block.norm", "block.ffn", "attention.position")
    for name, value in _flat("", parts):
        if not name.startswith(inner) or name == "block.norms":
            yield name, value


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return str(value)
