"""What the routers of a model told in one step, in a few numbers for metrics.jsonl. A dense model tells nothing.

A layer tells sums over the tokens of the step, see `MixtureOfExperts.training_terms`.
"""

from collections.abc import Mapping

import numpy as np

from transformer_lab.routes.load import dead, max_over_mean, normalised_entropy

Told = Mapping[int, Mapping[str, np.ndarray]]
NEEDED = {"load", "kept", "balance", "z", "entropy"}


def routing_numbers(told: Told) -> dict[str, float]:
    """{name: number}, means over the layers, but for `max_violation`, which is that of the worst layer, and
    `dead_experts`, which is a sum; {} if no layer routes.

    dropped_slots: the share of the slots asked for that found no room. The names are those of `routes/statistics.py`.
    """
    layers = _layers(told)
    if not layers:
        return {}

    def mean(name: str) -> float:
        return float(np.mean([np.asarray(own[name], np.float64) for own in layers.values()]))

    loads = [own["load"] for own in layers.values()]
    asked = sum(float(load.sum(dtype=np.float64)) for load in loads)
    return {
        "balance_loss": mean("balance"),
        "max_violation": max(map(max_over_mean, loads)) - 1.0,
        "load_entropy": float(np.mean([normalised_entropy(load) for load in loads])),
        "dead_experts": sum(len(dead(load)) for load in loads),
        "dropped_slots": 1.0 - sum(float(own["kept"]) for own in layers.values()) / asked if asked else 0.0,
        "z": mean("z"),
        "gate_entropy": mean("entropy"),
    }


def loads_of(told: Told) -> dict[str, list[int]]:
    """{number of the layer: how many tokens of the step each expert has}."""
    return {str(layer): np.rint(own["load"]).astype(int).tolist() for layer, own in _layers(told).items()}


def _layers(told: Told) -> dict[int, Mapping[str, np.ndarray]]:
    """Those that route; a network of somebody's own may tell other things."""
    return {layer: told[layer] for layer in sorted(told) if set(told[layer]) >= NEEDED}
