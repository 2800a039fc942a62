"""Gemma 3, its text model (Gemma Team 2025, arXiv 2503.19786): Gemma 2 with norms for queries and keys instead of a
cap, five layers with a window to one without, and rotary positions of another base in each kind.
"""

from dataclasses import replace
from typing import Any

from transformer_lab.attention.softmax import SoftmaxAttention
from transformer_lab.checkpoints.config_fields import Fields
from transformer_lab.checkpoints.families import gemma2, llama
from transformer_lab.checkpoints.families.qwen3 import NORMS
from transformer_lab.checkpoints.layer_kinds import FULL, SLIDING, read_kinds
from transformer_lab.checkpoints.rotary_fields import read_rotary, rotary_fields
from transformer_lab.checkpoints.sizes import Sizes
from transformer_lab.model.config import ModelConfig
from transformer_lab.norm.rms_norm import RMSNorm

ARCHITECTURE = "Gemma3ForCausalLM"
PREFIX, BUFFERS = llama.PREFIX, llama.BUFFERS
NAMES = replace(gemma2.NAMES, inside=dict(gemma2.NAMES.inside) | NORMS)
SIZES = Sizes(262208, 2304, 26, 8, 131072, 4, head_dim=256, tied=True, bos=2, eos=1)


def config_from(fields: Fields) -> ModelConfig:
    sizes = SIZES.read(fields)
    fields.require("attn_logit_softcapping", (None,), "Gemma 3 has no cap on its scores")
    pattern = fields.whole("sliding_window_pattern", 6, 10**6)
    usual = [SLIDING if (layer + 1) % pattern else FULL for layer in range(sizes.num_hidden_layers)]
    kinds = read_kinds(fields, sizes.num_hidden_layers, usual)
    norm = RMSNorm(fields.positive("rms_norm_eps", 1e-6), from_one=True)
    heads = (sizes.num_attention_heads, sizes.head_size, sizes.num_key_value_heads or 0)
    parts = {
        kind: SoftmaxAttention(*heads, _rotary(fields, sizes, kind), norm=norm, **gemma2.own(fields))
        for kind in (FULL, SLIDING)
    }
    logits_cap = gemma2.cap(fields, "final_logit_softcapping", None)
    return gemma2.model(fields, sizes, kinds, [parts[kind] for kind in kinds], logits_cap)


def _rotary(fields: Fields, sizes: Sizes, kind: str) -> Any:
    """Before transformers 5, rope_theta and rope_scaling were of the full layers, rope_local_base_freq of others."""
    given = fields.values.get("rope_parameters")
    nested = isinstance(given, dict)
    if isinstance(given, dict) and not all(isinstance(given.get(one), dict) for one in (FULL, SLIDING)):
        fields.refuse("rope_parameters", f"must hold an object for {FULL} and one for {SLIDING}")
    if nested and fields.values.get("rope_scaling"):
        fields.refuse("rope_scaling", "stands beside rope_parameters; only one of them is read")
    if kind == SLIDING and not nested:
        fields = Fields(fields.path, {"rope_theta": fields.values.get("rope_local_base_freq", 10000.0)})
    base = 1e6 if kind == FULL else 1e4
    return read_rotary(fields, sizes.head_size, sizes.max_position_embeddings, base, kind=kind)


def fields_from(config: ModelConfig) -> dict[str, Any]:
    found = gemma2.fields_from(config)
    rotary = {FULL: {"rope_type": "default", "rope_theta": 1e6}, SLIDING: {"rope_type": "default", "rope_theta": 1e4}}
    for kind, block in zip(found["layer_types"], config.blocks, strict=True):
        rotary[kind] = rotary_fields(block.attention.position, block.attention.head_size)
    del found["rope_theta"]
    return found | {"rope_parameters": rotary}
