"""Weights brought to a backend, given or drawn, and what is derived from them there. It knows no files."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from transformer_lab.model.config import ModelConfig
from transformer_lab.model.init import initialise
from transformer_lab.model.parameters import nest, shapes
from transformer_lab.sources import Progress


def placed(
    config: ModelConfig,
    backend: Any,
    arrays: Mapping[str, np.ndarray],
    place: Callable[[str, np.ndarray], Any] | None = None,
) -> dict[str, Any]:
    """The parameters of a forward pass, of weights that are at hand: dotted name -> NumPy array, kernels [in, out].

    place: what brings one there; None is `backend.place`.
    """
    place = place or backend.place
    params = nest({name: place(name, array) for name, array in arrays.items()})
    add_derived(config, backend, params)
    return params


def placed_at_random(
    config: ModelConfig, place: Callable[[str, np.ndarray], Any], seed: int, shaken: bool, progress: Progress | None
) -> dict[str, Any]:
    """Weights drawn from `seed` (`initialise`), one by one; without what is derived from them."""
    total, found = len(shapes(config)), {}
    for done, (name, array) in enumerate(initialise(config, seed, shaken), start=1):
        found[name] = place(name, array)
        if progress:
            progress("weights", done, total)
    return nest(found)


def add_derived(config: ModelConfig, backend: Any, params: dict[str, Any]) -> None:
    """What the forward pass needs beside the weights: rotary angles, and a tied head in the form that is fast."""
    params["rotary"] = rotary_tables(config, backend)
    if config.tied_head:
        params.setdefault("head", {})["kernel"] = backend.place_tied_head(params["embed"]["token"])


def rotary_tables(config: ModelConfig, backend: Any) -> list[dict[str, Any]]:
    """Of each of `config.rotaries` the cosines and sines {"cos", "sin"}, [C, N / 2], on the backend."""
    length = config.context_length
    return [backend.turn_table(part.table(length), part.angles(length)) for part in config.rotaries]


def constants(params: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a model's parameters that is not learned, and comes of no weight."""
    return {name: params[name] for name in ("rotary",) if name in params}
