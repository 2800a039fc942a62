"""The decoder: token ids in, logits out. A pure function of its parameters, the same on every backend.

An embedding, a list of blocks, a last norm and a head, put together by a ModelConfig. There is no random number, no
device and no framework here. Every value of interest passes through `tap(name, value)`, which returns it: looking on is
a tap that keeps what it sees, patching one that returns something else.

Taps and their shapes (B batch, T tokens, S keys, D hidden size, H and K heads of size N, F inner size, V vocabulary):
embed [B, T, D]; in block i, `blocks.{i}.`, as far as its kind has them: norm_1 [B, T, D], attn.q [B, H, T, N], attn.k
and attn.v [B, K, T, N] (the new ones; q and k after rotary positions), attn.scores and attn.pattern [B, H, T, S],
attn.out, post_norm_1, resid_mid, norm_2 [B, T, D], ffn.pre and ffn.act [B, T, F], ffn.out, post_norm_2, resid_post
[B, T, D]; final_norm [B, T, D], logits [B, T, V]. A fused attention shows neither scores nor pattern.
"""

from collections.abc import Callable, Mapping
from typing import Any

from transformer_lab.backends.plain.manual import identity
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.taps import within
from transformer_lab.model.tokens import Tokens, tokens_of


def tap_names(config: ModelConfig) -> list[str]:
    """The name of every tap of this decoder, in the order of the computation."""
    blocks = [f"blocks.{layer}.{name}" for layer, block in enumerate(config.blocks) for name in block.taps]
    return ["embed", *blocks, "final_norm", "logits"]


def forward(
    ops: Any,
    config: ModelConfig,
    params: Any,
    token_ids: Any,
    start: Any,
    cache: Any = None,
    tap: Callable[[str, Any], Any] = identity,
    logits_at: Any = None,
    lengths: Any = None,
    noise: Mapping[int, Any] | None = None,
) -> tuple[Any, Any]:
    """token_ids [B, T] at positions start [B] onward -> (logits [B, T, V], the cache).

    cache: None (start must be 0), or what a policy of `transformer_lab.cache` allocated; it is consumed.
    logits_at: integers [B], the one position of each row (from 0) whose logits are wanted; they are then [B, 1, V].
    lengths: integers [B], how many tokens of each row are no padding; None is all of them.
    noise: layer -> [B, T, N], of the layers whose router wants some, in training; None elsewhere.
    Rows of unequal lengths are padded on the right with any id: what is padded is never visible to what is not.
    """
    tokens = tokens_of(ops, token_ids, start, lengths, config.context_length)
    x, angles = embedding(ops, config, params, tokens, tap)
    layers = []
    for layer, (block, weights) in enumerate(zip(config.blocks, params["blocks"], strict=True)):
        drawn = None if noise is None else noise.get(layer)
        here = tokens._replace(angles=angles_of(config, layer, angles), noise=drawn)
        x, written = block(
            ops, weights, x, here, None if cache is None else cache[layer], within(tap, f"blocks.{layer}.")
        )
        layers.append(written)
    if logits_at is not None:
        x = ops.xp.take_along_axis(
            x, ops.xp.broadcast_to(logits_at[:, None, None], (x.shape[0], 1, x.shape[2])), axis=1
        )  # [B, 1, D]
    return read_out(ops, config, params, x, tap), None if cache is None else layers


def embedding(
    ops: Any, config: ModelConfig, params: Any, tokens: Tokens, tap: Callable[[str, Any], Any]
) -> tuple[Any, list[tuple[Any, Any]]]:
    """-> (the stream [B, T, D], of each of `config.rotaries` the rows of its table, (cos, sin), each [B, T, N / 2])."""
    x = ops.embed(params["embed"]["token"], tokens.ids)  # [B, T, D]
    if config.embedding_scale != 1.0:
        x = x * config.embedding_scale
    if config.position is not None:
        x = x + config.position(ops, params["embed"]["position"], tokens.positions)
    if config.embedding_norm is not None:
        x = config.embedding_norm(ops, params["embed"].get("norm", {}), x)
    tables = params.get("rotary", [])
    angles = [tuple(ops.embed(table[name], tokens.positions) for name in ("cos", "sin")) for table in tables]
    return tap("embed", x), angles


def angles_of(config: ModelConfig, layer: int, angles: list[tuple[Any, Any]]) -> tuple[Any, Any] | None:
    """Of the rows that `embedding` returns, those of this layer's positions; None where it has no rotary ones."""
    position = config.blocks[layer].attention.position
    return angles[config.rotaries.index(position)] if hasattr(position, "turn") else None


def read_out(ops: Any, config: ModelConfig, params: Any, x: Any, tap: Callable[[str, Any], Any]) -> Any:
    """The stream after the last block [B, T, D] -> logits [B, T, V]."""
    x = tap("final_norm", x if config.norm is None else config.norm(ops, params.get("final_norm", {}), x))
    head = params.get("head", {})
    kernel = head["kernel"] if "kernel" in head else ops.xp.permute_dims(params["embed"]["token"], (1, 0))
    logits = ops.linear(x, kernel, head.get("bias"))
    if config.logits_scale != 1.0:
        logits = logits * config.logits_scale
    if config.logits_cap is not None:
        logits = ops.xp.tanh(logits / config.logits_cap) * config.logits_cap
    return tap("logits", logits)
