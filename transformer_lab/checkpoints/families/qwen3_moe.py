"""Qwen3-MoE (Yang et al. 2025, arXiv 2505.09388): Qwen3 with experts, and where asked for dense layers in between."""

from dataclasses import replace
from typing import Any

from transformer_lab.checkpoints import expert_fields
from transformer_lab.checkpoints.config_fields import Fields
from transformer_lab.checkpoints.families import llama, qwen2_moe
from transformer_lab.checkpoints.families.qwen3 import NORMS
from transformer_lab.checkpoints.layer_kinds import read_window, window_fields
from transformer_lab.checkpoints.sizes import Sizes
from transformer_lab.model.config import ModelConfig
from transformer_lab.norm.rms_norm import RMSNorm

ARCHITECTURE = "Qwen3MoeForCausalLM"
PREFIX, BUFFERS = llama.PREFIX, llama.BUFFERS
NAMES = replace(qwen2_moe.NAMES, inside=dict(llama.NAMES.inside) | expert_fields.INSIDE | NORMS)
SIZES = Sizes(151936, 2048, 24, 32, 32768, 4)
OWN = {"num_local_experts": "num_experts"}


def config_from(fields: Fields) -> ModelConfig:
    fields = Fields(fields.path, fields.values, OWN)
    sizes, bias = SIZES.read(fields), fields.flag("attention_bias", False)
    asked = fields.flag("use_sliding_window", False)
    window = read_window(fields, sizes.max_position_embeddings, 4096) if asked else None
    norm = RMSNorm(fields.positive("rms_norm_eps", 1e-6))
    own = {"qkv_bias": bias, "out_bias": bias, "norm": norm}
    windows = [window] * sizes.num_hidden_layers
    return qwen2_moe.model(fields, sizes, windows, (128, 8, 768), 6144, {}, **own)


def fields_from(config: ModelConfig) -> dict[str, Any]:
    window, experts = window_fields(config)["sliding_window"], expert_fields.expert_fields(config)
    own = {
        "num_local_experts": experts["num_experts"],  # read by transformers 5; the other by 4
        "attention_bias": config.blocks[0].attention.qkv_bias,
        "sliding_window": window,
        "use_sliding_window": window is not None,
    }
    return llama.fields_around(config) | experts | expert_fields.layer_fields(config) | own
