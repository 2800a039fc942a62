"""Correctly rounded float32 values of the gradients, in decimal arithmetic on the host, for the few doubtful elements.

As `rounding.py`, and with its tools: each function takes NumPy arrays of n elements (or n rows), computes each with
more digits than can matter, and rounds once. g is the gradient of the loss at the operation's result.
"""

import math
from decimal import Decimal, localcontext
from functools import partial
from typing import Any

from transformer_lab.backends.readings.exact import rounding
from transformer_lab.backends.readings.exact.rounding import ZERO, decimals, pi

# A gradient may be the small rest of large terms: more digits than a value gets.
DIGITS = 80
# Three float32 have 149 binary places each, and as many decimal ones; 3 * 39 digits may stand before the point. With
# these, sums and products of three of them are exact.
EXACT_DIGITS = 600


each = partial(rounding.each, digits=DIGITS)


def layer_norm(places: Any, rows: Any, g_rows: Any, weights: Any, epsilon: float) -> Any:
    def compute(place: Any, row: Any, g_row: Any, weight: Any) -> Decimal:
        values = decimals(row)
        mean = sum(values, ZERO) / len(values)
        h = [g * w for g, w in zip(decimals(g_row), decimals(weight), strict=True)]
        return _through_norm(int(place), [value - mean for value in values], h, sum(h, ZERO) / len(h), epsilon)

    return each(compute, places, rows, g_rows, weights)


def rms_norm(places: Any, rows: Any, g_rows: Any, weights: Any, epsilon: float) -> Any:
    def compute(place: Any, row: Any, g_row: Any, weight: Any) -> Decimal:
        h = [g * w for g, w in zip(decimals(g_row), decimals(weight), strict=True)]
        return _through_norm(int(place), decimals(row), h, ZERO, epsilon)

    return each(compute, places, rows, g_rows, weights)


def _through_norm(place: int, values: list[Decimal], h: list[Decimal], mean_h: Decimal, epsilon: float) -> Decimal:
    """r (h - mean_h - n mean (h n)) at one place, with n = values r. As n stands there twice, so does r^2."""
    size = len(values)
    square = sum((value * value for value in values), ZERO) / size + Decimal(epsilon)
    inner = sum((a * b for a, b in zip(h, values, strict=True)), ZERO) / size
    return (h[place] - mean_h - values[place] * inner / square) / square.sqrt()


def softmax(places: Any, patterns: Any, g_rows: Any) -> Any:
    def compute(place: Any, pattern: Any, g_row: Any) -> Decimal:
        mean = sum(
            (Decimal(float(p)) * Decimal(float(g)) for p, g in zip(pattern, g_row, strict=True) if p != 0.0), ZERO
        )
        return Decimal(float(pattern[int(place)])) * (Decimal(float(g_row[int(place)])) - mean)

    return each(compute, places, patterns, g_rows, digits=EXACT_DIGITS)


def cross_entropy(places: Any, rows: Any, g: Any, targets: Any) -> Any:
    def compute(place: Any, row: Any, number: Any, target: Any) -> Decimal:
        here = Decimal(float(row[int(place)]))
        others = [float(value) for index, value in enumerate(row) if index != int(place) and value != -math.inf]
        rest = sum(((Decimal(value) - here).exp() for value in others), ZERO)
        return Decimal(float(number)) * (-rest if int(place) == int(target) else 1) / (1 + rest)

    return each(compute, places, rows, g, targets)


def sigmoid(x: Any, g: Any) -> Any:
    def compute(value: Any, number: Any) -> Decimal:
        power = (-abs(Decimal(float(value)))).exp()
        return Decimal(float(number)) * power / (1 + power) ** 2

    return each(compute, x, g)


def silu(x: Any, g: Any) -> Any:
    def compute(value: Any, number: Any) -> Decimal:
        exact = Decimal(float(value))
        power = (-exact).exp()
        s = 1 / (1 + power)
        return Decimal(float(number)) * (s + exact * s * (power * s))

    return each(compute, x, g)


def gelu_tanh(x: Any, g: Any) -> Any:
    with localcontext() as context:
        context.prec = DIGITS
        twice = 2 * (2 / pi(DIGITS)).sqrt()

    def compute(value: Any, number: Any) -> Decimal:
        exact = Decimal(float(value))
        power = (-twice * (exact + Decimal("0.044715") * exact**3)).exp()
        s = 1 / (1 + power)
        lean = exact * s * (power * s) * twice * (1 + 3 * Decimal("0.044715") * exact**2)
        return Decimal(float(number)) * (s + lean)

    return each(compute, x, g)


def gelu_erf(x: Any, g: Any) -> Any:
    """g (F(x) + x f(x)); F is 1/2 and the integral of f, by a series; for negative x they cancel."""

    def compute(value: Any, number: Any) -> Decimal:
        exact = Decimal(float(value))
        if abs(exact) > 20:  # the slope is within 1e-85 of 0 or 1, and g at most 3.5e38
            return Decimal(float(number)) if exact > 0 else ZERO
        with localcontext() as context:
            context.prec = DIGITS + int(exact * exact) + 10  # cancellation costs less than x^2 digits
            density = (-exact * exact / 2).exp() / (2 * pi(context.prec)).sqrt()
            # F(x) = 1/2 + f(x) (x + x^3/3 + x^5/(3*5) + ...): all terms have one sign
            term = total = exact
            k = 1
            while abs(term) > Decimal(10) ** -(context.prec + 5):
                k += 2
                term = term * exact * exact / k
                total += term
            return Decimal(float(number)) * (Decimal("0.5") + density * (total + exact))

    return each(compute, x, g)
