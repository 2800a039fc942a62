"""Checkpoint families: one file each, named like the `model_type` in config.json. A new family is one new file here.

A family file defines:

    PREFIX                       what transformers puts before the names of all tensors but the head
    EMBEDDING, HEAD              the two tensors that may be tied, without the prefix
    BUFFERS                      a compiled pattern of tensors that hold no parameters and are passed over
    config_from(fields)          config.json -> ModelConfig
    fields_from(config)          ModelConfig -> config.json; ConfigurationError, in words, if the family is another one
    end_ids(fields)              every token id that ends a text
    stored(config)               our dotted name -> Stored, for every parameter of the decoder

`stored` is the name map, read in both directions.
"""

import importlib
import pkgutil
from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True)
class Stored:
    """How one parameter of ours lies in a file: parts (name, shape) stacked along the first axis, then transposed."""

    parts: tuple[tuple[str, tuple[int, ...]], ...]
    transposed: bool = False


def names() -> list[str]:
    """The families there are: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str) -> ModuleType | None:
    """The family of this name. Only a file of this folder is ever imported, whatever a config.json may say."""
    if name not in names():
        return None
    return importlib.import_module(f"{__name__}.{name}")
