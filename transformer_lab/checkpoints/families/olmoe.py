"""OLMoE (Muennighoff et al. 2024, arXiv 2409.02060): many small experts, and one norm for all queries, all keys."""

from dataclasses import replace
from typing import Any

from transformer_lab.block.sequential import Sequential
from transformer_lab.checkpoints import expert_fields
from transformer_lab.checkpoints.config_fields import Fields
from transformer_lab.checkpoints.families import llama, mixtral
from transformer_lab.checkpoints.families.qwen3 import NORMS
from transformer_lab.checkpoints.sizes import Sizes
from transformer_lab.model.config import ModelConfig
from transformer_lab.norm.rms_norm import RMSNorm

ARCHITECTURE = "OlmoeForCausalLM"
PREFIX, BUFFERS = llama.PREFIX, llama.BUFFERS
NAMES = replace(mixtral.NAMES, inside=dict(mixtral.NAMES.inside) | NORMS, in_files={})
SIZES = Sizes(50304, 2048, 16, 16, 4096, eos=50279)
OWN = {"num_local_experts": "num_experts"}


def config_from(fields: Fields) -> ModelConfig:
    fields = Fields(fields.path, fields.values, OWN)
    sizes = SIZES.read(fields.without("head_dim"))
    fields.require_plain_decoder(sizes.max_position_embeddings)
    layers, renormalised = sizes.num_hidden_layers, fields.flag("norm_topk_prob", False)
    ffn = expert_fields.read_experts(fields, layers, 64, 8, 2048, 0.01, renormalised, size_field="intermediate_size")
    bias, norm = fields.flag("attention_bias", False), RMSNorm(fields.positive("rms_norm_eps", 1e-5))
    clip = None if fields.values.get("clip_qkv") is None else fields.positive("clip_qkv", 0.0)
    attention = llama.attention(
        fields, sizes, qkv_bias=bias, out_bias=bias, clip=clip, norm=norm, norm_over="all_heads"
    )
    return llama.with_modest_tables(fields, sizes.model((Sequential(attention, ffn, norm),) * layers, norm))


def fields_from(config: ModelConfig) -> dict[str, Any]:
    attention, experts = config.blocks[0].attention, expert_fields.expert_fields(config)
    own = {"attention_bias": attention.qkv_bias, "clip_qkv": attention.clip}
    experts["intermediate_size"] = experts.pop("moe_intermediate_size")
    return llama.fields_around(config) | experts | own
