"""Small models with mixtures of experts, whose routers lean to some experts."""

import numpy as np
from small_models import small_model

from transformer_lab.config import component
from transformer_lab.ffn.experts import Experts
from transformer_lab.ffn.moe import MixtureOfExperts
from transformer_lab.language_model import assemble
from transformer_lab.model.init import initialise
from transformer_lab.router.mixtral import Mixtral

VOCABULARY = 61
BACKENDS = ("numpy", "torch", "jax")


def mixture(experts=6, k=2, **fields):
    return MixtureOfExperts(Mixtral(k), Experts(experts, 24), **fields)


def weights(ffn=None, layers=2, seed=0, lean=0.3):
    config = small_model(VOCABULARY, 32, 16, layers, 4, ffn or mixture())
    draw = np.random.default_rng(seed)
    arrays = dict(initialise(config, seed))
    for name, array in arrays.items():
        if name.endswith("router.gate"):
            arrays[name] = draw.normal(size=array.shape).astype(array.dtype) * lean
        if ".ffn." in name and name.endswith("kernel"):  # so that who computes matters
            arrays[name] = array * 5
        if name.endswith("balancer.bias"):
            arrays[name] = draw.normal(size=array.shape).astype(array.dtype) * 0.1
    return config, arrays


def built(backend="numpy", precision="float32", ops="fused", made=None, **options):
    config, arrays = made or weights(**options)
    if precision == "float64":
        arrays = {name: array.astype(np.float64) for name, array in arrays.items()}
    return assemble(config, arrays, component("backend", backend, precision=precision, ops=ops))


def ids(length, seed=3):
    return np.random.default_rng(seed).integers(0, VOCABULARY, length)
