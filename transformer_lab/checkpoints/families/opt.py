"""OPT (Zhang et al. 2022, arXiv 2205.01068): GPT-2 with relu, and a table of positions whose first two are unused."""

import re
from typing import Any

from transformer_lab.attention.softmax import SoftmaxAttention
from transformer_lab.block.sequential import Sequential
from transformer_lab.checkpoints.config_fields import Fields, activation_name
from transformer_lab.checkpoints.families import NO_BUFFERS
from transformer_lab.checkpoints.sizes import Sizes, size_fields
from transformer_lab.checkpoints.tensor_names import Inside, TensorNames
from transformer_lab.ffn.dense import Dense
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.limits import LIMITS
from transformer_lab.norm.layer_norm import LayerNorm
from transformer_lab.position.learned import Learned

ARCHITECTURE = "OPTForCausalLM"
PREFIX = "model.decoder."
BUFFERS = re.compile(NO_BUFFERS)
OUTSIDE = {"embed": "embed_tokens", "embed.position": "embed_positions", "final_norm": "final_layer_norm"}
INSIDE: Inside = {"norm_1": "self_attn_layer_norm", "attn.qkv": tuple(f"self_attn.{one}_proj" for one in "qkv")}
INSIDE |= {"attn.out": "self_attn.out_proj", "norm_2": "final_layer_norm", "ffn.up": "fc1", "ffn.down": "fc2"}
NAMES = TensorNames(OUTSIDE, "layers", INSIDE)
SIZES = Sizes(50272, 768, 12, 12, 2048, tied=True, bos=2, eos=2)
SKIPPED = 2


def config_from(fields: Fields) -> ModelConfig:
    sizes = SIZES.read(fields.without("head_dim", "num_key_value_heads"))
    fields.require_plain_decoder(sizes.max_position_embeddings)
    fields.require("do_layer_norm_before", (True,), "only norms before attention and network are offered")
    fields.require("_remove_final_layer_norm", (False,), "a model without its last norm is not offered")
    if fields.values.get("word_embed_proj_dim", sizes.hidden_size) not in (None, sizes.hidden_size):
        fields.refuse("word_embed_proj_dim", "differs from hidden_size, which is not offered")
    bias, learned = fields.flag("enable_bias", True), fields.flag("layer_norm_elementwise_affine", True)
    inner = fields.whole("ffn_dim", 3072, 100 * LIMITS["hidden_size"])
    ffn = Dense(inner, fields.activation("activation_function", "relu"), bias=bias)
    norm, heads = LayerNorm(1e-5, weight=learned, bias=learned), sizes.num_attention_heads
    block = Sequential(SoftmaxAttention(heads, sizes.head_size, qkv_bias=bias, out_bias=bias), ffn, norm)
    return sizes.model((block,) * sizes.num_hidden_layers, norm, position=Learned(SKIPPED))


def fields_from(config: ModelConfig) -> dict[str, Any]:
    block = config.blocks[0]
    return size_fields(config) | {
        "ffn_dim": block.ffn.size,
        "activation_function": activation_name(block.ffn.activation),
        "enable_bias": block.ffn.bias,
        "layer_norm_elementwise_affine": block.norm.weight,
        "word_embed_proj_dim": config.hidden_size,
    }
