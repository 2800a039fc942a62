"""GPT-NeoX (Black et al. 2022, arXiv 2204.06745), of which Pythia is: attention and network in parallel, each with a
norm of its own, a part of each head turned; queries, keys and values are stored head by head.
"""

import re
from typing import Any

from transformer_lab.block.parallel import Parallel
from transformer_lab.block.sequential import Sequential
from transformer_lab.checkpoints.config_fields import Fields
from transformer_lab.checkpoints.families import llama, phi
from transformer_lab.checkpoints.sizes import Sizes
from transformer_lab.checkpoints.tensor_names import TensorNames
from transformer_lab.errors import shown
from transformer_lab.ffn.dense import Dense
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.limits import LIMITS
from transformer_lab.norm.layer_norm import LayerNorm

ARCHITECTURE = "GPTNeoXForCausalLM"
PREFIX = "gpt_neox."
BUFFERS = re.compile(r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)|rotary_emb\.inv_freq")
OUTSIDE = {"embed": "embed_in", "final_norm": "final_layer_norm"}
INSIDE = {"norm_1": "input_layernorm", "attn.qkv": "attention.query_key_value", "attn.out": "attention.dense"}
INSIDE |= {"norm_2": "post_attention_layernorm", "ffn.up": "mlp.dense_h_to_4h", "ffn.down": "mlp.dense_4h_to_h"}
NAMES = TensorNames(OUTSIDE, "layers", INSIDE, head="embed_out", by_group=True)
SIZES = Sizes(50432, 6144, 44, 64, 2048, bos=0, eos=2)


def config_from(fields: Fields) -> ModelConfig:
    sizes = SIZES.read(fields.without("head_dim", "num_key_value_heads"))
    fields.require_plain_decoder(sizes.max_position_embeddings)
    if fields.values.get("head_dim") not in (None, sizes.head_size):
        fields.refuse("head_dim", f"is {shown(fields.values['head_dim'])}; heads are hidden_size / num_attention_heads")
    fields = fields.without("rope_theta", "partial_rotary_factor")  # which it knows by other names
    renamed = {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"}
    fields = fields.renamed(renamed)
    bias, norm = fields.flag("attention_bias", True), LayerNorm(fields.positive("layer_norm_eps", 1e-5))
    inner = fields.whole("intermediate_size", 24576, 100 * LIMITS["hidden_size"])
    ffn = Dense(inner, fields.activation("hidden_act", "gelu"))
    attention = llama.attention(fields, sizes, share=0.25, qkv_bias=bias, out_bias=bias)
    parallel = fields.flag("use_parallel_residual", True)
    block = Parallel(attention, ffn, norm, two_norms=True) if parallel else Sequential(attention, ffn, norm)
    return llama.with_modest_tables(fields, sizes.model((block,) * sizes.num_hidden_layers, norm))


def fields_from(config: ModelConfig) -> dict[str, Any]:
    block = config.blocks[0]
    own = {"attention_bias": block.attention.qkv_bias, "use_parallel_residual": isinstance(block, Parallel)}
    return phi.common_fields(config) | own
