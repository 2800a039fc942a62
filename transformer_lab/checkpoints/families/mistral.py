"""Mistral (Jiang et al. 2023, arXiv 2310.06825): Llama with a window in every layer."""

from typing import Any

from transformer_lab.block.sequential import Sequential
from transformer_lab.checkpoints.config_fields import Fields
from transformer_lab.checkpoints.families import llama
from transformer_lab.checkpoints.layer_kinds import read_window, window_fields
from transformer_lab.checkpoints.sizes import Sizes
from transformer_lab.model.config import ModelConfig
from transformer_lab.norm.rms_norm import RMSNorm

ARCHITECTURE = "MistralForCausalLM"
PREFIX, NAMES, BUFFERS = llama.PREFIX, llama.NAMES, llama.BUFFERS
SIZES = Sizes(32000, 4096, 32, 32, 131072, 8, bos=1, eos=2)


def config_from(fields: Fields) -> ModelConfig:
    sizes = SIZES.read(fields)
    fields.require_decoder()
    window = read_window(fields, sizes.max_position_embeddings, 4096)
    attention = llama.attention(fields, sizes, qkv_bias=False, out_bias=False, window=window)
    norm = RMSNorm(fields.positive("rms_norm_eps", 1e-6))
    block = Sequential(attention, llama.gated(fields.without("mlp_bias"), 14336), norm)
    return llama.with_modest_tables(fields, sizes.model((block,) * sizes.num_hidden_layers, norm))


def fields_from(config: ModelConfig) -> dict[str, Any]:
    return llama.common_fields(config) | {"sliding_window": window_fields(config)["sliding_window"]}
