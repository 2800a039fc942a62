"""LoRA adapters (Hu et al. 2021, arXiv 2106.09685), added to the weights while these are read: W + scaling * B A.

A folder as peft writes it: adapter_config.json, and adapter_model.safetensors with the factors of each adapted map,
A [r, in] and B [out, r]. The scaling is lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora (Kalajdzievski 2023,
arXiv 2312.03732). Everything else that peft can do changes the function in another way and is refused by its name.
Where the base model lies is not known here.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from transformer_lab.checkpoints.config_fields import Fields
from transformer_lab.checkpoints.json_file import read_object
from transformer_lab.checkpoints.number_formats import FLOATS
from transformer_lab.checkpoints.regular_file import is_there
from transformer_lab.checkpoints.safetensors_file import Tensor, read_header, read_into
from transformer_lab.checkpoints.tensor_names import Stored
from transformer_lab.errors import InputFileError, listed, shown

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_PICKLE = "adapter_model.bin"
LARGEST_ADAPTER_CONFIG = 10_000_000
LARGEST_RANK = 1_000_000

# Fields that do not change what a trained adapter computes. The file of weights says which maps are adapted, and how a
# base model stores its kernels decides whether B A is transposed: in peft, too, fan_in_fan_out gives way to that.
_HARMLESS = {
    "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode",
    "r", "lora_alpha", "lora_dropout", "use_rslora", "fan_in_fan_out", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "megatron_core", "qalora_group_size", "ensure_weight_tying",
}  # fmt: skip
_PREFIX = "base_model.model."
_FACTORS = {".lora_A.weight": 0, ".lora_B.weight": 1}
_MERGE = (
    "Merge it with peft: PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(new_folder), "
    "then load the new folder"
)
_ELEMENTS_AT_ONCE = 4_000_000


def holds_adapter(folder: Path) -> bool:
    """Whether an adapter lies in the folder, with or without a model: its weights alone are half of one."""
    return any(is_there(folder / name) for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_PICKLE))


def named_base(folder: Path) -> tuple[str, str | None]:
    """(base model, its revision or None), as adapter_config.json names them; InputFileError if it names none."""
    fields = _read_config(folder)
    base, revision = (fields.values.get(name) for name in ("base_model_name_or_path", "revision"))
    if not isinstance(base, str) or not base:
        fields.refuse("base_model_name_or_path", f"is {shown(base)}; the folder or hub id of the base model is needed")
    if revision is not None and not isinstance(revision, str):
        fields.refuse("revision", f"is {shown(revision)}; it must be text or null")
    return base, revision


@dataclass(frozen=True)
class Adapter:
    """`factors`: stored name of a kernel, without the family's prefix -> (A [r, in], B [out, r]) in the file."""

    path: Path
    scaling: float
    factors: Mapping[str, tuple[Tensor, Tensor]]

    def add_to(self, stored: Any, name: str, transposed: bool) -> None:
        """Adds scaling * B A to the kernel `stored` of this name, if it is adapted; computed in float64.

        stored: float32 or float64, as it lies in the file: [out, in], or [in, out] if it is not `transposed` there.
        """
        if name not in self.factors:
            return
        a, b = (_numbers(tensor) for tensor in self.factors[name])
        left, right = (b, a) if transposed else (a.T, b.T)
        step = max(1, _ELEMENTS_AT_ONCE // stored.shape[1])
        for start in range(0, len(stored), step):
            rows = slice(start, start + step)
            with np.errstate(all="ignore"):  # infinities and NaN of the files pass as what they are
                stored[rows] = stored[rows] + self.scaling * (left[rows] @ right)


def read_adapter(folder: Path, family: ModuleType, wanted: Mapping[str, Stored]) -> Adapter:
    """The adapter in `folder` for a base model whose parameters are stored as `wanted` says.

    Only headers are read. Raises InputFileError, naming the field or the tensor, for whatever is no plain LoRA of the
    base model's linear maps.
    """
    fields = _read_config(folder)
    _require_plain(fields)
    rank = fields.whole("r", 8, LARGEST_RANK)
    alpha = fields.positive("lora_alpha", 8)
    scaling = alpha / (math.sqrt(rank) if fields.flag("use_rslora", False) else rank)
    path = folder / ADAPTER_WEIGHTS
    if not is_there(path) and is_there(folder / ADAPTER_PICKLE):
        message = f"{folder} has no {ADAPTER_WEIGHTS}. {pickled_adapter()}"
        raise InputFileError(message)
    kernels = {
        part: shape if stored.transposed else shape[::-1]  # [out, in]
        for name, stored in wanted.items()
        if name.endswith(".kernel") or stored.transposed
        for part, shape in stored.parts
    }
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for module, pair in _pairs(path, fields).items():
        kernel = f"{family.NAMES.in_model(module, family.PREFIX)}.weight"
        if kernel in factors:
            message = f"{path} adapts {shown(module)} twice, by its name with and without {family.PREFIX!r}."
            raise InputFileError(message)
        factors[kernel] = _fitting(path, module, pair, rank, kernels.get(kernel))
    return Adapter(path, scaling, factors)


def pickled_adapter() -> str:
    return (
        f"{ADAPTER_PICKLE} may be pickle, which can run code when it is read, so it is not read. Load it with peft, "
        "where you trust it, and save it again."
    )


def _read_config(folder: Path) -> Fields:
    path = folder / ADAPTER_CONFIG
    if not is_there(path):
        message = (
            f"{folder} holds the weights of an adapter without {ADAPTER_CONFIG}, which says how much of them is added. "
            "Bring that file, or take the adapter away."
        )
        raise InputFileError(message)
    return Fields(path, read_object(path, LARGEST_ADAPTER_CONFIG))


def _require_plain(fields: Fields) -> None:
    """Whatever is not known to be harmless must be switched off, so that a variant of tomorrow is not passed over."""
    kind = fields.values.get("peft_type")
    if kind != "LORA":
        fields.refuse("peft_type", f"is {shown(kind)}; only LORA is offered. {_MERGE}")
    # The other ways to begin change the base model too, when peft loads the adapter.
    begin = fields.values.get("init_lora_weights", True)
    if not isinstance(begin, bool) and begin not in ("gaussian", "orthogonal"):
        fields.refuse("init_lora_weights", f"is {shown(begin)}, which changes the base model too. {_MERGE}")
    if fields.values.get("bias", "none") != "none":
        fields.refuse("bias", f"is {shown(fields.values['bias'])}; only none is offered. {_MERGE}")
    for name, value in fields.values.items():
        if name not in _HARMLESS | {"init_lora_weights", "bias"} and value not in (None, False, 0, "", [], {}):
            reason = f"is {shown(value)}; it is not offered here, only plain LoRA is. {_MERGE}"
            fields.refuse(name, reason)


def _pairs(path: Path, fields: Fields) -> dict[str, list[Tensor | None]]:
    """Module, by its name in the base model -> [A, B], as far as the file has them."""
    pairs: dict[str, list[Tensor | None]] = {}
    other = []
    for name, tensor in read_header(path).tensors.items():
        ending = next((ending for ending in _FACTORS if name.endswith(ending)), None)
        if ending is None or not name.startswith(_PREFIX):
            other.append(shown(name))
        else:
            module = name.removeprefix(_PREFIX).removesuffix(ending)
            pairs.setdefault(module, [None, None])[_FACTORS[ending]] = tensor
    if other:
        message = f"{path} holds more than the factors A and B of a LoRA: {listed(other)}. {_MERGE}."
        raise InputFileError(message)
    _require_targeted(fields, path, pairs)
    return pairs


def _require_targeted(fields: Fields, path: Path, modules: Iterable[str]) -> None:
    """peft passes over factors of modules that target_modules does not list, so they must be a mistake.

    A text, "all-linear" or an expression, is not looked at: the expression of a stranger may take for ever.
    """
    targets = fields.values.get("target_modules")
    if targets is None or isinstance(targets, str):
        return
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        fields.refuse("target_modules", f"is {shown(targets)}; it must be a list of names, a text, or null")
    endings = tuple(f".{target}" for target in targets)
    strangers = [shown(module) for module in modules if not f".{module}".endswith(endings)]
    if strangers:
        message = (
            f"{path} holds factors of {listed(strangers)}, which target_modules in {ADAPTER_CONFIG} does not list."
        )
        raise InputFileError(message)


def _fitting(
    path: Path, module: str, pair: list[Tensor | None], rank: int, shape: tuple[int, ...] | None
) -> tuple[Tensor, Tensor]:
    """(A, B) of a kernel of this shape, [out, in]; None is a module that the base model does not have as a map."""
    a, b = pair
    if a is None or b is None:
        message = f"{path} holds one of the two factors of {shown(module)}; A and B belong together."
        raise InputFileError(message)
    if shape is None:
        message = (
            f"{path} adapts {shown(module)}, which is no linear map of its own in the base model: "
            f"an embedding, a tied head, or another model's. {_MERGE}."
        )
        raise InputFileError(message)
    for tensor, expected in ((a, (rank, shape[1])), (b, (shape[0], rank))):
        if tensor.shape != expected:
            message = f"{path}: {shown(tensor.name)} is {shown(tensor.shape)}, not {expected}, as r is {rank}."
            raise InputFileError(message)
        if tensor.format not in FLOATS:
            message = f"{path}: {shown(tensor.name)} is {tensor.format}, not {' or '.join(FLOATS)}."
            raise InputFileError(message)
    return a, b


def _numbers(tensor: Tensor) -> Any:
    """The tensor as float64."""
    numbers = np.empty(tensor.shape)
    read_into(tensor, numbers)
    return numbers
