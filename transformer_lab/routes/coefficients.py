"""The balance loss is not one number: what a coefficient of another framework is here.

All go back to Switch Transformer (Fedus et al. 2021, arXiv 2101.03961, equation 4), E sum_i f_i P_i, but they count f
otherwise and add up layers otherwise. At uniform use of k experts a token the same loss is k, 1 or 1/k. Here it is 1 in
each layer, and all layers are added.
"""

from dataclasses import dataclass

from transformer_lab.errors import ConfigurationError
from transformer_lab.model.limits import LIMITS, require_whole


@dataclass(frozen=True)
class Convention:
    """power: at uniform use a layer's loss is k^power. summed: layers are added; else it is their mean.

    tokens: over which f and P are taken. formula: in words, with n_i the slots that expert i has, T tokens and k slots.
    """

    power: int
    summed: bool
    tokens: str
    formula: str


CONVENTIONS = {
    "transformers": Convention(1, False, "the batch, all layers at once", "E sum_i (n_i / T) P_i"),
    "maxtext": Convention(1, False, "each sequence", "E sum_i (n_i / T) P_i"),
    "olmo-core": Convention(0, True, "the batch of a rank, or each sequence", "E sum_i (n_i / (k T)) P_i"),
    "megablocks": Convention(0, False, "the batch of a rank", "E sum_i (n_i / (k T)) P_i"),
    "levanter": Convention(-1, True, "the batch", "(E / k) sum_i (n_i / (k T)) P_i"),
}


def at_uniform(framework: str, k: int, layers: int) -> float:
    """What the framework's loss is, all layers together, where every expert is used alike and has the same mean
    probability. Ours is `layers`."""
    convention = _convention(framework)
    require_whole("k", k, LIMITS["num_experts"])
    require_whole("layers", layers, LIMITS["num_layers"])
    return float(k) ** convention.power * (layers if convention.summed else 1)


def balance_loss(coefficient: float, framework: str, k: int, layers: int) -> float:
    """The `ffn.balance_loss` that weighs as much as this coefficient does there.

    framework: one of CONVENTIONS. k: experts of a token. layers: how many are mixtures of experts. For transformers it
    is so where all layers are used alike: it takes one mean over all of them, in which they can cancel. Raises
    ConfigurationError for another framework.
    """
    return coefficient * at_uniform(framework, k, layers) / layers


def _convention(framework: str) -> Convention:
    if framework not in CONVENTIONS:
        message = f"framework is {framework!r}; choose one of {', '.join(CONVENTIONS)}."
        raise ConfigurationError(message)
    return CONVENTIONS[framework]
