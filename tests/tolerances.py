"""Every tolerance of the test suite, named once. None is ever loosened to get green."""

# float32 logits against float64 ones, in units of the standard deviation of the logits (transformers reaches 2.5e-6).
LOGITS_FLOAT32 = 1e-5
LOGITS_FLOAT64 = 1e-12

# llama.cpp's logits, in the same units: it takes gelu from a table of float16 numbers (1.7e-3 with small models).
# Rows in another order, a norm that is off by 1 or a forgotten factor come to more than 0.1.
LLAMA_CPP = 5e-3

# One operation against its plain version in float64, relative to the largest magnitude of the result. Sums over a few
# hundred terms: about 30 roundings of the precision.
OPERATION = {"float32": 4e-6, "float64": 1e-14}
# The same for gradients, which pass through several sums.
GRADIENT = {"float32": 2e-5, "float64": 1e-13}
# Central differences in float64 with a step of 1e-6: the step's square and the cancellation meet near 1e-8.
FINITE_DIFFERENCE = 1e-7

# Gradients by hand in float64 against those of torch and JAX, each by the largest magnitude in its array.
GRADIENT_BY_HAND = 1e-10

# Products that round their input and their result to bfloat16 (8 bits each), relative to sum |x| |w|.
STORED_BFLOAT16 = 2.0**-7
# Mean KL divergence in nats of a trained model's next-token distributions from those in float32.
LOW_PRECISION_KL = {"bfloat16": 1e-3, "int8": 5e-3}

# Parameters after some steps of AdamW in float64, against torch's: a few roundings of numbers near 1 per step.
OPTIMIZER = 1e-13
# The largest difference of 100 training losses between two backends, absolute, in nats.
LOSS_CURVE = {"float64": 1e-10, "float32": 1e-3}

# Norms, cosines and divergences of some thousands of numbers in float64 against another formula, relative or absolute.
MEASURE = 1e-12
# The same by a library that computes in float32.
MEASURE_FLOAT32 = 1e-5
# A divergence of logits that differ by 1e-7, relative: what float64 holds of the differences.
DIVERGENCE_OF_NOISE = 1e-5

# Taps of a sound implementation in float64 against the plain operations on NumPy, relative to the largest in the tap.
TAPS_FLOAT64 = 1e-10
