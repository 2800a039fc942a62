"""Rotary positions as a GGUF header has them -> the `rope_parameters` of config.json."""

from typing import Any

from transformer_lab.checkpoints.gguf.header import Header
from transformer_lab.errors import shown

DIVISORS = "rope_freqs.weight"  # of Llama 3.1 and later, already worked out
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"
TENSORS = (DIVISORS, SHORT, LONG)
KEYS = {
    *("rope.freq_base", "rope.dimension_count", "rope.scaling.type", "rope.scaling.factor"),
    *("rope.scaling.original_context_length", "rope.scaling.attn_factor", "rope.scaling.finetuned"),
    *("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
}


def rope_parameters(header: Header, head_size: int) -> dict[str, Any]:
    """What is absent is what llama.cpp takes then: the base 10,000, and whole heads."""
    turned = header.whole("rope.dimension_count", head_size)
    found = {
        "rope_theta": header.positive("rope.freq_base", 10000.0),
        "partial_rotary_factor": _share(turned, head_size),
    }
    return found | _scaling(header, turned)


def _scaling(header: Header, turned: int) -> dict[str, Any]:
    kind, length = header.get("rope.scaling.type", "none"), header.positive("rope.scaling.attn_factor", 1.0)
    for name in filter(header.has_tensor, (DIVISORS, SHORT)):
        divisors = _divisors(header, name, turned)
        trained = header.whole("context_length" if name == DIVISORS else "rope.scaling.original_context_length")
        return {
            "rope_type": "longrope",
            "short_factor": divisors,
            "long_factor": _divisors(header, LONG, turned) if header.has_tensor(LONG) else divisors,
            "factor": 1.0,
            "attention_factor": length,
            "original_max_position_embeddings": trained,
        }
    if length != 1:
        header.refuse("rope.scaling.attn_factor", f"is {length}; it is offered beside factors of each pair alone")
    if kind == "none":
        return {"rope_type": "default"}
    if kind == "linear":
        return {"rope_type": "linear", "factor": header.positive("rope.scaling.factor")}
    if kind != "yarn":
        header.refuse("rope.scaling.type", f"is {shown(kind)}; linear and yarn are offered")
    return {
        "rope_type": "yarn",
        "factor": header.positive("rope.scaling.factor"),
        "original_max_position_embeddings": header.whole("rope.scaling.original_context_length"),
        "beta_fast": header.positive("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": header.positive("rope.scaling.yarn_beta_slow", 1.0),
    }


def _divisors(header: Header, name: str, turned: int) -> list[float]:
    shape = header.file.tensors[name].shape
    if shape != (turned // 2,):
        header.fields.refuse(name, f"has the shape {list(shape)}; there are {turned // 2} rotary pairs")
    return header.file.numbers(name).tolist()


def _share(turned: int, head_size: int) -> float:
    """How much of a head is turned, so that a family that multiplies and cuts off comes to `turned` again."""
    share = turned / head_size
    while int(head_size * share) < turned:
        share *= 1.0 + 2.0**-52
    return share
