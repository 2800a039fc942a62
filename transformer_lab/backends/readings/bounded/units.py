"""What one rounding may cost in each precision, for the worst case and for what is likely.

The worst case is the standard one of rounding error analysis (Higham, Accuracy and Stability of Numerical Algorithms,
2nd edition, 2002, chapters 3 and 4): a sum of n products in any order is off by at most gamma_n = n u / (1 - n u) times
the sum of their absolute values. Nothing that computes the operation in this precision exceeds it.

Likely is a model: roundings are independent and of mean zero. Then errors grow with the root of n (Higham and Mary,
SIAM Journal on Scientific Computing 41, 2019; Connolly, Higham and Mary, ibid. 43, 2021), and sqrt(n) u times the sum
of absolute values bounds the standard deviation. An error of more than `LARGEST` of these has a probability below
2 exp(-LARGEST^2 / 2), 3e-14, for each element; one whose mean square is above the variance is as improbable, since each
of the bound's steps was taken for its worst.
"""

import math
from dataclasses import dataclass, replace

JUDGE = 2.0**-53  # what is computed here is itself only float64
LARGEST = 8.0


@dataclass(frozen=True)
class Units:
    """Roundings, relative to the result.

    inner: of each step inside an operation. stored: of an operation's result, where it is kept. kernel: of the
    inputs and the result of a product whose kernel is stored in fewer bits. levels: the kernel's columns are stored
    in that many steps on each side of 0 (int8). smallest: results below it may be flushed to 0. largest: from here
    on they are infinite. activation: of each step of an activation function, relative to its argument, where these
    are kept, too. weights: of every parameter. few: how many an elementary function and the few operations around
    it may cost: torch's exp inside its attention is off by up to 20 units in the last place (its name is exp_u20),
    the others by one to four. elementary: how many such a function costs alone. independent: whether roundings are
    taken for independent.
    """

    inner: float
    stored: float
    kernel: float = 0.0
    levels: int = 0
    smallest: float = 2.0**-126
    largest: float = 2.0**128
    activation: float = 0.0
    weights: float = 0.0
    few: float = 48.0
    elementary: float = 16.0
    independent: bool = False

    def gamma(self, terms: float) -> float:
        """The bound on a sum of that many terms, in any order, relative to the sum of their absolute values."""
        if self.independent:
            return math.sqrt(terms) * self.inner
        spent = terms * self.inner
        return spent / (1.0 - spent)

    def likely(self) -> "Units":
        """The same if roundings are independent: fewer of them are taken for an elementary function, too."""
        return replace(self, few=8.0, elementary=4.0, independent=True)


# Where a result is kept, two roundings are allowed: one may add the bias or apply the last factor apart from the rest.
# Exact mode rounds once, and correctly.
UNITS = {
    "float32": Units(2.0**-24 + JUDGE, 2.0 * 2.0**-24 + JUDGE),
    "float64": Units(2.0 * JUDGE, 3.0 * JUDGE, smallest=2.0**-1022, largest=math.inf),
    "exact": Units(2.0 * JUDGE, 2.0**-24 + 2.0 * JUDGE),
    "bfloat16": Units(2.0**-24, 2.0 * 2.0**-24, kernel=2.0**-8),
    "int8": Units(2.0**-24, 2.0 * 2.0**-24, kernel=2.0**-8, levels=127),
}
# Our bfloat16 keeps kernels in 16 bits and all else in float32. Elsewhere every parameter and every result is kept in
# 16, after sums in float32; a few roundings may follow each other (a product, its scale, its mask).
KEPT_IN_BFLOAT16 = Units(2.0**-24, 4.0 * 2.0**-8, kernel=2.0**-8, activation=2.0**-8, weights=2.0**-8)
