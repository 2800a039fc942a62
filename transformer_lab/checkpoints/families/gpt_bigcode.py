"""GPT-BigCode (Ben Allal et al. 2023, arXiv 2301.03988), of which StarCoder is: GPT-2 with one head of keys and
values.
"""

import re
from typing import Any

from transformer_lab.attention.softmax import SoftmaxAttention
from transformer_lab.block.sequential import Sequential
from transformer_lab.checkpoints.config_fields import Fields
from transformer_lab.checkpoints.families import gpt2
from transformer_lab.checkpoints.sizes import Sizes
from transformer_lab.checkpoints.tensor_names import TensorNames
from transformer_lab.ffn.dense import Dense
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.limits import LIMITS
from transformer_lab.norm.layer_norm import LayerNorm
from transformer_lab.position.learned import Learned

ARCHITECTURE = "GPTBigCodeForCausalLM"
PREFIX = "transformer."
BUFFERS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
NAMES = TensorNames(gpt2.OUTSIDE, "h", gpt2.INSIDE, by_group=True)
SIZES = Sizes(50257, 768, 12, 12, 1024, tied=True, bos=50256, eos=50256)


def config_from(fields: Fields) -> ModelConfig:
    fields = fields.renamed(gpt2.OWN)
    sizes = SIZES.read(fields.without("head_dim", "num_key_value_heads"))
    fields.require_plain_decoder(sizes.max_position_embeddings)
    fields.require("add_cross_attention", (False,), "only decoders without cross-attention are offered")
    heads, size = sizes.num_attention_heads, sizes.head_size
    groups = 1 if fields.flag("multi_query", True) else heads
    scale = None if fields.flag("scale_attn_weights", True) else 1.0
    inner = fields.whole_or_null("n_inner", 100 * LIMITS["hidden_size"])
    ffn = Dense(inner or 4 * sizes.hidden_size, fields.activation("activation_function", "gelu_pytorch_tanh"))
    norm = LayerNorm(fields.positive("layer_norm_epsilon", 1e-5))
    block = Sequential(SoftmaxAttention(heads, size, groups, scale=scale), ffn, norm)  # type: ignore[arg-type]
    return sizes.model((block,) * sizes.num_hidden_layers, norm, position=Learned())


def fields_from(config: ModelConfig) -> dict[str, Any]:
    found = gpt2.fields_from(config)
    del found["scale_attn_by_inverse_layer_idx"]
    found["activation_function"] = found["activation_function"].replace("gelu_new", "gelu_pytorch_tanh")
    return found | {"multi_query": config.blocks[0].attention.num_kv_heads == 1}
