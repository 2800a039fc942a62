"""Phi-3 and Phi-4 (Abdin et al. 2024, arXiv 2404.14219): Llama with its projections packed, and where it is asked for a
window or angles for longer texts.
"""

from dataclasses import replace
from typing import Any

from transformer_lab.block.sequential import Sequential
from transformer_lab.checkpoints.config_fields import Fields, activation_name
from transformer_lab.checkpoints.families import llama
from transformer_lab.checkpoints.layer_kinds import read_window, window_fields
from transformer_lab.checkpoints.rotary_fields import rotary_fields
from transformer_lab.checkpoints.sizes import Sizes, size_fields
from transformer_lab.ffn.packed import Packed
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.limits import LIMITS
from transformer_lab.norm.rms_norm import RMSNorm

ARCHITECTURE = "Phi3ForCausalLM"
PREFIX, BUFFERS = llama.PREFIX, llama.BUFFERS
BETWEEN = {name: module for name, module in llama.NAMES.inside.items() if not name.startswith("ffn")}
PACKED = {"attn.qkv": "self_attn.qkv_proj", "ffn.gate_up": "mlp.gate_up_proj", "ffn.down": "mlp.down_proj"}
NAMES = replace(llama.NAMES, inside=BETWEEN | PACKED)
SIZES = Sizes(32064, 3072, 32, 32, 4096, bos=1, eos=32000)


def config_from(fields: Fields) -> ModelConfig:
    sizes = SIZES.read(fields.without("head_dim"))
    fields.require_decoder()
    fields = _renamed(fields)
    window = read_window(fields, sizes.max_position_embeddings)
    attention = llama.attention(fields, sizes, share=1.0, qkv_bias=False, out_bias=False, window=window)
    inner = fields.whole("intermediate_size", 8192, 100 * LIMITS["hidden_size"])
    norm = RMSNorm(fields.positive("rms_norm_eps", 1e-5))
    block = Sequential(attention, Packed(inner, fields.activation("hidden_act", "silu")), norm)
    return llama.with_modest_tables(fields, sizes.model((block,) * sizes.num_hidden_layers, norm))


def _renamed(fields: Fields) -> Fields:
    """The first releases called the scaling "su" or "yarn"; original_max_position_embeddings is 4096 where absent."""
    values = dict(fields.values)
    values.setdefault("original_max_position_embeddings", 4096)
    for name in ("rope_scaling", "rope_parameters"):
        found = values.get(name)
        if isinstance(found, dict) and found.get("rope_type", found.get("type")) in ("su", "yarn"):
            values[name] = {key: value for key, value in found.items() if key != "type"} | {"rope_type": "longrope"}
    return fields.holding(values)


def fields_from(config: ModelConfig) -> dict[str, Any]:
    block = config.blocks[0]
    rotary = rotary_fields(block.attention.position, block.attention.head_size)
    return size_fields(config) | {
        "intermediate_size": block.ffn.size,
        "hidden_act": activation_name(block.ffn.activation),
        "rms_norm_eps": float(block.norm.epsilon),
        "sliding_window": window_fields(config)["sliding_window"],
        "original_max_position_embeddings": config.context_length,
        "partial_rotary_factor": rotary.get("partial_rotary_factor", 1.0),
        "rope_parameters": rotary,
    }
