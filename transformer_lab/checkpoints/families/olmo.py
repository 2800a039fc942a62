"""OLMo (Groeneveld et al. 2024, arXiv 2402.00838): Llama with layer norms that learn nothing."""

from typing import Any

from transformer_lab.block.sequential import Sequential
from transformer_lab.checkpoints.config_fields import Fields
from transformer_lab.checkpoints.families import llama
from transformer_lab.checkpoints.sizes import Sizes
from transformer_lab.model.config import ModelConfig
from transformer_lab.norm.layer_norm import LayerNorm

ARCHITECTURE = "OlmoForCausalLM"
PREFIX, NAMES, BUFFERS = llama.PREFIX, llama.NAMES, llama.BUFFERS
SIZES = Sizes(50304, 4096, 32, 32, 2048, eos=50279)


def config_from(fields: Fields) -> ModelConfig:
    sizes = SIZES.read(fields.without("head_dim"))
    fields.require_plain_decoder(sizes.max_position_embeddings)
    bias, norm = fields.flag("attention_bias", False), LayerNorm(1e-5, weight=False, bias=False)
    clip = None if fields.values.get("clip_qkv") is None else fields.positive("clip_qkv", 0.0)
    attention = llama.attention(fields, sizes, qkv_bias=bias, out_bias=bias, clip=clip)
    block = Sequential(attention, llama.gated(fields.without("mlp_bias"), 11008), norm)
    return llama.with_modest_tables(fields, sizes.model((block,) * sizes.num_hidden_layers, norm))


def fields_from(config: ModelConfig) -> dict[str, Any]:
    attention = config.blocks[0].attention
    return llama.common_fields(config) | {"attention_bias": attention.qkv_bias, "clip_qkv": attention.clip}
