"""Phi-1, Phi-1.5 and Phi-2 (Li et al. 2023, arXiv 2309.05463): attention and network in parallel, half of a head
turned, biases everywhere.
"""

from dataclasses import replace
from typing import Any

from transformer_lab.block.parallel import Parallel
from transformer_lab.checkpoints.config_fields import Fields, activation_name
from transformer_lab.checkpoints.families import llama
from transformer_lab.checkpoints.rotary_fields import rotary_fields
from transformer_lab.checkpoints.sizes import Sizes, size_fields
from transformer_lab.checkpoints.tensor_names import Inside
from transformer_lab.ffn.dense import Dense
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.limits import LIMITS
from transformer_lab.norm.layer_norm import LayerNorm

ARCHITECTURE = "PhiForCausalLM"
PREFIX, BUFFERS = llama.PREFIX, llama.BUFFERS
OUTSIDE = {"embed": "embed_tokens", "final_norm": "final_layernorm"}
INSIDE: Inside = {"norm_1": "input_layernorm", "attn.qkv": llama.QKV, "attn.out": "self_attn.dense"}
INSIDE |= {"attn.q_norm": "self_attn.q_layernorm", "attn.k_norm": "self_attn.k_layernorm"}
NAMES = replace(llama.NAMES, outside=OUTSIDE, inside=INSIDE | {"ffn.up": "mlp.fc1", "ffn.down": "mlp.fc2"})
SIZES = Sizes(51200, 2048, 24, 32, 2048, bos=1, eos=2)


def config_from(fields: Fields) -> ModelConfig:
    sizes = SIZES.read(fields.without("head_dim"))
    fields.require_plain_decoder(sizes.max_position_embeddings)
    inner = fields.whole("intermediate_size", 8192, 100 * LIMITS["hidden_size"])
    norm = LayerNorm(fields.positive("layer_norm_eps", 1e-5))
    ffn = Dense(inner, fields.activation("hidden_act", "gelu_new"))
    over_heads = norm if fields.flag("qk_layernorm", False) else None
    block = Parallel(llama.attention(fields, sizes, share=0.5, norm=over_heads), ffn, norm)
    config = sizes.model((block,) * sizes.num_hidden_layers, norm, head_bias=True)
    return llama.with_modest_tables(fields, config)


def fields_from(config: ModelConfig) -> dict[str, Any]:
    return common_fields(config) | {"qk_layernorm": config.blocks[0].attention.norm is not None}


def common_fields(config: ModelConfig) -> dict[str, Any]:
    """What every family near Phi writes."""
    block = config.blocks[0]
    rotary = rotary_fields(block.attention.position, block.attention.head_size)
    return size_fields(config) | {
        "intermediate_size": block.ffn.size,
        "hidden_act": activation_name(block.ffn.activation),
        "layer_norm_eps": float(block.norm.epsilon),
        "rope_parameters": {"partial_rotary_factor": 1.0} | rotary,
    }
