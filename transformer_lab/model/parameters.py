"""The parameter tree of a decoder: its names and shapes, and the way between the tree and flat dotted names.

A tree is a nested dict whose `blocks` is a list with one dict per layer:
`params["blocks"][3]["attn"]["qkv"]["kernel"]` is "blocks.3.attn.qkv.kernel". Kernels are [in, out], for `x @ kernel`.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from transformer_lab.model.config import ModelConfig


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter of the decoder, dotted name -> shape, in the order of the computation.

    D hidden_size, V vocab_size, C context_length, H and K query and key/value heads of head_size.
    """
    hidden, head = config.hidden_size, config.head_size
    queries, keys = config.num_heads * head, config.num_kv_heads * head
    norm = {"weight": (hidden,)} | ({"bias": (hidden,)} if config.norm == "layer_norm" else {})
    attention: dict[str, tuple[int, ...]] = {
        "qkv.kernel": (hidden, queries + 2 * keys),  # the columns of all queries, then all keys, then all values
        "out.kernel": (queries, hidden),
    }
    if config.attention_bias:
        attention |= {"qkv.bias": (queries + 2 * keys,), "out.bias": (hidden,)}
    block = (
        {f"norm_1.{name}": shape for name, shape in norm.items()}
        | {f"attn.{name}": shape for name, shape in attention.items()}
        | {f"norm_2.{name}": shape for name, shape in norm.items()}
        | {f"ffn.{name}": shape for name, shape in config.ffn.shapes(hidden).items()}
    )
    result: dict[str, tuple[int, ...]] = {"embed.token": (config.vocab_size, hidden)}
    if config.position == "learned":
        result["embed.position"] = (config.context_length, hidden)
    for layer in range(config.num_layers):
        result |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
    result |= {f"final_norm.{name}": shape for name, shape in norm.items()}
    if not config.tied_head:
        result["head.kernel"] = (hidden, config.vocab_size)
    return result


def count(config: ModelConfig) -> int:
    """How many numbers are learned; a tied head is counted once."""
    return sum(math.prod(shape) for shape in shapes(config).values())


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
