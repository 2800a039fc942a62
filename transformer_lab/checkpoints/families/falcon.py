"""Falcon (Almazrouei et al. 2023, arXiv 2311.16867): attention and network in parallel, behind one norm or two;
queries, keys and values are stored group by group. 7B has one head of keys and values, 11B, 40B and 180B have groups.
"""

import re
from dataclasses import dataclass, replace
from typing import Any

from transformer_lab.block.parallel import Parallel
from transformer_lab.checkpoints.config_fields import Fields, activation_name
from transformer_lab.checkpoints.families import llama
from transformer_lab.checkpoints.rotary_fields import rotary_fields
from transformer_lab.checkpoints.sizes import Sizes, size_fields
from transformer_lab.checkpoints.tensor_names import Inside, Stored, TensorNames
from transformer_lab.ffn.dense import Dense
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.limits import LIMITS
from transformer_lab.norm.layer_norm import LayerNorm


@dataclass(frozen=True)
class _Names(TensorNames):
    """The norm before attention has a name of its own where there is a second one."""

    def stored(self, config: ModelConfig) -> dict[str, Stored]:
        first = "ln_attn" if config.blocks[0].two_norms else "input_layernorm"
        return TensorNames.stored(replace(self, inside={**self.inside, "norm_1": first}), config)


ARCHITECTURE = "FalconForCausalLM"
PREFIX = "transformer."
BUFFERS = re.compile(r"(h\.\d+\.self_attention\.)?rotary(_emb)?\.inv_freq")
INSIDE: Inside = {"norm_2": "ln_mlp", "attn.qkv": "self_attention.query_key_value", "attn.out": "self_attention.dense"}
INSIDE |= {"ffn.up": "mlp.dense_h_to_4h", "ffn.down": "mlp.dense_4h_to_h"}
NAMES = _Names({"embed": "word_embeddings", "final_norm": "ln_f"}, "h", INSIDE, by_group=True)
SIZES = Sizes(65024, 4544, 32, 71, 2048, tied=True, bos=11, eos=11)
OWN = {"n_embed": "hidden_size", "num_kv_heads": "num_key_value_heads"}


def config_from(fields: Fields) -> ModelConfig:
    """With `new_decoder_architecture` heads are grouped as num_kv_heads says; before it all shared one key, or none."""
    fields = Fields(fields.path, fields.without("head_dim", "num_key_value_heads").values, OWN)
    sizes = SIZES.read(fields)
    fields.require_plain_decoder(sizes.max_position_embeddings)
    fields.require("alibi", (None, False), "it is not offered: transformers itself computes it in two ways that differ")
    fields.require("parallel_attn", (True,), "only attention beside the network is offered")
    new, heads = fields.flag("new_decoder_architecture", False), sizes.num_attention_heads
    if not new:
        shared = fields.flag("multi_query", True)
        if not shared and sizes.num_key_value_heads != heads:
            fields.refuse("num_key_value_heads", f"is {sizes.num_key_value_heads}; without groups it must be {heads}")
        sizes = replace(sizes, num_key_value_heads=1 if shared else heads)
    fields.require("num_ln_in_parallel_attn", (None, 1, 2) if new else (None, 1), "that many norms are not offered")
    two_norms = new and fields.values.get("num_ln_in_parallel_attn") != 1
    bias, norm = fields.flag("bias", False), LayerNorm(fields.positive("layer_norm_epsilon", 1e-5))
    inner = fields.whole_or_null("ffn_hidden_size", 100 * LIMITS["hidden_size"]) or 4 * sizes.hidden_size
    ffn = Dense(inner, fields.activation("activation", "gelu"), bias=bias)
    block = Parallel(llama.attention(fields, sizes, qkv_bias=bias, out_bias=bias), ffn, norm, two_norms)
    return llama.with_modest_tables(fields, sizes.model((block,) * sizes.num_hidden_layers, norm))


def fields_from(config: ModelConfig) -> dict[str, Any]:
    block = config.blocks[0]
    attention = block.attention
    new = block.two_norms or 1 < attention.num_kv_heads < attention.num_heads
    usual = {
        name: value for name, value in size_fields(config).items() if name not in ("head_dim", "num_key_value_heads")
    }
    return usual | {
        "new_decoder_architecture": new,
        "num_ln_in_parallel_attn": 2 if block.two_norms else 1,
        "num_kv_heads": attention.num_kv_heads if new else attention.num_heads,
        "multi_query": attention.num_kv_heads == 1,
        "parallel_attn": True,
        "alibi": False,
        "bias": attention.qkv_bias,
        "ffn_hidden_size": block.ffn.size,
        "activation": activation_name(block.ffn.activation),
        "layer_norm_epsilon": float(block.norm.epsilon),
        "rope_parameters": rotary_fields(attention.position, attention.head_size),
    }
