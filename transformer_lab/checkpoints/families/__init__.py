"""Checkpoint families: one file each, named like the `model_type` in config.json. A new family is one new file here.

A family file defines:

    ARCHITECTURE                 the class of transformers that runs it
    PREFIX                       what transformers puts before the names of all tensors but the head
    NAMES                        a `TensorNames`: which tensor holds which parameter, read in both directions
    BUFFERS                      a compiled pattern of tensors that hold no parameters and are passed over
    SIZES                        a `Sizes`: what absent fields mean
    config_from(fields)          config.json -> ModelConfig
    fields_from(config)          ModelConfig -> config.json. It may raise ConfigurationError or AttributeError for what
                                 the family does not have, and need not look for it: whoever calls it reads what it
                                 says with `config_from` and compares.
"""

import importlib
import pkgutil
from types import ModuleType

NO_BUFFERS = r"(?!)"  # matches nothing
OURS = "transformer_lab"


def names() -> list[str]:
    """The families there are: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str) -> ModuleType | None:
    """The family of this name. Only a file of this folder is ever imported, whatever a config.json may say."""
    if name not in names():
        return None
    return importlib.import_module(f"{__name__}.{name}")
