"""What the routes of a layer come to: loads, drops, losses, entropies, margins, which experts go together, and who uses
them. Plain numbers; padding was left out before (`layer.py`). N tokens, E experts, k slots."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from transformer_lab.routes.layer import Routes
from transformer_lab.routes.load import dead, max_over_mean, normalised_entropy

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class LayerStatistics:
    """asked [E]: tokens that the router gives to each expert. load [E]: those that it takes; fewer, where there is a
    capacity. Their sum is the number of slots that are used. importance [E]: the mean probability.

    experts_per_token: that the router asks for, in the mean.

    max_over_mean, max_violation (that less 1), load_entropy (from 0 to 1), dead (numbers of experts) and balance_loss
    (1 where all are used alike, Fedus et al. 2021, arXiv 2101.03961) are those of `asked`: a capacity would hide what
    the router does. dropped_slots: of those asked for; dropped_tokens: that have no expert left.
    z: the mean of logsumexp(logits)^2 (arXiv 2202.08906). gate_entropy: the mean entropy of a token's probabilities, in
    nats. margins: {quantile: of the distances between the lowest score chosen and the highest not chosen}, or None
    where the router does not choose by scores. together [E, E]: tokens that have both experts; the diagonal is `load`.
    by_class: {class: {"tokens", "asked" [E]}}, or None.
    """

    layer: int
    experts: int
    slots: int
    tokens: int
    experts_per_token: float
    asked: list[int]
    load: list[int]
    importance: list[float]
    max_over_mean: float
    max_violation: float
    load_entropy: float
    dead: list[int]
    dropped_slots: float
    dropped_tokens: float
    balance_loss: float
    z: float
    gate_entropy: float
    margins: dict[str, float] | None
    together: list[list[int]]
    by_class: dict[str, dict[str, Any]] | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def statistics(routes: Routes, layer: int = 0, classes: Sequence[str] | None = None) -> LayerStatistics:
    """classes: of each of the N tokens its class, as `token_classes.py` names them, or None."""
    wanted, taken = routes.used(routes.asked), routes.used(routes.kept)
    asked, load = wanted.sum(axis=0), taken.sum(axis=0)
    probabilities = routes.probabilities
    importance = probabilities.mean(axis=0)
    share = asked / max(asked.sum(), 1)
    logs = np.log(np.where(probabilities > 0.0, probabilities, 1.0))
    largest = routes.logits.max(axis=-1)
    z = largest + np.log(np.exp(routes.logits - largest[:, None]).sum(axis=-1))
    margins = routes.margins()
    violation = max_over_mean(asked)
    counted = taken.astype(np.int64)
    return LayerStatistics(
        layer=layer,
        experts=routes.experts,
        slots=routes.ids.shape[-1],
        tokens=len(routes.ids),
        experts_per_token=_share(routes.asked.sum(), len(routes.ids)),
        asked=asked.tolist(),
        load=load.tolist(),
        importance=importance.tolist(),
        max_over_mean=violation,
        max_violation=violation - 1.0,
        load_entropy=normalised_entropy(asked),
        dead=dead(asked),
        dropped_slots=_share(routes.asked.sum() - routes.kept.sum(), routes.asked.sum()),
        dropped_tokens=_share((wanted.any(axis=-1) & ~taken.any(axis=-1)).sum(), len(routes.ids)),
        balance_loss=float(routes.experts * np.sum(share * importance)),
        z=float(np.mean(np.square(z))),
        gate_entropy=float(-np.sum(probabilities * logs, axis=-1).mean()),
        margins=None if margins is None else _quantiles(margins),
        together=(counted.T @ counted).tolist(),
        by_class=None if classes is None else _by_class(wanted, classes),
    )


def _share(part: Any, whole: Any) -> float:
    return float(part / whole) if whole else 0.0


def _quantiles(values: np.ndarray) -> dict[str, float]:
    return {f"{quantile:g}": float(np.quantile(values, quantile)) for quantile in QUANTILES}


def _by_class(wanted: np.ndarray, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    named = np.asarray(classes)
    return {
        name: {"tokens": int((named == name).sum()), "asked": wanted[named == name].sum(axis=0).tolist()}
        for name in dict.fromkeys(classes)
    }
