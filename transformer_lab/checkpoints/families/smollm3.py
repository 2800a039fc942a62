"""SmolLM3 (Bakouch et al. 2025): Llama with no positions in every fourth layer (Yang et al. 2025, arXiv 2501.18795)."""

from dataclasses import replace
from typing import Any

from transformer_lab.block.sequential import Sequential
from transformer_lab.checkpoints.config_fields import Fields
from transformer_lab.checkpoints.families import llama
from transformer_lab.checkpoints.layer_kinds import FULL, SLIDING, read_kinds, read_window, window_fields
from transformer_lab.checkpoints.rotary_fields import rotary_fields
from transformer_lab.checkpoints.sizes import Sizes
from transformer_lab.errors import ConfigurationError, shown
from transformer_lab.model.config import ModelConfig
from transformer_lab.norm.rms_norm import RMSNorm

ARCHITECTURE = "SmolLM3ForCausalLM"
PREFIX, NAMES, BUFFERS = llama.PREFIX, llama.NAMES, llama.BUFFERS
SIZES = Sizes(128256, 2048, 36, 16, 32768, 4, tied=True, bos=128000, eos=128001)


def config_from(fields: Fields) -> ModelConfig:
    sizes = SIZES.read(fields)
    fields.require_decoder()
    layers = sizes.num_hidden_layers
    turned = fields.values.get("no_rope_layers")  # 1 where there are positions, in spite of its name
    if turned is None:
        interval = fields.whole("no_rope_layer_interval", 4, 10**6)
        turned = [int((layer + 1) % interval != 0) for layer in range(layers)]
    if not isinstance(turned, list) or len(turned) != layers or any(one not in (0, 1) for one in turned):
        fields.refuse("no_rope_layers", f"is {shown(turned)}; it must be 0 or 1 for each of {layers} layers")
    window, asked = read_window(fields, sizes.max_position_embeddings), fields.flag("use_sliding_window", False)
    usual = [SLIDING if asked and window is not None and not one else FULL for one in turned]
    bias, norm = fields.flag("attention_bias", False), RMSNorm(fields.positive("rms_norm_eps", 1e-6))
    attention = llama.attention(fields, sizes, 2000000.0, qkv_bias=bias, out_bias=bias)
    ffn = llama.gated(fields, 11008)

    def block(turns: int, kind: str) -> Sequential:
        position, seen = attention.position if turns else None, window if kind == SLIDING else None
        return Sequential(replace(attention, position=position, window=seen), ffn, norm)

    blocks = tuple(map(block, turned, read_kinds(fields, layers, usual)))
    config = sizes.model(blocks, norm)
    return llama.with_modest_tables(fields, config) if config.rotaries else config


def fields_from(config: ModelConfig) -> dict[str, Any]:
    turning = [block for block in config.blocks if block.attention.position is not None]
    if not turning:
        message = "it has rotary positions in some layers"
        raise ConfigurationError(message)
    found = llama.fields_from(replace(config, blocks=(turning[0],))) | window_fields(config)
    rotary = rotary_fields(turning[0].attention.position, turning[0].attention.head_size)
    return found | {
        "num_hidden_layers": config.num_layers,
        "rope_parameters": rotary,
        "no_rope_layers": [int(block.attention.position is not None) for block in config.blocks],
        "use_sliding_window": found["sliding_window"] is not None,
    }
