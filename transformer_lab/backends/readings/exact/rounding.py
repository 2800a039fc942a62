"""Correctly rounded float32 values of the operations, in decimal arithmetic on the host, for the few doubtful elements.

Slow and obvious: each function takes NumPy arrays of n elements (or n rows), computes each with 32 digits or more, and
rounds once, to float32. Inputs are float64 arrays that hold float32 values. Returned as float64.
"""

import math
from collections.abc import Callable, Iterable
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import numpy as np

DIGITS = 32  # a value that these leave in doubt would lie within 10^-24 of a unit of the middle of two float32
ZERO = Decimal(0)


def to_float32(value: Decimal) -> float:
    """The float32 nearest to a decimal, ties to even, as a Python float."""
    nearest = _nearest(float(value))
    if not np.isfinite(nearest):
        return float(nearest)
    # Going through float64 rounds twice; the neighbours show whether that mattered.
    candidates = [np.nextafter(nearest, np.float32(-np.inf)), nearest, np.nextafter(nearest, np.float32(np.inf))]
    finite = [float(candidate) for candidate in candidates if np.isfinite(candidate)]

    def distance(candidate: float) -> tuple[Decimal, int]:
        odd = int(np.float32(candidate).view(np.uint32)) & 1
        return abs(Decimal(candidate) - value), odd

    return min(finite, key=distance)


def _nearest(value: float) -> np.float32:
    with np.errstate(over="ignore"):
        return np.float32(value)


def each(compute: Callable[..., Decimal], *arrays: Any, digits: int = DIGITS) -> Any:
    """compute(elements of each array) for every index of the first axis, rounded to float32 -> float64 [n]."""
    with localcontext() as context:
        context.prec = digits
        context.Emin, context.Emax = -999999, 999999
        return np.array([to_float32(compute(*elements)) for elements in zip(*arrays, strict=True)], np.float64)


def each_fraction(compute: Callable[..., Fraction], *arrays: Any) -> Any:
    """The same in fractions, without any rounding before the last."""
    return np.array([fraction_to_float32(compute(*elements)) for elements in zip(*arrays, strict=True)], np.float64)


def fraction_to_float32(value: Fraction) -> float:
    """The float32 nearest to a fraction, ties to even, as a Python float."""
    nearest = _nearest(_float(value))
    if not np.isfinite(nearest):
        return float(nearest)
    near = [np.nextafter(nearest, np.float32(-np.inf)), nearest, np.nextafter(nearest, np.float32(np.inf))]
    finite = [float(candidate) for candidate in near if np.isfinite(candidate)]
    return min(finite, key=lambda x: (abs(Fraction(x) - value), int(np.float32(x).view(np.uint32)) & 1))


def _float(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def decimals(row: Iterable[float]) -> list[Decimal]:
    return [Decimal(float(value)) for value in row]


def pi(digits: int) -> Decimal:
    """To that many digits, by Machin's formula, pi = 16 arctan(1/5) - 4 arctan(1/239)."""
    total = Decimal(0)
    for factor, number in ((16, 5), (-4, 239)):
        power, k = Decimal(1) / number, 0
        while abs(power) > Decimal(10) ** -(digits + 5):
            total += factor * power / (2 * k + 1)
            power, k = -power / (number * number), k + 1
    return total


def layer_norm(rows: Any, places: Any, weights: Any, biases: Any, epsilon: float) -> Any:
    def compute(row: Any, place: Any, weight: Any, bias: Any) -> Decimal:
        values = decimals(row)
        mean = sum(values, ZERO) / len(values)
        variance = sum(((value - mean) ** 2 for value in values), ZERO) / len(values)
        normal = (values[int(place)] - mean) / (variance + Decimal(epsilon)).sqrt()
        return normal * Decimal(float(weight)) + Decimal(float(bias))

    return each(compute, rows, places, weights, biases)


def rms_norm(rows: Any, places: Any, weights: Any, epsilon: float) -> Any:
    def compute(row: Any, place: Any, weight: Any) -> Decimal:
        values = decimals(row)
        square = sum((value * value for value in values), ZERO) / len(values)
        return values[int(place)] / (square + Decimal(epsilon)).sqrt() * Decimal(float(weight))

    return each(compute, rows, places, weights)


def softmax(rows: Any, places: Any) -> Any:
    def compute(row: Any, place: Any) -> Decimal:
        here = Decimal(float(row[int(place)]))
        return 1 / sum(((Decimal(float(value)) - here).exp() for value in row if value != -math.inf), ZERO)

    return each(compute, rows, places)


def cross_entropy(rows: Any, targets: Any) -> Any:
    def compute(row: Any, target: Any) -> Decimal:
        here = Decimal(float(row[int(target)]))
        return sum(((Decimal(float(value)) - here).exp() for value in row), ZERO).ln()

    return each(compute, rows, targets)


def gelu_tanh(x: Any) -> Any:
    with localcontext() as context:
        context.prec = DIGITS
        slope = -2 * (2 / pi(DIGITS)).sqrt()

    def compute(value: Any) -> Decimal:
        exact = Decimal(float(value))
        return exact / (1 + (slope * (exact + Decimal("0.044715") * exact**3)).exp())

    return each(compute, x)


def silu(x: Any) -> Any:
    def compute(value: Any) -> Decimal:
        exact = Decimal(float(value))
        return exact / (1 + (-exact).exp())

    return each(compute, x)


def gelu_erf(x: Any) -> Any:
    """x Phi(x), with Phi from the series of erf; its terms cancel for negative x, so they get more digits."""

    def compute(value: Any) -> Decimal:
        exact = Decimal(float(value))
        if abs(exact) > 14:  # Phi is within 1e-44 of 1, or the result below every float32 that counts
            return max(exact, Decimal(0))
        with localcontext() as context:
            context.prec = DIGITS + int(exact * exact) + 10  # cancellation costs less than x^2 digits
            argument = exact / Decimal(2).sqrt()
            term = total = argument
            k = 0
            while abs(term) > Decimal(10) ** -(context.prec + 5):
                k += 1
                term = -term * argument * argument / k
                total += term / (2 * k + 1)
            return exact * (1 + 2 * total / pi(context.prec).sqrt()) / 2

    return each(compute, x)


# --- elementary functions of single elements -------------------------------------------------------------------------


def exp(x: Any) -> Any:
    return each(lambda value: Decimal(float(value)).exp(), x)


def expm1(x: Any) -> Any:
    return each(lambda value: Decimal(float(value)).exp() - 1, x, digits=2 * DIGITS + 20)  # it cancels near 0


def log(x: Any) -> Any:
    return each(lambda value: Decimal(float(value)).ln(), x)


def log2(x: Any) -> Any:
    return each(lambda value: Decimal(float(value)).ln() / Decimal(2).ln(), x)


def log10(x: Any) -> Any:
    return each(lambda value: Decimal(float(value)).log10(), x)


def log1p(x: Any) -> Any:
    """1 + x is exact with these digits: the smallest float32 that counts is 2^-126."""
    return each(lambda value: (1 + Decimal(float(value))).ln(), x, digits=200)


def tanh(x: Any) -> Any:
    def compute(value: Any) -> Decimal:
        power = (-2 * abs(Decimal(float(value)))).exp()
        return ((1 - power) / (1 + power)).copy_sign(Decimal(float(value)))

    return each(compute, x, digits=2 * DIGITS + 20)


def sigmoid(x: Any) -> Any:
    return each(lambda value: 1 / (1 + (-Decimal(float(value))).exp()), x)


def sin(x: Any) -> Any:
    return each(lambda value: _circular(value, 1), x, digits=120)


def cos(x: Any) -> Any:
    return each(lambda value: _circular(value, 0), x, digits=120)


def _circular(value: Any, first: int) -> Decimal:
    """The series of the sine (first = 1) or the cosine (0), after whole turns are taken off."""
    turn = 2 * pi(120)
    rest = Decimal(float(value)).remainder_near(turn)
    term = total = rest if first else Decimal(1)
    k = first
    while abs(term) > Decimal(10) ** -110:
        term = -term * rest * rest / ((k + 1) * (k + 2))
        total += term
        k += 2
    return total


def erfc(x: Any) -> Any:
    """1 - erf(x) from the series of erf, with more digits than cancel."""

    def compute(value: Any) -> Decimal:
        exact = Decimal(float(value))
        if abs(exact) > 14:  # below every float32 that counts, or within 1e-80 of 2
            return Decimal(0) if exact > 0 else Decimal(2)
        with localcontext() as context:
            context.prec = DIGITS + 2 * int(exact * exact) + 20
            term = total = exact
            k = 0
            while abs(term) > Decimal(10) ** -(context.prec + 5):
                k += 1
                term = -term * exact * exact / k
                total += term / (2 * k + 1)
            return 1 - 2 * total / pi(context.prec).sqrt()

    return each(compute, x)


def power(bases: Any, powers: Any) -> Any:
    def compute(base: Any, power: Any) -> Decimal:
        size, exponent = abs(Decimal(float(base))), Decimal(float(power))
        value = _snapped((exponent * size.ln()).exp())
        return -value if base < 0 and int(exponent) % 2 else value

    return each(compute, bases, powers, digits=2 * DIGITS + 20)


def _snapped(value: Decimal) -> Decimal:
    """A power that lies this near to a number of 25 bits is that number: it may be the middle of two float32."""
    mantissa, exponent = math.frexp(float(value))
    if not math.isfinite(mantissa):
        return value
    near = Decimal(math.ldexp(round(math.ldexp(mantissa, 25)), exponent - 25))
    return near if abs(near - value) < value.scaleb(-2 * DIGITS) else value


def quotient_floor(a: Any, b: Any) -> Any:
    return each_fraction(lambda p, q: Fraction(math.floor(Fraction(float(p)) / Fraction(float(q)))), a, b)


# --- sums and products of rows ---------------------------------------------------------------------------------------


def fractions(row: Iterable[float]) -> list[Fraction]:
    return [Fraction(float(value)) for value in row]


def sums(values: Any, doubtful: Any, terms: Any, scale: float = 1.0) -> Any:
    """`values`; where they are doubtful the sum of the row of `terms`, rounded to odd in float64, times scale."""
    found = np.array(values)
    for place in np.flatnonzero(doubtful):
        found[place] = _sum_to_odd(terms[place].tolist()) * scale
    with np.errstate(over="ignore"):
        return found.astype(np.float32).astype(np.float64)


def _sum_to_odd(row: list[float]) -> float:
    total = math.fsum(row)  # rounded once (Shewchuk)
    left = math.fsum([*row, -total])
    if left == 0.0 or int(np.float64(total).view(np.int64)) & 1:
        return total
    return math.nextafter(total, math.copysign(math.inf, left))


def mean(rows: Any) -> Any:
    return each_fraction(lambda row: sum(fractions(row), Fraction(0)) / len(row), rows)


def variance(rows: Any, correction: float = 0.0) -> Any:
    def compute(row: Any) -> Fraction:
        values = fractions(row)
        centre = sum(values, Fraction(0)) / len(values)
        return sum(((value - centre) ** 2 for value in values), Fraction(0)) / (len(values) - Fraction(correction))

    return each_fraction(compute, rows)


def product(rows: Any) -> Any:
    return each_fraction(lambda row: math.prod(fractions(row), start=Fraction(1)), rows)


def prefix(rows: Any, places: Any) -> Any:
    return each_fraction(lambda row, place: sum(fractions(row[: int(place) + 1]), Fraction(0)), rows, places)


def logsumexp(rows: Any) -> Any:
    def compute(row: Any) -> Decimal:
        largest = Decimal(float(max(row)))
        return largest + sum(((Decimal(float(x)) - largest).exp() for x in row if x != -math.inf), ZERO).ln()

    return each(compute, rows, digits=2 * DIGITS + 20)
