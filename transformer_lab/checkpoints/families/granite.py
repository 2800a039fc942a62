"""Granite (IBM 2024): Llama with a factor for the embedding, the residuals, the scores and the logits each."""

from dataclasses import replace
from typing import Any

from transformer_lab.checkpoints.config_fields import Fields
from transformer_lab.checkpoints.families import llama
from transformer_lab.checkpoints.sizes import Sizes
from transformer_lab.model.config import ModelConfig

ARCHITECTURE = "GraniteForCausalLM"
PREFIX, NAMES, BUFFERS = llama.PREFIX, llama.NAMES, llama.BUFFERS
SIZES = Sizes(32000, 4096, 32, 32, 2048, bos=1, eos=2)


def config_from(fields: Fields) -> ModelConfig:
    config = llama.config_from(fields.without("head_dim"))  # with the same defaults
    block = config.blocks[0]
    attention = replace(block.attention, scale=fields.positive("attention_multiplier", 1.0))
    block = replace(block, attention=attention, residual_scale=fields.positive("residual_multiplier", 1.0))
    return replace(
        config,
        blocks=(block,) * config.num_layers,
        embedding_scale=fields.positive("embedding_multiplier", 1.0),
        logits_scale=1.0 / fields.positive("logits_scaling", 1.0),
    )


def fields_from(config: ModelConfig) -> dict[str, Any]:
    block = config.blocks[0]
    return llama.fields_from(config) | {
        "attention_multiplier": block.attention.scale,
        "residual_multiplier": block.residual_scale,
        "embedding_multiplier": config.embedding_scale,
        "logits_scaling": 1.0 / config.logits_scale,
    }
