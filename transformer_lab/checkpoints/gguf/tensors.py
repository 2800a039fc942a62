"""The tensors of a GGUF file as parameters of ours. Both name them after what they do, so one table is enough.

They lie as torch has them, kernels [out, in]. Three things are otherwise: the rows of queries and keys where llama.cpp
turns neighbours as pairs; norms that learn a distance from 1, which is stored added to it; and gate and up in one.
"""

import re
from collections.abc import Mapping

import numpy as np

from transformer_lab.checkpoints.gguf import rotary
from transformer_lab.checkpoints.gguf.architectures import Architecture
from transformer_lab.checkpoints.gguf.file import GGUFFile
from transformer_lab.errors import InputFileError, listed, shown
from transformer_lab.memory import require_bytes
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.parameters import count, shapes

OUTSIDE = {
    "embed.token": "token_embd",
    "embed.position": "position_embd",
    "embed.norm": "token_embd_norm",
    "final_norm": "output_norm",
    "head": "output",
}
INSIDE = {
    "norm_1": "attn_norm",
    "attn.qkv": "attn_qkv",
    "attn.q_norm": "attn_q_norm",
    "attn.k_norm": "attn_k_norm",
    "attn.out": "attn_output",
    "post_norm_1": "post_attention_norm",
    "norm_2": "ffn_norm",
    "ffn.gate": "ffn_gate",
    "ffn.up": "ffn_up",
    "ffn.gate_up": "ffn_up",
    "ffn.down": "ffn_down",
    "post_norm_2": "post_ffw_norm",
}


def parameters(file: GGUFFile, config: ModelConfig, architecture: Architecture) -> dict[str, np.ndarray]:
    """Our dotted names -> float32, kernels [in, out]. Nothing is read before all names and shapes are known to fit."""
    sources = fitting(file, config, architecture)
    require_bytes(2 * 4 * count(config), f"unpacking {file.path.name}, {count(config):,} parameters")
    found = {}
    for name, parts in sources.items():
        array = np.concatenate([_read(file, part, config, architecture.neighbours) for part in parts])
        if name.endswith(".offset"):
            array = array - np.float32(1.0)
        found[name] = array.T if name.endswith(".kernel") else array
    return found


def fitting(file: GGUFFile, config: ModelConfig, architecture: Architecture) -> dict[str, list[str]]:
    """Our dotted names -> the tensors that lie one below the other in it. InputFileError if they do not fit."""
    wanted = shapes(config)
    sources = {name: _sources(file, name) for name in wanted}
    _require_fit(file, sources, wanted, rotary.TENSORS if architecture.rotary else ())
    return sources


def _sources(file: GGUFFile, name: str) -> list[str]:
    part, _, leaf = name.rpartition(".")
    leaf = leaf if leaf == "bias" else "weight"
    if name in OUTSIDE:
        return [f"{OUTSIDE[name]}.{leaf}"]
    if part in OUTSIDE:
        return [f"{OUTSIDE[part]}.{leaf}"]
    _, layer, inner = part.split(".", 2)
    start = f"blk.{layer}."
    if inner == "attn.qkv" and f"{start}attn_qkv.{leaf}" not in file.tensors:
        return [f"{start}attn_{one}.{leaf}" for one in "qkv"]
    return [f"{start}{INSIDE[inner]}.{leaf}"]


def _require_fit(
    file: GGUFFile,
    sources: Mapping[str, list[str]],
    wanted: Mapping[str, tuple[int, ...]],
    also: tuple[str, ...],
) -> None:
    used = {part for parts in sources.values() for part in parts}
    problems = {
        "Missing": sorted(used - file.tensors.keys()),
        "Unexpected": sorted(file.tensors.keys() - used - set(also)),
    }
    if not problems["Missing"]:
        problems["Wrong shape"] = [
            f"{' and '.join(parts)} are {list(found)}, not {list(wanted[name])}"
            for name, parts in sources.items()
            if (found := _shape(file, name, parts)) != wanted[name]
        ]
    said = [f"{title}: {listed(list(map(shown, names)))}." for title, names in problems.items() if names]
    if said:
        message = f"{file.path}: the tensors do not fit the header. {' '.join(said)}"
        raise InputFileError(message)


def _shape(file: GGUFFile, name: str, parts: list[str]) -> tuple[int, ...]:
    """Of the parts together, as our parameter has it; () for parts that do not go together."""
    found = [file.tensors[part].shape for part in parts]
    if len({shape[1:] for shape in found}) > 1:
        return ()
    stacked = (sum(shape[0] for shape in found), *found[0][1:])
    return stacked[::-1] if name.endswith(".kernel") else stacked


def _read(file: GGUFFile, name: str, config: ModelConfig, neighbours: bool) -> np.ndarray:
    """The tensor; its rows as transformers has them, which turns halves of a head."""
    array = file.numbers(name)
    turned = re.match(r"blk\.(\d+)\.attn_[qk]\.", name)
    if turned is None or not neighbours:
        return array
    half = config.blocks[int(turned[1])].attention.head_size // 2
    if array.shape[0] % (2 * half):
        message = f"{file.path}: {shown(name)} has {array.shape[0]} rows, which are no whole heads of {2 * half}."
        raise InputFileError(message)
    return array.reshape(-1, half, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
