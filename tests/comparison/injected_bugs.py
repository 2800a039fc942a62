"""Real numerical bugs, a line or a few each, injected into one backend: how good is the microscope?

Each bug is planted into a backend object that is otherwise sound, by replacing an operation that is bound to it. Most
were made in some published code: the wrong GELU, an epsilon outside the root, a mask aligned to the wrong corner, a
half-precision intermediate. `place` is where the report must put it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np

from transformer_lab.backends.plain import manual
from transformer_lab.config import component
from transformer_lab.generation import sampling

GPT2_SHAPE = {"n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 192, "vocab_size": 101}
LLAMA_SHAPE = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "max_position_embeddings": 192,
    "vocab_size": 101,
}
# (inputs, outputs) of the linear maps of both shapes.
LINEAR_PLACES = {
    (32, 96): "qkv",
    (32, 64): "qkv",
    (32, 32): "out",
    (32, 128): "up",
    (32, 48): "up",
    (128, 32): "down",
    (48, 32): "down",
    (32, 101): "head",
}


@dataclass(frozen=True)
class Bug:
    """place: the name of the tap after `blocks.{i}.`, or "sampler". family: "gpt2" or "llama".

    ops: "manual" or "fused": what it is planted into. length: of the prompt. sweep: the way of feeding that shows it,
    or None.
    """

    name: str
    place: str
    plant: Callable[[Any], None]
    backend: str = "numpy"
    ops: str = "manual"
    family: str = "gpt2"
    length: int = 24
    sweep: str | None = None

    def backend_object(self, precision: str = "float32") -> Any:
        ops = component("backend", self.backend, precision=precision, ops=self.ops)
        self.plant(ops)
        return ops


# --- ways to plant ----------------------------------------------------------------------------------------------------


def instead_of(operation: str, wrong: Callable[..., Any]) -> Callable[[Any], None]:
    """wrong(ops, *arguments) takes the place of the operation."""

    def plant(ops: Any) -> None:
        setattr(ops, operation, lambda *arguments: wrong(ops, *arguments))

    return plant


def around(operation: str, wrong: Callable[..., Any]) -> Callable[[Any], None]:
    """wrong(ops, right, *arguments), where right is the operation that was bound."""

    def plant(ops: Any) -> None:
        right = getattr(ops, operation)
        setattr(ops, operation, lambda *arguments, **named: wrong(ops, right, *arguments, **named))

    return plant


def in_linear(place: str, wrong: Callable[..., Any]) -> Callable[[Any], None]:
    """wrong(ops, right, y, x, kernel, bias) replaces y = right(x, kernel, bias) in the linear maps called `place`."""

    def plant(ops: Any) -> None:
        right = ops.linear

        def linear(x: Any, kernel: Any, bias: Any = None) -> Any:
            y = right(x, kernel, bias)
            if LINEAR_PLACES[x.shape[-1], y.shape[-1]] != place:
                return y
            return wrong(ops, right, y, x, kernel, bias)

        ops.linear = linear

    return plant


def after(operation: str, change: Callable[[Any, Any], Any]) -> Callable[[Any], None]:
    """change(ops, result) of the operation."""
    return around(operation, lambda ops, right, *arguments: change(ops, right(*arguments)))


def to_bfloat16(ops: Any, x: Any) -> Any:
    bits = np.asarray(ops.to_numpy(x), np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32)
    return ops.asarray(rounded.view(np.float32))


def to_float16(ops: Any, x: Any) -> Any:
    return ops.asarray(np.asarray(ops.to_numpy(x), np.float16).astype(np.float32))


def to_tf32(ops: Any, x: Any) -> Any:
    bits = np.asarray(ops.to_numpy(x), np.float32).view(np.uint32)
    return ops.asarray(((bits + 0x1000) & 0xFFFFE000).astype(np.uint32).view(np.float32))


# --- the wrong operations ---------------------------------------------------------------------------------------------


def gelu_of_the_seed(ops: Any, x: Any) -> Any:
    return 0.5 * x * (1.0 + ops.xp.tanh(x / 2.0**0.5))


def epsilon_outside(ops: Any, x: Any, weight: Any, bias: Any, epsilon: float) -> Any:
    centred = x - ops.xp.mean(x, axis=-1, keepdims=True)
    return centred / (ops.xp.sqrt(ops.xp.mean(centred * centred, axis=-1, keepdims=True)) + epsilon) * weight + bias


def variance_of_a_sample(ops: Any, x: Any, weight: Any, bias: Any, epsilon: float) -> Any:
    centred = x - ops.xp.mean(x, axis=-1, keepdims=True)
    variance = ops.xp.sum(centred * centred, axis=-1, keepdims=True) / (x.shape[-1] - 1)
    return centred / ops.xp.sqrt(variance + epsilon) * weight + bias


def variance_by_cancellation(ops: Any, x: Any, weight: Any, bias: Any, epsilon: float) -> Any:
    """E[x^2] - E[x]^2, of values that were moved far from 0 first: what a large mean does to this formula."""
    x = x + 1000.0
    mean = ops.xp.mean(x, axis=-1, keepdims=True)
    variance = ops.xp.mean(x * x, axis=-1, keepdims=True) - mean * mean
    return (x - mean) / ops.xp.sqrt(ops.xp.clip(variance, 0.0, None) + epsilon) * weight + bias


def rms_with_mean_removed(ops: Any, x: Any, weight: Any, epsilon: float) -> Any:
    x = x - ops.xp.mean(x, axis=-1, keepdims=True)
    return manual.rms_norm(ops, x, weight, epsilon)


def rms_of_the_sum(ops: Any, x: Any, weight: Any, epsilon: float) -> Any:
    return x / ops.xp.sqrt(ops.xp.sum(x * x, axis=-1, keepdims=True) / (x.shape[-1] - 1) + epsilon) * weight


def attention_where(visible: Callable[..., Any]) -> Callable[..., Any]:
    """The plain attention with another mask: visible(query positions [T, 1], key positions [S]) -> bool."""

    def wrong(
        ops: Any,
        query: Any,
        key: Any,
        value: Any,
        start: Any,
        scale: float,
        window: Any = None,
        tap: Any = manual.identity,
    ) -> Any:
        xp = ops.xp
        heads, queries, keys = query.shape[1], query.shape[2], key.shape[2]
        shared = heads // key.shape[1]
        key, value = (xp.repeat(x, shared, axis=1) if shared > 1 else x for x in (key, value))
        scores = xp.matmul(query, xp.matrix_transpose(key)) * scale
        positions = start[:, None, None] + xp.arange(queries)[None, :, None]
        seen = visible(positions, xp.arange(keys)[None, None, :])[:, None, ...]
        scores = tap("scores", xp.where(seen, scores, -float("inf")))
        pattern = tap("pattern", ops.softmax(scores))
        return xp.matmul(pattern, value)

    return wrong


def scaled_by(factor: Callable[[float, int], float]) -> Callable[..., Any]:
    """The bound attention with another scale: factor(scale, head size)."""

    def wrong(ops: Any, right: Any, query: Any, key: Any, value: Any, start: Any, scale: float, *tap: Any) -> Any:
        return right(query, key, value, start, factor(scale, query.shape[-1]), *tap)

    return wrong


def softmax_over_queries(ops: Any, x: Any) -> Any:
    """Over the wrong one of two axes of the same length."""
    finite = ops.xp.where(ops.xp.isfinite(x), x, -1e30)
    swapped = manual.softmax(ops, ops.xp.matrix_transpose(finite))
    return ops.xp.matrix_transpose(swapped)


def heads_in_tiles(ops: Any, right: Any, query: Any, key: Any, value: Any, *rest: Any) -> Any:
    """Query head h reads key head h mod K in place of h div (H / K)."""
    order = np.arange(query.shape[1]).reshape(key.shape[1], -1).T.reshape(-1)
    back = np.argsort(order)
    mixed = right(ops.xp.take(query, ops.asarray(order), axis=1), key, value, *rest)
    return ops.xp.take(mixed, ops.asarray(back), axis=1)


def pairs_beside_each_other(ops: Any, x: Any, cos: Any, sin: Any) -> Any:
    """Turns (x[2 i], x[2 i + 1]), as the original paper writes it, with weights that want halves."""
    xp = ops.xp
    first, second = x[..., 0::2], x[..., 1::2]
    cos, sin = cos[:, None, ...], sin[:, None, ...]
    turned = xp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return xp.reshape(turned, x.shape)


def fused_sdpa(**options: Any) -> Callable[..., Any]:
    """torch's fused attention, called with something left out or wrong."""

    def wrong(ops: Any, query: Any, key: Any, value: Any, start: Any, scale: float, *rest: Any) -> Any:
        from torch.nn import functional

        given = {"is_causal": True, "scale": scale, "enable_gqa": query.shape[1] != key.shape[1]} | options
        return functional.scaled_dot_product_attention(query, key, value, **given)

    return wrong


def fused_block_without_offset(ops: Any, query: Any, key: Any, value: Any, start: Any, scale: float, *tap: Any) -> Any:
    """NumPy's fused attention goes over queries in blocks; here every block believes to begin at the first query."""
    from transformer_lab.backends.frameworks.numpy import QUERY_BLOCK, attention_block

    blocks = [
        attention_block(ops, query[:, :, first : first + QUERY_BLOCK], key, value, start, scale)
        for first in range(0, query.shape[2], QUERY_BLOCK)
    ]
    return np.concatenate(blocks, axis=2)


def position_0_when_cached(ops: Any, right: Any, table: Any, ids: Any) -> Any:
    """A decoding step that forgets where it is; the table of positions is the longer one."""
    if table.shape[0] == GPT2_SHAPE["n_positions"] and ids.shape[1] == 1:
        return right(table, ids * 0)
    return right(table, ids)


def one_row_late(ops: Any, right: Any, target: Any, update: Any, start: Any, axis: int) -> Any:
    """A cache that writes the keys and values of a decoding step over those of the token before."""
    return right(target, update, start - 1 if update.shape[axis] == 1 else start, axis)


def bfloat16_cache(ops: Any, right: Any, target: Any, update: Any, start: Any, axis: int) -> Any:
    return right(target, to_bfloat16(ops, update), start, axis)


def first_row_for_all(start: Any) -> Any:
    """[B] -> [B]: what a program knows that was written for prompts of one length."""
    return start * 0 + start[:1]


def longest_row_for_all(start: Any) -> Any:
    return start * 0 + start.max()


def attention_with(starts: Callable[[Any], Any]) -> Callable[..., Any]:
    def wrong(ops: Any, right: Any, query: Any, key: Any, value: Any, start: Any, scale: float, *tap: Any) -> Any:
        return right(query, key, value, starts(start), scale, *tap)

    return wrong


def keys_of_the_first_row(ops: Any, right: Any, query: Any, key: Any, *rest: Any) -> Any:
    return right(query, ops.xp.broadcast_to(key[:1], key.shape), *rest)


def cache_written_at_the_first_row(ops: Any, right: Any, target: Any, update: Any, start: Any, axis: int) -> Any:
    return right(target, update, first_row_for_all(start), axis)


def positions_of_the_first_row(ops: Any, right: Any, table: Any, ids: Any) -> Any:
    if table.shape[0] == GPT2_SHAPE["n_positions"]:
        return right(table, first_row_for_all(ids))
    return right(table, ids)


def keys_as_far_as_the_shortest_row(
    ops: Any, right: Any, query: Any, key: Any, value: Any, start: Any, scale: float, *tap: Any
) -> Any:
    """Keys behind the last query are cut off for speed, where the row that is farthest behind has its last."""
    seen = int(start.min()) + query.shape[2]
    return right(query, key[:, :, :seen], value[:, :, :seen], start, scale, *tap)


def split_halves_swapped(ops: Any, right: Any, y: Any, x: Any, kernel: Any, bias: Any) -> Any:
    return right(x, kernel[::-1] if isinstance(kernel, tuple) else kernel, bias)


class Forgetful(np.ndarray):
    """Added to a residual stream, it forgets the stream."""

    def __radd__(self, stream: Any) -> Any:
        return np.asarray(self)


def packed_in_bfloat16(ops: Any) -> None:
    """Kernels are packed from values of 8 bits, and nobody says so."""
    pack = ops.linear_implementation.pack

    def rounded(ops: Any, kernel: np.ndarray) -> Any:
        bits = np.ascontiguousarray(kernel, np.float32).view(np.uint32)
        return pack(ops, ((bits + 0x8000) & 0xFFFF0000).astype(np.uint32).view(np.float32))

    ops.linear_implementation = replace(ops.linear_implementation, pack=rounded)


def square_kernel_transposed(ops: Any) -> None:
    """Packing forgets to transpose, which shows only where it cannot fail: in square kernels."""
    pack = ops.linear_implementation.pack

    def wrong(ops: Any, kernel: np.ndarray) -> Any:
        return pack(ops, kernel.T if kernel.shape[0] == kernel.shape[1] else kernel)

    ops.linear_implementation = replace(ops.linear_implementation, pack=wrong)


def nothing(ops: Any) -> None:
    """Planted elsewhere, by `planted`: samplers belong to no backend."""


def top_p_one_short(logits: np.ndarray, rules: Any) -> tuple[np.ndarray, np.ndarray]:
    """The candidates of a sampler that stops one token before p is reached."""
    ids, weights = RIGHT_CANDIDATES(logits, rules)
    return (ids[:-1], weights[:-1]) if len(ids) > 1 else (ids, weights)


RIGHT_CANDIDATES = sampling.candidates


@contextmanager
def planted(bug: Bug) -> Iterator[Any]:
    """The backend object with the bug, while what is outside of it is wrong, too."""
    wrong = top_p_one_short if bug.place == "sampler" else RIGHT_CANDIDATES
    with patch.object(sampling, "candidates", wrong):
        yield bug.backend_object()


BUGS = (
    # --- the plain operations -----------------------------------------------------------------------------------------
    Bug("erf GELU for the tanh GELU", "ffn.act", instead_of("gelu_tanh", manual.gelu_erf)),
    Bug("tanh(x / sqrt 2) in the GELU", "ffn.act", instead_of("gelu_tanh", gelu_of_the_seed), backend="torch"),
    Bug("GELU computed in float16", "ffn.act", after("gelu_tanh", to_float16)),
    Bug("epsilon outside the root", "norm_1", instead_of("layer_norm", epsilon_outside)),
    Bug(
        "epsilon 1e-6 for 1e-5",
        "norm_1",
        around("layer_norm", lambda ops, right, x, w, b, epsilon: right(x, w, b, 0.1 * epsilon)),
    ),
    Bug("variance divided by n - 1", "norm_1", instead_of("layer_norm", variance_of_a_sample), backend="torch"),
    Bug("variance as E[x^2] - E[x]^2 of large values", "norm_1", instead_of("layer_norm", variance_by_cancellation)),
    Bug(
        "norm weights taken as 1 + w",
        "norm_1",
        around("layer_norm", lambda ops, right, x, w, b, epsilon: right(x, 1.0 + w, b, epsilon)),
    ),
    Bug(
        "causal mask sees one key too many",
        "attn.scores",
        instead_of("attention", attention_where(lambda q, k: k <= q + 1)),
    ),
    Bug(
        "causal mask hides the token itself",
        "attn.scores",
        instead_of("attention", attention_where(lambda q, k: (k < q) | (k == 0))),
        backend="torch",
    ),
    Bug(
        "attention scale applied twice", "attn.scores", around("attention", scaled_by(lambda scale, n: scale * n**-0.5))
    ),
    Bug(
        "attention scale not applied",
        "attn.scores",
        around("attention", scaled_by(lambda scale, n: 1.0)),
        backend="torch",
    ),
    Bug("softmax over the wrong axis", "attn.pattern", instead_of("softmax", softmax_over_queries)),
    Bug(
        "powers of 2 for powers of e in the softmax",
        "attn.pattern",
        around("softmax", lambda ops, right, x: right(x * 0.6931471805599453)),
        backend="torch",
    ),
    Bug("pattern rounded to bfloat16", "attn.pattern", after("softmax", to_bfloat16)),
    Bug(
        "a square kernel transposed",
        "attn.out",
        in_linear("out", lambda ops, right, y, x, kernel, bias: right(x, ops.xp.permute_dims(kernel, (1, 0)), bias)),
    ),
    Bug("residual connection missing", "resid_mid", in_linear("out", lambda ops, right, y, x, k, b: y.view(Forgetful))),
    Bug("bias dropped in the first linear map", "ffn.pre", in_linear("up", lambda ops, right, y, x, k, b: right(x, k))),
    Bug("bias added twice", "ffn.out", in_linear("down", lambda ops, right, y, x, k, b: y + b), backend="torch"),
    Bug(
        "query and key swapped in the projection",
        "attn.q",
        in_linear(
            "qkv", lambda ops, right, y, x, k, b: ops.xp.concat([y[..., 32:64], y[..., :32], y[..., 64:]], axis=-1)
        ),
    ),
    Bug(
        "products of inputs rounded as TF32",
        "attn.q",
        in_linear("qkv", lambda ops, right, y, x, k, b: right(to_tf32(ops, x), k, b)),
        backend="torch",
    ),
    Bug(
        "the last column of the head is padding",
        "logits",
        in_linear("head", lambda ops, right, y, x, k, b: ops.xp.concat([y[..., :-1], 0.0 * y[..., -1:]], axis=-1)),
    ),
    Bug(
        "positions count from 1",
        "embed",
        around("embed", lambda ops, right, t, ids: right(t, ids + 1) if t.shape[0] == 192 else right(t, ids)),
    ),
    Bug("position 0 at each cached step", "embed", around("embed", position_0_when_cached), sweep="cached"),
    Bug("a stale cache row", "attn.scores", around("slice_update", one_row_late), sweep="cached"),
    Bug(
        "cache kept in bfloat16", "attn.scores", around("slice_update", bfloat16_cache), backend="torch", sweep="cached"
    ),
    Bug(
        "all rows of a batch read the keys of the first",
        "attn.scores",
        around("attention", keys_of_the_first_row),
        backend="torch",
        sweep="batch",
    ),
    # What prompts of one length hide: all rows are then at the same position.
    Bug(
        "mask of the first row for all rows",
        "attn.scores",
        around("attention", attention_with(first_row_for_all)),
        sweep="unequal",
    ),
    Bug(
        "all rows of the cache written where the first one is",
        "attn.scores",
        around("slice_update", cache_written_at_the_first_row),
        sweep="unequal",
    ),
    Bug(
        "all rows of JAX's cache written where the first one is",
        "attn.scores",
        around("slice_update", cache_written_at_the_first_row),
        backend="jax",
        sweep="unequal",
    ),
    Bug("all rows at the first one's position", "embed", around("embed", positions_of_the_first_row), sweep="unequal"),
    Bug(
        "rotary angles of the first row for all rows",
        "attn.q",
        around("rotary", lambda ops, right, x, cos, sin: right(x, cos[:1], sin[:1])),
        family="llama",
        backend="torch",
        sweep="unequal",
    ),
    Bug("RMS norm removes the mean", "norm_1", instead_of("rms_norm", rms_with_mean_removed), family="llama"),
    Bug("RMS norm divides by n - 1", "norm_1", instead_of("rms_norm", rms_of_the_sum), family="llama", backend="torch"),
    Bug("rotary pairs beside each other", "attn.q", instead_of("rotary", pairs_beside_each_other), family="llama"),
    Bug(
        "rotary turns the wrong way",
        "attn.q",
        around("rotary", lambda ops, right, x, cos, sin: right(x, cos, 0.0 - sin)),
        family="llama",
        backend="torch",
    ),
    Bug("query heads read the wrong key heads", "attn.scores", around("attention", heads_in_tiles), family="llama"),
    Bug("SiLU with 1.702 x", "ffn.act", around("silu", lambda ops, right, x: right(1.702 * x) / 1.702), family="llama"),
    Bug("top-p keeps one token too few", "sampler", nothing),
    # --- fused and packed implementations -----------------------------------------------------------------------------
    Bug(
        "fused: torch's GELU without approximate='tanh'",
        "ffn.act",
        instead_of("gelu_tanh", lambda ops, x: ops.gelu_erf(x)),
        backend="torch",
        ops="fused",
    ),
    Bug(
        "fused: attention without the scale",
        "attn.out",
        instead_of("attention", fused_sdpa(scale=1.0)),
        "torch",
        "fused",
    ),
    Bug(
        "fused: attention without a mask",
        "attn.out",
        instead_of("attention", fused_sdpa(is_causal=False)),
        "torch",
        "fused",
    ),
    Bug(
        "fused: mask aligned to the upper left corner in cached steps",
        "attn.out",
        instead_of("attention", fused_sdpa()),
        "torch",
        "fused",
        sweep="cached",
    ),
    Bug(
        "fused: native layer norm with epsilon 1e-3",
        "norm_1",
        around("layer_norm", lambda ops, right, x, w, b, epsilon: right(x, w, b, 1e-3)),
        "torch",
        "fused",
    ),
    Bug(
        "packed: bias dropped in oneDNN's product",
        "attn.q",
        in_linear("qkv", lambda ops, right, y, x, k, b: right(x, k)),
        "torch",
        "fused",
    ),
    Bug("packed: oneDNN's kernels of 8 bits", "attn.q", packed_in_bfloat16, "torch", "fused"),
    Bug("packed: a square kernel transposed", "attn.out", square_kernel_transposed, "torch", "fused"),
    Bug("packed: a square kernel transposed, NumPy", "attn.out", square_kernel_transposed, "numpy", "fused"),
    Bug(
        "fused: NumPy's attention in blocks that forget where they begin",
        "attn.out",
        instead_of("attention", fused_block_without_offset),
        "numpy",
        "fused",
        length=150,
    ),
    Bug(
        "packed: the product of few rows drops its bias",
        "ffn.out",
        in_linear("down", lambda ops, right, y, x, k, b: right(x, k) if x.shape[1] == 1 else y),
        "numpy",
        "fused",
        sweep="cached",
    ),
    Bug(
        "packed: JAX's two halves of a kernel swapped", "ffn.pre", in_linear("up", split_halves_swapped), "jax", "fused"
    ),
    Bug(
        "fused: JAX's GELU exact where it should be approximate",
        "ffn.act",
        instead_of("gelu_tanh", lambda ops, x: ops.gelu_erf(x)),
        "jax",
        "fused",
    ),
    Bug(
        "fused: query heads read the wrong key heads in torch's attention",
        "attn.out",
        around("attention", heads_in_tiles),
        "torch",
        "fused",
        family="llama",
    ),
    Bug(
        "fused: mask of the longest row for all rows",
        "attn.out",
        around("attention", attention_with(longest_row_for_all)),
        "torch",
        "fused",
        sweep="unequal",
    ),
    Bug(
        "fused: keys cut off behind the shortest row",
        "attn.out",
        around("attention", keys_as_far_as_the_shortest_row),
        "numpy",
        "fused",
        sweep="unequal",
    ),
)
