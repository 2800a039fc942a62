"""Qwen1.5-MoE and Qwen2-MoE (Yang et al. 2024, arXiv 2407.10671): Qwen2 with experts, beside them a network for every
token that a gate weighs, and where it is asked for dense layers in between.
"""

from dataclasses import replace
from typing import Any

from transformer_lab.block.sequential import Sequential
from transformer_lab.checkpoints import expert_fields
from transformer_lab.checkpoints.config_fields import Fields
from transformer_lab.checkpoints.families import llama
from transformer_lab.checkpoints.layer_kinds import FULL, SLIDING, read_kinds, read_window, window_fields
from transformer_lab.checkpoints.sizes import Sizes
from transformer_lab.ffn.dense import Dense
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.limits import LIMITS
from transformer_lab.norm.rms_norm import RMSNorm

ARCHITECTURE = "Qwen2MoeForCausalLM"
PREFIX, BUFFERS = llama.PREFIX, llama.BUFFERS
SHARED = {f"ffn.shared.{part}": f"mlp.shared_expert.{part}_proj" for part in ("gate", "up", "down")}
NAMES = replace(
    llama.NAMES,
    inside=dict(llama.NAMES.inside) | expert_fields.INSIDE | SHARED | {"ffn.shared_gate": "mlp.shared_expert_gate"},
    fused=expert_fields.FUSED,
    results=expert_fields.RESULTS,
)
SIZES = Sizes(151936, 2048, 24, 16, 32768, 16)


def config_from(fields: Fields) -> ModelConfig:
    sizes = SIZES.read(fields)
    size = fields.whole("shared_expert_intermediate_size", 5632, 100 * LIMITS["hidden_size"])
    shared = Dense(size, fields.activation("hidden_act", "silu"), gated=True, bias=False)
    own = {"shared": shared, "shared_gate": True}
    windows = _windows(fields, sizes)
    return model(fields, sizes, windows, (60, 4, 1408), 5632, own, qkv_bias=fields.flag("qkv_bias", True))


def _windows(fields: Fields, sizes: Sizes) -> list[int | None]:
    """Of every layer; where nothing is said about single layers, of every second one of the first."""
    layers, asked = sizes.num_hidden_layers, fields.flag("use_sliding_window", False)
    first = fields.values.get("max_window_layers", 28)
    if type(first) is not int:
        fields.refuse("max_window_layers", "must be a whole number")
    usual = [SLIDING if asked and layer % 2 == 0 and layer < first else FULL for layer in range(layers)]
    kinds = read_kinds(fields, layers, usual)
    if not asked and SLIDING in kinds:
        fields.refuse("layer_types", f"names {SLIDING}, and use_sliding_window is false; one of them must be wrong")
    window = read_window(fields, sizes.max_position_embeddings, 4096) if asked else None
    return [window if kind == SLIDING else None for kind in kinds]


def model(
    fields: Fields,
    sizes: Sizes,
    windows: list[int | None],
    usual: tuple[int, int, int],
    dense_size: int,
    own: dict[str, Any],
    **attention: Any,
) -> ModelConfig:
    """windows: of each layer. usual: how many experts, how many of them for a token, and their size, where the fields
    are silent; dense_size: that of a network without. own: what a layer has beside its experts. attention: its fields.
    """
    fields.require_decoder()
    sparse, renormalised = expert_fields.sparse_layers(fields, len(windows)), fields.flag("norm_topk_prob", False)
    norm, dense = RMSNorm(fields.positive("rms_norm_eps", 1e-6)), llama.gated(fields.without("mlp_bias"), dense_size)
    experts = expert_fields.read_experts(fields, len(sparse), *usual, 0.001, renormalised, **own) if sparse else dense
    part = llama.attention(fields, sizes, **{"out_bias": False} | attention)
    blocks = (
        Sequential(replace(part, window=window), experts if layer in sparse else dense, norm)
        for layer, window in enumerate(windows)
    )
    return llama.with_modest_tables(fields, sizes.model(tuple(blocks), norm))


def fields_from(config: ModelConfig) -> dict[str, Any]:
    windows, mixture = window_fields(config), next(block.ffn for block in config.blocks if hasattr(block.ffn, "shared"))
    own = {
        "qkv_bias": config.blocks[0].attention.qkv_bias,
        "shared_expert_intermediate_size": mixture.shared.size,
        "use_sliding_window": windows["sliding_window"] is not None,
    }
    experts = expert_fields.expert_fields(config) | expert_fields.layer_fields(config)
    return llama.fields_around(config) | experts | windows | own
