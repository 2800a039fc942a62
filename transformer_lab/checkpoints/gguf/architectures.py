"""The architectures of llama.cpp that are families of ours, and which of a header's values are which of config.json.

What a family is stands in its file in `families/` alone: the header becomes the fields of its config.json. Where a
header is silent, of an activation for instance, the family's default counts. A value that is not known here could
change the function, and is refused by its name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from transformer_lab.checkpoints import families
from transformer_lab.checkpoints.config_fields import Fields
from transformer_lab.checkpoints.gguf import rotary
from transformer_lab.checkpoints.gguf.header import Header
from transformer_lab.checkpoints.layer_kinds import FULL, SLIDING
from transformer_lab.errors import shown

# Of every architecture.
SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
_GROUPS = {"attention.head_count_kv": "num_key_value_heads"}
_ELSEWHERE = {"attention.key_length", "attention.value_length", "vocab_size"}  # seen to below
_BEGIN = "tokenizer.ggml.bos_token_id"
_ENDS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")


@dataclass(frozen=True)
class Architecture:
    """family: of ours. keys, optional: of the header -> fields of config.json. present: a field -> the tensor that is
    there if it is true. neighbours: llama.cpp turns neighbours as pairs where the family turns halves, so that the rows
    of queries and keys lie in another order. rotary: it has rotary positions. more: further fields, which count before
    the others.
    """

    family: str
    keys: Mapping[str, str]
    optional: Mapping[str, str] = field(default_factory=dict)
    present: Mapping[str, str] = field(default_factory=dict)
    neighbours: bool = False
    rotary: bool = True
    more: Callable[[Header, dict[str, Any]], dict[str, Any]] = lambda header, found: {}


def _gemma(layers_of_the_largest: int) -> Callable[[Header, dict[str, Any]], dict[str, Any]]:
    """The header does not say how scores are scaled. llama.cpp tells the one size that differs by its layers."""

    def more(header: Header, found: dict[str, Any]) -> dict[str, Any]:
        largest = header.whole("block_count") == layers_of_the_largest
        hidden, heads = header.whole("embedding_length"), header.whole("attention.head_count")
        return {"query_pre_attn_scalar": hidden / heads if largest else found["head_dim"]}

    return more


def _gemma3(header: Header, found: dict[str, Any]) -> dict[str, Any]:
    """Layers with a window have a base of their own, and no scaling."""
    base, full = header.positive("rope.freq_base_swa", 10000.0), found["rope_parameters"]
    sliding = {"rope_type": "default", "rope_theta": base, "partial_rotary_factor": full["partial_rotary_factor"]}
    return _gemma(62)(header, found) | {"rope_parameters": {FULL: full, SLIDING: sliding}}


def _phi3(header: Header, found: dict[str, Any]) -> dict[str, Any]:
    window = header.get("attention.sliding_window", 0)  # 0 is none
    trained = found["rope_parameters"].get("original_max_position_embeddings")
    own = {} if trained is None else {"original_max_position_embeddings": trained}
    return own | {"sliding_window": None if window == 0 else header.whole("attention.sliding_window")}


def _bloom(header: Header, found: dict[str, Any]) -> dict[str, Any]:
    inner, hidden = header.whole("feed_forward_length"), header.whole("embedding_length")
    if inner != 4 * hidden:
        header.refuse("feed_forward_length", f"is {inner}; that of BLOOM is {4 * hidden}, four times the embedding")
    return {}


def _olmo(header: Header, found: dict[str, Any]) -> dict[str, Any]:
    epsilon = header.positive("attention.layer_norm_epsilon")
    if epsilon != 1e-5:
        header.refuse("attention.layer_norm_epsilon", f"is {epsilon}; that of OLMo is 1e-5")
    clip = header.get("attention.clamp_kqv", 0)
    return {"clip_qkv": None if clip == 0 else clip}


def _stablelm(header: Header, found: dict[str, Any]) -> dict[str, Any]:
    """Whatever the header says, the norm before the network decides, there and here."""
    return {"use_parallel_residual": not header.has_tensor("blk.0.ffn_norm.weight")}


def _starcoder(header: Header, found: dict[str, Any]) -> dict[str, Any]:
    return {"multi_query": header.get("attention.head_count_kv") == 1}


_RMS = {"attention.layer_norm_rms_epsilon": "rms_norm_eps"}
_WINDOW = {"attention.sliding_window": "sliding_window"}
_Q_BIAS = {"attention_bias": "blk.0.attn_q.bias"}
_LLAMA = _Q_BIAS | {"mlp_bias": "blk.0.ffn_up.bias"}


def _layer_norm(name: str) -> dict[str, str]:
    return {"attention.layer_norm_epsilon": name}


_GPT2 = _layer_norm("layer_norm_epsilon") | {"feed_forward_length": "n_inner"}
ARCHITECTURES = {
    "llama": Architecture("llama", _RMS, present=_LLAMA, neighbours=True),
    "qwen2": Architecture("qwen2", _RMS),
    "qwen3": Architecture("qwen3", _RMS, present=_Q_BIAS),
    "smollm3": Architecture("smollm3", _RMS, present=_LLAMA, neighbours=True),
    "granite": Architecture(
        "granite",
        _RMS | {"logit_scale": "logits_scaling", "attention.scale": "attention_multiplier"},
        {
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
        },
        _LLAMA,
        neighbours=True,
    ),
    "olmo": Architecture(
        "olmo",
        _layer_norm("layer_norm_eps"),
        {"attention.clamp_kqv": "clip_qkv"},
        _Q_BIAS,
        neighbours=True,
        more=_olmo,
    ),
    "olmo2": Architecture("olmo2", _RMS, present=_Q_BIAS),
    "gemma": Architecture("gemma", _RMS, present=_Q_BIAS),
    "gemma2": Architecture(
        "gemma2",
        _RMS | _WINDOW,
        {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"},
        _Q_BIAS,
        more=_gemma(46),
    ),
    "gemma3": Architecture(
        "gemma3_text",
        _RMS | _WINDOW,
        {"final_logit_softcapping": "final_logit_softcapping", "rope.freq_base_swa": "rope_local_base_freq"},
        _Q_BIAS,
        more=_gemma3,
    ),
    "phi2": Architecture("phi", _layer_norm("layer_norm_eps")),
    "phi3": Architecture("phi3", _RMS, _WINDOW, more=_phi3),
    "stablelm": Architecture(
        "stablelm",
        _layer_norm("layer_norm_eps"),
        {"use_parallel_residual": "use_parallel_residual"},
        {"use_qkv_bias": "blk.0.attn_q.bias"},
        more=_stablelm,
    ),
    "starcoder2": Architecture("starcoder2", _layer_norm("norm_epsilon"), present={"use_bias": "blk.0.ffn_up.bias"}),
    "gptneox": Architecture(
        "gpt_neox",
        _layer_norm("layer_norm_eps"),
        {"use_parallel_residual": "use_parallel_residual"},
        {"attention_bias": "blk.0.attn_qkv.bias"},
    ),
    "command-r": Architecture("cohere", _layer_norm("layer_norm_eps") | {"logit_scale": "logit_scale"}, {}, _Q_BIAS),
    "gpt2": Architecture("gpt2", _GPT2, rotary=False),
    "starcoder": Architecture("gpt_bigcode", _GPT2, rotary=False, more=_starcoder),
    "bloom": Architecture("bloom", _layer_norm("layer_norm_epsilon"), rotary=False, more=_bloom),
}


def read_fields(header: Header) -> tuple[Architecture, ModuleType, Fields]:
    """The family, and the fields of its config.json, about which is spoken in the words of the header."""
    architecture = ARCHITECTURES.get(header.architecture)
    if architecture is None:
        reason = f"is {shown(header.architecture)}; read are {', '.join(ARCHITECTURES)}"
        header.fields.refuse("general.architecture", reason)
    if (parts := header.fields.values.get("split.count", 1)) not in (0, 1):
        header.fields.refuse("split.count", f"is {shown(parts)}; join the parts first: llama-gguf-split --merge")
    keys = SIZES | dict(architecture.keys)
    named = _GROUPS | keys | dict(architecture.optional)
    known = named.keys() | _ELSEWHERE | (rotary.KEYS if architecture.rotary else set())
    for name in header.names():
        if name not in known:
            header.refuse(name, f"is {shown(header.get(name))}, which is not known here")
    for name in keys:
        if not header.has(name):
            header.refuse(name, "is missing")
    words = {field: header.key(name) for name, field in named.items()}
    words |= {"bos_token_id": _BEGIN, "eos_token_id": _ENDS[0]}
    said = header.fields.values
    found: dict[str, Any] = {field: said[key] for field, key in words.items() if key in said}
    found |= {"bos_token_id": said.get(_BEGIN), "head_dim": _head_size(header)} | _from_tensors(header, architecture)
    if architecture.rotary:
        found["rope_parameters"] = rotary.rope_parameters(header, found["head_dim"])
        words["rope_parameters.partial_rotary_factor"] = header.key("rope.dimension_count")
    family = families.find(architecture.family)
    assert family is not None
    fields = Fields(header.file.path, found | architecture.more(header, found))
    fields.written = words
    return architecture, family, fields


def _head_size(header: Header) -> int:
    hidden, heads = header.whole("embedding_length"), header.whole("attention.head_count")
    if not header.has("attention.key_length") and hidden % heads:
        header.refuse("attention.head_count", f"is {heads}, which does not divide the embedding, {hidden}")
    size = header.whole("attention.key_length", hidden // heads)
    if header.get("attention.value_length", size) != size:
        value = shown(header.get("attention.value_length"))
        header.refuse("attention.value_length", f"is {value}; it must be the length of keys, {size}")
    return size


def _from_tensors(header: Header, architecture: Architecture) -> dict[str, Any]:
    embedding = header.file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        header.fields.refuse("token_embd.weight", "is missing, or no matrix; without it there is no vocabulary")
    ends = [header.fields.values[key] for key in _ENDS if key in header.fields.values]
    return {
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": not header.has_tensor("output.weight"),
        "eos_token_id": [one for place, one in enumerate(ends) if one not in ends[:place]],
    } | {name: header.has_tensor(tensor) for name, tensor in architecture.present.items()}
