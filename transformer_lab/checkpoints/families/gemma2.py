"""Gemma 2 (Gemma Team 2024, arXiv 2408.00118): norms around attention and network, caps on scores and logits, a window
in every second layer.
"""

from dataclasses import replace
from typing import Any

from transformer_lab.block.sequential import Sequential
from transformer_lab.checkpoints.config_fields import Fields
from transformer_lab.checkpoints.families import gemma, llama
from transformer_lab.checkpoints.layer_kinds import FULL, SLIDING, read_kinds, read_window, window_fields
from transformer_lab.checkpoints.sizes import Sizes
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.limits import LIMITS
from transformer_lab.norm.rms_norm import RMSNorm

ARCHITECTURE = "Gemma2ForCausalLM"
PREFIX, BUFFERS = llama.PREFIX, llama.BUFFERS
AROUND = {
    "post_norm_1": "post_attention_layernorm",
    "norm_2": "pre_feedforward_layernorm",
    "post_norm_2": "post_feedforward_layernorm",
}
NAMES = replace(llama.NAMES, inside=dict(llama.NAMES.inside) | AROUND)
SIZES = Sizes(256000, 2304, 26, 8, 8192, 4, head_dim=256, tied=True, bos=2, eos=1)


def config_from(fields: Fields) -> ModelConfig:
    sizes = SIZES.read(fields)
    usual = [FULL if layer % 2 else SLIDING for layer in range(sizes.num_hidden_layers)]
    scores_cap = cap(fields, "attn_logit_softcapping", 50.0)
    kinds = read_kinds(fields, sizes.num_hidden_layers, usual)
    parts = [llama.attention(fields, sizes, **own(fields), cap=scores_cap)] * len(kinds)
    return model(fields, sizes, kinds, parts, cap(fields, "final_logit_softcapping", 30.0))


def cap(fields: Fields, name: str, usual: float | None) -> float | None:
    return None if fields.values.get(name, usual) is None else fields.positive(name, usual or 0.0)


def own(fields: Fields) -> dict[str, Any]:
    """What the fields say of the attention alone."""
    bias, scale = fields.flag("attention_bias", False), fields.positive("query_pre_attn_scalar", 256)
    return {"qkv_bias": bias, "out_bias": bias, "scale": scale**-0.5}


def model(
    fields: Fields, sizes: Sizes, kinds: list[str], attention: list[Any], logits_cap: float | None
) -> ModelConfig:
    """kinds, attention: of each layer, without its window."""
    fields.require_decoder()
    gemma.require_causal(fields)
    window = read_window(fields, LIMITS["context_length"] + 1, 4096)  # a long one too: the kind of its layer counts
    norm = RMSNorm(fields.positive("rms_norm_eps", 1e-6), from_one=True)
    ffn = llama.gated(fields.without("mlp_bias"), 9216, "gelu_pytorch_tanh", "hidden_activation")
    blocks = (
        Sequential(replace(part, window=window if kind == SLIDING else None), ffn, norm, "around")
        for kind, part in zip(kinds, attention, strict=True)
    )
    scale = gemma.root(sizes.hidden_size)
    config = sizes.model(tuple(blocks), norm, embedding_scale=scale, logits_cap=logits_cap)
    return llama.with_modest_tables(fields, config)


def fields_from(config: ModelConfig) -> dict[str, Any]:
    attention, found, windows = config.blocks[0].attention, gemma.fields_from(config), window_fields(config)
    windows["sliding_window"] = windows["sliding_window"] or config.context_length  # transformers asks for one
    scalar = attention.scale**-2.0
    own = {
        "hidden_activation": found.pop("hidden_act"),
        "query_pre_attn_scalar": round(scalar) if round(scalar) ** -0.5 == attention.scale else scalar,
        "attn_logit_softcapping": attention.cap,
        "final_logit_softcapping": config.logits_cap,
    }
    return found | windows | own
