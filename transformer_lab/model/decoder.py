"""The decoder: token ids in, logits out. A pure function of its parameters, the same on every backend.

Pre-norm residual blocks as in GPT-2 (Radford et al. 2019), put together by a ModelConfig. There is no random number,
no device and no framework here. Every value of interest passes through `tap(name, value)`, which returns it: looking
on is a tap that keeps what it sees, patching one that returns something else.

Taps and their shapes (B batch, T tokens, S keys, D hidden size, H and K heads of size N, F inner size, V vocabulary):
embed [B, T, D]; in block i, `blocks.{i}.`: norm_1 [B, T, D], attn.q [B, H, T, N], attn.k and attn.v [B, K, T, N] (the
new ones; q and k after rotary positions), attn.scores and attn.pattern [B, H, T, S], attn.out [B, T, D],
resid_mid [B, T, D], norm_2 [B, T, D], ffn.pre and ffn.act [B, T, F], ffn.out [B, T, D], resid_post [B, T, D];
final_norm [B, T, D], logits [B, T, V]. A fused attention shows neither scores nor pattern.
"""

from collections.abc import Callable
from typing import Any

from transformer_lab.backends.plain.manual import identity
from transformer_lab.model.attention import self_attention
from transformer_lab.model.config import ModelConfig


def within(tap: Callable[[str, Any], Any], part: str) -> Callable[[str, Any], Any]:
    """The tap for a part of the decoder, whose names begin with `part`. No tap stays none, which operations may ask."""
    return tap if tap is identity else lambda name, x: tap(part + name, x)


def tap_names(config: ModelConfig) -> list[str]:
    """The name of every tap of this decoder, in the order of the computation."""
    inside = ["norm_1", "attn.q", "attn.k", "attn.v", "attn.scores", "attn.pattern", "attn.out", "resid_mid", "norm_2"]
    inside += [f"ffn.{name}" for name in config.ffn.taps] + ["ffn.out", "resid_post"]
    blocks = [f"blocks.{layer}.{name}" for layer in range(config.num_layers) for name in inside]
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
) -> tuple[Any, Any]:
    """token_ids [B, T] at positions start [B] onward -> (logits [B, T, V], the cache).

    cache: None (start must be 0), or what a policy of `transformer_lab.cache` allocated; it is consumed.
    logits_at: integers [B], the one position of each row (from 0) whose logits are wanted; they are then [B, 1, V].
    Rows of unequal lengths are padded on the right with any id: what is padded is never visible to what is not.
    """
    x, angles = embedding(ops, config, params, token_ids, start, tap)
    layers = []
    for layer, block in enumerate(params["blocks"]):
        x, layer_cache = decoder_block(
            ops, config, layer, block, x, start, angles, None if cache is None else cache[layer], tap
        )
        layers.append(layer_cache)
    if logits_at is not None:
        x = ops.xp.take_along_axis(
            x, ops.xp.broadcast_to(logits_at[:, None, None], (x.shape[0], 1, x.shape[2])), axis=1
        )  # [B, 1, D]
    return read_out(ops, config, params, x, tap), None if cache is None else layers


def embedding(
    ops: Any, config: ModelConfig, params: Any, token_ids: Any, start: Any, tap: Callable[[str, Any], Any]
) -> tuple[Any, Any]:
    """token_ids [B, T] -> (the stream [B, T, D], rows of the rotary table [B, T, N / 2] or None)."""
    xp = ops.xp
    positions = start[:, None] + xp.arange(token_ids.shape[1], dtype=start.dtype, device=ops.array_device)  # [B, T]
    x = ops.embed(params["embed"]["token"], token_ids)  # [B, T, D]
    angles = None
    if config.position == "learned":
        x = x + ops.embed(params["embed"]["position"], positions)
    else:
        angles = tuple(ops.embed(params["rotary"][name], positions) for name in ("cos", "sin"))
    return tap("embed", x), angles


def read_out(ops: Any, config: ModelConfig, params: Any, x: Any, tap: Callable[[str, Any], Any]) -> Any:
    """The stream after the last block [B, T, D] -> logits [B, T, V]."""
    x = tap("final_norm", normalise(ops, config, params["final_norm"], x))
    kernel = params["head"]["kernel"] if "head" in params else ops.xp.permute_dims(params["embed"]["token"], (1, 0))
    return tap("logits", ops.linear(x, kernel))


def decoder_block(
    ops: Any,
    config: ModelConfig,
    layer: int,
    params: Any,
    x: Any,
    start: Any,
    angles: Any,
    cache: Any,
    tap: Callable[[str, Any], Any],
) -> tuple[Any, Any]:
    """x + attention(norm_1(x)), then the same with the feed-forward network: [B, T, D] -> ([B, T, D], cache)."""

    here = within(tap, f"blocks.{layer}.")
    normal = here("norm_1", normalise(ops, config, params["norm_1"], x))
    attended, cache = self_attention(
        ops, config, layer, params["attn"], normal, start, angles, cache, within(here, "attn.")
    )
    x = here("resid_mid", x + attended)
    normal = here("norm_2", normalise(ops, config, params["norm_2"], x))
    x = x + here("ffn.out", config.ffn(ops, params.get("ffn", {}), normal, within(here, "ffn.")))
    return here("resid_post", x), cache


def normalise(ops: Any, config: ModelConfig, params: Any, x: Any) -> Any:
    """The norm that the configuration names: [B, T, D] -> [B, T, D]."""
    if config.norm == "layer_norm":
        return ops.layer_norm(x, params["weight"], params["bias"], config.norm_epsilon)
    return ops.rms_norm(x, params["weight"], config.norm_epsilon)
