"""Sparse upcycling (Komatsuzaki et al. 2022, arXiv 2212.05055): a mixture of experts out of a dense model.

Every expert begins as a copy of the network that it replaces, and the router is new. Where the weights of a token sum
to 1, the model computes what it did before; training makes the experts differ, because they see different tokens.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np

from transformer_lab.errors import ConfigurationError
from transformer_lab.ffn.dense import Dense
from transformer_lab.ffn.experts import Experts
from transformer_lab.ffn.moe import MixtureOfExperts
from transformer_lab.language_model.changed_parts import given
from transformer_lab.language_model.language_model import LanguageModel
from transformer_lab.language_model.loading import assemble
from transformer_lab.model.init import initialise
from transformer_lab.model.parameters import flatten, shapes
from transformer_lab.router.mixtral import Mixtral


def upcycled(
    model: LanguageModel,
    experts: int = 8,
    router: Any = None,
    layers: Collection[int] | None = None,
    balance_loss: float = 0.01,
    seed: int = 0,
) -> LanguageModel:
    """A new model on the same backend, with `experts` copies of the network in each of `layers` (None: all).

    router: a part (`router/`) or the name of one, Mixtral(k=2) if not given; its weights are drawn from `seed`. With
    another one than Mixtral the weights of a token may not sum to 1, and the logits change at once. balance_loss: as
    in `MixtureOfExperts`.

    Raises ConfigurationError for a layer whose network is not `Dense`, and for Mixtral(k=1): its one weight is always
    1, so that nothing would teach the router which expert is the better one.
    """
    router = Mixtral(2) if router is None else given("router", router)
    if isinstance(router, Mixtral) and router.k == 1:
        message = "upcycled has Mixtral(k=1), whose weights are always 1: its router would learn nothing. Take k=2."
        raise ConfigurationError(message)
    chosen = range(model.config.num_layers) if layers is None else sorted(layers)
    blocks = list(model.config.blocks)
    for layer in chosen:
        ffn = blocks[layer].ffn if 0 <= layer < len(blocks) else None
        if not isinstance(ffn, Dense):
            found = "there is no such layer" if ffn is None else f"its network is {type(ffn).__name__}, not Dense"
            message = f"Layer {layer} cannot be upcycled: {found}."
            raise ConfigurationError(message)
        copies = Experts(experts, ffn.size, ffn.activation, ffn.gated, ffn.bias)
        blocks[layer] = replace(blocks[layer], ffn=MixtureOfExperts(router, copies, balance_loss=balance_loss))
    config = replace(model.config, blocks=tuple(blocks))
    dense = {
        name: model.backend.recover(name, parameter)
        for name, parameter in flatten(model.params)
        if name in shapes(model.config)
    }
    arrays = {}
    for name, drawn in initialise(config, seed):
        before = dense.get(name.replace(".ffn.experts.", ".ffn."))
        arrays[name] = drawn if before is None else np.array(np.broadcast_to(before, drawn.shape))
    return assemble(config, arrays, model.backend, model.tokenizer, model.original)
