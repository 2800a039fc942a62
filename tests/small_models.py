"""Small decoders of usual parts, by the sizes and choices that tests vary."""

import math
from dataclasses import replace

from transformer_lab.attention.softmax import SoftmaxAttention
from transformer_lab.block.sequential import Sequential
from transformer_lab.model.config import ModelConfig
from transformer_lab.norm.layer_norm import LayerNorm
from transformer_lab.norm.rms_norm import RMSNorm
from transformer_lab.position.learned import Learned
from transformer_lab.position.rotary import Rotary


def small_model(
    vocab_size,
    context_length,
    hidden_size,
    num_layers,
    num_heads,
    ffn,
    num_kv_heads=None,
    head_size=None,
    position="learned",
    rotary_base=10000.0,
    norm="layer_norm",
    norm_epsilon=1e-5,
    attention_scale_by_layer=False,
    attention_bias=True,
    **more,
):
    """A pre-norm decoder: GPT-2's parts, or with position="rotary" and norm="rms_norm" Llama's."""
    size = head_size or hidden_size // num_heads
    rotary = Rotary(rotary_base) if position == "rotary" else None
    normal = (LayerNorm if norm == "layer_norm" else RMSNorm)(norm_epsilon)
    bias = {"qkv_bias": attention_bias, "out_bias": attention_bias}
    blocks = []
    for layer in range(num_layers):
        scale = 1.0 / math.sqrt(size) / (layer + 1 if attention_scale_by_layer else 1)
        attention = SoftmaxAttention(num_heads, size, num_kv_heads, rotary, scale=scale, **bias)
        blocks.append(Sequential(attention, ffn, normal))
    learned = Learned() if position == "learned" else None
    return ModelConfig(vocab_size, context_length, hidden_size, tuple(blocks), normal, learned, **more)


def changed(config, **fields):
    """The same with other values, under the names of `small_model`, in every layer."""
    layers = fields.pop("num_layers", None)
    blocks = config.blocks if layers is None else config.blocks[:1] * layers
    if (epsilon := fields.pop("norm_epsilon", None)) is not None:
        fields["norm"] = replace(config.norm, epsilon=epsilon)
        blocks = [replace(block, norm=fields["norm"]) for block in blocks]
    attention = {name: fields.pop(name) for name in ("num_heads", "num_kv_heads", "scale", "window") if name in fields}
    if (bias := fields.pop("attention_bias", None)) is not None:
        attention |= {"qkv_bias": bias, "out_bias": bias}
    if (base := fields.pop("rotary_base", None)) is not None:
        attention["position"] = Rotary(base)
    if (by_layer := fields.pop("attention_scale_by_layer", None)) is not None:
        first = blocks[0].attention.scale
        scales = [first / (layer + 1) if by_layer else first for layer in range(len(blocks))]
        blocks = [with_attention(block, scale=scale) for block, scale in zip(blocks, scales, strict=True)]
    blocks = [with_attention(block, **attention) for block in blocks]
    if (ffn := fields.pop("ffn", None)) is not None:
        blocks = [replace(block, ffn=ffn) for block in blocks]
    return replace(config, blocks=tuple(blocks), **fields)


def with_attention(block, **fields):
    return replace(block, attention=replace(block.attention, **fields))
