"""Each measure against something else: SciPy, torch, NumPy's spacing, steps of nextafter, and sums done by hand."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.spatial.distance import cosine
from tolerances import MEASURE, MEASURE_FLOAT32
from torch.ao.ns.fx.utils import compute_sqnr

from transformer_lab.comparison.judging.metrics import MEASURES, NO_ERRORS, PIECE, errors_of, merge, unit_of_last_place

TINY = {"float32": 2.0**-126, "float64": 2.0**-1022}
EPSILON = {"float32": 2.0**-23, "float64": 2.0**-52}


def noisy(seed, shape=(3, 40, 17), noise=1e-6):
    generator = np.random.default_rng(seed)
    truth = generator.standard_normal(shape) * np.exp(3 * generator.standard_normal(shape))
    return (truth + noise * generator.standard_normal(shape)).astype(np.float32), truth


@pytest.mark.parametrize("noise", [1e-9, 1e-4, 3.0])
def test_every_measure_against_its_other_formula(noise):
    values, truth = noisy(0, noise=noise)
    found = errors_of(values, truth, "float32")
    wide = values.astype(np.float64)
    assert found.elements == truth.size
    assert found.max_abs == np.abs(wide - truth).max()
    assert found.max_rel == pytest.approx(max(abs(1 - v / t) for v, t in zip(wide.flat, truth.flat, strict=True)))
    assert found.rms == pytest.approx(np.linalg.norm(wide - truth) / math.sqrt(truth.size), rel=MEASURE)
    assert found.cosine == pytest.approx(1 - cosine(wide.ravel(), truth.ravel()), abs=MEASURE)
    ratio = torch.linalg.vector_norm(torch.from_numpy(truth)) / torch.linalg.vector_norm(torch.from_numpy(truth - wide))
    assert found.snr_db == pytest.approx(20 * float(torch.log10(ratio)), rel=MEASURE)
    assert found.measures() == {name: getattr(found, name) for name in MEASURES}


def test_snr_is_torchs_sqnr():
    values, truth = noisy(1, noise=1e-3)
    truth = truth.astype(np.float32)
    theirs = compute_sqnr(torch.from_numpy(truth), torch.from_numpy(values))
    assert errors_of(values, truth, "float32").snr_db == pytest.approx(float(theirs), rel=MEASURE_FLOAT32)
    assert errors_of(values, truth, "float32").snr_db != pytest.approx(float(theirs) / 2, rel=0.1), "20 log10, not 10"


@pytest.mark.parametrize("precision", ["float32", "exact", "bfloat16", "int8", "float64"])
def test_units_are_numpys_spacing(precision):
    kind = np.float64 if precision == "float64" else np.float32
    truth = (np.random.default_rng(2).standard_normal(500) * 10.0 ** np.arange(-25, 25).repeat(10)).astype(kind)
    np.testing.assert_array_equal(unit_of_last_place(truth, precision), np.spacing(np.abs(truth)).astype(np.float64))


@given(
    st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=2.0**-126),
    st.integers(0, 2**20),
    st.sampled_from([-1, 1]),
)
def test_units_count_the_steps_to_the_value(start, steps, sign):
    """Away from 0 within one binade: as many units as there are steps of nextafter, which NumPy's judge counts too."""
    truth = np.float32(start)
    value = (truth.view(np.int32) + np.int32(steps)).view(np.float32)
    if math.frexp(float(truth))[1] != math.frexp(float(value))[1] or not np.isfinite(value):
        return
    found = errors_of(np.array(sign * value), np.array(sign * truth), "float32")
    assert found.ulp_max == found.ulp_p99 == steps
    np.testing.assert_array_max_ulp(truth, value, maxulp=steps)


def test_units_around_a_power_of_two():
    for precision, kind in (("float32", np.float32), ("float64", np.float64)):
        one, half = kind(1), EPSILON[precision] / 2
        above, below = np.nextafter(one, kind(2)), np.nextafter(one, kind(0))

        def units(value, truth, precision=precision):
            return errors_of(np.array(value), np.array(truth), precision).ulp_max

        assert (units(above, one), units(below, one)) == (1.0, 0.5)
        assert (units(one, above), units(one, below)) == (1.0, 1.0)
        assert units(-one, one) == 2 / EPSILON[precision], "through 0"
        # float32 cannot hold this truth: its unit is that of its binade, not that of the number it would round to
        assert units(one, 1 - half / 4 if precision == "float32" else below) == (0.25 if kind is np.float32 else 1.0)


def test_units_of_denormals_and_zero():
    for precision, kind in (("float32", np.float32), ("float64", np.float64)):
        tiny = kind(TINY[precision])
        smallest = np.nextafter(kind(0), kind(1))

        def units(value, truth, precision=precision, kind=kind):
            return errors_of(np.array(value, kind), np.array(truth, kind), precision).ulp_max

        assert units(0, 0) == units(-0.0, 0.0) == 0.0
        assert 0 < units(smallest, 0) == units(0, smallest) < 1, "taken for 0, as XLA does"
        assert 0 < units(0, tiny / kind(2)) < 1
        assert units(0, tiny) == 1 / EPSILON[precision], "a normal number that is lost is not"
        assert units(tiny, 0) == 1.0
    assert errors_of(np.float32([1e-3]), np.array([0.0]), "float32").ulp_max > 1e30


def test_the_percentile_is_the_smallest_that_99_of_100_do_not_exceed():
    for count in (1, 2, 99, 100, 101, 700, 12345):
        steps = np.random.default_rng(count).permutation(count)
        values = (np.float32(1) + steps * np.float32(2.0**-23)).astype(np.float32)
        found = errors_of(values, np.ones(count), "float32")
        expected = next(s for s in range(count) if Fraction(s + 1, count) >= Fraction(99, 100))
        assert found.ulp_p99 == expected == np.quantile(steps, 0.99, method="inverted_cdf")
        assert found.ulp_max == count - 1


def test_identical_arrays():
    for array in (noisy(3)[0], np.zeros((2, 3), np.float32), np.float32([1e-45, -0.0]), np.array([1e300, 1e-300])):
        found = errors_of(array, array.astype(np.float64), "float32")
        assert found.measures() == dict.fromkeys(MEASURES, 0.0) | {"snr_db": math.inf, "cosine": 1.0}
        assert found.elements == array.size


def test_masked_scores_are_no_difference_and_dilute_nothing():
    truth = np.array([[1.0, -np.inf, np.inf], [2.0, 3.0, -np.inf]])
    values = truth.copy()
    values[1, 0] = 2.5
    assert errors_of(values, truth, "float32") == errors_of(np.array([1, 2.5, 3]), np.array([1.0, 2, 3]), "float32")
    assert errors_of(np.full(4, -np.inf), np.full(4, -np.inf), "float32") == NO_ERRORS


@pytest.mark.parametrize(
    ("value", "truth"),
    [(np.nan, 1.0), (np.inf, 1.0), (1.0, -np.inf), (np.inf, -np.inf), (np.nan, np.nan), (0.0, np.nan), (-np.inf, 0.0)],
)
def test_a_nan_or_an_infinity_on_one_side_is_an_infinite_error(value, truth):
    values, true = np.array([1.0, value, 2.0]), np.array([1.0, truth, 2.0])
    found = errors_of(values, true, "float32")
    assert found.max_abs == found.max_rel == found.ulp_max == found.ulp_p99 == found.rms == math.inf
    assert found.snr_db == -math.inf and math.isnan(found.cosine)
    merged = merge([errors_of(np.ones(9), np.ones(9), "float32"), found])
    assert merged.max_abs == math.inf and merged.snr_db == -math.inf and math.isnan(merged.cosine)
    assert merged.elements == 12


def test_zeros_are_left_out_of_the_relative_error_only():
    found = errors_of(np.array([0.5, 2.2]), np.array([0.0, 2.0]), "float64")
    assert found.max_rel == pytest.approx(0.1) and found.max_abs == 0.5
    nothing = errors_of(np.array([0.5]), np.array([0.0]), "float64")
    assert (nothing.max_rel, nothing.max_abs, nothing.cosine, nothing.snr_db) == (0.0, 0.5, 0.0, -math.inf)
    lost = errors_of(np.array([0.0]), np.array([0.5]), "float64")
    assert (lost.max_rel, lost.cosine, lost.snr_db) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("size", [1e-310, 1e-200, 1e200, 1e307])
def test_squares_neither_overflow_nor_vanish(size):
    found = errors_of(np.array([3.0, 4.0, 0.0]) * size, np.array([3.0, 4.0, 5.0]) * size, "float64")
    assert found.error_norm == pytest.approx(5 * size) and found.value_norm == pytest.approx(5 * size)
    assert found.cosine == pytest.approx(0.5**0.5) and found.snr_db == pytest.approx(10 * math.log10(2))
    opposite = errors_of(np.array([1.7e308]), np.array([-1.7e308]), "float64")
    assert opposite.max_abs == math.inf and opposite.cosine == -1.0


def test_the_number_types_that_a_participant_may_hand_over():
    for kind in (np.float16, np.float32, np.int8, ">f4"):
        values = np.array([1, 2, -3]).astype(kind)
        assert errors_of(values, np.array([1.0, 2.5, -3.0]), "float32").max_abs == 0.5
    transposed = noisy(4, (7, 5))
    straight = errors_of(*(array.T.copy() for array in transposed), "float32")
    assert errors_of(*(array.T for array in transposed), "float32") == straight
    assert errors_of(np.zeros((0, 3)), np.zeros((0, 3)), "float32") == NO_ERRORS
    with pytest.raises(ValueError, match=r"\(1, 3\)"):
        errors_of(np.zeros((1, 3)), np.zeros(3), "float32")


def test_pieces_change_nothing():
    values, truth = noisy(5, (2 * PIECE + 77,), noise=1e-4)
    values[PIECE + 1] += 1.0
    found = errors_of(values, truth, "float32")
    error = np.abs(values.astype(np.float64) - truth)
    units = error / np.spacing(np.abs(truth).astype(np.float32))  # none of them rounds up to a power of two
    assert (found.elements, found.max_abs, found.ulp_max) == (truth.size, error.max(), units.max())
    assert found.ulp_p99 == np.quantile(units, 0.99, method="inverted_cdf")
    assert found.rms == pytest.approx(np.linalg.norm(error) / math.sqrt(error.size), rel=MEASURE)
    assert found.cosine == pytest.approx(1 - cosine(values.astype(np.float64), truth), abs=MEASURE)


@given(arrays.arrays(np.float64, (20, 2), elements=st.floats(-1e6, 1e6)), st.integers(0, 20), st.integers(0, 20))
def test_merging_is_the_same_as_putting_together(both, first, second):
    first, second = sorted((first, second))
    values, truth = both[:, 0].astype(np.float32), both[:, 1]
    parts = [
        errors_of(values[cut], truth[cut], "int8") for cut in (slice(first), slice(first, second), slice(second, 20))
    ]
    merged, whole = merge(parts), errors_of(values, truth, "int8")
    assert merged.elements == 20
    for name in ("max_abs", "max_rel", "ulp_max"):
        assert getattr(merged, name) == getattr(whole, name)
    assert merged.ulp_p99 == max(part.ulp_p99 for part in parts)
    for name in ("rms", "snr_db", "cosine"):
        assert getattr(merged, name) == pytest.approx(getattr(whole, name), rel=MEASURE, abs=MEASURE)
    assert merge([whole]) == whole and merge([]) == NO_ERRORS
