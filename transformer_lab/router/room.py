"""How many tokens an expert has room for."""

from fractions import Fraction
from functools import cache


def room(factor: float, tokens: int, experts: int = 1) -> int:
    """ceil(factor * tokens / experts), of the factor as it is written: 1.1 of 40 tokens for 4 experts are 11, and not
    12, as the binary number beside 1.1 would have it."""
    share = as_written(factor)
    return -(-share.numerator * tokens // (share.denominator * experts))


@cache
def as_written(factor: float) -> Fraction:
    """Kept, because a pass asks for the room of every length."""
    return Fraction(str(factor))
