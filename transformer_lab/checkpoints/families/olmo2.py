"""OLMo 2 (OLMo team 2024, arXiv 2501.00656): norms after attention and network, and one for all queries, all keys."""

from dataclasses import replace
from typing import Any

from transformer_lab.block.sequential import Sequential
from transformer_lab.checkpoints.config_fields import Fields
from transformer_lab.checkpoints.families import llama
from transformer_lab.checkpoints.families.qwen3 import NORMS
from transformer_lab.checkpoints.sizes import Sizes
from transformer_lab.model.config import ModelConfig
from transformer_lab.norm.rms_norm import RMSNorm

ARCHITECTURE = "Olmo2ForCausalLM"
PREFIX, BUFFERS = llama.PREFIX, llama.BUFFERS
AFTER = {"post_norm_1": "post_attention_layernorm", "post_norm_2": "post_feedforward_layernorm"}
BETWEEN = {name: module for name, module in llama.NAMES.inside.items() if not name.startswith("norm")}
NAMES = replace(llama.NAMES, inside=BETWEEN | AFTER | NORMS)
SIZES = Sizes(50304, 4096, 32, 32, 2048, eos=50279)


def config_from(fields: Fields) -> ModelConfig:
    sizes = SIZES.read(fields.without("head_dim"))
    fields.require_plain_decoder(sizes.max_position_embeddings)
    bias, norm = fields.flag("attention_bias", False), RMSNorm(fields.positive("rms_norm_eps", 1e-5))
    attention = llama.attention(fields, sizes, qkv_bias=bias, out_bias=bias, norm=norm, norm_over="all_heads")
    block = Sequential(attention, llama.gated(fields.without("mlp_bias"), 11008), norm, "after")
    return llama.with_modest_tables(fields, sizes.model((block,) * sizes.num_hidden_layers, norm))


def fields_from(config: ModelConfig) -> dict[str, Any]:
    return llama.common_fields(config) | {"attention_bias": config.blocks[0].attention.qkv_bias}
