"""bfloat16 and int8: the stored kernels, the products with them, and what a trained model makes of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax
from tolerances import LOW_PRECISION_KL, OPERATION, STORED_BFLOAT16

import transformer_lab as lab
from transformer_lab.backends.frameworks import low_precision
from transformer_lab.config import component

PRECISIONS = ("bfloat16", "int8")


@settings(deadline=None)
@given(arrays(np.float32, (5, 4), elements=st.floats(-1e3, 1e3, width=32, allow_subnormal=False)))
def test_int8_is_within_half_a_step_of_the_kernel(kernel):
    stored = low_precision.quantise(kernel)
    assert stored.values.dtype == np.int8
    assert np.abs(stored.values.astype(int)).max() <= 127
    assert (stored.scales.view(np.uint32) & 0xFFFF == 0).all()  # scales are bfloat16
    error = np.abs(low_precision.dequantise(stored) - kernel)
    assert (error <= stored.scales * 0.5 * (1 + 1e-5) + 1e-37).all()
    largest = np.abs(kernel).max(axis=0)
    assert (stored.scales[largest > 1e-30] <= largest[largest > 1e-30] / 127 * (1 + 2**-7)).all()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("version", ["fused", "manual"])
@pytest.mark.parametrize("name", ["torch", "jax"])
def test_products(name, precision, version):
    """Against float64 with the numbers that are stored; what torch rounds to bfloat16 on the way has 8 bits."""
    ops = component("backend", name, precision=precision, ops=version)
    draw = np.random.default_rng(0)
    kernel, bias = draw.standard_normal((64, 48)), draw.standard_normal(48)
    packed = ops.place("a.kernel", kernel)
    stored = ops.recover("a.kernel", packed).astype(np.float64)
    step = np.abs(kernel).max(axis=0) / 127 * (1 + 2**-7) if precision == "int8" else np.abs(kernel) * 2**-7
    assert (np.abs(stored - kernel) <= step / 2 * 1.01).all()
    if precision == "int8":
        np.testing.assert_array_equal(stored, low_precision.dequantise(low_precision.quantise(kernel)))
    run = ops.compile(lambda x, kernel, bias: ops.linear(x, kernel, bias))
    for shape in ((3, 5, 64), (1, 1, 64)):
        x = draw.standard_normal(shape)
        y = ops.to_numpy(run(ops.asarray(x), packed, ops.asarray(bias)))
        assert y.dtype == np.float32
        exact = x @ stored + bias
        rounding = OPERATION["float32"] if ops.ops["linear"] == "manual" else STORED_BFLOAT16
        assert np.abs(y - exact).max() <= rounding * (np.abs(x) @ np.abs(stored)).max()


@pytest.mark.parametrize("size", [24, 30, 40, 48])
def test_int8_kernels_of_any_size(size):
    """torch's own product of int8 is wrong, or ends the process, where rows are no multiple of 16."""
    ops = component("backend", "torch", precision="int8", ops="fused")
    draw = np.random.default_rng(size)
    kernel, x = draw.standard_normal((size, 20)).astype(np.float32), draw.standard_normal((3, size))
    packed = ops.place("a.kernel", kernel)
    run = ops.compile(lambda x, kernel: ops.linear(x, kernel))
    y = ops.to_numpy(run(ops.asarray(x), packed))
    stored = ops.recover("a.kernel", packed).astype(np.float64)
    assert np.abs(y - x @ stored).max() <= STORED_BFLOAT16 * (np.abs(x) @ np.abs(stored)).max()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["torch", "jax"])
def test_a_trained_model_hardly_changes(name, precision):
    reference = lab.load_model("storybook")
    text = reference.generate("Once upon a time", max_new_tokens=200, temperature=1.0, seed=4).token_ids
    model = lab.load_model("storybook", backend=name, precision=precision)
    expected = log_softmax(reference.logits(text).astype(np.float64), axis=-1)
    found = log_softmax(model.logits(text).astype(np.float64), axis=-1)
    divergence = (np.exp(expected) * (expected - found)).sum(axis=-1).mean()
    assert divergence > -1e-12
    assert divergence <= LOW_PRECISION_KL[precision]
    assert model.generate("The king", max_new_tokens=8).text  # and decoding runs


def test_a_coarser_kernel_is_found(monkeypatch):
    """4 bits in place of 8 exceed the bound on the divergence, so the check above can fail."""
    whole = low_precision.quantise

    def coarse(kernel):
        values, scales = whole(kernel)
        return low_precision.Int8Kernel((np.rint(values / 32.0) * 32).clip(-127, 127).astype(np.int8), scales)

    monkeypatch.setattr(low_precision, "quantise", coarse)
    with pytest.raises(AssertionError):
        test_a_trained_model_hardly_changes("torch", "int8")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_numpy_says_what_it_offers(precision):
    with pytest.raises(lab.ConfigurationError, match="float32, float64, exact"):
        lab.load_model("storybook", precision=precision)
