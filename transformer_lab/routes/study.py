"""`lab.routing`: runs texts through a mixture of experts and says what its routers did with them."""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np

from transformer_lab.atomic_file import finite
from transformer_lab.comparison.default_prompts import default_prompts
from transformer_lab.language_model import LanguageModel, Prompt, load_model, several_prompts
from transformer_lab.routes.layer import Layer, Routes, joined, require_mixtures
from transformer_lab.routes.report import RoutingReport
from transformer_lab.routes.statistics import statistics
from transformer_lab.routes.token_classes import CLASSES, token_classes

SCHEMA = 1


def routing(
    model: LanguageModel | str | PathLike[str],
    texts: Prompt | Sequence[Prompt] | None = None,
    **options: Any,
) -> RoutingReport:
    """Statistics of the routes of every layer, all texts together.

    model: a LanguageModel, or what load_model takes, with its options (backend, precision, ...). texts: a text, token
    ids, or a list of either, none longer than the context; each runs alone, so there is no padding. None is what
    `comparison/default_prompts.py` offers. Use by class of token is told where the model has a tokenizer.

    Raises ConfigurationError for a model without a mixture of experts, and what load_model raises.
    """
    if not isinstance(model, LanguageModel):
        model = load_model(model, **options)
    layers = [Layer(model, number) for number in require_mixtures(model.config)]
    tokenizer, config = model.tokenizer, model.config
    if texts is None:
        texts = default_prompts(tokenizer, config.vocab_size, config.context_length)
    listed: list[Any] = list(texts) if several_prompts(texts) else [texts]
    wanted = [name for layer in layers for name in layer.taps]
    found: list[list[Routes]] = [[] for _ in layers]
    classes: list[str] = []
    for text in listed:
        ids = model.prompt_ids(text)
        taps = model.record(np.asarray(ids), wanted)
        for routes, layer in zip(found, layers, strict=True):
            routes.append(layer.routes({name: taps[name] for name in layer.taps}))
        classes += [] if tokenizer is None else token_classes(tokenizer, ids)
    named = classes if tokenizer is not None else None
    told = [
        statistics(joined(routes), layer.number, named).to_dict() for routes, layer in zip(found, layers, strict=True)
    ]
    content = {
        "schema": SCHEMA,
        "model": {
            "source": model.source,
            "sha256": model.weights_sha256(),
            "backend": model.backend.name,
            "precision": model.backend.precision,
            "layers": config.num_layers,
        },
        "texts": len(listed),
        "tokens": told[0]["tokens"],
        "classes": {name: classes.count(name) for name in CLASSES if name in classes},
        "layers": told,
    }
    return RoutingReport(finite(content))
