"""StarCoder2 (Lozhkov et al. 2024, arXiv 2402.19173): Llama with layer norms, biases, a network without a gate, and a
window.
"""

from dataclasses import replace
from typing import Any

from transformer_lab.block.sequential import Sequential
from transformer_lab.checkpoints.config_fields import Fields
from transformer_lab.checkpoints.families import llama, phi
from transformer_lab.checkpoints.layer_kinds import read_window, window_fields
from transformer_lab.checkpoints.sizes import Sizes
from transformer_lab.ffn.dense import Dense
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.limits import LIMITS
from transformer_lab.norm.layer_norm import LayerNorm

ARCHITECTURE = "Starcoder2ForCausalLM"
PREFIX, BUFFERS = llama.PREFIX, llama.BUFFERS
INSIDE = {part: module for part, module in llama.NAMES.inside.items() if not part.startswith("ffn")}
NAMES = replace(llama.NAMES, inside=INSIDE | {"ffn.up": "mlp.c_fc", "ffn.down": "mlp.c_proj"})
SIZES = Sizes(49152, 3072, 30, 24, 4096, 2, tied=True, bos=50256, eos=50256)


def config_from(fields: Fields) -> ModelConfig:
    sizes = SIZES.read(fields.without("head_dim"))
    fields.require_decoder()
    window, bias = read_window(fields, sizes.max_position_embeddings), fields.flag("use_bias", True)
    inner = fields.whole("intermediate_size", 12288, 100 * LIMITS["hidden_size"])
    ffn = Dense(inner, fields.activation("hidden_act", "gelu_pytorch_tanh"), bias=bias)
    norm = LayerNorm(fields.positive("norm_epsilon", 1e-5))
    attention = llama.attention(fields, sizes, qkv_bias=bias, out_bias=bias, window=window)
    block = Sequential(attention, ffn, norm)
    return llama.with_modest_tables(fields, sizes.model((block,) * sizes.num_hidden_layers, norm))


def fields_from(config: ModelConfig) -> dict[str, Any]:
    found = phi.common_fields(config)
    found["hidden_act"] = found["hidden_act"].replace("gelu_new", "gelu_pytorch_tanh")
    own = {"use_bias": config.blocks[0].ffn.bias, "sliding_window": window_fields(config)["sliding_window"]}
    return found | own | {"norm_epsilon": found.pop("layer_norm_eps")}
