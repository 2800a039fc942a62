"""config.json in Hugging Face layout, to ModelConfig and back, by the family that its `model_type` names.

Which fields a family has is known to its file in `families/` alone.
"""

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

from transformer_lab.checkpoints import families
from transformer_lab.checkpoints.config_fields import Fields
from transformer_lab.checkpoints.json_file import read_object
from transformer_lab.checkpoints.regular_file import is_there
from transformer_lab.checkpoints.tied_head import by_short_name, head_differs
from transformer_lab.checkpoints.weight_files import INDEX, SINGLE, read_headers, require_folder
from transformer_lab.errors import ConfigurationError, InputFileError, shown
from transformer_lab.model.config import ModelConfig
from transformer_lab.paths import expanded

CONFIG = "config.json"
LARGEST_CONFIG = 10_000_000
_USUAL = ("gpt2", "llama")  # taken first, if several families could hold a model


def read_config(folder: str | Path) -> ModelConfig:
    """The configuration of the model in `folder`. Raises InputFileError, naming the file and the field.

    One fact comes from the weights: if config.json ties the head to the embedding, but the files hold a head of other
    values, transformers uses that head, and so the result here has `tied_head=False`.
    """
    folder = expanded(folder)
    family, fields = read_family(folder)
    try:
        config: ModelConfig = family.config_from(fields)
    except ConfigurationError as error:
        message = f"{fields.path}: {error}"
        raise InputFileError(message) from error
    if config.tied_head:
        try:
            differs = head_differs(by_short_name(read_headers(folder), family), family)
        except InputFileError:
            differs = False  # whatever is wrong with the weights is for load_parameters to say
        if differs:
            return dataclasses.replace(config, tied_head=False)
    return config


def to_hf(config: ModelConfig, preferred: str | None = None) -> dict[str, Any]:
    """The fields of config.json, in the first family that can express `config`."""
    return family_for(config, preferred)[1]


def family_for(config: ModelConfig, preferred: str | None = None) -> tuple[ModuleType, dict[str, Any]]:
    """The first family that can express `config`, and its fields of config.json: the preferred one (that the model
    comes from) before all others, and our own (`families/transformer_lab.py`), which holds every model, after them.
    """

    def turn(name: str) -> tuple[bool, bool, bool, str]:
        return name != preferred, name == families.OURS, name not in _USUAL, name

    for name in sorted(families.names(), key=turn):
        family = families.find(name)
        assert family is not None
        try:
            architecture = [] if family.ARCHITECTURE is None else [family.ARCHITECTURE]
            fields = {"model_type": name, "architectures": architecture} | family.fields_from(config)
            if (
                name == families.OURS
            ):  # it need not be read again, nor asked for names: a part from outside may be missing
                return family, fields
            if family.config_from(Fields(Path(CONFIG), fields)) == config:
                family.NAMES.stored(config)
                return family, fields
        except (ConfigurationError, InputFileError, AttributeError, TypeError, StopIteration):
            continue  # a part of the model is none that this family has
    message = "No checkpoint family can hold this model."
    raise ConfigurationError(message)


def read_family(folder: Path) -> tuple[ModuleType, Fields]:
    """The family that config.json names, and the fields of config.json."""
    require_folder(folder)
    path = folder / CONFIG
    if not is_there(path):
        message = f"{folder} has no {CONFIG}. A folder in Hugging Face layout holds it beside {SINGLE} or {INDEX}."
        raise InputFileError(message)
    values = read_object(path, LARGEST_CONFIG)
    model_type = values.get("model_type")
    family = families.find(model_type) if isinstance(model_type, str) else None
    if family is None:
        given = f"is {shown(model_type)}" if "model_type" in values else "is missing"
        Fields(path, values).refuse("model_type", f"{given}; the families known here are {', '.join(families.names())}")
    return family, Fields(path, values)
