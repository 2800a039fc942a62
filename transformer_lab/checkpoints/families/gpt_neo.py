"""GPT-Neo (Black et al. 2021): GPT-2 whose scores are not scaled, with a window in every second layer."""

import re
from typing import Any

from transformer_lab.attention.softmax import SoftmaxAttention
from transformer_lab.block.sequential import Sequential
from transformer_lab.checkpoints.config_fields import Fields, activation_name
from transformer_lab.checkpoints.families import gpt2
from transformer_lab.checkpoints.sizes import Sizes, size_fields
from transformer_lab.checkpoints.tensor_names import Inside, TensorNames
from transformer_lab.errors import shown
from transformer_lab.ffn.dense import Dense
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.limits import LIMITS
from transformer_lab.norm.layer_norm import LayerNorm
from transformer_lab.position.learned import Learned

ARCHITECTURE = "GPTNeoForCausalLM"
PREFIX = "transformer."
BUFFERS = re.compile(r"h\.\d+\.attn\.attention\.(bias|masked_bias)")
QKV = tuple(f"attn.attention.{one}_proj" for one in "qkv")
INSIDE: Inside = dict(gpt2.INSIDE) | {"attn.qkv": QKV, "attn.out": "attn.attention.out_proj"}
NAMES = TensorNames(gpt2.OUTSIDE, "h", INSIDE)
SIZES = Sizes(50257, 2048, 24, 16, 2048, tied=True, bos=50256, eos=50256)


def config_from(fields: Fields) -> ModelConfig:
    fields = fields.renamed({"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads"})
    sizes = SIZES.read(fields.without("head_dim", "num_key_value_heads"))
    fields.require_plain_decoder(sizes.max_position_embeddings)
    inner = fields.whole_or_null("intermediate_size", 100 * LIMITS["hidden_size"])
    ffn = Dense(inner or 4 * sizes.hidden_size, fields.activation("activation_function", "gelu_new"))
    norm = LayerNorm(fields.positive("layer_norm_epsilon", 1e-5))
    window = fields.whole("window_size", 256, LIMITS["context_length"])
    window = window if window < sizes.max_position_embeddings else None  # type: ignore[assignment]  # sees everything

    def block(kind: str) -> Sequential:
        heads, seen = (sizes.num_attention_heads, sizes.head_size), window if kind == "local" else None
        return Sequential(SoftmaxAttention(*heads, qkv_bias=False, scale=1.0, window=seen), ffn, norm)

    return sizes.model(tuple(map(block, _kinds(fields, sizes.num_hidden_layers))), norm, position=Learned())


def _kinds(fields: Fields, layers: int) -> list[str]:
    """ "global" or "local" for each layer: attention_layers, or attention_types, [[["global", "local"], 12]]."""
    given = fields.values.get("attention_types")
    if isinstance(layer_by_layer := fields.values.get("attention_layers"), list):  # which counts in transformers
        given = [[layer_by_layer, 1]]
    kinds: list[str] = []
    for run in [[["global", "local"], 12]] if given is None else given if isinstance(given, list) else []:
        if isinstance(run, list) and len(run) == 2 and isinstance(run[0], list) and type(run[1]) is int:
            kinds += run[0] * min(run[1], layers)
    if len(kinds) != layers or any(kind not in ("global", "local") for kind in kinds):
        reason = f"is {shown(given)}; it must say global or local for each of {layers} layers"
        fields.refuse("attention_types", reason)
    return kinds


def fields_from(config: ModelConfig) -> dict[str, Any]:
    block, windows = config.blocks[0], [block.attention.window for block in config.blocks]
    return size_fields(config) | {
        "intermediate_size": block.ffn.size,
        "activation_function": activation_name(block.ffn.activation),
        "layer_norm_epsilon": float(block.norm.epsilon),
        "attention_types": [[["global" if window is None else "local"], 1] for window in windows],
        "window_size": next((window for window in windows if window is not None), 256),
    }
