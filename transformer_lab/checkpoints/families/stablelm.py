"""StableLM (Bellagente et al. 2024, arXiv 2402.17834): Llama with layer norms and a quarter of each head turned."""

from typing import Any

from transformer_lab.block.parallel import Parallel
from transformer_lab.block.sequential import Sequential
from transformer_lab.checkpoints.config_fields import Fields
from transformer_lab.checkpoints.families import llama, phi
from transformer_lab.checkpoints.sizes import Sizes
from transformer_lab.model.config import ModelConfig
from transformer_lab.norm.layer_norm import LayerNorm

ARCHITECTURE = "StableLmForCausalLM"
PREFIX, NAMES, BUFFERS = llama.PREFIX, llama.NAMES, llama.BUFFERS
SIZES = Sizes(50304, 2560, 32, 32, 4096, 32, bos=0, eos=0)


def config_from(fields: Fields) -> ModelConfig:
    sizes = SIZES.read(fields.without("head_dim"))
    fields.require_plain_decoder(sizes.max_position_embeddings)
    fields.require("qk_layernorm", (False,), "a norm for each head of its own is not offered")
    bias, norm = fields.flag("use_qkv_bias", False), LayerNorm(fields.positive("layer_norm_eps", 1e-5))
    attention = llama.attention(fields, sizes, share=0.25, qkv_bias=bias, out_bias=False)
    ffn = llama.gated(fields.without("mlp_bias"), 6912)
    parallel = fields.flag("use_parallel_residual", False)
    block = Parallel(attention, ffn, norm) if parallel else Sequential(attention, ffn, norm)
    return llama.with_modest_tables(fields, sizes.model((block,) * sizes.num_hidden_layers, norm))


def fields_from(config: ModelConfig) -> dict[str, Any]:
    block = config.blocks[0]
    own = {"use_qkv_bias": block.attention.qkv_bias, "use_parallel_residual": isinstance(block, Parallel)}
    return phi.fields_from(config) | own
