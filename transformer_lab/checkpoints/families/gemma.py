"""Gemma (Gemma Team 2024, arXiv 2403.08295): norms that learn a distance from 1, and an embedding that is scaled."""

from typing import Any

import numpy as np

from transformer_lab.block.sequential import Sequential
from transformer_lab.checkpoints.config_fields import Fields
from transformer_lab.checkpoints.families import llama
from transformer_lab.checkpoints.sizes import Sizes
from transformer_lab.model.config import ModelConfig
from transformer_lab.norm.rms_norm import RMSNorm

ARCHITECTURE = "GemmaForCausalLM"
PREFIX, NAMES, BUFFERS = llama.PREFIX, llama.NAMES, llama.BUFFERS
SIZES = Sizes(256000, 3072, 28, 16, 8192, 16, head_dim=256, tied=True, bos=2, eos=1)


def config_from(fields: Fields) -> ModelConfig:
    sizes = SIZES.read(fields)
    fields.require_plain_decoder(sizes.max_position_embeddings)
    require_causal(fields)
    # "gelu" is what the first releases said, and the tanh form is what they meant; transformers reads it so, too.
    activation = fields.values.get("hidden_act")
    fields = fields.without("hidden_act", "mlp_bias") if activation == "gelu" else fields.without("mlp_bias")
    bias, norm = fields.flag("attention_bias", False), RMSNorm(fields.positive("rms_norm_eps", 1e-6), from_one=True)
    attention = llama.attention(fields, sizes, qkv_bias=bias, out_bias=bias)
    block = Sequential(attention, llama.gated(fields, 24576, "gelu_pytorch_tanh"), norm)
    config = sizes.model((block,) * sizes.num_hidden_layers, norm, embedding_scale=root(sizes.hidden_size))
    return llama.with_modest_tables(fields, config)


def require_causal(fields: Fields) -> None:
    fields.require("use_bidirectional_attention", (None, False), "only causal attention is offered")


def root(size: int) -> float:
    """The factor of the embedding, as float32 has it."""
    return float(np.float32(size**0.5))


def fields_from(config: ModelConfig) -> dict[str, Any]:
    found = llama.common_fields(config) | {"attention_bias": config.blocks[0].attention.qkv_bias}
    return found | {"hidden_act": found["hidden_act"].replace("gelu_new", "gelu_pytorch_tanh")}
