"""Qwen2 and Qwen2.5 (Yang et al. 2024, arXiv 2407.10671): Llama with biases for queries, keys and values, and where it
is asked for a window in the later layers.
"""

from typing import Any

from transformer_lab.block.sequential import Sequential
from transformer_lab.checkpoints.config_fields import Fields
from transformer_lab.checkpoints.families import llama
from transformer_lab.checkpoints.layer_kinds import FULL, SLIDING, read_kinds, read_window, window_fields
from transformer_lab.checkpoints.sizes import Sizes
from transformer_lab.model.config import ModelConfig
from transformer_lab.norm.rms_norm import RMSNorm

ARCHITECTURE = "Qwen2ForCausalLM"
PREFIX, NAMES, BUFFERS = llama.PREFIX, llama.NAMES, llama.BUFFERS
SIZES = Sizes(151936, 4096, 32, 32, 32768, 32)


def config_from(fields: Fields) -> ModelConfig:
    return model(fields, SIZES.read(fields.without("head_dim")), qkv_bias=True, out_bias=False)


def model(fields: Fields, sizes: Sizes, **own: Any) -> ModelConfig:
    """own: fields of the attention."""
    fields.require_decoder()
    layers, window = sizes.num_hidden_layers, read_window(fields, sizes.max_position_embeddings, 4096)
    if not fields.flag("use_sliding_window", False):
        window = None
    first = fields.values.get("max_window_layers", 28)
    if type(first) is not int:
        fields.refuse("max_window_layers", "must be a whole number")
    usual = [SLIDING if window is not None and layer >= first else FULL for layer in range(layers)]
    norm, ffn = RMSNorm(fields.positive("rms_norm_eps", 1e-6)), llama.gated(fields.without("mlp_bias"), 22016)

    def block(kind: str) -> Sequential:
        attention = llama.attention(fields, sizes, window=window if kind == SLIDING else None, **own)
        return Sequential(attention, ffn, norm)

    blocks = tuple(map(block, read_kinds(fields, layers, usual)))
    return llama.with_modest_tables(fields, sizes.model(blocks, norm))


def fields_from(config: ModelConfig) -> dict[str, Any]:
    windows = window_fields(config)
    return llama.common_fields(config) | windows | {"use_sliding_window": windows["sliding_window"] is not None}
