"""How many tokens an expert has room for."""

import math
from fractions import Fraction


def room(factor: float, tokens: int, experts: int = 1) -> int:
    """ceil(factor * tokens / experts), of the factor as it is written: 1.1 of 40 tokens for 4 experts are 11, and not
    12, as the binary number beside 1.1 would have it."""
    return math.ceil(Fraction(str(factor)) * tokens / experts)
