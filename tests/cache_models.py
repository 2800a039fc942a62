"""Small models over the caches that tests compare."""

from dataclasses import replace

import numpy as np
from small_models import small_model

from transformer_lab.config import component
from transformer_lab.ffn.dense import Dense
from transformer_lab.language_model.language_model import LanguageModel
from transformer_lab.language_model.placing import placed
from transformer_lab.model.init import initialise
from transformer_lab.position.alibi import Alibi

VOCABULARY, CONTEXT = 40, 64
BACKENDS = ("numpy", "torch", "jax")


def with_attention(config, *fields):
    """The blocks take these fields of attention in turn."""
    blocks = [
        replace(block, attention=replace(block.attention, **fields[layer % len(fields)]))
        for layer, block in enumerate(config.blocks)
    ]
    return replace(config, blocks=tuple(blocks))


LEARNED = small_model(VOCABULARY, CONTEXT, 16, 2, 4, Dense(32))
ROTARY = small_model(VOCABULARY, CONTEXT, 16, 2, 4, Dense(32), num_kv_heads=2, position="rotary", norm="rms_norm")
CONFIGS = {
    "learned": LEARNED,
    "rotary, shared keys": ROTARY,
    "alibi": with_attention(
        small_model(VOCABULARY, CONTEXT, 16, 2, 4, Dense(32), position=None), {"position": Alibi()}
    ),
    "two windows and none": with_attention(
        replace(ROTARY, blocks=ROTARY.blocks[:1] * 3), {"window": 5}, {"window": None}, {"window": 9}
    ),
    "sinks and a cap": with_attention(ROTARY, {"sinks": True, "cap": 3.0, "window": 7}),
}


def arrays_of(config, seed=0):
    """Weights under which attention matters."""
    draw = np.random.default_rng(seed)
    arrays = {}
    for name, array in initialise(config, seed):
        larger = 6.0 if ".attn." in name else 2.0
        array = array * larger if name.endswith(("kernel", "token", "position")) else array
        arrays[name] = (array + 0.1 * draw.standard_normal(array.shape)).astype(np.float32)
    return arrays


def model(config, cache, backend="numpy", precision="exact", seed=0, ops="fused"):
    """backend: a name, or one that is built; then precision and ops are its own."""
    built = component("backend", backend, precision=precision, ops=ops) if isinstance(backend, str) else backend
    return LanguageModel(built, config, placed(config, built, arrays_of(config, seed)), None, cache)


def ids(seed, count):
    return np.random.default_rng(seed).integers(0, VOCABULARY, count).tolist()


def fed(language_model, prompts, after):
    """Teacher-forced: the logits after each prompt and after each of the tokens that follow, [B, 1 + T, V]."""
    sequences = language_model.engine.begin(prompts, len(after[0]))
    rows = [np.array(sequences.logits)]
    for tokens in zip(*after, strict=True):
        sequences.feed(tokens)
        rows.append(np.array(sequences.logits))
    sequences.end()
    return np.stack(rows, axis=1)


def uncached(language_model, prompts, after):
    """The same from one pass over each row."""
    rows = []
    for prompt, more in zip(prompts, after, strict=True):
        logits = language_model.logits([*prompt, *more])[0]
        rows.append(logits[len(prompt) - 1 :])
    return np.stack(rows)


def decoded(rows, ops, x):
    """x [B, K, S, N] as it is stored by this class and read again, float64."""
    with ops.scope():
        return np.asarray(ops.to_numpy(rows.encode(ops, ops.asarray(x)).decode(ops)), np.float64)


def require_bad_vectors_to_stay_so(rows):
    for bad in (np.nan, np.inf, -np.inf):
        x = np.ones((1, 1, 2, 4), np.float32)
        x[0, 0, 0, 1] = bad
        with np.errstate(invalid="ignore"):
            found = decoded(rows, component("backend", "numpy"), x)
        assert not np.isfinite(found[0, 0, 0]).any() and (found[0, 0, 1] == 1.0).all()
