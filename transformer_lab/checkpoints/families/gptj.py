"""GPT-J (Wang and Komatsuzaki 2021): attention and network in parallel behind one norm, neighbours turned as pairs."""

import re
from typing import Any

from transformer_lab.attention.softmax import SoftmaxAttention
from transformer_lab.block.parallel import Parallel
from transformer_lab.checkpoints.config_fields import Fields
from transformer_lab.checkpoints.families import gpt2
from transformer_lab.checkpoints.sizes import Sizes
from transformer_lab.checkpoints.tensor_names import Inside, TensorNames
from transformer_lab.ffn.dense import Dense
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.limits import LIMITS
from transformer_lab.norm.layer_norm import LayerNorm
from transformer_lab.position.rotary import Rotary

ARCHITECTURE = "GPTJForCausalLM"
PREFIX = "transformer."
BUFFERS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias|embed_positions)")
INSIDE: Inside = {"norm_1": "ln_1", "attn.qkv": tuple(f"attn.{one}_proj" for one in "qkv")}
INSIDE |= {"attn.out": "attn.out_proj", "ffn.up": "mlp.fc_in", "ffn.down": "mlp.fc_out"}
NAMES = TensorNames({"embed": "wte", "final_norm": "ln_f"}, "h", INSIDE)
SIZES = Sizes(50400, 4096, 28, 16, 2048, bos=50256, eos=50256)


def config_from(fields: Fields) -> ModelConfig:
    fields = fields.renamed(gpt2.OWN)
    sizes = SIZES.read(fields.without("head_dim", "num_key_value_heads"))
    fields.require_plain_decoder(sizes.max_position_embeddings)
    turned = fields.values.get("rotary_dim", 64)
    if turned is not None and (type(turned) is not int or not 2 <= turned <= sizes.head_size or turned % 2):
        fields.refuse("rotary_dim", f"is {turned}; it must be even, from 2 to the size of a head, {sizes.head_size}")
    rotary = Rotary(size=turned or sizes.head_size, pairs="neighbours")
    inner = fields.whole_or_null("n_inner", 100 * LIMITS["hidden_size"])
    ffn = Dense(inner or 4 * sizes.hidden_size, fields.activation("activation_function", "gelu_new"))
    norm, heads = LayerNorm(fields.positive("layer_norm_epsilon", 1e-5)), sizes.num_attention_heads
    attention = SoftmaxAttention(heads, sizes.head_size, position=rotary, qkv_bias=False, out_bias=False)
    return sizes.model((Parallel(attention, ffn, norm),) * sizes.num_hidden_layers, norm, head_bias=True)


def fields_from(config: ModelConfig) -> dict[str, Any]:
    found = gpt2.fields_from(config)
    del found["scale_attn_weights"], found["scale_attn_by_inverse_layer_idx"]
    return found | {"rotary_dim": config.blocks[0].attention.position.size}
