"""The way between our parameters and the tensors of a file, for families that name tensors after their modules."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformer_lab.errors import ConfigurationError
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.parameters import shapes

Inside = dict[str, str | tuple[str, ...]]
_LEAVES = {"kernel": "weight", "offset": "weight"}  # others keep their name


@dataclass(frozen=True)
class Stored:
    """How one parameter of ours lies in a file: parts (name, shape) stacked along the first axis, then transposed.

    by_head: the rows of a stack lie head by head, each with its part of queries, keys and values; (heads, parts).
    """

    parts: tuple[tuple[str, tuple[int, ...]], ...]
    transposed: bool = False
    by_head: tuple[int, int] | None = None

    def from_file(self, array: Any) -> Any:
        """The parts as they were read, one below the other -> our parameter; kernels are views."""
        if self.by_head is not None:
            array = _swapped(array, self.by_head)
        return array.T if self.transposed else array

    def to_file(self, array: Any) -> Any:
        """The inverse."""
        array = array.T if self.transposed else array
        return array if self.by_head is None else _swapped(array, self.by_head[::-1])


def _swapped(rows: Any, form: tuple[int, int]) -> Any:
    """rows [a * b * N, ...] as [a, b, N, ...], with a and b swapped."""
    return rows.reshape(*form, -1, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)


@dataclass(frozen=True)
class TensorNames:
    """outside: our name of a part outside the blocks ("final_norm") -> its module in the file, without the prefix.
    layer: the module of the blocks. inside: our name of a part of a block ("attn.qkv") -> its module there, or three of
    them, of queries, keys and values. head: the module of the head. transposed: kernels are stored [out, in]; the head
    always is. by_head: a packed attn.qkv has its rows head by head, if every head has keys and values of its own.
    """

    outside: Mapping[str, str]
    layer: str
    inside: Mapping[str, str | tuple[str, ...]]
    head: str = "lm_head"
    transposed: bool = True
    by_head: bool = False

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
            part, leaf = part if name == "embed.token" else name, "weight"
        if part == "head":
            return Stored(((f"{self.head}.{leaf}", shape[::-1]),), transposed=leaf == "weight")
        if part in self.outside:
            return Stored(((f"{self.outside[part]}.{leaf}", shape),))
        layer, _, inner = part.removeprefix("blocks.").partition(".")
        if inner not in self.inside:
            message = f"{name} has no name there"
            raise ConfigurationError(message)
        modules, kernel = self.inside[inner], name.endswith(".kernel")
        transposed = kernel and self.transposed
        stack = (shape[::-1] if transposed else shape) if kernel else shape  # as it lies in the file
        start = f"{self.layer}.{layer}."
        if isinstance(modules, str):
            attention = config.blocks[int(layer)].attention
            alone = self.by_head and inner == "attn.qkv" and attention.num_heads == attention.num_kv_heads
            by_head = (attention.num_heads, 3) if alone else None
            return Stored(((f"{start}{modules}.{leaf}", stack),), transposed, by_head)
        attention = config.blocks[int(layer)].attention
        rows = [count * attention.head_size for count in (attention.num_heads, *2 * (attention.num_kv_heads,))]
        parts = ((f"{start}{module}.{leaf}", (count, *stack[1:])) for module, count in zip(modules, rows, strict=True))
        return Stored(tuple(parts), transposed)
