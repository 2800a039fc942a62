"""One participant beside the truth, tap by tap: the errors it inherits and adds, the first that is no rounding.

The decoder runs on the bounded reading with a tap that judges: what it is given is the expectation, with its bound, of
what the participant made of its own inputs. It returns what the participant showed, as the input of what follows. A
tap that is not shown goes on with its bound. So the error of an operation is separated from the error that it was
given, for anything that can show its activations, and nothing about the decoder stands here a second time.

The truth and the participant run in step, so what is held at a time are the taps of one block.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

import numpy as np

from transformer_lab.backends.plain.experts import NoSuchExpert
from transformer_lab.backends.readings.bounded.pairs import Bounded, Decided
from transformer_lab.backends.readings.bounded.reading import BoundedReading
from transformer_lab.backends.readings.bounded.units import KEPT_IN_BFLOAT16, UNITS
from transformer_lab.comparison.judging.beside_bounds import Likelihood, difference, ratios
from transformer_lab.comparison.judging.logits import LogitAgreement, agreement_of
from transformer_lab.comparison.judging.metrics import Errors, errors_of
from transformer_lab.comparison.judging.taps_by_name import TapsByName
from transformer_lab.comparison.participants.own_model import OwnModel
from transformer_lab.comparison.participants.participant import Participant, fitting, refusal
from transformer_lab.language_model.placing import add_derived
from transformer_lab.model.decoder import forward

ADDITIONS = ("embed", "resid_mid", "resid_post")
# Of the values: where the likely error is wider than that, too little was shown before it to judge an operation. That
# of float32 on what was shown is some 1e-7 of them; with kernels of few bits some 1e-2.
VAGUE, VAGUE_IN_FEW_BITS = 0.01, 0.1
READ_ROUNDING = 2.0**-22  # where a cache stores multiples of a scale, it may come later than where it is judged
FLUSHED = 2.0**-100  # a bound below that is about numbers that are taken for 0
MASKED = -1e3  # a score that low hides its key as -inf does


@dataclass(frozen=True)
class Divergence:
    """Where an operation is farther off than its bound: the element that is worst, in bounds.

    ratio: |value - expected| / bound, infinite where nothing may be rounded. position: the element's place in the tap.
    hint: what it looks like, in a sentence, or None.
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
    hint: str | None = None


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

    worst: of choices that are neither what their numbers say nor another within rounding, an infinite ratio.
    unjudged: why no bound of use is known here, or None. margin: of choices, the smallest distance over its bound.
    """

    total: list[Errors] = field(default_factory=list)
    added: Deviation = field(default_factory=Deviation)
    inherited: Deviation = field(default_factory=Deviation)
    worst: Divergence | None = None  # the element with the largest ratio, whether above 1 or not
    likelihood: Likelihood = field(default_factory=Likelihood)
    unjudged: str | None = None
    margin: float | None = None

    @property
    def impossible(self) -> bool:
        return self.unjudged is None and self.worst is not None and not self.worst.ratio <= 1.0

    @property
    def implausible(self) -> bool:
        return self.unjudged is None and self.likelihood.implausible


@dataclass
class Examination:
    """All that was found out about one participant. taps: those that it showed, in the order of the computation.

    hidden: those that it did not show. order: all, as the definition comes to them. unbounded: functions of xp that the
    model uses and that have no bound. largest_value: that was seen in the stream.
    """

    participant: str
    precision: str
    taps: dict[str, TapFinding] = field(default_factory=dict)
    hidden: list[str] = field(default_factory=list)
    unbounded: list[str] = field(default_factory=list)
    logits: list[LogitAgreement] = field(default_factory=list)
    certificate: dict[str, tuple[int, int]] = field(default_factory=dict)
    largest_value: float = 0.0
    order: list[str] = field(default_factory=list)

    def of(self, participant: str) -> "Examination":
        """The same of another one, who showed the same bits; but for the certificate, which tells of how they came."""
        taps = {
            tap: replace(found, worst=None if found.worst is None else replace(found.worst, participant=participant))
            for tap, found in self.taps.items()
        }
        return replace(self, participant=participant, taps=taps, certificate={})

    def first_divergence(self) -> Divergence | None:
        """The first tap whose operation is above its bound, and there the worst element."""
        return next((found.worst for found in self.taps.values() if found.impossible), None)

    def first_implausible(self) -> str | None:
        """The first tap whose errors are possible, but not likely; None if something is above its bound."""
        if self.first_divergence() is not None:
            return None
        return next((tap for tap, found in self.taps.items() if found.implausible), None)

    def worst(self) -> Divergence | None:
        """The largest ratio of all. A single addition comes as near to its bound as it can, which says nothing: those
        are left out as long as they are sound."""
        found = [
            finding.worst
            for name, finding in self.taps.items()
            if finding.worst is not None
            and finding.unjudged is None
            and (name.split(".")[-1] not in ADDITIONS or not finding.worst.ratio <= 1.0)
        ]
        return max(found, key=lambda worst: worst.ratio, default=None)

    def unjudged(self) -> tuple[str, str] | None:
        """(the first tap that could not be judged, why), or None."""
        return next(((tap, found.unjudged) for tap, found in self.taps.items() if found.unjudged), None)


def reading_for(participant: Participant) -> BoundedReading:
    """The bounds that hold for a participant of its precision."""
    units = UNITS[participant.precision]
    if participant.precision == "bfloat16" and participant.kind != "backend":
        units = KEPT_IN_BFLOAT16
    return BoundedReading(units, participant.precision)


def examine(
    participant: Participant,
    truth: OwnModel,
    prompts: Sequence[np.ndarray],
    look_on: Callable[[int, str, np.ndarray], None] | None = None,
) -> Examination:
    """Runs the participant on every prompt (token ids [T]) and compares each tap that it shows.

    truth: our model on NumPy in float64 with the plain operations. look_on(prompt, tap name, value) sees what the
    participant showed, while it is there. Raises ConfigurationError for a tap that there is not, or of another shape.
    """
    examination = Examination(participant.name, participant.precision)
    reading = reading_for(participant)
    params = reading.parameters(truth.model.params)
    add_derived(truth.config, reading, params)
    for number, token_ids in enumerate(prompts):
        shown = TapsByName(participant.taps(token_ids), participant.name)
        true = TapsByName(truth.taps(token_ids), truth.name)
        judge = _Judge(examination, participant, reading, shown, true, number, look_on)
        ids = np.asarray(token_ids, np.int64)[None]
        try:
            forward(reading, truth.config, params, ids, np.zeros(1, np.int64), tap=judge)
        except (IndexError, NoSuchExpert):
            if examination.first_divergence() is None:
                raise
            continue  # a wrong choice that cannot be carried out, such as an expert that there is not
        judge.finish()
    examination.unbounded = list(reading.unjudged)
    return examination


@dataclass
class _Judge:
    """The tap that judges, for one prompt. hidden: the taps that were not shown; since: after the last that was."""

    examination: Examination
    participant: Participant
    reading: BoundedReading
    shown: TapsByName
    true: TapsByName
    prompt: int
    look_on: Callable[[int, str, np.ndarray], None] | None
    names: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    since: list[str] = field(default_factory=list)

    def __call__(self, name: str, expected: Any) -> Any:
        self.names.append(name)
        true, value = np.asarray(self.true.take(name)), self.shown.take(name)
        if value is None:
            self.since.append(name)
            self.hidden.append(name)
            if name not in self.examination.hidden:
                self.examination.hidden.append(name)
            return expected
        value = fitting(value, name, expected.shape, self.participant)
        if isinstance(expected, Bounded) and value.dtype.kind == "f":
            # Some hide a key by a large negative number: behind the softmax it is 0 all the same.
            value = np.where(np.isneginf(expected.value) & (value <= MASKED), value.dtype.type(-np.inf), value)
        if self.look_on is not None:
            self.look_on(self.prompt, name, value)
        finding = self.examination.taps.setdefault(name, TapFinding())
        if not isinstance(expected, Bounded):
            return self._choice(name, value, expected, finding)
        finding.total.append(errors_of(value, true, self.participant.precision))
        added = difference(value, expected.value)
        finding.added.take(added)
        finding.inherited.take(difference(expected.value, true))
        finding.unjudged = finding.unjudged or self._vague(expected)
        finding.likelihood.take(added, expected.likely)
        self._keep_worst(name, value, expected, added, finding)
        if name == "logits":
            self.examination.logits.append(agreement_of(value[0], true[0], prompt=self.prompt))
        elif value.ndim == 3:
            finite = np.abs(value[np.isfinite(value)])
            self.examination.largest_value = max(self.examination.largest_value, float(finite.max(initial=0.0)))
        self.since = []
        # Ours hide alone what is inside a fused operation, and here is its result.
        if self.participant.kind == "backend":
            self.hidden = []
        # A product that a compiler joined to what follows was not rounded before it: what is shown is.
        shown = self.reading.shown(value, fused=expected.factor)
        otherwise = getattr(self.participant, "read_otherwise", None)
        if otherwise is not None and (read := otherwise(name, value)) is not None:
            off = READ_ROUNDING * np.abs(np.asarray(read, np.float64))
            return Bounded(read, (off, off), self.reading)
        return shown

    def _choice(self, name: str, value: np.ndarray, expected: Any, finding: TapFinding) -> Any:
        """Integers or booleans: equal to what the numbers say, or another choice within their bounds."""
        decided = expected if isinstance(expected, Decided) else Decided(expected, False, self.reading)
        wrong = value.astype(np.int64) != decided.value.astype(np.int64)
        finding.total.append(errors_of(value.astype(np.float64), decided.value.astype(np.float64), "float64"))
        finding.margin = min(finding.margin if finding.margin is not None else np.inf, decided.margin)
        allowed = decided.allowed(value) if decided.allowed is not None else not np.any(wrong & ~decided.unsure)
        if not allowed and (finding.worst is None or finding.worst.ratio <= 1.0):
            place = tuple(np.argwhere(wrong)[0]) if wrong.any() else (0,) * value.ndim
            finding.worst = self._divergence(name, np.inf, place, value, decided.value, np.zeros(value.shape))
        self.since = []
        return value.astype(decided.value.dtype)

    def _vague(self, expected: Bounded) -> str | None:
        """Why the bound says nothing, or None."""
        if expected.unjudged:
            return expected.unjudged
        few_bits = self.reading.levels[0].kernel > 0.0
        limit = VAGUE_IN_FEW_BITS if few_bits else VAGUE
        if _size(expected.likely) <= max(limit * _size(expected.value), FLUSHED):
            return None
        if np.isinf(expected.error).any():
            return "some of it may be beyond the largest number of its precision, or hang on a choice that is not shown"
        if not self.hidden:  # all is shown: nothing sharper can be said of this operation in this precision
            return None
        how = " (ops=manual does)" if self.participant.kind == "backend" else ""
        return f"too little is shown before it; show {', '.join((self.since or self.hidden)[-4:])}{how}"

    def _keep_worst(
        self, name: str, value: np.ndarray, expected: Bounded, added: np.ndarray, finding: TapFinding
    ) -> None:
        if not added.size:
            return
        ratio = ratios(added, expected.error)
        place = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
        if finding.worst is not None and ratio[place] <= finding.worst.ratio:
            return
        finding.worst = self._divergence(name, ratio[place], place, value, expected.value, expected.error)
        if ratio[place] > 1.0:
            finding.worst = replace(finding.worst, hint=looks_like(name, value, added))

    def _divergence(
        self, tap: str, ratio: float, place: Any, value: np.ndarray, expected: np.ndarray, bound: np.ndarray
    ) -> Divergence:
        numbers = float(value[place]), float(expected[place]), float(bound[place])
        position = tuple(int(index) for index in place)
        return Divergence(
            self.participant.name, self.participant.precision, tap, float(ratio), self.prompt, position, *numbers
        )

    def finish(self) -> None:
        """After the last tap: what was shown and has no place, and the certificate."""
        examination, known = self.examination, {name: place for place, name in enumerate(self.names)}
        for name in self.shown.left():
            near = get_close_matches(name, self.names, 1)
            meant = f"; is {near[0]!r} meant?" if near else " (docs/taps.md)."
            message = f"{self.participant.name} shows {name!r}, which is no tap of this model{meant}"
            raise refusal(self.participant)(message)
        examination.order = self.names
        examination.taps = dict(sorted(examination.taps.items(), key=lambda item: known[item[0]]))
        for name, (roundings, doubtful) in getattr(self.participant, "certificate", {}).items():
            before = examination.certificate.get(name, (0, 0))
            examination.certificate[name] = before[0] + roundings, before[1] + doubtful


def looks_like(tap: str, value: np.ndarray, added: np.ndarray) -> str | None:
    """What a difference looks like, in a sentence, if it looks like something."""
    if np.isnan(value).any():
        return "It holds NaN."
    if not np.isfinite(added).all():
        return "It is infinite where it should not be, or not where it should."
    if tap == "logits" and value.shape[-1] > 1:
        each = added.mean(axis=-1, keepdims=True)
        if np.abs(added - each).max() <= 1e-3 * np.abs(each).max():
            return "The logits are off by one number for each row, which changes no probability."
    return None


def _size(x: np.ndarray) -> float:
    """The root mean square of what is finite in x; infinite if x holds +inf."""
    if np.any(x == np.inf):
        return np.inf
    finite = x[np.isfinite(x)]
    return float(np.sqrt(np.mean(np.square(finite)))) if finite.size else 0.0
