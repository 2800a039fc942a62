"""The parameter tree of a decoder: its names and shapes, and the way between the tree and flat dotted names.

A tree is a nested dict whose `blocks` is a list with one dict per layer:
`params["blocks"][3]["attn"]["qkv"]["kernel"]` is "blocks.3.attn.qkv.kernel". Kernels are [in, out], for `x @ kernel`.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from transformer_lab.model.axes import Axis, Shape
from transformer_lab.model.config import ModelConfig


def shapes(config: ModelConfig) -> dict[str, Shape]:
    """Every parameter of the decoder, dotted name -> shape, in the order of the computation; sizes know their axes.

    Those of the blocks are what their descriptions say, below `blocks.{i}`.
    """
    vocab, embed = Axis(config.vocab_size, "vocab"), Axis(config.hidden_size, "embed")
    result: dict[str, Shape] = {"embed.token": (vocab, embed)}
    if config.position is not None:
        result["embed.position"] = config.position.shape(config.context_length, embed)
    if config.embedding_norm is not None:
        result |= {f"embed.norm.{name}": shape for name, shape in config.embedding_norm.shapes(embed).items()}
    for layer, block in enumerate(config.blocks):
        result |= {f"blocks.{layer}.{name}": shape for name, shape in block.shapes(embed).items()}
    if config.norm is not None:
        result |= {f"final_norm.{name}": shape for name, shape in config.norm.shapes(embed).items()}
    if not config.tied_head:
        result["head.kernel"] = (embed, vocab)
    return result | ({"head.bias": (vocab,)} if config.head_bias else {})


def count(config: ModelConfig) -> int:
    """How many numbers are learned; a tied head is counted once."""
    return sum(math.prod(shape) for shape in shapes(config).values())


def active(config: ModelConfig) -> int:
    """How many of them take part in each token: all, but for the experts that it does not go to."""
    networks = [block.ffn for block in config.blocks if hasattr(block.ffn, "idle")]
    return count(config) - sum(ffn.idle(config.hidden_size) for ffn in networks)


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"blocks.0.norm_1.bias": x, ...} -> {"blocks": [{"norm_1": {"bias": x}}], ...}; layers may come in any order."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *path, leaf = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = value
    if "blocks" in tree:
        tree["blocks"] = [tree["blocks"][str(layer)] for layer in range(len(tree["blocks"]))]
    return tree


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The inverse of `nest`: (dotted name, leaf) pairs."""
    for key, value in tree.items():
        if isinstance(value, list):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
