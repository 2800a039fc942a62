"""A model from a name, a folder or a hub id, or of weights that are at hand."""

import time
from collections.abc import Mapping
from os import PathLike
from typing import Any

import numpy as np

from transformer_lab import checkpoints
from transformer_lab.cache.contiguous import Contiguous
from transformer_lab.config import component
from transformer_lab.errors import ConfigurationError
from transformer_lab.language_model.changed_parts import with_parts
from transformer_lab.language_model.fitting_tokenizer import fitting_tokenizer
from transformer_lab.language_model.language_model import LanguageModel
from transformer_lab.language_model.placing import add_derived, placed, placed_at_random
from transformer_lab.memory import enough_memory, require_bytes
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.parameters import count
from transformer_lab.sources import ModelFiles, Progress, config_folder, model_files
from transformer_lab.tokenizers import TOKENIZER_KINDS, Tokenizer

KINDS_OF_WEIGHTS = ("pretrained", "random", "shaken")
_BYTES = {"float64": 8, "bfloat16": 2, "int8": 1}  # of a parameter, at least; 4 for the others


def load_model(
    source: str | PathLike[str],
    backend: Any = "numpy",
    precision: str = "float32",
    ops: str | Mapping[str, str] = "fused",
    tokenizer: str | None = None,
    *,
    cache: Any = None,
    residency: Any = None,
    block: Any = None,
    attention: Any = None,
    position: Any = None,
    norm: Any = None,
    ffn: Any = None,
    router: Any = None,
    balancer: Any = None,
    device: str | None = None,
    revision: str | None = None,
    weights: str = "pretrained",
    seed: int = 0,
    progress: Progress | None = None,
) -> LanguageModel:
    """Loads a model.

    source: a name under conf/model, a folder in Hugging Face layout (config.json + *.safetensors), or a hub id. What
        starts with "/", "." or "~", or names an existing folder, is always a folder. A LoRA adapter of peft beside the
        weights is added to them; without weights beside it, to the model that its adapter_config.json names.
    backend: a name under conf/backend, or a Backend that is already built (then precision, ops and device are its own).
    precision: "float32", "float64", or "exact" (docs/exact_mode.md).
    ops: "fused", "manual", or a mapping operation -> version.
    tokenizer: None or "byte_bpe" (by hand), or "huggingface" (the `tokenizers` library).
    cache: a policy of transformer_lab.cache, or its name; None is Contiguous(). device: as the backend calls it; None
        is the CPU.
    residency: a `Residency`, for a model whose experts take more memory than there is.
    block, attention, position, norm, ffn, router, balancer: other parts in every layer (`with_parts`): a component, or
        of attention and ffn the fields to change, such as ffn={"activation": "relu"}.
    weights: "random" takes only the shape of `source` and draws weights from `seed`; nothing is downloaded for a
        name under resources/config. "shaken" draws the same, and norms and biases too, which training begins at 1 and
        0: what is wrong with them shows. progress(what, done, total) is called while loading.

    Raises ConfigurationError, InputFileError or UnavailableError; each says in words what to do.
    """
    begin = time.perf_counter()
    cache = component("cache", cache) if isinstance(cache, str) else cache
    if isinstance(backend, str):
        backend = component("backend", backend, precision=precision, ops=ops, device=device)
    if weights not in KINDS_OF_WEIGHTS:
        message = f"weights is {weights!r}; choose one of {', '.join(KINDS_OF_WEIGHTS)}."
        raise ConfigurationError(message)
    if tokenizer is not None and tokenizer not in TOKENIZER_KINDS:
        message = f"tokenizer is {tokenizer!r}; choose one of {', '.join(TOKENIZER_KINDS)}."
        raise ConfigurationError(message)
    random = weights != "pretrained"
    folder, adapter = ModelFiles(config_folder(source, revision), None) if random else model_files(source, revision)
    parts = {"block": block, "attention": attention, "position": position, "norm": norm, "ffn": ffn}
    parts |= {"router": router, "balancer": balancer}
    config, original = with_parts(checkpoints.read_config(folder), **parts), checkpoints.read_original(folder)
    experts = None if residency is None else residency.begin(backend, config)
    place = backend.place if experts is None else experts.place
    found: list[Tokenizer | None] = []

    def before_reading() -> None:
        """Whatever can be refused without the numbers is refused before they are read."""
        kind = tokenizer or "byte_bpe"
        own = fitting_tokenizer(adapter, config, kind) if adapter else None  # one that was trained with it
        found.append(own or fitting_tokenizer(folder, config, kind))
        if backend.device == "cpu" and experts is None:
            require_bytes(count(config) * _BYTES.get(backend.precision, 4), f"{source}, {count(config):,} parameters")

    with enough_memory(f"{source}: it has {count(config):,} parameters"):
        if random:
            before_reading()
            params = placed_at_random(config, place, seed, weights == "shaken", progress)
        else:
            report = (lambda done, total: progress("weights", done, total)) if progress else None
            dtype = np.float64 if backend.precision == "float64" else np.float32
            params = checkpoints.load_parameters(folder, config, place, dtype, report, before_reading, adapter)
        add_derived(config, backend, params)
        if experts is not None:
            experts.settle()
    model = LanguageModel(backend, config, params, found[0], cache or Contiguous())
    if experts is not None:
        model.take_experts(experts)
    model.source, model.folder, model.adapter = str(source), None if random else folder, adapter
    model.original, model.end_of_text_ids = original, original.end_of_text_ids
    model.load_seconds = time.perf_counter() - begin
    return model


def assemble(
    config: ModelConfig,
    arrays: Mapping[str, np.ndarray],
    backend: Any,
    tokenizer: Tokenizer | None = None,
    original: checkpoints.Original | None = None,
) -> LanguageModel:
    """A model of weights that are at hand: dotted name -> NumPy array, kernels [in, out], as `shapes(config)` says.

    original: what the folder that it comes from says beside the weights.
    """
    model = LanguageModel(backend, config, placed(config, backend, arrays), tokenizer, Contiguous())
    if original is not None:
        model.original, model.end_of_text_ids = original, original.end_of_text_ids
    return model
