"""Qwen3 (Yang et al. 2025, arXiv 2505.09388): Llama with a norm for each head's queries and keys."""

from dataclasses import replace
from typing import Any

from transformer_lab.checkpoints.config_fields import Fields
from transformer_lab.checkpoints.families import llama, qwen2
from transformer_lab.checkpoints.sizes import Sizes
from transformer_lab.model.config import ModelConfig
from transformer_lab.norm.rms_norm import RMSNorm

ARCHITECTURE = "Qwen3ForCausalLM"
PREFIX, BUFFERS = llama.PREFIX, llama.BUFFERS
NORMS = {"attn.q_norm": "self_attn.q_norm", "attn.k_norm": "self_attn.k_norm"}
NAMES = replace(llama.NAMES, inside=dict(llama.NAMES.inside) | NORMS)
SIZES = Sizes(151936, 4096, 32, 32, 32768, 32, head_dim=128)


def config_from(fields: Fields) -> ModelConfig:
    bias, norm = fields.flag("attention_bias", False), RMSNorm(fields.positive("rms_norm_eps", 1e-6))
    return qwen2.model(fields, SIZES.read(fields), qkv_bias=bias, out_bias=bias, norm=norm)


def fields_from(config: ModelConfig) -> dict[str, Any]:
    return qwen2.fields_from(config) | {"attention_bias": config.blocks[0].attention.qkv_bias}
