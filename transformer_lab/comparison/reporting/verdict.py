"""The verdict on a comparison: sound, a defect and where, or not judged and why.

A defect has one place, the first in the order of the computation. *Impossible* is what exceeds the bound of any sound
implementation; *implausible* what exceeds what roundings do that are independent. What has no bound of use is not
judged, and is never called sound.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformer_lab.backends.plain.manual import HIDDEN
from transformer_lab.backends.readings.bounded.units import LARGEST
from transformer_lab.comparison.judging.beside_bounds import Likelihood
from transformer_lab.comparison.judging.exactness import Exactness
from transformer_lab.comparison.judging.examination import Divergence, Examination
from transformer_lab.comparison.judging.gradients import GradientRow, first_gradient_divergence
from transformer_lab.comparison.judging.metrics import merge
from transformer_lab.comparison.judging.sweeps import SweepRow
from transformer_lab.comparison.reporting.number_words import number

FAR = 100.0
SOUND, DEFECT, NOT_JUDGED = "sound", "defect", "not judged"


@dataclass(frozen=True)
class Verdict:
    """status: one of the three above. sentence: why. first: the first operation above its bound, if that is it. tap:
    where the first defect of the forward pass is, if one is there."""

    status: str
    sentence: str
    first: Divergence | None
    tap: str | None = None


@dataclass(frozen=True)
class Fault:
    """Something wrong at a tap. place: of the tap in the order of the computation."""

    place: int
    participant: str
    sentence: str
    divergence: Divergence | None = None


def verdict(
    examinations: Sequence[Examination],
    exactness: Exactness,
    order: Sequence[str],
    sweeps: Sequence[SweepRow],
    gradients: Sequence[GradientRow],
    detached: Sequence[str],
    generation: Sequence[str],
    semantics: Sequence[dict[str, Any]],
    not_judged: Sequence[str],
    sound_kl: Mapping[str, float | None],
) -> Verdict:
    """order: every tap, in the order of the computation. detached, generation: what is wrong with paths of the
    gradient and with continuations, in sentences. semantics: what differs in the configurations. not_judged: why
    gradients were not to be had, or the judge is wrong itself, in sentences. sound_kl: for a precision, the KL
    divergence of the logits of a sound run in it, or None.
    """
    said = [_semantic(row) for row in semantics]
    faults = [fault for found in examinations for fault in _faults(found, order, examinations, sound_kl)]
    apart = exactness.first_difference(order)
    if apart is not None:
        how = f"{apart.tap} on {apart.participant} differs in {apart.elements:,} elements from"
        how = f"{how} {next(iter(exactness.differing))}; nothing before it does."
        if apart.missing:
            how = f"{apart.tap} is missing on {apart.participant}; nothing before it is, or differs."
        place = order.index(apart.tap) if apart.tap in order else len(order)
        faults.append(Fault(place, apart.participant, f"Exact mode is not identical: {how}"))
    faults.sort(key=lambda fault: (fault.place, -fault.divergence.ratio if fault.divergence else 0.0))
    defects = []
    if faults:
        others = sorted({fault.participant for fault in faults} - {faults[0].participant})
        also = f" Something differs on {_joined(others)}, too." if others else ""
        defects.append(faults[0].sentence + also)
    defects += [_swept(row) for row in sweeps if _is_defect(row)]
    if (backward := first_gradient_divergence(gradients)) is not None:
        if backward.ratio is not None and backward.ratio <= 1.0:
            how = f"has an error that is not plausible ({_likely(backward.likelihood)})"
        else:
            how = f"differs by {in_bounds(backward.ratio or 0.0)}"
        defects.append(f"A defect of the gradients: {backward.parameter} on {backward.participant} {how}.")
    defects += detached
    defects += generation
    first = faults[0].divergence if faults else None
    if defects:
        tap = order[faults[0].place] if faults and faults[0].place < len(order) else None
        return Verdict(DEFECT, " ".join([*said, *defects]), first, tap)
    unjudged = [sentence for found in examinations for sentence in _unjudged(found)]
    unjudged += not_judged
    said += _sound(examinations, exactness)
    if unjudged:
        return Verdict(NOT_JUDGED, " ".join([*unjudged, *said]), None)
    return Verdict(SOUND, " ".join(said), None)


def _faults(
    found: Examination, order: Sequence[str], examinations: Sequence[Examination], sound_kl: Mapping[str, float | None]
) -> Iterable[Fault]:
    """The first of each kind on one participant."""
    if (first := found.first_divergence()) is not None:
        hint = f" {first.hint}" if first.hint else ""
        sentence = (
            f"A defect: {_placed(found, first.tap, order)} on {found.participant} differs by "
            f"{in_bounds(first.ratio)}; nothing before it does.{hint}"
        )
        yield Fault(order.index(first.tap), found.participant, sentence, first)
    if (tap := found.first_implausible()) is not None:
        sentence = (
            f"A defect, in all likelihood: {_placed(found, tap, order)} on {found.participant} is within the bound of "
            f"the worst case, but {_likely(found.taps[tap].likelihood)}."
        )
        yield Fault(order.index(tap), found.participant, sentence, found.taps[tap].worst)
    if (unlike := _unlike_others(found, order, examinations)) is not None:
        yield Fault(order.index(unlike[0]), found.participant, unlike[1])
    if found.logits and "logits" in found.taps and found.taps["logits"].unjudged:
        worst, sound = max(one.kl_from_truth for one in found.logits), sound_kl.get(found.precision)
        if sound is not None and not worst <= FAR * max(sound, 1e-12):
            how = f"their KL divergence from the truth is {worst:.2g} nats, and {sound:.2g} in a sound run in "
            how = "they are not finite, and the truth is" if not math.isfinite(worst) else f"{how}{found.precision}"
            sentence = f"A defect at or before logits on {found.participant}: {how}."
            yield Fault(len(order), found.participant, sentence)


def _placed(found: Examination, tap: str, order: Sequence[str]) -> str:
    """The tap, or the stretch in which the defect lies if taps before it are not shown."""
    place = order.index(tap)
    before = next((name for name in reversed(order[:place]) if name in found.taps), None)
    between = place - (order.index(before) if before else -1) - 1
    hidden_by_fusion = all(name.rpartition(".")[2] in HIDDEN for name in order[place - between : place])
    if between == 0 or hidden_by_fusion:
        return tap
    return f"what lies between {before or 'the token ids'} and {tap}"


def _unlike_others(
    found: Examination, order: Sequence[str], examinations: Sequence[Examination]
) -> tuple[str, str] | None:
    """(tap, a sentence) on the first tap that no bound can judge, but others can: the error is FAR times theirs."""
    for tap in order:
        if tap not in found.taps or not found.taps[tap].unjudged:
            continue
        own = merge(found.taps[tap].total).rms
        others = [
            other.taps[tap]
            for other in examinations
            if other is not found and other.precision == found.precision and tap in other.taps
        ]
        judged = [merge(other.total).rms for other in others if not other.unjudged]
        least = max(judged) if judged else min((merge(other.total).rms for other in others), default=own)
        if not own <= FAR * least:
            times = own / max(least, 1e-300)
            how = f"its error is {times:,.3g} times that of others"
            how = how if math.isfinite(own) else "it is not finite, and the truth is"
            return tap, (
                f"A defect at or before {tap} on {found.participant}: {how}. No bound is known there; more taps would "
                "show the operation."
            )
    return None


def _unjudged(found: Examination) -> Iterable[str]:
    if not found.taps:
        yield f"Not judged: {found.participant} shows no tap."
    elif (first := found.unjudged()) is not None:
        yield f"Not judged: {first[0]} on {found.participant}: {first[1]}."
    elif "logits" not in found.taps:
        yield f"Not judged: {found.participant} does not show logits."


def _sound(examinations: Sequence[Examination], exactness: Exactness) -> list[str]:
    said = []
    if exactness.differing:
        where = _joined(name.removesuffix(" exact") for name in exactness.differing)
        alone = f"Exact mode is within its bounds; {where} is alone in it: there is nothing to hold its bits against."
        also = ", gradients too" if exactness.gradients else ""
        said.append(alone if len(exactness.differing) == 1 else f"Identical in exact mode on {where}{also}.")
    rounding = [found for found in examinations if found.precision != "exact"]
    judged = [worst for found in rounding if (worst := found.worst()) is not None]
    if judged:
        worst = max(judged, key=lambda worst: worst.ratio)
        precisions = _joined(dict.fromkeys(found.precision for found in rounding))
        said.append(
            f"{precisions[0].upper()}{precisions[1:]} differences are rounding (largest {worst.ratio:.2g} of its "
            f"bound, at {worst.tap} on {worst.participant})."
        )
    return said


def _likely(found: Likelihood) -> str:
    if found.largest > LARGEST:
        return (
            f"its largest error is {found.largest:.2g} times what independent roundings make likely (above "
            f"{LARGEST:.0f} has a probability below 3e-14 for each element)"
        )
    return (
        f"its root mean square error is {found.mean_square:.2g} times what independent roundings make likely (above 1 "
        "has a probability below 3e-14)"
    )


def in_bounds(ratio: float) -> str:
    """How many times its bound, in words."""
    if math.isinf(ratio):
        return "more than any rounding (there is none to make here)"
    return f"{number(ratio, 2)} bounds"


def _semantic(row: dict[str, Any]) -> str:
    values = ", ".join(f"{value} in {name}" for name, value in row["values"].items())
    return f"The configurations differ: {row['field']} is {values}."


def _is_defect(row: SweepRow) -> bool:
    if row.ratio is None:
        return False
    return not row.ratio <= 1.0 or (row.precision == "exact" and row.differing > 0 and not row.stored_in_fewer_bits)


def _swept(row: SweepRow) -> str:
    if row.precision == "exact" and row.ratio is not None and row.ratio <= 1.0:
        return f"Exact mode differs on {row.participant} ({row.change}): {row.differing:,} elements."
    return f"A defect: {row.tap} on {row.participant} ({row.change}) differs by {in_bounds(row.ratio or 0.0)}."


def _joined(several: Iterable[str]) -> str:
    names = list(several)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
