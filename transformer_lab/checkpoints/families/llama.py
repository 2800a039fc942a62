"""Llama (Touvron et al. 2023, arXiv 2302.13971, 2307.09288): config.json and tensor names, as transformers 5 has them.

Its linear maps are stored [out, in]; queries, keys and values become the columns of one kernel, in this order. Rotary
positions turn the first half of a head against the second, as transformers does; no rows are permuted.
"""

import math
import re
from typing import Any

from transformer_lab.checkpoints.config_fields import ACTIVATIONS, Fields
from transformer_lab.checkpoints.families import Stored
from transformer_lab.errors import ConfigurationError, shown
from transformer_lab.ffn.dense import Dense
from transformer_lab.model.config import LIMITS, ModelConfig
from transformer_lab.model.parameters import shapes

PREFIX = "model."
EMBEDDING = "embed_tokens.weight"
HEAD = "lm_head.weight"
# Computed from the config, and saved by older versions: one in each layer, later one for all.
BUFFERS = re.compile(r"(layers\.\d+\.self_attn\.)?rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)")

LARGEST_TABLE = 2**24  # numbers; 131,072 positions of 128

_OUTSIDE = {"embed.token": EMBEDDING, "final_norm.weight": "norm.weight"}
_INSIDE = {
    "norm_1": "input_layernorm",
    "attn.out": "self_attn.o_proj",
    "norm_2": "post_attention_layernorm",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}


def config_from(fields: Fields) -> ModelConfig:
    """Every field that changes the function is honoured or refused; an absent one has transformers' default.

    Left out on purpose: attention_dropout (off outside training) and pretraining_tp (the same function in slices).
    """
    context_length = fields.whole("max_position_embeddings", 2048, LIMITS["context_length"])
    fields.require_plain_decoder(context_length)
    hidden = fields.whole("hidden_size", 4096, LIMITS["hidden_size"])
    heads = fields.whole("num_attention_heads", 32, LIMITS["num_heads"])
    head_size = fields.whole_or_null("head_dim", LIMITS["head_size"])
    if head_size is None and hidden % heads:  # transformers 5 asks for it with head_dim too, without a need
        fields.refuse("hidden_size", f"is {hidden}, which is not divisible by num_attention_heads, {heads}")
    kv_heads = fields.whole_or_null("num_key_value_heads", LIMITS["num_kv_heads"])
    if kv_heads is not None and heads % kv_heads:
        fields.refuse("num_key_value_heads", f"is {kv_heads}, which does not divide num_attention_heads, {heads}")
    head_size = head_size or hidden // heads
    if head_size % 2:
        fields.refuse("head_dim", f"is {head_size}; rotary positions turn pairs, so it must be even")
    vocab_size = fields.whole("vocab_size", 32000, LIMITS["vocab_size"])
    config = ModelConfig(
        vocab_size=vocab_size,
        context_length=context_length,
        hidden_size=hidden,
        num_layers=fields.whole("num_hidden_layers", 32, LIMITS["num_layers"]),
        num_heads=heads,
        num_kv_heads=kv_heads or heads,
        head_size=head_size,
        ffn=Dense(
            size=fields.whole("intermediate_size", 11008, 100 * LIMITS["hidden_size"]),
            activation=fields.activation("hidden_act", "silu"),
            gated=True,
            bias=fields.flag("mlp_bias", False),
        ),
        position="rotary",
        rotary_base=_rotary_base(fields),
        norm="rms_norm",
        norm_epsilon=fields.positive("rms_norm_eps", 1e-6),
        attention_bias=fields.flag("attention_bias", False),
        tied_head=fields.flag("tie_word_embeddings", False),
        end_of_text_id=next(iter(end_ids(fields)), None),
        begin_of_text_id=next(iter(fields.token_ids("bos_token_id", 1, vocab_size)), None),
    )
    # The table of angles is the one thing that takes memory by this file's word alone, without bytes of weights.
    angles, parameters = context_length * head_size, sum(map(math.prod, shapes(config).values()))
    if angles > max(LARGEST_TABLE, parameters):
        reason = f"is {context_length}; the table of its rotary angles would be larger than all weights, so lower it"
        fields.refuse("max_position_embeddings", reason)
    return config


def end_ids(fields: Fields) -> tuple[int, ...]:
    return fields.token_ids("eos_token_id", 2, fields.whole("vocab_size", 32000, LIMITS["vocab_size"]))


def _rotary_base(fields: Fields) -> float:
    """transformers 5 writes rope_parameters, with rope_theta inside; before it was rope_theta beside rope_scaling."""
    name = "rope_scaling" if fields.values.get("rope_scaling") else "rope_parameters"
    parameters = fields.values.get(name) or {}
    if not isinstance(parameters, dict):
        fields.refuse(name, "is not an object")
    if any(isinstance(value, dict) for value in parameters.values()):
        fields.refuse(name, "differs between kinds of layers; only one for all is offered")
    inner = Fields(fields.path, {f"{name}.{key}": value for key, value in parameters.items()})
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind != "default":
        inner.refuse(f"{name}.rope_type", f"is {shown(kind)}; only default, rotary positions unscaled, is offered")
    for holder, key in ((inner, f"{name}.partial_rotary_factor"), (fields, "partial_rotary_factor")):
        if holder.values.get(key) not in (None, 1):
            holder.refuse(key, f"is {shown(holder.values[key])}; only 1 is offered")
    if f"{name}.rope_theta" in inner.values:
        return inner.positive(f"{name}.rope_theta", 10000.0)
    return fields.positive("rope_theta", 10000.0)


def fields_from(config: ModelConfig) -> dict[str, Any]:
    ffn = config.ffn
    for fits, what in (
        (config.position == "rotary", "rotary positions"),
        (config.norm == "rms_norm", "rms_norm"),
        (config.attention_scale and not config.attention_scale_by_layer, "scores scaled by head_size alone"),
        (config.hidden_size % config.num_heads == 0, "a hidden_size that is a multiple of num_heads"),
        (isinstance(ffn, Dense) and ffn.gated, "a dense ffn with a gate"),
    ):
        if not fits:
            message = f"llama has {what}"
            raise ConfigurationError(message)
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": ffn.size,
        "hidden_act": next(name for name, ours in ACTIVATIONS.items() if ours == ffn.activation),
        "rms_norm_eps": float(config.norm_epsilon),
        "rope_theta": float(config.rotary_base),  # read by transformers 4
        "rope_parameters": {"rope_type": "default", "rope_theta": float(config.rotary_base)},  # and by 5
        "attention_bias": config.attention_bias,
        "mlp_bias": ffn.bias,
        "tie_word_embeddings": config.tied_head,
        "bos_token_id": config.begin_of_text_id,
        "eos_token_id": config.end_of_text_id,
    }


def stored(config: ModelConfig) -> dict[str, Stored]:
    queries = config.num_heads * config.head_size
    keys = config.num_kv_heads * config.head_size
    rows = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
    result = {}
    parts: tuple[tuple[str, tuple[int, ...]], ...]
    for name, shape in shapes(config).items():
        is_kernel = name.endswith(".kernel")
        if name == "head.kernel":
            parts = ((HEAD, shape[::-1]),)
        elif name in _OUTSIDE:
            parts = ((_OUTSIDE[name], shape),)
        else:
            _, layer, rest = name.split(".", 2)
            module, _, kind = rest.rpartition(".")
            kind = "weight" if is_kernel else kind
            start = f"layers.{layer}"
            if module == "attn.qkv":
                parts = tuple(
                    (f"{start}.self_attn.{part}.{kind}", (count, config.hidden_size) if is_kernel else (count,))
                    for part, count in rows.items()
                )
            else:
                parts = ((f"{start}.{_INSIDE[module]}.{kind}", shape[::-1] if is_kernel else shape),)
        result[name] = Stored(parts, transposed=is_kernel)
    return result
