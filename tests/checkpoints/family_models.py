"""Random small models of every family that transformers knows, with whatever each family can vary."""

import torch
import transformers

torch.set_num_threads(1)

SIZES = {
    "vocab_size": 101,
    "max_position_embeddings": 48,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
GPT = {"vocab_size": 101, "n_positions": 48, "n_embd": 32, "n_layer": 2, "n_head": 4}
GPT |= {"bos_token_id": None, "eos_token_id": None}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 24}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 24}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.1, 1.5, 2.0]}
LONG |= {"long_factor": [1.0, 2.0, 3.0, 4.0], "factor": 2.0, "original_max_position_embeddings": 48}
FULL, SLIDING = "full_attention", "sliding_attention"
FOUR = {"num_hidden_layers": 4}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 3}


def rope(**parameters):
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4} | parameters}


# title -> (class of its configuration, fields)
CASES = {
    "llama linear": ("Llama", rope(rope_type="linear", factor=3.0)),
    "llama dynamic": ("Llama", rope(rope_type="dynamic", factor=3.0)),
    "llama llama3": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama yarn": ("Llama", {"rope_parameters": YARN}),
    "llama yarn, its own length": ("Llama", {"rope_parameters": YARN | {"attention_factor": 1.3, "truncate": False}}),
    "llama longrope": ("Llama", {"rope_parameters": LONG}),
    "mistral": ("Mistral", {"sliding_window": 7}),
    "mistral without a window": ("Mistral", {"sliding_window": None, "head_dim": 12}),
    "ministral": (
        "Ministral",
        FOUR | {"head_dim": 8, "sliding_window": 5, "layer_types": [FULL, SLIDING, SLIDING, FULL]},
    ),
    "qwen2": ("Qwen2", {}),
    "qwen2 longrope, longer than it was trained": (
        "Qwen2",
        {"rope_parameters": LONG | {"original_max_position_embeddings": 32}},
    ),
    "qwen2 with windows": ("Qwen2", FOUR | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2}),
    "qwen3": ("Qwen3", {"head_dim": 12, "tie_word_embeddings": True}),
    "qwen3 with biases": ("Qwen3", {"head_dim": 8, "attention_bias": True}),
    "olmo": ("Olmo", {}),
    "olmo, clipped": ("Olmo", {"clip_qkv": 0.5}),
    "olmo2": ("Olmo2", {"num_key_value_heads": 4}),
    "olmo2 with biases": ("Olmo2", {"attention_bias": True}),
    "gemma": ("Gemma", {"head_dim": 12}),
    "gemma2": ("Gemma2", FOUR | {"head_dim": 12, "sliding_window": 6, "query_pre_attn_scalar": 20}),
    "gemma2 without caps": ("Gemma2", {"head_dim": 8, "attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma3_text": ("Gemma3Text", {"num_hidden_layers": 7, "head_dim": 12, "sliding_window": 6}),
    "gemma3_text, yarn of its own length": (
        "Gemma3Text",
        {
            "num_hidden_layers": 6,
            "head_dim": 8,
            "rope_parameters": {FULL: YARN, SLIDING: {"rope_type": "default", "rope_theta": 1e4}},
        },
    ),
    "gemma3_text, alternating": (
        "Gemma3Text",
        {"head_dim": 8, "sliding_window": 9, "layer_types": [SLIDING, FULL], "final_logit_softcapping": 20.0},
    ),
    "phi": ("Phi", {}),
    "phi with norms of heads": ("Phi", {"qk_layernorm": True}),
    "phi, grouped, all of a head": ("Phi", rope(partial_rotary_factor=1.0)),
    "phi3": ("Phi3", {"original_max_position_embeddings": 48}),
    "phi3 with a window": ("Phi3", {"original_max_position_embeddings": 48, "sliding_window": 6}),
    "phi3 longrope": (
        "Phi3",
        {
            "original_max_position_embeddings": 32,
            "rope_parameters": {key: LONG[key] for key in ("rope_type", "rope_theta", "short_factor", "long_factor")},
        },
    ),
    "gpt_neox": ("GPTNeoX", {}),
    "gpt_neox, one after the other": ("GPTNeoX", {"use_parallel_residual": False} | rope(partial_rotary_factor=0.5)),
    "gpt_neo": (
        "GPTNeo",
        {"num_layers": 2, "num_heads": 4, "window_size": 6, "attention_types": [[["global", "local"], 1]]},
    ),
    "gptj": ("GPTJ", GPT | {"rotary_dim": 4}),
    "gpt_bigcode": ("GPTBigCode", GPT),
    "gpt_bigcode, many heads": ("GPTBigCode", GPT | {"multi_query": False, "scale_attn_weights": False}),
    "starcoder2": ("Starcoder2", {"sliding_window": 6}),
    "starcoder2 without biases": ("Starcoder2", {"use_bias": False, "tie_word_embeddings": False}),
    "stablelm": ("StableLm", {}),
    "stablelm with a norm of each head": ("StableLm", {"qk_layernorm": True}),
    "stablelm in parallel": ("StableLm", {"use_parallel_residual": True, "use_qkv_bias": True}),
    "smollm3": ("SmolLM3", FOUR | {"no_rope_layer_interval": 2}),
    "smollm3 with windows by their kinds": (
        "SmolLM3",
        {"use_sliding_window": False, "sliding_window": 5, "layer_types": [FULL, SLIDING]},
    ),
    "smollm3 with windows": ("SmolLM3", FOUR | {"use_sliding_window": True, "sliding_window": 5}),
    "granite": (
        "Granite",
        {
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.3,
            "embedding_multiplier": 6.0,
            "logits_scaling": 4.0,
            "attention_bias": True,
        },
    ),
    "cohere": ("Cohere", {"logit_scale": 0.25}),
    "cohere with a norm of each head": ("Cohere", {"logit_scale": 0.25, "use_qk_norm": True, "attention_bias": True}),
    "falcon": ("Falcon", {}),
    "falcon, each head with a key of its own": ("Falcon", {"multi_query": False, "bias": True}),
    "falcon, two norms, grouped": ("Falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True}),
    "falcon, two norms, each head with a key of its own": (
        "Falcon",
        {"new_decoder_architecture": True, "activation": "gelu_new"} | rope(rope_type="linear", factor=3.0),
    ),
    "falcon, one norm, grouped": (
        "Falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1, "ffn_hidden_size": 40},
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "mixtral with a window, three of five narrow ones": (
        "Mixtral",
        {
            "num_local_experts": 5,
            "num_experts_per_tok": 3,
            "intermediate_size": 12,
            "sliding_window": 7,
            "head_dim": 12,
        },
    ),
    "olmoe": ("Olmoe", {"num_experts": 6, "num_experts_per_tok": 2}),
    "olmoe, clipped, with biases, renormalised, as wide as the stream": (
        "Olmoe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 4,
            "intermediate_size": 32,
            "norm_topk_prob": True,
            "attention_bias": True,
            "clip_qkv": 0.8,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2_moe": (
        "Qwen2Moe",
        EXPERTS | {"moe_intermediate_size": 20, "shared_expert_intermediate_size": 28, "qkv_bias": False},
    ),
    "qwen2_moe with dense layers and windows": (
        "Qwen2Moe",
        FOUR
        | EXPERTS
        | {
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 32,
            "decoder_sparse_step": 2,
            "norm_topk_prob": True,
            "use_sliding_window": True,
            "sliding_window": 6,
            "max_window_layers": 3,
        },
    ),
    "qwen2_moe with windows by their kinds": (
        "Qwen2Moe",
        EXPERTS
        | {
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 16,
            "mlp_only_layers": [1],
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": [FULL, SLIDING],
        },
    ),
    "qwen3_moe": ("Qwen3Moe", EXPERTS | {"moe_intermediate_size": 20, "head_dim": 12, "norm_topk_prob": True}),
    "qwen3_moe with dense layers, biases and a window": (
        "Qwen3Moe",
        FOUR
        | EXPERTS
        | {
            "moe_intermediate_size": 32,
            "head_dim": 8,
            "mlp_only_layers": [0, 2],
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 6,
            "tie_word_embeddings": True,
        },
    ),
    "opt": ("OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "opt without biases": ("OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32, "enable_bias": False}),
    "bloom": ("Bloom", {"n_layer": 2, "n_head": 4, "seq_length": 48}),
    "bloom, six heads": ("Bloom", {"n_layer": 2, "n_head": 6, "hidden_size": 48, "seq_length": 48}),
}


def save_family(title, folder, seed=0):
    """Saves the random model of this title in float32, and returns it in float64 with eager attention."""
    kind, changes = CASES[title]
    config = getattr(transformers, f"{kind}Config")
    usual = {} if kind in ("GPTJ", "GPTBigCode") else SIZES
    if kind in ("GPTNeo", "Bloom", "GPTNeoX", "OPT", "Falcon"):
        usual = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
    config = config(**{"initializer_range": 0.2} | usual | changes)
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # biases and norms start at 0 and 1, which hides mistakes
            scale = 0.2 if parameter.ndim == 1 or "norm" in name else 0.0
            parameter.add_(torch.randn(parameter.shape, generator=draw) * scale)
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    model.save_pretrained(folder)
    return model.eval()
