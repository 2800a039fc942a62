"""Reads the weights of a folder into the parameter tree, one tensor at a time.

Every name and shape is checked against the configuration before the first number is read, so that a file that does not
fit costs nothing, and all that is wrong with it is said at once. It does not know where the parameters go.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from transformer_lab.checkpoints.config_file import CONFIG, read_config, read_family
from transformer_lab.checkpoints.fused_experts import taken_apart
from transformer_lab.checkpoints.lora import Adapter, holds_adapter, read_adapter
from transformer_lab.checkpoints.number_formats import FLOATS
from transformer_lab.checkpoints.safetensors_file import Tensor, read_into
from transformer_lab.checkpoints.tensor_names import Stored
from transformer_lab.checkpoints.tied_head import by_short_name, head_differs
from transformer_lab.checkpoints.weight_files import read_headers
from transformer_lab.errors import ConfigurationError, InputFileError, LabError, UnavailableError, listed, shown
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.parameters import nest, shapes
from transformer_lab.paths import expanded


def load_parameters(
    folder: str | Path,
    config: ModelConfig,
    place: Callable[[str, Any], Any] | None = None,
    dtype: Any = np.float32,
    progress: Callable[[int, int], None] | None = None,
    checked: Callable[[], None] | None = None,
    adapter: Path | None = None,
) -> dict[str, Any]:
    """The parameters of the model in `folder`, nested as `model.parameters.nest` makes them.

    Each one is read into fresh memory of `dtype` (float32 or float64) and handed to `place(name, array)`, whose answer
    goes into the tree, and then dropped: a backend that moves or packs it at once never needs the model twice. The
    array has the logical shape [in, out] of `model.parameters.shapes`, but may be a transposed VIEW of memory that lies
    [out, in], because that is how some families store their kernels; copy or pack it into the layout that is wanted.
    Without `place` the arrays themselves are the leaves. `progress(bytes_done, bytes_total)` counts bytes of the files.
    `checked()` is called when it is known that the files fit, before the first number is read.
    `adapter` is the folder of a LoRA adapter that is added to the weights; by default `folder`, if it holds one.

    Raises InputFileError, naming the tensors, if the files do not fit `config`; ConfigurationError if it has parts that
    ask for other tensors than those of config.json do.
    """
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float64):
        message = f"Parameters are loaded as float32 or float64, not {dtype}."
        raise ConfigurationError(message)
    folder = expanded(folder)
    wanted, tensors, lora = require_loadable(folder, config, adapter)
    if checked:
        checked()
    total = sum(tensor.size for tensor in tensors.values())
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    flat = {}
    for name, stored in wanted.items():
        array = _read(stored, tensors, dtype, advance, lora)
        flat[name] = place(name, array) if place else array
        del array
    return nest(flat)


def require_loadable(
    folder: Path, config: ModelConfig, adapter: Path | None = None
) -> tuple[dict[str, Stored], dict[str, Tensor], Adapter | None]:
    """Our names -> how they are stored; the tensors by their stored names; the adapter for them, if there is one.

    Raises InputFileError if they do not fit; ConfigurationError if it is other parts than those of config.json that
    ask for other tensors.
    """
    family, _ = read_family(folder)
    tensors = by_short_name(read_headers(folder), family)
    try:
        wanted: dict[str, Stored] = family.NAMES.stored(config)
        if family.NAMES.fused:
            tensors = taken_apart(tensors, family, config, wanted)
        _settle_tied_head(folder, config, family, tensors)
        _require_fit(folder, family, wanted, tensors)
    except LabError as error:
        if not _has_other_tensors(config, folder):
            raise
        message = (
            f"The chosen parts ask for other tensors than the weights in {folder} hold. Parts of a pretrained model "
            "can be changed only where its tensors stay as they are; model.weights=random (in Python, "
            'weights="random") draws new weights for any parts.'
        )
        raise ConfigurationError(message) from error
    if adapter is None and holds_adapter(folder):
        adapter = folder
    return wanted, tensors, None if adapter is None else read_adapter(adapter, family, wanted)


def _read(
    stored: Stored, tensors: Mapping[str, Tensor], dtype: Any, advance: Callable[[int], None], lora: Adapter | None
) -> Any:
    try:
        array = np.empty(stored.shape, dtype)
    except MemoryError as error:
        message = f"There is not enough memory for the tensor {shown(stored.parts[0][0])}."
        raise UnavailableError(message) from error
    for name, _, place in stored.places():
        read_into(tensors[name], array[place], advance)
        if lora is not None:
            lora.add_to(array[place], name, stored.transposed)
    return stored.from_file(array)


def _settle_tied_head(folder: Path, config: ModelConfig, family: ModuleType, tensors: dict[str, Tensor]) -> None:
    """A tied model needs one of embedding and head, whichever is there; if both are, they must be equal."""
    if not config.tied_head or family.NAMES.head_kernel not in tensors:
        return
    if family.NAMES.embedding not in tensors:
        tensors[family.NAMES.embedding] = tensors.pop(family.NAMES.head_kernel)
    elif tensors[family.NAMES.head_kernel].shape == tensors[family.NAMES.embedding].shape:
        if head_differs(tensors, family):
            message = (
                f"{folder}: {shown(family.NAMES.head_kernel)} and {shown(family.NAMES.embedding)} hold different "
                f"values, but the configuration ties them; set 'tie_word_embeddings' to false in {CONFIG}."
            )
            raise InputFileError(message)
        del tensors[family.NAMES.head_kernel]


def _require_fit(folder: Path, family: ModuleType, wanted: Mapping[str, Stored], tensors: Mapping[str, Tensor]) -> None:
    expected = {name: shape for stored in wanted.values() for name, shape in stored.parts}
    absent = [(family.NAMES.in_file(name, ""), shape) for name, shape in expected.items() if name not in tensors]
    missing = [f"{name} {list(shape)}" for name, shape in absent]
    unexpected = [f"{shown(t.name)} {_shape(t)}" for name, t in tensors.items() if name not in expected]
    fitting = [(tensors[name], shape) for name, shape in expected.items() if name in tensors]
    misshapen = [f"{t.name} is {_shape(t)}, not {list(shape)}" for t, shape in fitting if t.shape != shape]
    not_float = [f"{t.name} is {t.format}, not {' or '.join(FLOATS)}" for t, _ in fitting if t.format not in FLOATS]
    problems = [
        f"{what}: {listed(items)}."
        for what, items in (
            ("Wrong shape", misshapen),
            ("Wrong dtype", not_float),
            ("Missing", missing),
            ("Unexpected", unexpected),
        )
        if items
    ]
    if problems:
        message = f"The weights in {folder} do not fit the configuration. {' '.join(problems)}"
        raise InputFileError(message)


def _has_other_tensors(config: ModelConfig, folder: Path) -> bool:
    """Whether parts were chosen that need other tensors than the folder's own config.json. The head is no part."""
    try:
        own = shapes(replace(read_config(folder), tied_head=config.tied_head))
        return shapes(config) != own
    except ConfigurationError:  # a part from outside: `config` holds it, with the fields that it was saved with
        return False


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape)) if len(tensor.shape) <= 8 else f"of {len(tensor.shape)} dimensions"
