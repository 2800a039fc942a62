"""The verdict on a comparison, in a sentence: rounding, or a defect, and where."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from transformer_lab.comparison.judging.exactness import Exactness
from transformer_lab.comparison.judging.examination import Divergence, Examination
from transformer_lab.comparison.judging.gradients import GradientRow, first_gradient_divergence
from transformer_lab.comparison.judging.metrics import merge
from transformer_lab.comparison.judging.sweeps import SweepRow

FAR = 100.0


def first_divergence(examinations: Sequence[Examination], order: Sequence[str]) -> Divergence | None:
    """The first operation above its own bound, in the order of the computation; of several participants the worst."""
    found = [first for examination in examinations if (first := examination.first_divergence()) is not None]
    return min(found, key=lambda first: (order.index(first.tap), -first.ratio), default=None)


def sentences(
    examinations: Sequence[Examination],
    first: Divergence | None,
    exactness: Exactness,
    order: Sequence[str],
    sweeps: Sequence[SweepRow],
    gradients: Sequence[GradientRow],
    generation: Sequence[str],
    semantics: Sequence[dict[str, Any]],
) -> tuple[str, bool]:
    """The verdict in words, and whether all differences are rounding.

    generation: what is wrong with continuations, in sentences. semantics: what differs in the configurations.
    """
    said = [_semantic(row) for row in semantics]
    defects = []
    if first is not None:
        others = {found.participant for found in examinations if found.first_divergence() is not None}
        also = f" (and something on {_joined(sorted(others - {first.participant}))})" if len(others) > 1 else ""
        defects.append(
            f"A defect: {first.tap} on {first.participant} differs by {in_bounds(first.ratio)}{also}; "
            "nothing before it does."
        )
    defects += unlike_others(examinations, order)
    apart = exactness.first_difference(order)
    if apart is not None:
        how = f"{apart.tap} on {apart.participant} differs in {apart.elements:,} elements from"
        how = f"{how} {next(iter(exactness.differing))}; nothing before it does."
        if apart.missing:
            how = f"{apart.tap} is missing on {apart.participant}; nothing before it is, or differs."
        defects.append(f"Exact mode is not identical: {how}")
    defects += [_swept(row) for row in sweeps if _is_defect(row)]
    if (backward := first_gradient_divergence(gradients)) is not None:
        defects.append(
            f"A defect of the gradients: {backward.parameter} on {backward.participant} differs by "
            f"{in_bounds(backward.ratio or 0.0)}."
        )
    defects += generation
    if defects:
        return " ".join([*said, *defects]), False
    if exactness.differing:
        where = _joined(name.removesuffix(" exact") for name in exactness.differing)
        alone = f"Exact mode is within its bounds; {where} is alone in it: there is nothing to hold its bits against."
        also = ", gradients too" if exactness.gradients else ""
        said.append(alone if len(exactness.differing) == 1 else f"Identical in exact mode on {where}{also}.")
    rounding = [found for found in examinations if found.precision != "exact"]
    worst = max(
        (worst for found in rounding if (worst := found.worst()) is not None),
        key=lambda worst: worst.ratio,
        default=None,
    )
    if worst is not None:
        precisions = _joined(dict.fromkeys(found.precision for found in rounding))
        said.append(
            f"{precisions[0].upper()}{precisions[1:]} differences are rounding (largest {worst.ratio:.2g} of its "
            f"bound, at {worst.tap} on {worst.participant})."
        )
    return " ".join(said), True


def unlike_others(examinations: Sequence[Examination], order: Sequence[str]) -> list[str]:
    """Sentences on taps that no bound can judge, but others can: the error is FAR times theirs.

    Such are taps before which too little was shown, and those of a feed-forward network of somebody's own.
    """
    said = []
    for found in examinations:
        for tap in order:
            if tap not in found.taps or not found.taps[tap].vague:
                continue
            own = merge(found.taps[tap].total).rms
            others = [
                other.taps[tap]
                for other in examinations
                if other is not found and other.precision == found.precision and tap in other.taps
            ]
            judged = [merge(other.total).rms for other in others if not other.vague]
            least = max(judged) if judged else min((merge(other.total).rms for other in others), default=own)
            if not own <= FAR * least:
                times = own / max(least, 1e-300)
                said.append(
                    f"A defect at or before {tap} on {found.participant}: its error is {times:,.3g} times "
                    "that of others. No bound is known there; more taps would show the operation."
                )
                break
    return said


def in_bounds(ratio: float) -> str:
    """How many times its bound, in words."""
    if math.isinf(ratio):
        return "more than any rounding (there is none to make here)"
    return f"{ratio:,.0f} bounds" if ratio >= 10 else f"{ratio:.2g} bounds"


def _semantic(row: dict[str, Any]) -> str:
    values = ", ".join(f"{value} in {name}" for name, value in row["values"].items())
    return f"The configurations differ: {row['field']} is {values}."


def _is_defect(row: SweepRow) -> bool:
    if row.ratio is None:
        return False
    return not row.ratio <= 1.0 or (row.precision == "exact" and row.differing > 0)


def _swept(row: SweepRow) -> str:
    if row.precision == "exact" and row.ratio is not None and row.ratio <= 1.0:
        return f"Exact mode differs on {row.participant} ({row.change}): {row.differing:,} elements."
    return f"A defect: {row.tap} on {row.participant} ({row.change}) differs by {in_bounds(row.ratio or 0.0)}."


def _joined(several: Iterable[str]) -> str:
    names = list(several)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
