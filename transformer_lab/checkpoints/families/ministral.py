"""Ministral: Mistral with a window in some of its layers."""

from typing import Any

from transformer_lab.block.sequential import Sequential
from transformer_lab.checkpoints.config_fields import Fields
from transformer_lab.checkpoints.families import llama
from transformer_lab.checkpoints.layer_kinds import SLIDING, read_kinds, read_window, window_fields
from transformer_lab.checkpoints.sizes import Sizes
from transformer_lab.model.config import ModelConfig
from transformer_lab.norm.rms_norm import RMSNorm

ARCHITECTURE = "MinistralForCausalLM"
PREFIX, NAMES, BUFFERS = llama.PREFIX, llama.NAMES, llama.BUFFERS
SIZES = Sizes(32000, 4096, 32, 32, 131072, 8, bos=1, eos=2)


def config_from(fields: Fields) -> ModelConfig:
    sizes = SIZES.read(fields)
    fields.require_decoder()
    layers, window = sizes.num_hidden_layers, read_window(fields, sizes.max_position_embeddings, 4096)
    kinds = read_kinds(fields, layers, [SLIDING] * layers)
    norm, ffn = RMSNorm(fields.positive("rms_norm_eps", 1e-6)), llama.gated(fields.without("mlp_bias"), 14336)

    def block(kind: str) -> Sequential:
        seen = window if kind == SLIDING else None
        return Sequential(llama.attention(fields, sizes, qkv_bias=False, out_bias=False, window=seen), ffn, norm)

    return llama.with_modest_tables(fields, sizes.model(tuple(map(block, kinds)), norm))


def fields_from(config: ModelConfig) -> dict[str, Any]:
    return llama.common_fields(config) | window_fields(config)
