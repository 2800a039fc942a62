"""The way between our parameters and the tensors of a file, for families that name tensors after their modules."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from transformer_lab.errors import ConfigurationError
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.parameters import shapes

Inside = dict[str, str | tuple[str, ...]]
_LEAVES = {"kernel": "weight", "offset": "weight"}  # others keep their name


@dataclass(frozen=True)
class Stored:
    """How one parameter of ours lies in a file: parts (name, shape) stacked along the first axis, then transposed.

    by_group: the rows lie group by group, each with its queries, its key and its value; (groups, queries in each).
    flattened: the axes of the one tensor are one axis of ours.
    """

    parts: tuple[tuple[str, tuple[int, ...]], ...]
    transposed: bool = False
    by_group: tuple[int, int] | None = None
    flattened: bool = False

    def from_file(self, array: Any) -> Any:
        """The parts as they were read, one below the other -> our parameter; kernels are views."""
        if self.flattened:
            return array.reshape(-1)
        if self.by_group is not None:
            array = _in_order(array, _heads_in_file(*self.by_group))
        return array.T if self.transposed else array

    def to_file(self, array: Any) -> Any:
        """The inverse."""
        if self.flattened:
            return array.reshape(self.parts[0][1])
        array = array.T if self.transposed else array
        return array if self.by_group is None else _in_order(array, np.argsort(_heads_in_file(*self.by_group)))


def _heads_in_file(groups: int, queries: int) -> np.ndarray:
    """Where the heads of all queries, then of all keys, then of all values, stand among those of a file."""
    heads = np.arange(groups * (queries + 2)).reshape(groups, queries + 2)
    return np.concatenate([heads[:, :queries].ravel(), heads[:, queries], heads[:, queries + 1]])


def _in_order(rows: Any, heads: np.ndarray) -> Any:
    """rows [heads * N, ...], head by head in another order."""
    return rows.reshape(len(heads), -1, *rows.shape[1:])[heads].reshape(rows.shape)


@dataclass(frozen=True)
class TensorNames:
    """outside: our name of a part outside the blocks ("final_norm") -> its module in the file, without the prefix.
    layer: the module of the blocks. inside: our name of a part of a block ("attn.qkv") -> its module there, or three of
    them, of queries, keys and values; "{head}" in it is a head's number, where each has a module. head: the module of
    the head. transposed: kernels are stored [out, in]; the head always is. by_group: a packed attn.qkv has its rows
    group by group: the queries that share a key, that key, its value.
    """

    outside: Mapping[str, str]
    layer: str
    inside: Mapping[str, str | tuple[str, ...]]
    head: str = "lm_head"
    transposed: bool = True
    by_group: bool = False

    @property
    def embedding(self) -> str:
        """The tensor of the embedding, without the prefix."""
        return f"{self.outside['embed']}.weight"

    @property
    def head_kernel(self) -> str:
        """The tensor of the head."""
        return f"{self.head}.weight"

    def in_file(self, name: str, prefix: str) -> str:
        """The whole name of a tensor: the head stands beside the model that the prefix names."""
        return name if name.startswith(f"{self.head}.") else prefix + name

    def stored(self, config: ModelConfig) -> dict[str, Stored]:
        """Our dotted name -> how it is stored, for every parameter. ConfigurationError for one that has no name."""
        return {name: self._stored(config, name, shape) for name, shape in shapes(config).items()}

    def _stored(self, config: ModelConfig, name: str, shape: tuple[int, ...]) -> Stored:
        part, _, leaf = name.rpartition(".")
        leaf = _LEAVES.get(leaf, leaf)
        if name in ("embed.token", "embed.position"):
            return Stored(((f"{self.outside['embed' if name == 'embed.token' else name]}.weight", shape),))
        if part == "head":
            return Stored(((f"{self.head}.{leaf}", shape[::-1]),), transposed=leaf == "weight")
        if part in self.outside:
            return Stored(((f"{self.outside[part]}.{leaf}", shape),))
        _, layer, inner = part.split(".", 2)
        if inner not in self.inside:
            message = f"{name} has no name there"
            raise ConfigurationError(message)
        modules, kernel = self.inside[inner], name.endswith(".kernel")
        transposed = kernel and self.transposed
        stack = (shape[::-1] if transposed else shape) if kernel else shape  # as it lies in the file
        start = f"{self.layer}.{layer}."
        attention = config.blocks[int(layer)].attention
        if inner in ("attn.q_norm", "attn.k_norm") and attention.norm_over == "each_head":
            heads = attention.num_heads if inner == "attn.q_norm" else attention.num_kv_heads
            return _of_each_head(f"{start}{modules}.{leaf}", heads, shape[0] // heads)
        if isinstance(modules, str):
            groups, packed = attention.num_kv_heads, self.by_group and inner == "attn.qkv"
            by_group = (groups, attention.num_heads // groups) if packed and groups > 1 else None
            return Stored(((f"{start}{modules}.{leaf}", stack),), transposed, by_group)
        rows = [count * attention.head_size for count in (attention.num_heads, *2 * (attention.num_kv_heads,))]
        parts = ((f"{start}{module}.{leaf}", (count, *stack[1:])) for module, count in zip(modules, rows, strict=True))
        return Stored(tuple(parts), transposed)


def _of_each_head(name: str, heads: int, size: int) -> Stored:
    """What each head has of its own, `size` numbers: in one tensor, or in as many as there are heads."""
    if "{head}" in name:
        return Stored(tuple((name.replace("{head}", str(head)), (size,)) for head in range(heads)))
    return Stored(((name, (heads, size)),), flattened=True)
