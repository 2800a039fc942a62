"""One participant beside the truth, tap by tap: the errors it inherits and adds, the first that is no rounding.

The truth and the participant run in step, so what is held at a time are the taps of one block.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from transformer_lab.backends.readings.bounded.bounds import KEPT_IN_BFLOAT16, UNITS
from transformer_lab.comparison.judging.expectation import Expectation
from transformer_lab.comparison.judging.logits import LogitAgreement, agreement_of
from transformer_lab.comparison.judging.metrics import Errors, errors_of
from transformer_lab.comparison.participants.own_model import OwnModel
from transformer_lab.comparison.participants.participant import Participant, checked
from transformer_lab.model.decoder import tap_names

ADDITIONS = ("embed", "resid_mid", "resid_post")
VAGUE = 0.01  # of the values: bounds of float32 on what was shown are some 1e-6 of them


@dataclass(frozen=True)
class Divergence:
    """Where an operation is farther off than its bound: the element that is worst, in bounds.

    ratio: |value - expected| / bound, infinite where nothing may be rounded. position: the element's place in the tap.
    """

    participant: str
    precision: str
    tap: str
    ratio: float
    prompt: int
    position: tuple[int, ...]
    value: float
    expected: float
    bound: float


@dataclass
class Deviation:
    """Largest and root mean square of a difference over all prompts."""

    largest: float = 0.0
    squares: float = 0.0
    count: int = 0

    def take(self, difference: np.ndarray) -> None:
        if difference.size:
            self.largest = max(self.largest, float(np.abs(difference).max()))
            self.squares += float(np.sum(np.square(difference)))
            self.count += difference.size

    @property
    def rms(self) -> float:
        return float(np.sqrt(self.squares / self.count)) if self.count else 0.0


@dataclass
class TapFinding:
    """One tap of one participant over all prompts. total: against the truth, one Errors for each prompt.

    vague: the bound is no longer small beside the values: too little was shown before this tap. (With kernels of
    few bits it never was.)
    """

    total: list[Errors] = field(default_factory=list)
    added: Deviation = field(default_factory=Deviation)
    inherited: Deviation = field(default_factory=Deviation)
    worst: Divergence | None = None  # the element with the largest ratio, whether above 1 or not
    vague: bool = False


@dataclass
class Examination:
    """All that was found out about one participant. taps: in the order of the computation."""

    participant: str
    precision: str
    taps: dict[str, TapFinding] = field(default_factory=dict)
    logits: list[LogitAgreement] = field(default_factory=list)
    certificate: dict[str, tuple[int, int]] = field(default_factory=dict)

    def first_divergence(self) -> Divergence | None:
        """The first tap whose operation is above its bound, and there the worst element."""
        found = (finding.worst for finding in self.taps.values())
        return next((worst for worst in found if worst is not None and not worst.ratio <= 1.0), None)

    def worst(self) -> Divergence | None:
        """The largest ratio of all. A single addition comes as near to its bound as it can, which says nothing: those
        are left out as long as they are sound."""
        found = [
            finding.worst
            for name, finding in self.taps.items()
            if finding.worst is not None and (name.split(".")[-1] not in ADDITIONS or not finding.worst.ratio <= 1.0)
        ]
        return max(found, key=lambda worst: worst.ratio, default=None)


def examine(
    participant: Participant,
    truth: OwnModel,
    prompts: Sequence[np.ndarray],
    look_on: Callable[[int, str, np.ndarray], None] | None = None,
) -> Examination:
    """Runs the participant on every prompt (token ids [T]) and compares each tap that it shows.

    truth: our model on NumPy in float64 with the plain operations. look_on(prompt, tap name, value) sees what the
    participant showed, while it is there.
    """
    examination = Examination(participant.name, participant.precision)
    ours = participant.kind == "backend"
    units = UNITS[participant.precision]
    if participant.precision == "bfloat16" and not ours:
        units = KEPT_IN_BFLOAT16
    order = {name: place for place, name in enumerate(tap_names(truth.config))}
    for number, token_ids in enumerate(prompts):
        expectation = Expectation(truth.model.backend, truth.config, truth.model.params, token_ids, units)
        true_taps = truth.taps(token_ids)
        for name, value in participant.taps(token_ids):
            if not ours:
                value = checked(name, value, truth.config, len(token_ids), participant.name)
            if look_on is not None:
                look_on(number, name, value)
            true = _advance(true_taps, name)
            finding = examination.taps.setdefault(name, TapFinding())
            finding.total.append(errors_of(value, true, participant.precision))
            expected, bound = expectation.of(name)
            expectation.see(name, value)
            finding.vague |= not units.kernel and not _size(bound) <= VAGUE * _size(expected)
            added = difference(value, expected)
            finding.added.take(added)
            finding.inherited.take(difference(expected, true))
            worst = _worst(added, bound)
            if worst is not None and (finding.worst is None or worst[0] > finding.worst.ratio):
                ratio, place = worst
                finding.worst = Divergence(
                    participant.name,
                    participant.precision,
                    name,
                    ratio,
                    number,
                    place,
                    float(value[place]),
                    float(expected[place]),
                    float(bound[place]),
                )
            if name == "logits":
                examination.logits.append(agreement_of(value[0], true[0], prompt=number))
        for name, (roundings, doubtful) in getattr(participant, "certificate", {}).items():
            before = examination.certificate.get(name, (0, 0))
            examination.certificate[name] = before[0] + roundings, before[1] + doubtful
    examination.taps = dict(sorted(examination.taps.items(), key=lambda item: order[item[0]]))
    return examination


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a - b in float64; 0 where both are the same infinity, infinite where one alone is not finite."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    with np.errstate(invalid="ignore"):
        found = np.where(a == b, 0.0, a - b)
    return np.where(np.isnan(found), np.inf, found)


def _size(x: np.ndarray) -> float:
    """The root mean square of what is finite in x; infinite if x holds +inf."""
    if np.any(x == np.inf):
        return np.inf
    finite = x[np.isfinite(x)]
    return float(np.sqrt(np.mean(np.square(finite)))) if finite.size else 0.0


def _worst(added: np.ndarray, bound: np.ndarray) -> tuple[float, tuple[int, ...]] | None:
    """The largest |added| / bound and its place; None where the tap is empty."""
    if not added.size:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(added == 0.0, 0.0, np.abs(added) / bound)
    ratio = np.where(np.isnan(ratio), np.inf, ratio)
    place = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
    return float(ratio[place]), tuple(int(index) for index in place)


def _advance(taps: Iterator[tuple[str, Any]], name: str) -> np.ndarray:
    """The value of the tap `name`; those before it are passed over."""
    return next(np.asarray(value) for tap, value in taps if tap == name)
