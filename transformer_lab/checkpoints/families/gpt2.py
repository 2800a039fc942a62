"""GPT-2 (Radford et al. 2019): config.json and tensor names, as transformers 5 reads and writes them.

Its kernels are Conv1D, stored [in, out] like ours, with queries, keys and values already fused; the head alone is
[V, D].
"""

import re
from typing import Any

from transformer_lab.checkpoints.config_fields import ACTIVATIONS, Fields
from transformer_lab.checkpoints.families import Stored
from transformer_lab.errors import ConfigurationError
from transformer_lab.ffn.dense import Dense
from transformer_lab.model.config import LIMITS, ModelConfig
from transformer_lab.model.parameters import shapes

PREFIX = "transformer."
EMBEDDING = "wte.weight"
HEAD = "lm_head.weight"
BUFFERS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # the causal mask, saved by older versions

_OUTSIDE = {
    "embed.token": EMBEDDING,
    "embed.position": "wpe.weight",
    "final_norm.weight": "ln_f.weight",
    "final_norm.bias": "ln_f.bias",
    "head.kernel": HEAD,
}
_INSIDE = {
    "norm_1": "ln_1",
    "attn.qkv": "attn.c_attn",
    "attn.out": "attn.c_proj",
    "norm_2": "ln_2",
    "ffn.up": "mlp.c_fc",
    "ffn.down": "mlp.c_proj",
}
_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


def config_from(fields: Fields) -> ModelConfig:
    """Every field that changes the function is honoured or refused; an absent one has transformers' default.

    Left out on purpose: attn_pdrop, embd_pdrop, resid_pdrop (dropout is a matter of training, and off otherwise), n_ctx
    (transformers takes n_positions alone), reorder_and_upcast_attn (the same function in another order; the softmax
    here accumulates in float32 at least, which is what it asks for), and everything for summaries and generation.
    """
    fields = Fields(fields.path, fields.values, _ALIASES)
    context_length = fields.whole("n_positions", 1024, LIMITS["context_length"])
    fields.require_plain_decoder(context_length)
    fields.require("add_cross_attention", (False,), "only decoders without cross-attention are offered")
    fields.flag("reorder_and_upcast_attn", False)
    hidden = fields.whole("n_embd", 768, LIMITS["hidden_size"])
    heads = fields.whole("n_head", 12, LIMITS["num_heads"])
    if hidden % heads:
        fields.refuse("n_embd", f"is {hidden}, which is not divisible by n_head, {heads}")
    vocab_size = fields.whole("vocab_size", 50257, LIMITS["vocab_size"])
    inner = fields.whole_or_null("n_inner", 100 * LIMITS["hidden_size"])
    return ModelConfig(
        vocab_size=vocab_size,
        context_length=context_length,
        hidden_size=hidden,
        num_layers=fields.whole("n_layer", 12, LIMITS["num_layers"]),
        num_heads=heads,
        ffn=Dense(4 * hidden if inner is None else inner, fields.activation("activation_function", "gelu_new")),
        norm_epsilon=fields.positive("layer_norm_epsilon", 1e-5),
        attention_scale=fields.flag("scale_attn_weights", True),
        attention_scale_by_layer=fields.flag("scale_attn_by_inverse_layer_idx", False),
        tied_head=fields.flag("tie_word_embeddings", True),
        end_of_text_id=next(iter(end_ids(fields)), None),
        begin_of_text_id=next(iter(fields.token_ids("bos_token_id", 50256, vocab_size)), None),
    )


def end_ids(fields: Fields) -> tuple[int, ...]:
    return fields.token_ids("eos_token_id", 50256, fields.whole("vocab_size", 50257, LIMITS["vocab_size"]))


def fields_from(config: ModelConfig) -> dict[str, Any]:
    ffn = config.ffn
    for fits, what in (
        (config.position == "learned", "learned positions"),
        (config.norm == "layer_norm", "layer_norm"),
        (config.attention_bias, "biases in the attention"),
        (config.num_kv_heads == config.num_heads, "as many key/value heads as heads"),
        (config.num_heads * config.head_size == config.hidden_size, "heads that add up to hidden_size"),
        (isinstance(ffn, Dense) and ffn.bias and not ffn.gated, "a dense ffn with biases and without a gate"),
    ):
        if not fits:
            message = f"gpt2 has {what}"
            raise ConfigurationError(message)
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": ffn.size,
        "activation_function": next(name for name, ours in ACTIVATIONS.items() if ours == ffn.activation),
        "layer_norm_epsilon": float(config.norm_epsilon),
        "scale_attn_weights": config.attention_scale,
        "scale_attn_by_inverse_layer_idx": config.attention_scale_by_layer,
        "tie_word_embeddings": config.tied_head,
        "bos_token_id": config.begin_of_text_id,
        "eos_token_id": config.end_of_text_id,
    }


def stored(config: ModelConfig) -> dict[str, Stored]:
    return {name: _stored(name, shape) for name, shape in shapes(config).items()}


def _stored(name: str, shape: tuple[int, ...]) -> Stored:
    if name == "head.kernel":
        return Stored(((HEAD, shape[::-1]),), transposed=True)
    if name in _OUTSIDE:
        return Stored(((_OUTSIDE[name], shape),))
    _, layer, rest = name.split(".", 2)
    module, _, kind = rest.rpartition(".")
    return Stored(((f"h.{layer}.{_INSIDE[module]}.{'weight' if kind == 'kernel' else kind}", shape),))
