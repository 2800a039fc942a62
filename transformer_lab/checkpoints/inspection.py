"""What is in a checkpoint, from the headers and config.json: any family can be looked at, however large it is.

No tensor is read, but for one case: whether a tied head that is stored too equals the embedding. Whatever is wrong is
listed instead of raised, as long as there is something to look at.
"""

import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformer_lab.checkpoints.config_file import CONFIG, LARGEST_CONFIG, read_config, read_family
from transformer_lab.checkpoints.gguf.architectures import read_fields
from transformer_lab.checkpoints.gguf.file import read_gguf
from transformer_lab.checkpoints.gguf.header import Header
from transformer_lab.checkpoints.gguf.tensors import fitting
from transformer_lab.checkpoints.gguf.tokenizer import tokenizer_files
from transformer_lab.checkpoints.json_file import read_object
from transformer_lab.checkpoints.loading import require_loadable
from transformer_lab.checkpoints.lora import holds_adapter
from transformer_lab.checkpoints.original import read_original
from transformer_lab.checkpoints.regular_file import is_there
from transformer_lab.checkpoints.safetensors_file import Tensor, read_header
from transformer_lab.checkpoints.tied_head import by_short_name
from transformer_lab.checkpoints.weight_files import (
    PICKLES,
    SINGLE,
    pickle_refusal,
    read_headers,
    require_folder,
    weight_files,
)
from transformer_lab.errors import InputFileError, LabError
from transformer_lab.model.parameters import active
from transformer_lab.paths import expanded

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "gpt2-vocab.json",
    "merges.txt",
    "gpt2-merges.txt",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


@dataclass(frozen=True)
class InspectedTensor:
    """One tensor as the header describes it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    file: str


@dataclass(frozen=True)
class Inspection:
    """What `inspect_folder` found. `loads`: whether load_parameters would take it; if not, `problems` says why.

    `adapter`: the folder of a LoRA adapter that loading adds to the weights. The counts are those of the base model.
    """

    path: str
    adapter: str | None
    model_type: str | None
    loads: bool
    problems: tuple[str, ...]
    total_parameters: int  # elements of all tensors that are not buffers
    active_parameters: int | None  # those that one token uses, of a model that loads
    total_bytes: int
    parameters_by_dtype: dict[str, int]
    tokenizer_files: tuple[str, ...]
    config: dict[str, Any]  # the fields of config.json as they stand there
    generation_config: dict[str, Any] | None  # those of generation_config.json
    metadata: dict[str, str]  # of the first weight file
    tensors: tuple[InspectedTensor, ...] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def inspect_folder(path: str | Path, adapter: Path | None = None) -> Inspection:
    """Looks at a folder in Hugging Face layout, or at a single .safetensors or .gguf file. `adapter` as in
    `load_parameters`.

    Raises InputFileError if there is nothing to look at: no such folder or file, or the single file is damaged.
    """
    path = expanded(path)
    if is_there(path) and not path.is_dir():
        if path.suffix in PICKLES:
            raise InputFileError(pickle_refusal([path.name]))
        if path.suffix == ".gguf":
            return _inspect_gguf(path)
        file = read_header(path)
        reason = f"{path} is a single file; a model also needs {CONFIG}, in the folder with {SINGLE}."
        return _inspection(path, None, {}, None, (), [reason], file.tensors, set(file.tensors), file.metadata)

    require_folder(path)
    if adapter is None and holds_adapter(path):
        adapter = path
    problems: list[str] = []
    fields: dict[str, Any] = {}
    generation: dict[str, Any] | None = None
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    parameters, used = set(), None
    try:
        tensors = read_headers(path)
        metadata = read_header(weight_files(path)[0]).metadata
        parameters = set(tensors)
    except LabError as error:
        problems.append(str(error))
    try:
        if is_there(path / CONFIG):
            fields = read_object(path / CONFIG, LARGEST_CONFIG)
        family, _ = read_family(path)
        parameters = {tensor.name for tensor in by_short_name(tensors, family).values()}
        config = read_config(path)
        generation = None if (found := read_original(path).generation) is None else dict(found)
        if not problems:
            require_loadable(path, config, adapter)
            used = active(config)
    except LabError as error:
        problems.append(str(error))
    tokenizer = tuple(name for name in TOKENIZER_FILES if is_there(path / name))
    return _inspection(path, adapter, fields, generation, tokenizer, problems, tensors, parameters, metadata, used)


def _inspect_gguf(path: Path) -> Inspection:
    """From its header alone; config: the fields of config.json that it means."""
    file = read_gguf(path)
    problems: list[str] = []
    fields: dict[str, Any] = {}
    tokenizer: tuple[str, ...] = ()
    used = None
    try:
        architecture, family, found = read_fields(Header(file))
        fields = {"model_type": architecture.family} | found.values
        fitting(file, family.config_from(found), architecture)
        tokenizer = tuple(tokenizer_files(file))
    except LabError as error:
        problems.append(str(error))
    counts: Counter[str] = Counter()
    for tensor in file.tensors.values():
        counts[tensor.format] += math.prod(tensor.shape)
    return Inspection(
        path=str(path),
        adapter=None,
        model_type=fields.get("model_type"),
        loads=not problems,
        problems=tuple(problems),
        total_parameters=counts.total(),
        active_parameters=used,
        total_bytes=sum(tensor.size for tensor in file.tensors.values()),
        parameters_by_dtype=dict(counts),
        tokenizer_files=tokenizer,
        config=fields,
        generation_config=None,
        metadata={name: value for name, value in file.values.items() if isinstance(value, str)},
        tensors=tuple(
            InspectedTensor(tensor.name, tensor.shape, tensor.format, tensor.size, path.name)
            for tensor in file.tensors.values()
        ),
    )


def _inspection(
    path: Path,
    adapter: Path | None,
    fields: dict[str, Any],
    generation: dict[str, Any] | None,
    tokenizer: tuple[str, ...],
    problems: list[str],
    tensors: dict[str, Tensor],
    parameters: set[str],
    metadata: dict[str, str],
    used: int | None = None,
) -> Inspection:
    counts: Counter[str] = Counter()
    for name in parameters:
        counts[tensors[name].format] += math.prod(tensors[name].shape)
    model_type = fields.get("model_type")
    return Inspection(
        path=str(path),
        adapter=None if adapter is None else str(adapter),
        model_type=model_type if isinstance(model_type, str) else None,
        loads=not problems,
        problems=tuple(dict.fromkeys(problems)),
        total_parameters=counts.total(),
        active_parameters=used,
        total_bytes=sum(tensor.size for tensor in tensors.values()),
        parameters_by_dtype=dict(counts),
        tokenizer_files=tokenizer,
        config=fields,
        generation_config=generation,
        metadata=metadata,
        tensors=tuple(
            InspectedTensor(tensor.name, tensor.shape, tensor.format, tensor.size, tensor.file.path.name)
            for tensor in tensors.values()
        ),
    )
