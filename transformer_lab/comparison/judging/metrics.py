"""How far the values of one tap are from the truth: the error in several measures, all computed in float64.

Nothing here says what is too much; that is for bounds. Big taps are taken in pieces, so that little memory is needed
beside them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

PIECE = 2**18  # elements; some arrays of it are alive at a time, 2 MB each

LARGEST, NORMS = ("max_abs", "max_rel", "ulp_max", "ulp_p99"), ("error_norm", "truth_norm", "value_norm")
MEASURES = ("max_abs", "max_rel", "ulp_max", "ulp_p99", "rms", "snr_db", "cosine")

# The bits of a significand and the exponent of the smallest normal number, of what a tap is stored in.
_FORMATS = {"float32": (24, -126), "float64": (53, -1022)}


@dataclass(frozen=True)
class Errors:
    """The errors of one tap, of one prompt or of several.

    elements: how many were compared. max_abs: the largest |value - truth|. max_rel: the largest |value - truth| /
    |truth|; places where the truth is 0 are left out. ulp_max, ulp_p99: the largest distance in units of the last
    place (see `unit_of_last_place`), and the smallest that 99 % of the elements do not exceed.
    error_norm, truth_norm, value_norm: roots of the sums of squares. cosine: of the angle between values and truth; 1
    where both are 0 everywhere or nothing differs, 0 where only one of them is.

    The same infinity on both sides (masked scores) is no difference and counts nowhere. Any other place with a NaN or
    an infinity, a NaN on both sides too, makes every distance infinite and the cosine NaN.
    """

    elements: int
    max_abs: float
    max_rel: float
    ulp_max: float
    ulp_p99: float
    error_norm: float
    truth_norm: float
    value_norm: float
    cosine: float

    @property
    def rms(self) -> float:
        """The root of the mean squared error."""
        return self.error_norm / math.sqrt(self.elements) if self.elements else 0.0

    @property
    def snr_db(self) -> float:
        """10 log10(sum truth^2 / sum error^2), in decibels: inf if nothing differs, -inf if the truth is 0."""
        if self.error_norm == 0.0:
            return math.inf
        if self.truth_norm == 0.0 or math.isinf(self.error_norm):
            return -math.inf
        # two logarithms: the quotient could overflow
        return 20.0 * (math.log10(self.truth_norm) - math.log10(self.error_norm))

    def measures(self) -> dict[str, float]:
        """Those of the report, by name."""
        return {name: getattr(self, name) for name in MEASURES}


NO_ERRORS = Errors(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)


def errors_of(values: np.ndarray, truth: np.ndarray, precision: str) -> Errors:
    """values, truth: real arrays of one shape, any shape. precision: the participant's; it decides what a unit is."""
    if values.shape != truth.shape:
        reason = f"values have the shape {values.shape}, the truth {truth.shape}"
        raise ValueError(reason)
    flat, true = values.reshape(-1), truth.reshape(-1)
    units = np.empty(flat.size, np.float64)  # the distances; their 99th percentile needs all of them
    pieces, filled = [], 0
    for start in range(0, flat.size, PIECE):
        stop = start + PIECE
        piece, distances = _errors_of_piece(flat[start:stop], true[start:stop], precision)
        pieces.append(piece)
        units[filled : filled + len(distances)] = distances
        filled += len(distances)
    return replace(merge(pieces), ulp_p99=_percentile_99(units[:filled]))


def merge(several: Sequence[Errors]) -> Errors:
    """The errors of several prompts as if they were one array; but ulp_p99 is the largest of theirs."""
    if not several:
        return NO_ERRORS
    largest = {name: max(getattr(one, name) for one in several) for name in LARGEST}
    norms = {name: math.hypot(*(getattr(one, name) for one in several)) for name in NORMS}
    error, truth, value = norms.values()
    if error == 0.0:
        cosine = 1.0
    elif truth == 0.0 or value == 0.0:
        cosine = 0.0
    else:
        cosine = sum(one.cosine * (one.truth_norm / truth) * (one.value_norm / value) for one in several)
        cosine = cosine if math.isnan(cosine) else min(max(cosine, -1.0), 1.0)
    return Errors(sum(one.elements for one in several), **largest, **norms, cosine=cosine)


def unit_of_last_place(truth: np.ndarray, precision: str) -> np.ndarray:
    """The distance of neighbouring numbers at |truth|, in the format that taps of this precision are stored in.

    That is float64 for float64 and float32 for all others (exact, bfloat16 and int8 hand out float32). For 2^e <=
    |truth| < 2^(e + 1) it is 2^(e - 23) in float32 and 2^(e - 52) in float64: at a power of two the distance to the
    next larger number, twice that to the next smaller. Truths between two numbers of the format have the unit of those
    two, and truths too large for it go on in the same way. Below the smallest normal number and at 0 the unit is that
    number itself: XLA takes denormals for 0, which is no error of an operation. A sign is not looked at; the distance
    of numbers of different sign leads through 0.
    """
    bits, lowest = _FORMATS["float64" if precision == "float64" else "float32"]
    _, exponent = np.frexp(np.abs(truth.astype(np.float64)))  # |truth| = f 2^exponent, 1/2 <= f < 1
    normal = (exponent > lowest) & (truth != 0.0)
    return np.where(normal, np.ldexp(1.0, np.maximum(exponent, lowest + 1) - bits), math.ldexp(1.0, lowest))


def _errors_of_piece(values: np.ndarray, truth: np.ndarray, precision: str) -> tuple[Errors, np.ndarray]:
    """Without ulp_p99, and the distances [n] in units of the last place."""
    values, truth = values.astype(np.float64), truth.astype(np.float64)
    different = ~(np.isinf(truth) & (values == truth))
    values, truth = values[different], truth[different]
    if not len(values):
        return NO_ERRORS, values
    finite = np.isfinite(values) & np.isfinite(truth)
    with np.errstate(all="ignore"):  # infinity is the right answer to an overflow here, and NaN is looked for
        error = np.where(finite, np.abs(values - truth), math.inf)
        units = np.where(finite, error / unit_of_last_place(np.where(finite, truth, 0.0), precision), math.inf)
        relative = np.where(finite, error / np.abs(truth), math.inf)[~finite | (truth != 0.0)]
        error_size, error_scale = _size(error)
        true_size, true_scale = _size(truth)
        size, scale = _size(values)
        product = float(((truth / true_scale) * (values / scale)).sum())
    errors = Errors(
        elements=len(error),
        max_abs=float(error.max()),
        max_rel=float(relative.max(initial=0.0)),
        ulp_max=float(units.max()),
        ulp_p99=0.0,
        error_norm=error_size * error_scale,
        truth_norm=true_size * true_scale,
        value_norm=size * scale,
        cosine=product / (true_size * size) if true_size and size else 0.0,
    )
    return errors, units


def _size(array: np.ndarray) -> tuple[float, float]:
    """(root of the sum of squares / scale, scale): a power of two, so that squares neither overflow nor vanish."""
    peak = float(np.abs(array).max())
    if not 0.0 < peak < math.inf:
        return abs(peak), 1.0
    scale = math.ldexp(1.0, max(math.frexp(peak)[1] - 1, -1022))
    small = array / scale
    return math.sqrt(float((small * small).sum())), scale


def _percentile_99(values: np.ndarray) -> float:
    """The smallest of the values [n] that 99 % of them do not exceed; reorders them."""
    if not len(values):
        return 0.0
    place = -(-99 * len(values) // 100) - 1
    values.partition(place)
    return float(values[place])
