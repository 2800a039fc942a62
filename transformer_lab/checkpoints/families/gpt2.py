"""GPT-2 (Radford et al. 2019): config.json and tensor names, as transformers 5 reads and writes them.

Its kernels are Conv1D, stored [in, out] like ours, with queries, keys and values already fused; the head alone is
[V, D].
"""

import math
import re
from typing import Any

from transformer_lab.attention.softmax import SoftmaxAttention
from transformer_lab.block.sequential import Sequential
from transformer_lab.checkpoints.config_fields import Fields, activation_name
from transformer_lab.checkpoints.sizes import Sizes
from transformer_lab.checkpoints.tensor_names import Inside, TensorNames
from transformer_lab.ffn.dense import Dense
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.limits import LIMITS
from transformer_lab.norm.layer_norm import LayerNorm
from transformer_lab.position.learned import Learned

ARCHITECTURE = "GPT2LMHeadModel"
PREFIX = "transformer."
BUFFERS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # the causal mask, saved by older versions
SIZES = Sizes(50257, 768, 12, 12, 1024, tied=True, bos=50256, eos=50256)
INSIDE: Inside = {"norm_1": "ln_1", "attn.qkv": "attn.c_attn", "attn.out": "attn.c_proj"}
INSIDE |= {"norm_2": "ln_2", "ffn.up": "mlp.c_fc", "ffn.down": "mlp.c_proj"}
OUTSIDE = {"embed": "wte", "embed.position": "wpe", "final_norm": "ln_f"}
NAMES = TensorNames(OUTSIDE, "h", INSIDE, transposed=False)
OWN = {
    "n_embd": "hidden_size",
    "n_positions": "max_position_embeddings",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
}


def config_from(fields: Fields) -> ModelConfig:
    """Every field that changes the function is honoured or refused; an absent one has transformers' default.

    Left out on purpose: attn_pdrop, embd_pdrop, resid_pdrop (dropout is a matter of training, and off otherwise), n_ctx
    (transformers takes n_positions alone), reorder_and_upcast_attn (the same function in another order; the softmax
    here accumulates in float32 at least, which is what it asks for), and everything for summaries and generation.
    """
    fields = fields.renamed(OWN)
    sizes = SIZES.read(fields.without("head_dim", "num_key_value_heads"))
    fields.require_plain_decoder(sizes.max_position_embeddings)
    fields.require("add_cross_attention", (False,), "only decoders without cross-attention are offered")
    fields.flag("reorder_and_upcast_attn", False)
    inner = fields.whole_or_null("n_inner", 100 * LIMITS["hidden_size"])
    ffn = Dense(inner or 4 * sizes.hidden_size, fields.activation("activation_function", "gelu_new"))
    norm = LayerNorm(fields.positive("layer_norm_epsilon", 1e-5))
    heads, size = sizes.num_attention_heads, sizes.head_size
    scale = 1.0 / math.sqrt(size) if fields.flag("scale_attn_weights", True) else 1.0
    by_layer = fields.flag("scale_attn_by_inverse_layer_idx", False)
    scales = [scale / (layer + 1) if by_layer else scale for layer in range(sizes.num_hidden_layers)]
    blocks = tuple(Sequential(SoftmaxAttention(heads, size, scale=each), ffn, norm) for each in scales)
    return sizes.model(blocks, norm, position=Learned())


def fields_from(config: ModelConfig) -> dict[str, Any]:
    attention, ffn = config.blocks[0].attention, config.blocks[0].ffn
    scales = {block.attention.scale for block in config.blocks}
    return {
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": attention.num_heads,
        "n_inner": ffn.size,
        "activation_function": activation_name(ffn.activation),
        "layer_norm_epsilon": float(config.norm.epsilon),
        "scale_attn_weights": attention.scale != 1.0,
        "scale_attn_by_inverse_layer_idx": len(scales) > 1,
        "tie_word_embeddings": config.tied_head,
        "bos_token_id": config.begin_of_text_id,
        "eos_token_id": config.end_of_text_id,
    }
