"""Cohere's Command R (2024): attention and network in parallel behind one norm without bias, neighbours turned as
pairs, logits scaled. In Command R+ each head's queries and keys have a norm of their own.
"""

from dataclasses import replace
from typing import Any

from transformer_lab.block.parallel import Parallel
from transformer_lab.checkpoints.config_fields import Fields
from transformer_lab.checkpoints.families import llama, phi, qwen3
from transformer_lab.checkpoints.sizes import Sizes
from transformer_lab.model.config import ModelConfig
from transformer_lab.norm.layer_norm import LayerNorm

ARCHITECTURE = "CohereForCausalLM"
PREFIX, NAMES, BUFFERS = llama.PREFIX, qwen3.NAMES, llama.BUFFERS
SIZES = Sizes(256000, 8192, 40, 64, 8192, tied=True, bos=5, eos=255001)


def config_from(fields: Fields) -> ModelConfig:
    sizes = SIZES.read(fields.without("head_dim"))
    fields.require_plain_decoder(sizes.max_position_embeddings)
    bias, norm = fields.flag("attention_bias", False), LayerNorm(fields.positive("layer_norm_eps", 1e-5), bias=False)
    own, over = (norm, "each_head") if fields.flag("use_qk_norm", False) else (None, "head")
    attention = llama.attention(fields, sizes, 500000.0, qkv_bias=bias, out_bias=bias, norm=own, norm_over=over)
    attention = replace(attention, position=replace(attention.position, pairs="neighbours"))
    block = Parallel(attention, llama.gated(fields.without("mlp_bias"), 22528), norm)
    scale = fields.positive("logit_scale", 0.0625)
    config = sizes.model((block,) * sizes.num_hidden_layers, norm, logits_scale=scale)
    return llama.with_modest_tables(fields, config)


def fields_from(config: ModelConfig) -> dict[str, Any]:
    attention = config.blocks[0].attention
    own = {"attention_bias": attention.qkv_bias, "use_qk_norm": attention.norm is not None}
    return phi.common_fields(config) | own | {"logit_scale": config.logits_scale}
