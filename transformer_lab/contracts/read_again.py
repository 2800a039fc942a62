"""What a cache in fewer bits really gives back: its own `update`, fed with a model's keys and values."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from transformer_lab.cache.by_itself import fed_by_itself
from transformer_lab.cache.policy import CachePolicy
from transformer_lab.cache.prefix import PrefixPool
from transformer_lab.comparison.judging.beside_bounds import difference, ratios
from transformer_lab.language_model import LanguageModel

SINGLE = 8  # tokens at the end that come one by one


def read_again(model: LanguageModel, policy: CachePolicy, ids: Sequence[int]) -> dict[str, Any]:
    """{"largest", "epsilon", "ratio"}: how far keys and values are off when they are read, relative to the largest of
    their vector, and over what the policy says. Two rows, of which the second is the first one backwards: a prompt, a
    piece, single tokens; after each pass all that is seen is compared.
    """
    largest = ratio = 0.0
    for layer, block in enumerate(model.config.blocks):
        names = [f"blocks.{layer}.attn.{part}" for part in ("k", "v")]
        taps = model.record(list(ids), names)
        true = [np.concatenate([taps[name], taps[name][:, :, ::-1]]) for name in names]
        bounds = [policy.rounding(np.asarray(x, np.float64)) for x in true]
        for length, found in _passes(model.backend, policy, block.attention, true):
            for x, again, bound in zip(true, found, bounds, strict=True):
                off, size = difference(again, x[:, :, :length]), np.abs(x[:, :, :length]).max(axis=-1, keepdims=True)
                largest = max(largest, float(ratios(off, size).max()))
                ratio = max(ratio, float(ratios(off, bound[:, :, :length]).max()))
    return {"largest": largest, "epsilon": policy.epsilon, "ratio": ratio}


def read_from_below(model: LanguageModel, policy: CachePolicy, ids: Sequence[int]) -> dict[str, Any]:
    """The same of what a pool finds below the device, of a model in exact mode, so that what was put there is what one
    pass computes. {} if there is nothing to be found."""
    pool = model.engine.memory
    if not isinstance(pool, PrefixPool) or not pool.has_tiers:
        return {}
    model.engine.begin([ids], 0).end()
    pool.forget()
    sequences = model.engine.begin([ids], 0)
    blocks = sequences.cache.tables[0][: sequences.cache.known[0] // pool.size]
    found = [[np.asarray(model.backend.to_numpy(one))[:, blocks] for one in pools] for pools in pool.layers]
    sequences.end()
    names = [[f"blocks.{layer}.attn.{part}" for part in ("k", "v")] for layer in range(len(found))]
    taps = model.record(list(ids), [name for pair in names for name in pair])
    largest = ratio = 0.0
    for pair, pools in zip(names, found, strict=True):
        for name, again in zip(pair, pools, strict=True):
            heads, count, size, width = again.shape
            x = np.asarray(taps[name], np.float64)[0, :, : count * size]
            off = difference(again.reshape(heads, count * size, width), x)
            largest = max(largest, float(ratios(off, np.abs(x).max(axis=-1, keepdims=True)).max(initial=0.0)))
            ratio = max(ratio, float(ratios(off, policy.rounding(x)).max(initial=0.0)))
    return {"tokens": len(blocks) * pool.size, "largest": largest, "epsilon": policy.epsilon, "ratio": ratio}


def _passes(ops: Any, policy: CachePolicy, attention: Any, true: Sequence[np.ndarray]) -> Any:
    """After each pass (how many tokens there are, (keys, values) as they are read [2, K, that many, N])."""
    batch, length = true[0].shape[0], true[0].shape[2]
    single = min(SINGLE, length - 1)
    prompt = max(1, (length - single) // 2)
    cuts = sorted({0, prompt, *range(length - single, length + 1)})
    with ops.scope():
        layer = policy.layer(ops, attention, batch, length)
    for first, end in pairwise(cuts):
        key, value = (x[:, :, first:end] for x in true)
        layer, found = fed_by_itself(ops, layer, attention.num_heads, key, value, first)
        yield end, found
