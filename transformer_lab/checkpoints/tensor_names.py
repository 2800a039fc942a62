"""The way between our parameters and the tensors of a file, for families that name tensors after their modules."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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
    numbered: each part is that of one expert or head, and they are stacked along an axis of their own, before the
    others.
    """

    parts: tuple[tuple[str, tuple[int, ...]], ...]
    transposed: bool = False
    by_group: tuple[int, int] | None = None
    numbered: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all parts together, as they are read."""
        shapes = [shape for _, shape in self.parts]
        return (len(shapes), *shapes[0]) if self.numbered else (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def places(self) -> Iterator[tuple[str, tuple[int, ...], int | slice]]:
        """(name, shape, where it lies among the others along the first axis) of each part."""
        start = 0
        for number, (name, shape) in enumerate(self.parts):
            yield name, shape, number if self.numbered else slice(start, start + shape[0])
            start += shape[0]

    def from_file(self, array: Any) -> Any:
        """The parts as they were read, in their places -> our parameter; kernels are views."""
        if self.by_group is not None:
            array = _in_order(array, _heads_in_file(*self.by_group))
        return array.swapaxes(-1, -2) if self.transposed else array

    def to_file(self, array: Any) -> Any:
        """The inverse."""
        array = array.swapaxes(-1, -2) if self.transposed else array
        return array if self.by_group is None else _in_order(array, np.argsort(_heads_in_file(*self.by_group)))


def _heads_in_file(groups: int, queries: int) -> np.ndarray:
    """Where the heads of all queries, then of all keys, then of all values, stand among those of a file."""
    heads = np.arange(groups * (queries + 2)).reshape(groups, queries + 2)
    return np.concatenate([heads[:, :queries].ravel(), heads[:, queries], heads[:, queries + 1]])


def _in_order(rows: Any, heads: np.ndarray) -> Any:
    """rows [heads * N, ...], head by head in another order."""
    return rows.reshape(len(heads), -1, *rows.shape[1:])[heads].reshape(rows.shape)


def _renamed(name: str, names: Mapping[str, str]) -> str:
    """The dotted name with other names of the modules in it."""
    return ".".join(names.get(module, module) for module in name.split(".")) if names else name


@dataclass(frozen=True)
class TensorNames:
    """outside: our name of a part outside the blocks ("final_norm") -> its module in the file, without the prefix.
    layer: the module of the blocks. inside: our name of a part of a block ("attn.qkv") -> its module there, or three of
    them, of queries, keys and values. head: the module of the head. transposed: kernels are stored [out, in]; the head
    always is. by_group: a packed attn.qkv has its rows group by group: the queries that share a key, that key, its
    value.

    A star in the name of a module stands for the number of an expert, or of a head. fused: a tensor of a layer that may
    hold all experts at once (`fused_experts.py`) -> our names of the parts that each of them has in it, in order.
    in_files: what a file calls a module, where that is not its name. results: a tap of a block -> the module there
    whose result it is, where that is none of the modules above.
    """

    outside: Mapping[str, str]
    layer: str
    inside: Mapping[str, str | tuple[str, ...]]
    head: str = "lm_head"
    transposed: bool = True
    by_group: bool = False
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    in_files: Mapping[str, str] = field(default_factory=dict)
    results: Mapping[str, str] = field(default_factory=dict)

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
        name = _renamed(name, self.in_files)
        return name if name.startswith(f"{self.head}.") else prefix + name

    def in_model(self, name: str, prefix: str) -> str:
        """The inverse; a name may lack the prefix, and may be called in the file as in the model."""
        return _renamed(name.removeprefix(prefix), {theirs: ours for ours, theirs in self.in_files.items()})

    def stored(self, config: ModelConfig) -> dict[str, Stored]:
        """Our dotted name -> how it is stored, for every parameter. ConfigurationError for one that has no name."""
        return {name: self._stored(config, name, shape) for name, shape in shapes(config).items()}

    def _stored(self, config: ModelConfig, name: str, shape: tuple[int, ...]) -> Stored:
        part, _, leaf = name.rpartition(".")
        leaf = _LEAVES.get(leaf, leaf)
        if name in ("embed.token", "embed.position"):
            part, leaf = part if name == "embed.token" else name, "weight"
        if part == "head":
            return Stored(((f"{self.head}.{leaf}", shape[::-1]),), transposed=leaf == "weight")
        if part in self.outside:
            return Stored(((f"{self.outside[part]}.{leaf}", shape),))
        layer, _, inner = name.removeprefix("blocks.").partition(".")
        kernel = name.endswith(".kernel")
        if inner in self.inside:  # a map that is one array and no more, such as the gate of a router
            leaf, kernel = "weight", True
        else:
            inner = inner.rpartition(".")[0]
        if inner not in self.inside:
            message = f"{name} has no name there"
            raise ConfigurationError(message)
        modules = self.inside[inner]
        transposed = kernel and self.transposed
        stack = (*shape[:-2], shape[-1], shape[-2]) if transposed else shape  # as it lies in the file
        start = f"{self.layer}.{layer}."
        if isinstance(modules, str) and "*" in modules:
            before, after = modules.split("*")
            parts = ((f"{start}{before}{number}{after}.{leaf}", stack[1:]) for number in range(stack[0]))
            return Stored(tuple(parts), transposed, numbered=True)
        attention = config.blocks[int(layer)].attention
        if isinstance(modules, str):
            groups, packed = attention.num_kv_heads, self.by_group and inner == "attn.qkv"
            by_group = (groups, attention.num_heads // groups) if packed and groups > 1 else None
            return Stored(((f"{start}{modules}.{leaf}", stack),), transposed, by_group)
        rows = [count * attention.head_size for count in (attention.num_heads, *2 * (attention.num_kv_heads,))]
        parts = ((f"{start}{module}.{leaf}", (count, *stack[1:])) for module, count in zip(modules, rows, strict=True))
        return Stored(tuple(parts), transposed)
