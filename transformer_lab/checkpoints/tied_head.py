"""Whether the head in the files is really the embedding, which config.json may claim and the files contradict."""

import math
from collections.abc import Mapping
from types import ModuleType

import numpy as np

from transformer_lab.checkpoints.number_formats import FLOATS
from transformer_lab.checkpoints.safetensors_file import Tensor, read_into
from transformer_lab.errors import InputFileError, shown

_ELEMENTS_AT_ONCE = 1_000_000
COMPILED = "_orig_mod."  # what torch.compile puts before the names of a model that is saved without being unpacked


def by_short_name(tensors: Mapping[str, Tensor], family: ModuleType) -> dict[str, Tensor]:
    """The tensors by their names without the family's prefix, which a file may have or not, and without that of
    torch.compile; no buffers."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = family.NAMES.in_model(name.removeprefix(COMPILED), family.PREFIX)
        if family.BUFFERS.fullmatch(short):
            continue
        if short in result:
            message = f"{tensor.file.path} has both {shown(name)} and {shown(result[short].name)}; only one can be."
            raise InputFileError(message)
        result[short] = tensor
    return result


def head_differs(tensors: Mapping[str, Tensor], family: ModuleType) -> bool:
    """Whether both are there with different values; compared piece by piece, in float64, where every format fits."""
    embedding, head = tensors.get(family.NAMES.embedding), tensors.get(family.NAMES.head_kernel)
    if embedding is None or head is None or embedding.shape != head.shape:
        return False
    if embedding.format not in FLOATS or head.format not in FLOATS:
        return False
    size = math.prod(head.shape)
    for begin in range(0, size, _ELEMENTS_AT_ONCE):
        pieces = [np.empty(min(_ELEMENTS_AT_ONCE, size - begin)) for _ in range(2)]
        read_into(embedding, pieces[0], begin=begin)
        read_into(head, pieces[1], begin=begin)
        if not np.array_equal(pieces[0], pieces[1], equal_nan=True):
            return True
    return False
