"""StableLM (Bellagente et al. 2024, arXiv 2402.17834): Llama with layer norms and a quarter of each head turned. In
StableLM 2 12B each head's queries and keys have a norm of their own.
"""

from dataclasses import replace
from typing import Any

from transformer_lab.block.parallel import Parallel
from transformer_lab.block.sequential import Sequential
from transformer_lab.checkpoints.config_fields import Fields
from transformer_lab.checkpoints.families import llama, phi
from transformer_lab.checkpoints.sizes import Sizes
from transformer_lab.model.config import ModelConfig
from transformer_lab.norm.layer_norm import LayerNorm

ARCHITECTURE = "StableLmForCausalLM"
PREFIX, BUFFERS = llama.PREFIX, llama.BUFFERS
NORMS = {f"attn.{one}_norm": f"self_attn.{one}_layernorm.norms.*" for one in "qk"}
NAMES = replace(llama.NAMES, inside=dict(llama.NAMES.inside) | NORMS)
SIZES = Sizes(50304, 2560, 32, 32, 4096, 32, bos=0, eos=0)


def config_from(fields: Fields) -> ModelConfig:
    sizes = SIZES.read(fields.without("head_dim"))
    fields.require_plain_decoder(sizes.max_position_embeddings)
    bias, norm = fields.flag("use_qkv_bias", False), LayerNorm(fields.positive("layer_norm_eps", 1e-5))
    own, over = (replace(norm, bias=False), "each_head") if fields.flag("qk_layernorm", False) else (None, "head")
    attention = llama.attention(fields, sizes, share=0.25, qkv_bias=bias, out_bias=False, norm=own, norm_over=over)
    ffn = llama.gated(fields.without("mlp_bias"), 6912)
    parallel = fields.flag("use_parallel_residual", False)
    block = Parallel(attention, ffn, norm) if parallel else Sequential(attention, ffn, norm)
    return llama.with_modest_tables(fields, sizes.model((block,) * sizes.num_hidden_layers, norm))


def fields_from(config: ModelConfig) -> dict[str, Any]:
    block = config.blocks[0]
    own = {"use_qkv_bias": block.attention.qkv_bias, "use_parallel_residual": isinstance(block, Parallel)}
    return phi.common_fields(config) | own | {"qk_layernorm": block.attention.norm is not None}
