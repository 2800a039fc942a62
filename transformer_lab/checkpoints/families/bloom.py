"""BLOOM (BigScience 2022, arXiv 2211.05100): ALiBi, a norm behind the embedding; queries, keys and values are
stored head by head.
"""

import re
from typing import Any

from transformer_lab.attention.softmax import SoftmaxAttention
from transformer_lab.block.sequential import Sequential
from transformer_lab.checkpoints.config_fields import Fields
from transformer_lab.checkpoints.families import NO_BUFFERS
from transformer_lab.checkpoints.sizes import Sizes, size_fields
from transformer_lab.checkpoints.tensor_names import TensorNames
from transformer_lab.ffn.dense import Dense
from transformer_lab.model.config import ModelConfig
from transformer_lab.norm.layer_norm import LayerNorm
from transformer_lab.position.alibi import Alibi

ARCHITECTURE = "BloomForCausalLM"
PREFIX = "transformer."
BUFFERS = re.compile(NO_BUFFERS)
OUTSIDE = {"embed": "word_embeddings", "embed.norm": "word_embeddings_layernorm", "final_norm": "ln_f"}
INSIDE = {"norm_1": "input_layernorm", "attn.qkv": "self_attention.query_key_value"}
INSIDE |= {"attn.out": "self_attention.dense", "norm_2": "post_attention_layernorm"}
INSIDE |= {"ffn.up": "mlp.dense_h_to_4h", "ffn.down": "mlp.dense_4h_to_h"}
NAMES = TensorNames(OUTSIDE, "h", INSIDE, by_group=True)
SIZES = Sizes(250880, 64, 2, 8, 2048, tied=True, bos=1, eos=2)
OWN = {"n_embed": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}
OWN |= {"seq_length": "max_position_embeddings"}  # ALiBi has no longest text; that of the training, where it is said


def config_from(fields: Fields) -> ModelConfig:
    fields = fields.renamed(OWN)
    sizes = SIZES.read(fields.without("head_dim", "num_key_value_heads"))
    fields.require_plain_decoder(sizes.max_position_embeddings)
    fields.require("apply_residual_connection_post_layernorm", (False,), "only residuals before the norm are offered")
    norm, heads = LayerNorm(fields.positive("layer_norm_epsilon", 1e-5)), sizes.num_attention_heads
    block = Sequential(SoftmaxAttention(heads, sizes.head_size, position=Alibi()), Dense(4 * sizes.hidden_size), norm)
    return sizes.model((block,) * sizes.num_hidden_layers, norm, embedding_norm=norm)


def fields_from(config: ModelConfig) -> dict[str, Any]:
    usual = {name: value for name, value in size_fields(config).items() if name not in ("head_dim", *OWN.values())}
    return usual | {
        "hidden_size": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.blocks[0].attention.num_heads,
        "seq_length": config.context_length,
        "layer_norm_epsilon": float(config.norm.epsilon),
    }
