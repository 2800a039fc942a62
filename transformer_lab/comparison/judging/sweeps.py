"""The same tokens another way: in pieces over a cache, one by one, as a row of a batch, beside rows of other lengths,
by other versions of the operations, uncompiled, on one thread. What then differs is rounding, and in exact mode it is
nothing.

One sweep is not another way to the same numbers but to coarser or finer ones: the other precisions, each judged by its
own bounds.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from threadpoolctl import threadpool_limits

from transformer_lab.comparison.judging.beside_bounds import difference
from transformer_lab.comparison.judging.examination import examine
from transformer_lab.comparison.judging.spool import Spool
from transformer_lab.comparison.participants.own_model import Feeding, OwnModel
from transformer_lab.config import component
from transformer_lab.config import names as choices
from transformer_lab.errors import ConfigurationError, LabError
from transformer_lab.language_model import LanguageModel
from transformer_lab.model.causality import not_in_batches, not_in_pieces

UNEQUAL = Feeding(pieces=2, single=4, beside=(5, -3))
FEEDINGS = {
    "pieces": ("prompt in 3 pieces", Feeding(pieces=3)),
    "cached": ("cached, the last 8 tokens one by one", Feeding(single=8)),
    "batch": ("one row of a batch of 3", Feeding(beside=(0, 0))),
    "unequal": ("cached, between a longer row and a shorter one", UNEQUAL),
    "uncompiled": ("not compiled", Feeding(compiled=False)),
}
SWEEPS = (*FEEDINGS, "caches", "manual", "threads", "precision")
CHANGES = {"manual": "manual operations", "precision": "other precisions", "threads": "1 thread"}


@dataclass
class SweepRow:
    """What a change of the way changed.

    precision: the participant's. judged_by: the precision of the changed way, whose bounds `ratio` is over; only in the
    sweep of precisions it is another one. elements, differing: of all taps that both ways show, and how many are not
    equal. max_abs: of the differences, over these taps; logits_max_abs: over the logits alone. ratio, tap: the first
    operation of the changed way that is above its bound, or else its largest ratio. note: why it was not tried.
    stored_in_fewer_bits: by the cache, so that it differs in exact mode too.
    """

    participant: str
    precision: str
    judged_by: str
    change: str
    elements: int = 0
    differing: int = 0
    max_abs: float = 0.0
    logits_max_abs: float = 0.0
    ratio: float | None = None
    tap: str | None = None
    note: str | None = None
    stored_in_fewer_bits: bool = False


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
    load: Callable[..., LanguageModel] | None,
    truth: OwnModel,
    token_ids: np.ndarray,
    base: Spool,
) -> Iterator[SweepRow]:
    """The rows of each of `names` that this model can be given.

    participant: its name. load(precision=..., ops=...): the same model on the same backend once more, with one of them
    changed; None where the backend is an object that is built. base: what the model showed for token_ids [T], fed at
    once as prompt 0.
    """
    precision = model.backend.precision

    def row(change: str, changed: OwnModel) -> SweepRow:
        fewer_bits = changed.feeding.cache.contract == "bounded"
        seen = SweepRow(participant, precision, changed.precision, change, stored_in_fewer_bits=fewer_bits)

        def look_on(prompt: int, name: str, value: np.ndarray) -> None:
            before = base.read(prompt, name)
            if before is not None:
                apart = np.abs(difference(value, before))
                largest = float(apart.max(initial=0.0))
                seen.elements += apart.size
                seen.differing += int(np.count_nonzero(apart))
                seen.max_abs = max(seen.max_abs, largest)
                seen.logits_max_abs = largest if name == "logits" else seen.logits_max_abs

        found = examine(changed, truth, [token_ids], look_on)
        if worst := found.first_divergence() or found.worst():
            seen.ratio, seen.tap = worst.ratio, worst.tap
        return seen

    def not_tried(change: str, why: str) -> SweepRow:
        return SweepRow(participant, precision, precision, change, note=why)

    def by_feeding(change: str, feeding: Feeding) -> SweepRow:
        in_pieces = feeding.pieces > 1 or feeding.single > 0
        if len(token_ids) == 1 and in_pieces:
            return not_tried(change, "the prompt is one token")
        apart = not_in_pieces(model.config) if in_pieces else None
        if (why := apart or (not_in_batches(model.config) if feeding.beside else None)) is not None:
            return not_tried(change, why[0].lower() + why[1:].rstrip("."))
        return row(change, OwnModel(model, feeding, participant))

    def by_cache(name: str) -> SweepRow:
        change = f"cache={name}"
        policy = component("cache", name)
        if policy.contract == "lossy":
            return not_tried(change, "it is another computation; see job=verify_cache")
        try:
            return by_feeding(change, replace(UNEQUAL, cache=policy))
        except ConfigurationError as error:  # a cache that cannot hold this model
            return not_tried(change, str(error))

    for name in names:
        if name in FEEDINGS:
            change, feeding = FEEDINGS[name]
            if name == "uncompiled" and not model.backend.compiles:
                continue
            yield by_feeding(change, feeding)
        elif name == "caches":
            yield from map(by_cache, [cache for cache in choices("cache") if cache != "none"])
        elif name == "threads":
            if model.backend.fixed_threads:
                why = f"the {model.backend.name} backend fixes its threads when the process starts"
                yield not_tried(CHANGES[name], why)
                continue
            with threadpool_limits(1):
                found = row(CHANGES[name], OwnModel(model, name=participant))
            yield found
        elif precision == "exact":  # it has one version of each operation, and is about one precision
            continue
        elif load is None:
            yield not_tried(CHANGES[name], "the backend was given as an object, with its operations and its precision")
        elif name == "manual":
            yield row(CHANGES[name], OwnModel(load(ops="manual"), name=participant))
        else:
            for other in model.backend.precisions:
                if other == precision:
                    continue
                try:
                    changed = load(precision=other)
                except LabError as error:  # a version of an operation, memory: what this precision lacks here
                    yield not_tried(f"precision {other}", str(error))
                    continue
                yield row(f"precision {other}", OwnModel(changed, name=participant))
