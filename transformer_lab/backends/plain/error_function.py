"""erfc written in plain algebra, for NumPy, which has none, and for exact mode, where its error must be known.

For x >= 0, erfc(x) = exp(-x^2) / (1 + x) * g((x - 3.75) / (x + 3.75)), where g is smooth on [-1, 1] and is summed as a
Chebyshev series. The change of variable is that of J. L. Schonfelder, "Chebyshev expansions for the error and related
functions", Math. Comp. 32 (1978). The coefficients were computed with 50 digits from the definition of g at 64
Chebyshev nodes; the first one left out is 1e-18.
"""

from typing import Any

COEFFICIENTS = (
    0.741325237764501,
    -0.21971566364661196,
    0.046051030138543794,
    -0.0007504278055287622,
    -0.004473299719805819,
    0.0023769391425689855,
    -0.0007794734317652548,
    0.00018181037295832297,
    -2.8960782890670414e-05,
    2.2260459357474463e-06,
    2.5152511904108047e-07,
    -9.406319389542768e-08,
    6.6403099252853055e-09,
    1.7465149449876756e-09,
    -3.7274798434801474e-10,
    -1.8564546834730745e-11,
    1.3026555109276764e-11,
    -2.244229060420929e-13,
    -4.2650614129744625e-13,
    2.4903492080291527e-14,
    1.460698409157195e-14,
    -1.2049998697295198e-15,
    -5.460864473983663e-16,
    4.750081487925711e-17,
    2.2350550882033506e-17,
)


def erfc(xp: Any, x: Any) -> Any:
    """1 - erf(x), elementwise, with a relative error of a few units of float64 times max(1, x^2). x is float64."""
    magnitude = xp.abs(x)
    t = (magnitude - 3.75) / (magnitude + 3.75)
    # Clenshaw's recurrence, from the smallest coefficient to the largest.
    later, last = 0.0 * t, 0.0 * t
    for coefficient in COEFFICIENTS[:0:-1]:
        later, last = 2.0 * t * later - last + coefficient, later
    series = t * later - last + COEFFICIENTS[0]
    upper = xp.exp(-xp.clip(magnitude * magnitude, None, 744.0)) / (1.0 + magnitude) * series
    return xp.where(x < 0.0, 2.0 - upper, upper)
