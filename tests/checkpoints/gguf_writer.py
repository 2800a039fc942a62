"""Models of transformers as GGUF files, the way llama.cpp's converter writes them; names are those of the package gguf.

What the converter changes on the way stands here, written anew: rows of queries and keys of the architectures that turn
neighbours as pairs, packed rows head by head, norms that learn a distance from 1, kernels of GPT-2.
"""

import re

import numpy as np
import pytest

from transformer_lab.tokenizers.byte_alphabet import CHARACTER_OF_BYTE

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")
quants = pytest.importorskip("gguf.quants")

NEIGHBOURS = ("llama", "granite", "smollm3", "olmo")
FROM_ONE = ("gemma", "gemma2", "gemma3")
WHOLE = ("GPT2", "GPTBigCode", "Bloom", "GPTNeoX")
GPT2_NAMES = {"hidden_size": "n_embd", "intermediate_size": "n_inner", "max_position_embeddings": "n_positions"}
GPT2_NAMES |= {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
EPSILONS = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")
NAMED = {
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "logit_scale": "logit_scale",
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "use_parallel_residual": "use_parallel_residual",
}
SIZES = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.1}
SIZES |= {"pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1}


def random_model(kind="Llama", **changes):
    """A model of transformers, with eager attention, whose biases and norms are no zeros and ones."""
    torch.manual_seed(0)
    # Where each head has keys and values of its own, there is no field for how many there are.
    usual = {name: value for name, value in SIZES.items() if kind not in WHOLE or name != "num_key_value_heads"}
    if kind in ("GPT2", "GPTBigCode"):
        usual = {GPT2_NAMES.get(name, name): value for name, value in usual.items()}
    config = getattr(transformers, f"{kind}Config")(**usual | changes)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def write_gguf(path, model, architecture, kind="F32", tokenizer=None, values=None, pack=None):
    """kind: of the matrices. tokenizer: keys below tokenizer.ggml -> values; by default bytes and some merges. values:
    of the header, other ones or more; None leaves one out. pack: (name, matrix) -> its bytes in `kind`."""
    writer = gguf.GGUFWriter(path, architecture)
    tokenizer = byte_level(model.config.vocab_size) if tokenizer is None else tokenizer
    said = header(model, architecture) | {f"tokenizer.ggml.{key}": value for key, value in tokenizer.items()}
    for key, value in (said | (values or {})).items():
        if value is not None:
            write_value(writer, key, value)
    for name, array in tensors(model, architecture).items():
        kept = gguf.GGMLQuantizationType[kind if array.ndim > 1 else "F32"]
        data = array if kept == 0 else pack(name, array) if pack else quants.quantize(array, kept)
        writer.add_tensor(name, data, raw_dtype=kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_value(writer, key, value):
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def header(model, architecture):
    config = model.config
    hidden, heads = config.hidden_size, config.num_attention_heads
    lengths = [getattr(config, name, None) for name in ("max_position_embeddings", "seq_length")]
    inner = [getattr(config, name, None) for name in ("intermediate_size", "n_inner") if architecture != "bloom"]
    epsilons = [getattr(config, name, None) for name in EPSILONS] + [1e-5] * (architecture == "olmo")
    found = {
        "context_length": next(filter(None, lengths)),
        "embedding_length": hidden,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": next(filter(None, inner), 4 * hidden),
        "attention.head_count": heads,
        "attention.head_count_kv": 1 if architecture == "starcoder" else getattr(config, "num_key_value_heads", heads),
        "attention.layer_norm_rms_epsilon": getattr(config, "rms_norm_eps", None),
        "attention.layer_norm_epsilon": next(filter(None, epsilons), None),
    }
    found |= {key: getattr(config, name, None) for key, name in NAMED.items()} | rotary(config)
    if getattr(config, "head_dim", None):
        found["attention.key_length"] = found["attention.value_length"] = config.head_dim
    if architecture == "granite":
        found["logit_scale"] = config.logits_scaling
    if architecture == "olmo" and config.clip_qkv:
        found["attention.clamp_kqv"] = config.clip_qkv
    if architecture == "starcoder2":
        del found["attention.sliding_window"]
    return {f"{architecture}.{key}": value for key, value in found.items()} | {
        "tokenizer.ggml.bos_token_id": config.bos_token_id,
        "tokenizer.ggml.eos_token_id": config.eos_token_id,
    }


def rotary(config):
    rope = getattr(config, "rope_parameters", None)
    if not rope:
        return {}
    rope = rope.get("full_attention", rope)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    found = {"rope.freq_base": rope["rope_theta"]}
    found["rope.dimension_count"] = int(head * rope.get("partial_rotary_factor", 1.0))
    if rope["rope_type"] in ("linear", "yarn"):
        found |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": rope["factor"]}
    if rope["rope_type"] in ("longrope", "yarn"):
        found["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    if rope["rope_type"] == "longrope":
        found["rope.scaling.attn_factor"] = rope["attention_factor"]
    return found


def rotary_divisors(model):
    """Of each pair, where transformers' own would not follow from the header's values."""
    rope = getattr(model.config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        lists = {f"rope_factors_{one}.weight": rope[f"{one}_factor"] for one in ("short", "long")}
        return {name: np.array(divisors, np.float32) for name, divisors in lists.items()}
    if rope.get("rope_type") != "llama3":
        return {}
    turned = model.model.rotary_emb.inv_freq.double().numpy()
    plain = rope["rope_theta"] ** -(np.arange(len(turned)) / len(turned))
    return {"rope_freqs.weight": (plain / turned).astype(np.float32)}


def tensors(model, architecture):
    """Names of the file -> float32."""
    c = model.config
    names = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    map_ = gguf.get_tensor_name_map(names[architecture], c.num_hidden_layers)
    found = rotary_divisors(model)
    for name, tensor in model.state_dict().items():
        if re.fullmatch(r".*\.attn\.(masked_)?bias|.*inv_freq", name) or (
            name in ("lm_head.weight", "embed_out.weight") and c.tie_word_embeddings
        ):
            continue
        array = tensor.numpy()
        if architecture == "bloom":
            name = name.removeprefix("transformer.")
        if architecture in NEIGHBOURS and re.search(r"[qk]_proj", name):
            heads = c.num_attention_heads if "q_proj" in name else c.num_key_value_heads
            array = array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
        if architecture in ("bloom", "gptneox") and "query_key_value" in name:
            array = array.reshape(c.num_attention_heads, 3, -1, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)
        if architecture in FROM_ONE and name.endswith("norm.weight"):
            array = array + np.float32(1.0)
        if architecture == "gpt2" and re.search(r"(c_attn|c_proj|c_fc)\.weight", name):
            array = array.T
        there = map_.get_name(name, try_suffixes=(".weight", ".bias"))
        assert there is not None, name
        found[there] = np.ascontiguousarray(array)
    return found


def byte_level(size, pre="smollm"):
    """A vocabulary of all bytes, some merges and two of control -> keys below tokenizer.ggml."""
    merges = ["Ġ t", "h e", "Ġt he", "Ġ a", "i n", "1 2", "Ġ Ġ"]
    tokens = ["<|begin|>", "<|end|>", *CHARACTER_OF_BYTE, *(merge.replace(" ", "") for merge in merges)]
    kinds = [3, 3, *[1] * (len(tokens) - 2)]
    extra = size - len(tokens)
    tokens, kinds = [*tokens, *(f"[PAD{number}]" for number in range(extra))], [*kinds, *[5] * extra]
    found = {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": kinds, "merges": merges}
    return found | {"padding_token_id": size - 1}  # transformers' own may not exist here
