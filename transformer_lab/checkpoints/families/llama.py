"""Llama (Touvron et al. 2023, arXiv 2302.13971, 2307.09288; Grattafiori et al. 2024, arXiv 2407.21783).

Its linear maps are stored [out, in]; queries, keys and values become the columns of one kernel, in this order.
"""

import math
import re
from dataclasses import replace
from typing import Any

from transformer_lab.attention.softmax import SoftmaxAttention
from transformer_lab.block.sequential import Sequential
from transformer_lab.checkpoints.config_fields import Fields, activation_name
from transformer_lab.checkpoints.rotary_fields import read_rotary, rotary_fields
from transformer_lab.checkpoints.sizes import Sizes, size_fields
from transformer_lab.checkpoints.tensor_names import TensorNames
from transformer_lab.ffn.dense import Dense
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.limits import LIMITS
from transformer_lab.model.parameters import shapes
from transformer_lab.norm.rms_norm import RMSNorm
from transformer_lab.position.rotary_scaling import LongRope

ARCHITECTURE = "LlamaForCausalLM"
PREFIX = "model."
# Computed from the config, and saved by older versions: one in each layer, later one for all.
BUFFERS = re.compile(r"(layers\.\d+\.self_attn\.)?rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)")
SIZES = Sizes(32000, 4096, 32, 32, 2048, bos=1, eos=2)
QKV = tuple(f"self_attn.{one}_proj" for one in "qkv")
NAMES = TensorNames(
    {"embed": "embed_tokens", "final_norm": "norm"},
    "layers",
    {
        "norm_1": "input_layernorm",
        "attn.qkv": QKV,
        "attn.out": "self_attn.o_proj",
        "norm_2": "post_attention_layernorm",
        "ffn.gate": "mlp.gate_proj",
        "ffn.up": "mlp.up_proj",
        "ffn.down": "mlp.down_proj",
    },
)

LARGEST_TABLE = 2**24  # numbers; 131,072 positions of 128


def config_from(fields: Fields) -> ModelConfig:
    """Every field that changes the function is honoured or refused; an absent one has transformers' default.

    Left out on purpose: attention_dropout (off outside training) and pretraining_tp (the same function in slices).
    """
    sizes = SIZES.read(fields)
    fields.require_plain_decoder(sizes.max_position_embeddings)
    bias = fields.flag("attention_bias", False)
    norm = RMSNorm(fields.positive("rms_norm_eps", 1e-6))
    block = Sequential(attention(fields, sizes, qkv_bias=bias, out_bias=bias), gated(fields, 11008), norm)
    return with_modest_tables(fields, sizes.model((block,) * sizes.num_hidden_layers, norm))


def attention(
    fields: Fields, sizes: Sizes, base: float = 10000.0, share: float | None = None, **own: Any
) -> SoftmaxAttention:
    """Attention with rotary positions, as the fields say. base, share: as in `read_rotary`."""
    rotary = read_rotary(fields, sizes.head_size, sizes.max_position_embeddings, base, share)
    return SoftmaxAttention(sizes.num_attention_heads, sizes.head_size, sizes.num_key_value_heads or 0, rotary, **own)


def gated(fields: Fields, size: int, activation: str = "silu", field: str = "hidden_act") -> Dense:
    """The gated network that the fields say. size, activation: where they are silent."""
    inner = fields.whole("intermediate_size", size, 100 * LIMITS["hidden_size"])
    return Dense(inner, fields.activation(field, activation), gated=True, bias=fields.flag("mlp_bias", False))


def with_modest_tables(fields: Fields, config: ModelConfig) -> ModelConfig:
    """The table of angles is the one thing that takes memory by config.json's word alone, without bytes of weights.

    With divisors for longer texts (longrope) the context is that of the training before: beyond it all tokens are
    turned by others, the past ones too, so that a text that grows beyond it would have to be read again.
    """
    lengths = (
        getattr(position.scaling, "trained_length", None)
        for position in config.rotaries
        if isinstance(position.scaling, LongRope)
    )
    config = replace(config, context_length=min([config.context_length, *filter(None, lengths)]))
    angles = config.context_length * max(position.size for position in config.rotaries)
    if angles > max(LARGEST_TABLE, sum(map(math.prod, shapes(config).values()))):
        length = config.context_length
        reason = f"is {length}; the table of its rotary angles would be larger than all weights, so lower it"
        fields.refuse("max_position_embeddings", reason)
    return config


def fields_from(config: ModelConfig) -> dict[str, Any]:
    block = config.blocks[0]
    return common_fields(config) | {"attention_bias": block.attention.qkv_bias, "mlp_bias": block.ffn.bias}


def common_fields(config: ModelConfig) -> dict[str, Any]:
    """What every family near Llama writes."""
    ffn = config.blocks[0].ffn
    return fields_around(config) | {"intermediate_size": ffn.size, "hidden_act": activation_name(ffn.activation)}


def fields_around(config: ModelConfig) -> dict[str, Any]:
    """The same, but for the networks."""
    block = config.blocks[0]
    rotary = rotary_fields(block.attention.position, block.attention.head_size)
    return size_fields(config) | {
        "rms_norm_eps": float(getattr(block.norm, "epsilon", 0.0)),
        "rope_theta": rotary["rope_theta"],  # read by transformers 4
        "rope_parameters": rotary,  # and by 5
    }
