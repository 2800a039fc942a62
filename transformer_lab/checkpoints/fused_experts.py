"""Experts that lie in one tensor, the way transformers 5 holds them in memory: seen as the tensors of each expert.

[E, 2 F, D] holds for every expert the rows of its gate, then those of its up projection. Where each expert has tensors
of its own, their bytes are the same ones. So a file of either kind is read alike, and nothing is copied or computed.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType

from transformer_lab.checkpoints.safetensors_file import Tensor
from transformer_lab.checkpoints.tensor_names import Stored
from transformer_lab.errors import InputFileError, shown
from transformer_lab.model.config import ModelConfig


def taken_apart(
    tensors: Mapping[str, Tensor], family: ModuleType, config: ModelConfig, wanted: Mapping[str, Stored]
) -> dict[str, Tensor]:
    """The tensors, by their names in the model, with those of each expert in place of one that holds all of them.

    wanted: our name -> how it is stored. Raises InputFileError, naming the tensor, if it has not the shape of all
    experts of the configuration together, or if experts lie in the file both ways.
    """
    result = dict(tensors)
    for layer in range(config.num_layers):
        for module, parts in family.NAMES.fused.items():
            name = f"{family.NAMES.layer}.{layer}.{module}"
            if name not in result or f"blocks.{layer}.{parts[0]}.kernel" not in wanted:
                continue
            whole = result.pop(name)
            forms = [wanted[f"blocks.{layer}.{part}.kernel"] for part in parts]
            _require_shape(whole, forms)
            start = whole.start
            for expert in range(whole.shape[0]):
                for form in forms:
                    own, shape = form.parts[expert]
                    if own in result:
                        message = f"{whole.file.path} has both {shown(whole.name)} and {shown(own)}; only one can be."
                        raise InputFileError(message)
                    size = whole.size * math.prod(shape) // math.prod(whole.shape)
                    result[own] = replace(whole, name=f"{whole.name}[{expert}]", shape=shape, start=start, size=size)
                    start += size
    return result


def _require_shape(whole: Tensor, forms: list[Stored]) -> None:
    shapes = [form.parts[0][1] for form in forms]
    expected = (len(forms[0].parts), sum(shape[0] for shape in shapes), shapes[0][1])
    if whole.shape != expected:
        message = (
            f"{whole.file.path}: {shown(whole.name)} is {shown(whole.shape)}, not {expected}, which all experts of the "
            "configuration are together."
        )
        raise InputFileError(message)
