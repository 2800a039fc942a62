"""Fused, packed, compiled or blocked versions of ONE backend that are wrong; the definition is sound."""

from functools import partial
from typing import Any

import numpy as np

from corpus import probes
from corpus.form import Bug, Plant
from corpus.form import into as plant_into
from corpus.models import HEADS, HIDDEN, LONG, SHORT, VOCABULARY
from transformer_lab.backends.frameworks.numpy import QUERY_BLOCK, attention_block, softmax_in_place
from transformer_lab.backends.plain import manual

bug = partial(Bug, kind="implementations")
SHOWN = {"attention": "manual"}  # so that scores and pattern are shown, and the softmax is an operation of its own


def into(name: str, model: str, *, prompts: Any = SHORT, **rest: Any) -> Plant:
    return plant_into(name, model, prompts, **{"more": {"new_tokens": 8}} | rest)


def block_ends_one_key_early(
    ops: Any, right: Any, query: Any, key: Any, value: Any, start: Any, scale: float, *rest: Any
) -> Any:
    last, blocks = int(start.max()), []
    for first in range(0, query.shape[2], QUERY_BLOCK):
        part = query[:, :, first : first + QUERY_BLOCK]
        seen = min(key.shape[2], last + first + part.shape[2] - (first > 0))
        blocks.append(attention_block(ops, part, key[:, :, :seen], value[:, :, :seen], start + first, scale))
    return np.concatenate(blocks, axis=2)


def whole_tiles_only(
    ops: Any, right: Any, query: Any, key: Any, value: Any, start: Any, scale: float, *rest: Any
) -> Any:
    tiles = key.shape[2] // 64 * 64 or key.shape[2]
    return right(ops, query, key[:, :, :tiles], value[:, :, :tiles], start, scale)


def without_rescaling(
    ops: Any, right: Any, query: Any, key: Any, value: Any, start: Any, scale: float, *rest: Any
) -> Any:
    """Online softmax over tiles of 16 keys: the sum is rescaled when the largest score grows, the output is not."""
    xp, shared = ops.xp, query.shape[1] // key.shape[1]
    key, value = (xp.repeat(x, shared, axis=1) if shared > 1 else x for x in (key, value))
    visible = manual.visible_keys(ops, start, query.shape[2], key.shape[2])[:, None]
    largest, total, mixed = -float("inf"), 0.0, 0.0
    for first in range(0, key.shape[2], 16):
        tile = slice(first, first + 16)
        scores = xp.matmul(query, xp.matrix_transpose(key[:, :, tile])) * scale
        scores = xp.where(visible[..., tile], scores, -float("inf"))
        peak = xp.max(scores, axis=-1, keepdims=True)
        peak = peak if first == 0 else xp.maximum(largest, peak)
        powers = xp.exp(scores - peak)
        change = 0.0 if first == 0 else xp.exp(largest - peak)
        total = total * change + xp.sum(powers, axis=-1, keepdims=True)
        mixed = mixed + xp.matmul(powers, value[:, :, tile])
        largest = peak
    return mixed / total


def halves_merged_by_their_sums(
    ops: Any, right: Any, query: Any, key: Any, value: Any, start: Any, scale: float, *rest: Any
) -> Any:
    """Split-K decoding: each half has a maximum of its own, which the merge forgets."""
    if query.shape[2] != 1 or key.shape[2] < 16:
        return right(ops, query, key, value, start, scale)
    middle, parts = key.shape[2] // 2, []
    hidden = ~manual.visible_keys(ops, start, 1, key.shape[2])[:, None]  # [B, 1, 1, S]
    shared = query.shape[1] // key.shape[1]
    key, value = np.repeat(key, shared, axis=1), np.repeat(value, shared, axis=1)
    scores = np.where(hidden, np.asarray(-np.inf, query.dtype), (query * scale) @ np.matrix_transpose(key))
    for half in (slice(None, middle), slice(middle, None)):
        peak = np.maximum(scores[..., half].max(axis=-1, keepdims=True), np.asarray(-1e30, scores.dtype))
        powers = np.exp(scores[..., half] - peak)
        parts.append((powers @ value[:, :, half], powers.sum(axis=-1, keepdims=True)))
    return (parts[0][0] + parts[1][0]) / (parts[0][1] + parts[1][1])


def keys_and_values_interleaved(ops: Any, right: Any, x: Any, kernel: Any, bias: Any = None) -> Any:
    y = right(ops, x, kernel, bias)
    if y.shape[-1] != HIDDEN + 2 * (HIDDEN // 2):  # not that of 4 query heads and 2 key heads
        return y
    both = y[..., HIDDEN:].reshape(*y.shape[:-1], 2, 2, -1)
    return ops.xp.concat([y[..., :HIDDEN], both.swapaxes(-2, -3).reshape(*y.shape[:-1], -1)], axis=-1)


def mean_over_whole_warps(ops: Any, right: Any, x: Any, weight: Any, epsilon: float) -> Any:
    whole = x.shape[-1] // 32 * 32 or x.shape[-1]
    mean = ops.xp.sum(x[..., :whole] * x[..., :whole], axis=-1, keepdims=True) / x.shape[-1]
    return x / ops.xp.sqrt(mean + epsilon) * weight


def variances_averaged(ops: Any, right: Any, x: Any, weight: Any, bias: Any, epsilon: float) -> Any:
    """Two halves, merged as Welford and Chan do it, without the term of the difference of their means."""
    halves = np.split(x, 2, axis=-1)
    variance = sum(half.var(axis=-1, keepdims=True) for half in halves) / 2
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(variance + epsilon) * weight + bias


def values_read_as_contiguous(
    ops: Any, right: Any, query: Any, key: Any, value: Any, start: Any, scale: float, *rest: Any
) -> Any:
    _, heads, keys, size = value.shape
    strides = (heads * keys * size, keys * size, size, 1)
    value = value.as_strided(value.shape, strides, value.storage_offset())
    return right(ops, query, key, value, start, scale)


def quick_gelu(ops: Any, right: Any, x: Any) -> Any:
    return x / (1.0 + ops.xp.exp(-1.702 * x))


def polynomial_softmax(ops: Any, right: Any, x: Any) -> Any:
    """exp(x) = 2^n e^r with r from -ln 2 / 2 to ln 2 / 2, and e^r to the fourth power: an error of 4e-5."""
    x = np.maximum(x - x.max(axis=-1, keepdims=True), -80.0)
    whole = np.round(x / np.log(2.0))
    r = x - whole * np.asarray(np.log(2.0), x.dtype)
    powers = 1.0 + r * (1.0 + r * (1 / 2 + r * (1 / 6 + r / 24)))
    powers = np.where(x <= -80.0, 0.0, np.ldexp(powers, whole.astype(int)))
    return (powers / powers.sum(axis=-1, keepdims=True)).astype(x.dtype)


def exponent_not_below_minus_10(ops: Any, right: Any, x: Any) -> Any:
    powers = ops.xp.exp(ops.xp.clip(x - ops.xp.max(x, axis=-1, keepdims=True), -10.0, None))
    return powers / ops.xp.sum(powers, axis=-1, keepdims=True)


def small_weights_skipped(
    ops: Any, right: Any, query: Any, key: Any, value: Any, start: Any, scale: float, *rest: Any
) -> Any:
    def skipped(name: str, x: Any) -> Any:
        return ops.xp.where(x < 2.0**-8, 0.0 * x, x) if name == "pattern" else x

    return manual.attention(ops, query, key, value, start, scale, tap=skipped)


def accumulated_in_float16(ops: Any, right: Any, x: Any, kernel: Any, bias: Any = None) -> Any:
    """Split-K: partial sums of 32 inputs each, added up in float16."""
    if kernel.shape != (4 * HIDDEN, HIDDEN):
        return right(ops, x, kernel, bias)
    total = np.zeros((*x.shape[:-1], kernel.shape[1]), np.float16)
    for first in range(0, x.shape[-1], 32):
        total += (x[..., first : first + 32] @ kernel[first : first + 32]).astype(np.float16)
    return total.astype(x.dtype) + (0.0 if bias is None else bias)


def one_row_without_the_tail(ops: Any, right: Any, x: Any, kernel: Any, bias: Any = None) -> Any:
    whole = x.shape[-1] // 32 * 32
    if x.size != x.shape[-1] or whole == x.shape[-1]:
        return right(ops, x, kernel, bias)
    return right(ops, x[..., :whole], kernel[:whole], bias)


def first_heads_turned(ops: Any, right: Any, x: Any, cos: Any, sin: Any) -> Any:
    """The grid of the kernel has as many heads as there are keys."""
    return ops.xp.concat([right(ops, x[:, : HEADS // 2], cos, sin), x[:, HEADS // 2 :]], axis=1)


def last_block_of_columns_shifted(ops: Any, right: Any, x: Any, kernel: Any, bias: Any = None) -> Any:
    y = right(ops, x, kernel, bias)
    rest = y.shape[-1] % 128
    if y.shape[-1] == VOCABULARY:
        y[..., -rest:] = y[..., -128 : rest - 128].copy()
    return y


def softmax_of_padded_keys(
    ops: Any, right: Any, query: Any, key: Any, value: Any, start: Any, scale: float, *rest: Any
) -> Any:
    """Keys are padded with zeros to a multiple of 8; a score of 0 is not a score of -inf."""
    batch, heads, queries, size = query.shape
    keys, padding = key.shape[2], -key.shape[2] % 8
    rows = query.reshape(batch, key.shape[1], -1, size)
    scores = (rows * scale) @ np.matrix_transpose(key)
    hidden = ~manual.visible_keys(ops, start, queries, keys)
    np.copyto(scores.reshape(batch, heads, queries, keys), -np.inf, where=hidden[:, None])
    scores = np.pad(scores, ((0, 0), (0, 0), (0, 0), (0, padding)))
    return (softmax_in_place(scores)[..., :keys] @ value).reshape(query.shape)


BUGS = (
    bug(
        "blocked attention loses a key at the edge of a block",
        says="From the second block of 128 queries on, the keys of a block end one too early: its last query does not "
        "see itself. An off-by-one of causal tiling.",
        place="blocks.*.attn.out",
        needs="a prompt of more than 128 tokens",
        plant=into("numpy", "gpt2", prompts=LONG, attention=block_ends_one_key_early),
    ),
    bug(
        "tiled attention drops the remainder of the keys",
        says="Beyond 64 keys only whole tiles of 64 are read; the rest of S // 64 is never visited.",
        place="blocks.*.attn.out",
        needs="a prompt of more than 64 tokens",
        plant=into("torch", "llama", prompts=LONG, attention=whole_tiles_only),
    ),
    bug(
        "online softmax forgets to rescale its output",
        says="When a later tile has a larger score, the running sum is rescaled, the running output is not: the "
        "classic mistake in a FlashAttention of one's own.",
        place="blocks.*.attn.out",
        plant=into("torch", "gpt2", attention=without_rescaling),
    ),
    bug(
        "split decoding merges two halves by their sums alone",
        says="Flash decoding splits the keys in two and merges without exp(max - max'), as if both halves had the same "
        "largest score; only for single tokens.",
        place="blocks.*.attn.out",
        needs="sweeps=['cached']",
        plant=into(
            "numpy", "llama", attention=halves_merged_by_their_sums, more={"new_tokens": 8, "sweeps": ["cached"]}
        ),
        probe=probes.cached,
    ),
    bug(
        "keys and values of a packed projection interleaved by group",
        says="The packed kernel is read as (key, value) of group 0, (key, value) of group 1, as Megatron lays it out; "
        "here all keys come before all values. Without groups it would be another split; vLLM and GPT-NeoX ports.",
        place="blocks.*.attn.k",
        plant=into("torch", "llama", linear=keys_and_values_interleaved),
    ),
    bug(
        "RMS norm sums over whole warps of 32",
        says="A reduction over blocks of 32 leaves out the last 16 of 48 elements, and divides by 48: a BLOCK_SIZE "
        "that does not divide the hidden size.",
        place="blocks.*.norm_1",
        plant=into("torch", "llama", rms_norm=mean_over_whole_warps),
    ),
    bug(
        "layer norm merges two variances without their means",
        says="The variances of two halves are averaged; Welford's term with the difference of their means is missing.",
        place="blocks.*.norm_1",
        plant=into("numpy", "gpt2", layer_norm=variances_averaged),
    ),
    bug(
        "attention reads a strided value tensor as contiguous",
        says="The values are a view of the packed projection; the kernel walks through them as if they lay one after "
        "the other. So did torch's attention on MPS for some non-contiguous inputs.",
        place="blocks.*.attn.out",
        plant=into("torch", "gpt2", attention=values_read_as_contiguous),
    ),
    bug(
        "quick GELU in the compiled backend",
        says="x sigmoid(1.702 x), the GELU of CLIP, for the tanh form that the configuration asks for.",
        place="blocks.*.ffn.act",
        plant=into("jax", "gpt2", gelu_tanh=quick_gelu),
    ),
    bug(
        "exponential by a polynomial",
        says="The softmax takes its exponentials from a polynomial of degree 4 with an error of 4e-5, good enough for "
        "bfloat16, in float32; so do attention kernels that are bound by the special function unit.",
        place="blocks.*.attn.pattern",
        plant=into("numpy", "llama", softmax=polynomial_softmax, ops=SHOWN),
    ),
    bug(
        "exponent clipped at -10",
        says="exp(max(x, -10)), against underflow: keys that are hidden by -inf get a weight of 5e-5.",
        place="blocks.*.attn.pattern",
        plant=into("torch", "gpt2", softmax=exponent_not_below_minus_10, ops=SHOWN),
    ),
    bug(
        "small attention weights skipped",
        says="Weights below 1/256 are skipped, as in sparse attention, and the others are not made larger for it.",
        place="blocks.*.attn.out",
        plant=into("torch", "llama", attention=small_weights_skipped),
    ),
    bug(
        "partial sums added up in float16",
        says="The product of the second feed-forward map is split, and the parts are added in float16, as cuBLAS does "
        "with reduced-precision reductions.",
        place="blocks.*.ffn.out",
        plant=into("numpy", "gpt2", linear=accumulated_in_float16),
    ),
    bug(
        "matrix times one vector drops the tail",
        says="The product of a single row works on vectors of 32 inputs and has no loop for the remaining 16; prompts "
        "take another path.",
        place="blocks.*.attn.q",
        needs="sweeps=['cached']",
        plant=into("numpy", "gpt2", linear=one_row_without_the_tail, more={"new_tokens": 8, "sweeps": ["cached"]}),
        probe=probes.cached,
    ),
    bug(
        "only as many query heads turned as there are key heads",
        says="A fused rotary kernel is launched for the number of key heads, and the other query heads are never "
        "turned; right without groups.",
        place="blocks.*.attn.q",
        plant=into("jax", "llama", rotary=first_heads_turned),
    ),
    bug(
        "last block of the head's columns computed from the wrong ones",
        says="300 columns in blocks of 128: the last block begins at 300 - 128, so that it is whole, and is written "
        "at 256.",
        place="logits",
        plant=into("numpy", "llama", linear=last_block_of_columns_shifted),
    ),
    bug(
        "padded keys take part in the softmax",
        says="Keys are padded with zeros to a multiple of 8, and the scores of the padding are 0, not -inf; right for "
        "prompts of 8, 16, 24 tokens.",
        place="blocks.*.attn.out",
        needs="a prompt whose length is no multiple of 8",
        plant=into("numpy", "llama", prompts=[SHORT[0][:21]], attention=softmax_of_padded_keys),
    ),
    bug(
        "epsilon added twice",
        says="The fused RMS norm adds epsilon to the mean of squares, and its rsqrt adds it again.",
        place="blocks.*.norm_1",
        plant=into(
            "torch",
            "llama, quiet",
            rms_norm=lambda ops, right, x, weight, epsilon: right(ops, x, weight, 2.0 * epsilon),
        ),
    ),
)
