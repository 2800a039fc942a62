"""The same tokens another way: in pieces over a cache, one by one, as a row of a batch, beside rows of other lengths,
by other versions of the operations, uncompiled, on one thread. What then differs is rounding, and in exact mode it is
nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from transformer_lab.comparison.examination import difference, examine
from transformer_lab.comparison.own_model import Feeding, OwnModel
from transformer_lab.comparison.spool import Spool
from transformer_lab.errors import ConfigurationError
from transformer_lab.language_model import LanguageModel

FEEDINGS = {
    "pieces": ("prompt in 3 pieces", Feeding(pieces=3)),
    "cached": ("cached, the last 8 tokens one by one", Feeding(single=8)),
    "batch": ("one row of a batch of 3", Feeding(beside=(0, 0))),
    "unequal": ("cached, between a longer row and a shorter one", Feeding(pieces=2, single=4, beside=(5, -3))),
    "uncompiled": ("not compiled", Feeding(compiled=False)),
}
SWEEPS = (*FEEDINGS, "manual", "threads")


@dataclass(frozen=True)
class SweepRow:
    """What a change of the way changed. elements, differing: of all taps that both ways show, and how many are not
    equal. max_abs: of the differences, over these taps; logits_max_abs: over the logits alone. ratio, tap: the first
    operation of the changed way that is above its bound, or else its largest ratio. note: why it was not tried."""

    participant: str
    precision: str
    change: str
    elements: int = 0
    differing: int = 0
    max_abs: float = 0.0
    logits_max_abs: float = 0.0
    ratio: float | None = None
    tap: str | None = None
    note: str | None = None


def require_known(sweeps: Sequence[str]) -> None:
    """Raises ConfigurationError for a name that is not in SWEEPS."""
    for name in sweeps:
        if name not in SWEEPS:
            message = f"There is no sweep {name!r}; choose among {', '.join(SWEEPS)}."
            raise ConfigurationError(message)


def sweep(
    names: Sequence[str],
    model: LanguageModel,
    participant: str,
    plain: Callable[[], LanguageModel],
    truth: OwnModel,
    token_ids: np.ndarray,
    base: Spool,
) -> Iterator[SweepRow]:
    """One row for each of `names` that this model can be given.

    participant: its name. plain: loads the same model with ops=manual. base: what the model showed for token_ids, fed
    at once as prompt 0.
    """
    for name in names:
        if name in FEEDINGS:
            change, feeding = FEEDINGS[name]
            if name == "uncompiled" and not model.backend.compiles:
                continue
            yield _row(change, OwnModel(model, feeding, participant), truth, token_ids, base)
        elif name == "manual" and model.backend.precision != "exact":  # which has one version of each operation
            yield _row("manual operations", OwnModel(plain(), name=participant), truth, token_ids, base)
        elif name == "threads":
            if model.backend.fixed_threads:
                note = f"the {model.backend.name} backend fixes its threads when the process starts"
                yield SweepRow(participant, model.backend.precision, "1 thread", note=note)
                continue
            with threadpool_limits(1):
                row = _row("1 thread", OwnModel(model, name=participant), truth, token_ids, base)
            yield row


def _row(
    change: str,
    participant: OwnModel,
    truth: OwnModel,
    token_ids: np.ndarray,
    base: Spool,
) -> SweepRow:
    counts = {"elements": 0, "differing": 0}
    largest: dict[str, float] = {}

    def look_on(prompt: int, name: str, value: np.ndarray) -> None:
        before = base.read(prompt, name)
        if before is not None:
            apart = np.abs(difference(value, before))
            counts["elements"] += apart.size
            counts["differing"] += int(np.count_nonzero(apart))
            largest[name] = float(apart.max(initial=0.0))

    found = examine(participant, truth, [token_ids], look_on)
    worst = found.first_divergence() or found.worst()
    return SweepRow(
        participant.name,
        participant.precision,
        change,
        counts["elements"],
        counts["differing"],
        max(largest.values(), default=0.0),
        largest.get("logits", 0.0),
        worst.ratio if worst else None,
        worst.tap if worst else None,
    )
