"""Mixtral (Jiang et al. 2024, arXiv 2401.04088): Mistral with eight experts in place of its network, two for a token.

Its files call the gate and the experts otherwise than transformers' modules do.
"""

from dataclasses import replace
from typing import Any

from transformer_lab.block.sequential import Sequential
from transformer_lab.checkpoints import expert_fields
from transformer_lab.checkpoints.config_fields import Fields
from transformer_lab.checkpoints.families import llama
from transformer_lab.checkpoints.layer_kinds import read_window, window_fields
from transformer_lab.checkpoints.sizes import Sizes
from transformer_lab.model.config import ModelConfig
from transformer_lab.norm.rms_norm import RMSNorm

ARCHITECTURE = "MixtralForCausalLM"
PREFIX, BUFFERS = llama.PREFIX, llama.BUFFERS
WITHOUT = {part: module for part, module in llama.NAMES.inside.items() if not part.startswith("ffn.")}
NAMES = replace(
    llama.NAMES,
    inside=WITHOUT | expert_fields.INSIDE,
    fused=expert_fields.FUSED,
    in_files={"mlp": "block_sparse_moe", "gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"},
    results=expert_fields.RESULTS,
)
SIZES = Sizes(32000, 4096, 32, 32, 131072, 8, bos=1, eos=2)
OWN = {"num_local_experts": "num_experts"}


def config_from(fields: Fields) -> ModelConfig:
    fields = Fields(fields.path, fields.values, OWN)
    sizes = SIZES.read(fields)
    fields.require_decoder()
    layers = sizes.num_hidden_layers
    ffn = expert_fields.read_experts(fields, layers, 8, 2, 14336, 0.001, True, size_field="intermediate_size")
    window, norm = read_window(fields, sizes.max_position_embeddings), RMSNorm(fields.positive("rms_norm_eps", 1e-5))
    attention = llama.attention(fields, sizes, 1e6, qkv_bias=False, out_bias=False, window=window)
    return llama.with_modest_tables(fields, sizes.model((Sequential(attention, ffn, norm),) * layers, norm))


def fields_from(config: ModelConfig) -> dict[str, Any]:
    window, experts = window_fields(config)["sliding_window"], expert_fields.expert_fields(config)
    del experts["norm_topk_prob"]
    experts["num_local_experts"] = experts.pop("num_experts")
    experts["intermediate_size"] = experts.pop("moe_intermediate_size")
    return llama.fields_around(config) | experts | {"sliding_window": window}
