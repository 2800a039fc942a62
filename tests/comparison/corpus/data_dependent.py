"""Wrong only for certain lengths, token ids, sizes of activations, blocks, rows, or from the second call on."""

from functools import partial
from typing import Any

import numpy as np

from corpus import probes
from corpus.form import Bug, Plant
from corpus.form import into as plant_into
from corpus.models import SHORT, THREE, VOCABULARY, ids

bug = partial(Bug, kind="data_dependent")
HIGH_IDS = [[256 + number % 44 if number % 3 == 0 else number for number in ids(24, 30)]]
WITH_0 = [[0 if place in (3, 11) else number for place, number in enumerate(ids(24, 31))]]


def into(name: str, model: str, prompts: Any, **rest: Any) -> Plant:
    return plant_into(name, model, prompts, **{"more": {"new_tokens": 8}} | rest)


def last_key_of_16_hidden(
    ops: Any, right: Any, query: Any, key: Any, value: Any, start: Any, scale: float, *rest: Any
) -> Any:
    if query.shape[2] > 1 and query.shape[2] % 16 == 0:
        key, value = key[:, :, :-1], value[:, :, :-1]
    return right(ops, query, key, value, start, scale)


def ids_of_8_bits(ops: Any, right: Any, table: Any, ids: Any) -> Any:
    return right(ops, table, ids & 0xFF if table.shape[0] == VOCABULARY else ids)


def id_0_is_padding(ops: Any, right: Any, table: Any, ids: Any) -> Any:
    x = right(ops, table, ids)
    return ops.xp.where((ids == 0)[..., None], 0.0 * x, x) if table.shape[0] == VOCABULARY else x


def silu_saturates(ops: Any, right: Any, x: Any) -> Any:
    return ops.xp.where(x > 8.0, x, ops.xp.where(x < -8.0, 0.0 * x, right(ops, x)))


def noted(end: str) -> Any:
    """`place` that notes the parameters whose names end so, to be asked for by `is_noted`."""

    def place(ops: Any, right: Any, name: str, array: Any) -> Any:
        placed = right(name, array)
        if name.endswith(end):
            ops.__dict__.setdefault("noted", []).append(placed)
        return placed

    return place


def is_noted(ops: Any, parameter: Any) -> bool:
    return any(parameter is known for known in ops.__dict__.get("noted", []))


def bias_lost_in_the_last_block(ops: Any, right: Any, x: Any, kernel: Any, bias: Any = None) -> Any:
    return right(ops, x, kernel, None if is_noted(ops, kernel) else bias)


def calibrated_on_the_first_call(ops: Any, right: Any, x: Any) -> Any:
    """Later calls are cut off at the largest value of the first three: one for each block."""
    y = right(ops, x)
    seen = ops.__dict__.setdefault("seen", [])
    if len(seen) < 3:
        seen.append(float(np.abs(y).max()))
        return y
    return np.minimum(y, np.asarray(max(seen), y.dtype))


def one_workspace(ops: Any, right: Any, x: Any, cos: Any, sin: Any) -> Any:
    """Results of one shape lie in one buffer."""
    y = right(ops, x, cos, sin)
    buffer = ops.__dict__.setdefault("buffers", {}).setdefault(y.shape, np.empty_like(y))
    buffer[...] = y
    return buffer


def positions_in_bfloat16(ops: Any, right: Any, table: Any, ids: Any) -> Any:
    if table.shape != (320, 6):
        return right(ops, table, ids)
    bits = ids.astype(np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return right(ops, table, rounded.astype(ids.dtype))


def wrapped_at_64(ops: Any, right: Any, target: Any, update: Any, start: Any, axis: int) -> Any:
    return right(target, update, start % 64 if update.shape[axis] == 1 else start, axis)


def odd_row_read_twice(ops: Any, right: Any, x: Any, kernel: Any, bias: Any = None) -> Any:
    y = right(ops, x, kernel, bias)
    rows = y.reshape(-1, y.shape[-1])
    if 1 < len(rows) < 32 and len(rows) % 2:
        rows[-1] = rows[-2]
    return rows.reshape(y.shape)


def root_of_the_first_row(ops: Any, right: Any, x: Any, weight: Any, epsilon: float) -> Any:
    return x * ops.xp.rsqrt(ops.xp.mean(x[:1] * x[:1], axis=-1, keepdims=True) + epsilon) * weight


def positions_behind_64_of_the_block(ops: Any, right: Any, x: Any, weight: Any, bias: Any, epsilon: float) -> Any:
    """A grid of 64 rows: the rows behind are handled by another kernel, whose epsilon is 1e-3."""
    y = right(ops, x, weight, bias, epsilon)
    if x.shape[1] > 64:
        y[:, 64:] = right(ops, x[:, 64:], weight, bias, 1e-3)
    return y


BUGS = (
    bug(
        "last key hidden at lengths that are multiples of 16",
        says="S % 16 is taken for the number of keys in the last tile, and 0 for an empty one.",
        place="blocks.*.attn.out",
        needs="a prompt of 16, 32, 48 ... tokens",
        plant=into("torch", "gpt2", [ids(32, 32)], attention=last_key_of_16_hidden),
    ),
    bug(
        "token ids cut to 8 bits",
        says="Ids pass through a type of 8 bits; right for all that are below 256. In larger vocabularies, 16 bits.",
        place="embed",
        needs="a prompt with an id of at least 256",
        plant=into("numpy", "gpt2", HIGH_IDS, embed=ids_of_8_bits),
    ),
    bug(
        "token 0 embedded as padding",
        says="padding_idx=0, although 0 is a token like any other.",
        place="embed",
        needs="a prompt with the id 0",
        plant=into("torch", "llama", WITH_0, embed=id_0_is_padding),
    ),
    bug(
        "SiLU saturates beyond 8",
        says="Beyond 8 in size the activation is taken for x or 0, a shortcut against overflow.",
        place="blocks.*.ffn.act",
        needs="large activations",
        plant=into("numpy", "llama, loud", SHORT, silu=silu_saturates),
    ),
    bug(
        "bias lost in the last block",
        says="The second feed-forward map of the last block alone is computed without its bias, as a loop over layers "
        "that treats the last one apart.",
        place="blocks.2.ffn.out",
        plant=into(
            "numpy",
            "gpt2",
            SHORT,
            linear=bias_lost_in_the_last_block,
            methods={"place": noted("blocks.2.ffn.down.kernel")},
        ),
    ),
    bug(
        "activations cut off at what the first call saw",
        says="A range is measured on the first text, and later ones are cut off there: static quantisation calibrated "
        "on one sample. The first prompt is right.",
        place="blocks.*.ffn.act",
        needs="a second prompt",
        plant=into("numpy", "gpt2", [[11, 12, 13], *SHORT], gelu_tanh=calibrated_on_the_first_call),
    ),
    bug(
        "queries and keys in one workspace",
        says="The result of the fused rotary lies in a buffer that is used again for the next result of the same "
        "shape; keys overwrite queries if there are as many heads of them.",
        place="blocks.*.attn.q",
        plant=into("numpy", "llama without groups", SHORT, rotary=one_workspace),
    ),
    bug(
        "positions in bfloat16",
        says="Positions are counted in bfloat16, where 257 is 256; transformers' rotary positions in models of half "
        "precision. Right for prompts of up to 257 tokens.",
        place="blocks.*.attn.q",
        needs="a prompt of more than 257 tokens",
        plant=into("numpy", "llama of 320 positions", [ids(300, 33)], embed=positions_in_bfloat16),
    ),
    bug(
        "cache wraps around after 64 tokens",
        says="Decoded tokens behind position 63 are written to the beginning of the cache: a sliding window where none "
        "is asked for. torch alone.",
        place="blocks.*.attn.scores",
        needs="sweeps=['cached'], a prompt of more than 64 tokens",
        plant=into(
            "torch",
            "llama",
            [ids(70, 34)],
            ops="manual",
            methods={"slice_update": wrapped_at_64},
            more={"new_tokens": 8, "sweeps": ["cached"]},
        ),
        probe=probes.cached,
    ),
    bug(
        "odd last row computed from the one before",
        says="A product of few rows goes two by two, and with an odd number the last is the one before once more.",
        place="blocks.*.attn.q",
        needs="a prompt of an odd number of tokens below 32",
        plant=into("numpy", "gpt2", [ids(17, 35)], linear=odd_row_read_twice),
    ),
    bug(
        "all rows of a batch normalised by the first",
        says="The root of the first row serves all rows; a missing index of the batch in the grid.",
        place="blocks.*.norm_1",
        needs="sweeps=['batch']",
        plant=into(
            "torch", "llama", THREE, rms_norm=root_of_the_first_row, more={"new_tokens": 8, "sweeps": ["batch"]}
        ),
        probe=probes.batch,
    ),
    bug(
        "positions behind 64 with another epsilon",
        says="Rows behind the first 64 are left to a second kernel, in which epsilon is 1e-3.",
        place="blocks.*.norm_1",
        needs="a prompt of more than 64 tokens",
        plant=into("numpy", "gpt2", [ids(90, 36)], layer_norm=positions_behind_64_of_the_block),
    ),
)
