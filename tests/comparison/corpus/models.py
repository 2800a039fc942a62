"""Small random models in Hugging Face layout, each written once per session, while nothing is planted.

The head size is 12, the inner sizes 192 and 80, the vocabulary 300: no power of two, where blocks have a remainder.
"""

import atexit
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from random_models import random_arrays
from small_models import changed, small_model

from transformer_lab.checkpoints import Original, save_folder, to_hf
from transformer_lab.ffn.dense import Dense
from transformer_lab.model.config import ModelConfig

VOCABULARY, HIDDEN, HEADS, LAYERS = 300, 48, 4, 3

GPT2 = small_model(
    vocab_size=VOCABULARY,
    context_length=192,
    hidden_size=HIDDEN,
    num_layers=LAYERS,
    num_heads=HEADS,
    ffn=Dense(4 * HIDDEN),
)
LLAMA = small_model(
    vocab_size=VOCABULARY,
    context_length=192,
    hidden_size=HIDDEN,
    num_layers=LAYERS,
    num_heads=HEADS,
    num_kv_heads=2,
    ffn=Dense(80, "silu", gated=True, bias=False),
    position="rotary",
    norm="rms_norm",
    attention_bias=False,
    tied_head=False,
)


def _loud(arrays: dict[str, np.ndarray]) -> None:
    """Gates of large size."""
    for name in arrays:
        if name.endswith("ffn.gate.kernel"):
            arrays[name] *= 3.0


def _quiet(arrays: dict[str, np.ndarray]) -> None:
    """Embeddings of the size that training begins with, beside which an epsilon counts."""
    arrays["embed.token"] *= 0.05


# name -> (configuration, seed, what is done to the weights)
MODELS: dict[str, tuple[ModelConfig, int, Callable[[dict[str, np.ndarray]], None] | None]] = {
    "gpt2": (GPT2, 1, None),
    "gpt2 with the exact GELU": (changed(GPT2, ffn=Dense(4 * HIDDEN, "gelu_erf")), 2, None),
    "gpt2 scaled by layer": (changed(GPT2, attention_scale_by_layer=True), 3, None),
    "llama": (LLAMA, 4, None),
    "llama without groups": (changed(LLAMA, num_kv_heads=HEADS), 5, None),
    "llama with base 500000": (changed(LLAMA, rotary_base=500000.0), 6, None),
    "llama with biases": (changed(LLAMA, attention_bias=True), 7, None),
    "llama of 11 layers": (changed(LLAMA, num_layers=11), 8, None),
    "llama of 320 positions": (changed(LLAMA, context_length=320), 9, None),
    "llama with epsilon 1e-3": (changed(LLAMA, norm_epsilon=1e-3), 10, None),
    "llama, loud": (LLAMA, 11, _loud),
    "llama, quiet": (LLAMA, 12, _quiet),
}


@cache
def _root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="corpus"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


@cache
def folder(name: str) -> str:
    """Where the model lies; "storybook" is the embedded one, and goes by its name."""
    if name == "storybook":
        return name
    if name == "llama with two end tokens":
        return _with_two_end_tokens(name)
    config, seed, change = MODELS[name]
    arrays = random_arrays(config, seed, 0.2)
    if change:
        change(arrays)
    return _save(name, config, arrays)


def _save(name: str, config: ModelConfig, arrays: dict[str, np.ndarray], **more: Any) -> str:
    where = _root() / name.replace(" ", "_").replace(",", "")
    save_folder(where, config, arrays, **more)
    return str(where)


def _with_two_end_tokens(name: str) -> str:
    """The second of them comes in the continuation of SHORT; the first does not."""
    from transformer_lab.language_model import load_model

    config, seed, _ = MODELS["llama"]
    chosen = load_model(folder("llama")).generate(SHORT[0], max_new_tokens=24).token_ids
    end = next(token for place, token in enumerate(chosen) if place > 4 and token not in chosen[:place])
    other = next(token for token in range(VOCABULARY) if token not in chosen)
    config = replace(config, end_of_text_id=other)
    return _save(
        name,
        config,
        random_arrays(config, seed, 0.2),
        original=Original({**to_hf(config), "eos_token_id": [other, end]}),
    )


def ids(length: int, seed: int = 0, below: int = VOCABULARY) -> list[int]:
    return np.random.default_rng(seed).integers(1, below, length).tolist()


SHORT = [ids(24)]
LONG = [ids(150)]
TWO = [ids(24), ids(17, 1)]
THREE = [ids(24), ids(17, 1), ids(11, 2)]
