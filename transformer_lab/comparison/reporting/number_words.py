"""Numbers of a report in words, for the page and the console: short, and enough digits to tell them apart."""

import math

DASH = "–"


def number(value: object, digits: int = 3) -> str:
    """0.0123, 812, 1.23e-7, 12,345; a dash for what is not known, words for what is no number."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 10**15 else number(float(min(max(value, -(10**300)), 10**300)), digits)
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    if value == 0:
        return "0"
    if 10 ** (digits - 1) <= abs(value) < 1e6:
        return f"{value:,.0f}"
    if 1e-3 <= abs(value) < 10**digits:
        return f"{value:.{digits}g}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def share(value: float | None) -> str:
    """A share of 1 as a percentage: 99.74%. Only what is 1 is called 100%."""
    if value is None or not math.isfinite(value):
        return number(value)
    percent = f"{100 * value:.2f}"
    if percent == "100.00" and value < 1:
        percent = "99.99"
    return f"{percent.rstrip('0').rstrip('.')}%"


def cosine(value: float | None) -> str:
    """A cosine, with as many digits as its distance from 1 needs: 1 - 2.5e-13, 0.9712."""
    if value is None or not 0.999 < value < 1:
        return number(value, 4)
    return f"1 - {number(1 - value, 2)}"
