"""Slight ones: constants cut short, intermediates of half precision, another epsilon. Each in one backend."""

import math
from functools import partial
from typing import Any

import numpy as np

from corpus.data_dependent import is_noted, noted
from corpus.form import Bug, Plant
from corpus.form import into as plant_into
from corpus.models import SHORT
from transformer_lab.backends.plain import manual

bug = partial(Bug, kind="slight")
SHOWN = {"attention": "manual"}


def into(name: str, model: str, **rest: Any) -> Plant:
    return plant_into(name, model, SHORT, **{"more": {"new_tokens": 8}} | rest)


in_float64 = partial(into, precision="float64")


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32).astype(x.dtype)


def gelu_with(cubic: float = 0.044715, slope: float = math.sqrt(2.0 / math.pi)) -> Any:
    def wrong(ops: Any, right: Any, x: Any) -> Any:
        exponent = (-2.0 * slope) * (x + cubic * (x * x * x))
        return x / (1.0 + ops.xp.exp(ops.xp.clip(exponent, None, 80.0)))

    return wrong


def scale_in_float16(
    ops: Any, right: Any, query: Any, key: Any, value: Any, start: Any, scale: float, *rest: Any
) -> Any:
    return right(ops, query, key, value, start, float(np.float16(scale)), *rest)


def angles_in_bfloat16(ops: Any, right: Any, x: Any, cos: Any, sin: Any) -> Any:
    return right(ops, x, cos.bfloat16().to(x.dtype), sin.bfloat16().to(x.dtype))


def root_by_newton(ops: Any, right: Any, x: Any, weight: Any, epsilon: float) -> Any:
    """1 / sqrt from the bits of float32 (0x5F3759DF) and two steps of Newton's: an error of 5e-6."""
    mean = np.mean(x * x, axis=-1, keepdims=True) + epsilon
    bits = 0x5F3759DF - (mean.astype(np.float32).view(np.int32) >> 1)
    root = bits.astype(np.int32).view(np.float32).astype(x.dtype)
    for _ in range(2):
        root = root * (1.5 - 0.5 * mean * root * root)
    return x * root * weight


def mean_in_bfloat16(ops: Any, right: Any, x: Any, weight: Any, bias: Any, epsilon: float) -> Any:
    centred = x - to_bfloat16(x.mean(axis=-1, keepdims=True))
    return centred / np.sqrt(np.mean(centred * centred, axis=-1, keepdims=True) + epsilon) * weight + bias


def note_the_last_block(ops: Any, right: Any, x: Any, kernel: Any, bias: Any = None) -> Any:
    ops.last = is_noted(ops, kernel)
    return right(ops, x, kernel, bias)


def exact_in_the_last_block(ops: Any, right: Any, x: Any) -> Any:
    return manual.gelu_erf(ops, x) if ops.last else right(ops, x)


def powers_of_two(ops: Any, right: Any, x: Any) -> Any:
    powers = np.exp2((x - x.max(axis=-1, keepdims=True)) * np.asarray(1.4427, x.dtype))
    return powers / powers.sum(axis=-1, keepdims=True)


def inputs_of_16_bits(ops: Any, right: Any, x: Any, kernel: Any, bias: Any = None) -> Any:
    """Two bfloat16 for each number, where three would be needed."""
    high = x.bfloat16().to(x.dtype)
    return right(ops, high + (x - high).bfloat16().to(x.dtype), kernel, bias)


def sum_never_zero(ops: Any, right: Any, x: Any) -> Any:
    powers = ops.xp.exp(x - ops.xp.max(x, axis=-1, keepdims=True))
    return powers / (ops.xp.sum(powers, axis=-1, keepdims=True) + 1e-6)


def norm_in_float32(ops: Any, right: Any, x: Any, weight: Any, epsilon: float) -> Any:
    return right(ops, x.float(), weight.float(), epsilon).to(x.dtype)


def scores_capped(ops: Any, right: Any, query: Any, key: Any, value: Any, start: Any, scale: float, *rest: Any) -> Any:
    def capped(name: str, x: Any) -> Any:
        soft = 50.0 * ops.xp.tanh(ops.xp.clip(x, -1e30, None) / 50.0)
        return ops.xp.where(x > -1e30, soft, x) if name == "scores" else x

    return manual.attention(ops, query, key, value, start, scale, tap=capped)


def float16_table(ops: Any, right: Any, x: Any) -> Any:
    return right(ops, x.astype(np.float16).astype(x.dtype))


def weights_through_float16(ops: Any, right: Any, name: str, array: Any) -> Any:
    return right(name, np.asarray(array).astype(np.float16).astype(array.dtype))


BUGS = (
    bug(
        "0.0447 for 0.044715 in the GELU",
        says="A constant cut short, in the compiled backend.",
        place="blocks.*.ffn.act",
        plant=into("jax", "gpt2", gelu_tanh=gelu_with(cubic=0.0447)),
    ),
    bug(
        "0.7978 for sqrt(2 / pi) in the GELU",
        says="Four digits of 0.7978845608.",
        place="blocks.*.ffn.act",
        plant=into("torch", "gpt2", gelu_tanh=gelu_with(slope=0.7978)),
    ),
    bug(
        "scale of the scores rounded to float16",
        says="1 / sqrt(12) as a float16; exact for head sizes of 16 and 64, where nobody sees it.",
        place="blocks.*.attn.out",
        plant=into("numpy", "gpt2", attention=scale_in_float16),
    ),
    bug(
        "rotary angles in bfloat16",
        says="Cosines and sines are rounded to bfloat16 before they turn float32 queries, as under autocast.",
        place="blocks.*.attn.q",
        plant=into("torch", "llama", rotary=angles_in_bfloat16),
    ),
    bug(
        "epsilon of the norm left to the framework",
        says="torch's rms_norm with eps=None takes the machine epsilon of the type, 1.2e-7, for the 1e-5 of the file.",
        place="blocks.*.norm_1",
        plant=into("torch", "llama", rms_norm=lambda ops, right, x, weight, epsilon: right(ops, x, weight, None)),
    ),
    bug(
        "inverse root by two steps of Newton's",
        says="0x5F3759DF and two steps: an error of 5e-6. One step would be 2e-3.",
        place="blocks.*.norm_1",
        needs="precision=float64",
        plant=in_float64("numpy", "llama", rms_norm=root_by_newton),
    ),
    bug(
        "mean of the layer norm in bfloat16",
        says="The mean alone is rounded to bfloat16, the rest is float32.",
        place="blocks.*.norm_1",
        plant=into("numpy", "gpt2", layer_norm=mean_in_bfloat16),
    ),
    bug(
        "exact GELU in the last block alone",
        says="The last block has the erf form, all others the tanh form: a fused block that was written apart.",
        place="blocks.2.ffn.act",
        plant=into(
            "torch",
            "gpt2",
            linear=note_the_last_block,
            gelu_tanh=exact_in_the_last_block,
            methods={"place": noted("blocks.2.ffn.up.kernel")},
        ),
    ),
    bug(
        "1.4427 for the logarithm of e to base 2",
        says="Softmax by powers of 2, with four digits of 1.442695.",
        place="blocks.*.attn.pattern",
        needs="precision=float64",
        plant=in_float64("numpy", "gpt2", softmax=powers_of_two, ops=SHOWN),
    ),
    bug(
        "inputs of products as two bfloat16",
        says="Float32 is split into two bfloat16 and not three, so 16 bits of 24 are left: float32_matmul_precision "
        "'high' with bf16x2.",
        place="blocks.*.attn.q",
        needs="precision=float64",
        plant=in_float64("torch", "llama", linear=inputs_of_16_bits),
    ),
    bug(
        "1e-6 added to the sum of the softmax",
        says="Against a division by zero, which cannot be.",
        place="blocks.*.attn.pattern",
        needs="precision=float64",
        plant=in_float64("jax", "gpt2", softmax=sum_never_zero),
    ),
    bug(
        "norm of a float64 model in float32",
        says="A cast to float32 that was meant for half precision narrows float64: transformers' LlamaRMSNorm.",
        place="blocks.*.norm_1",
        needs="precision=float64",
        plant=in_float64("torch", "llama", rms_norm=norm_in_float32),
    ),
    bug(
        "epsilon rounded to float16",
        says="1e-5 is 1.0014e-5 in float16, which has few bits there.",
        place="blocks.*.norm_1",
        needs="precision=float64",
        plant=in_float64(
            "numpy",
            "gpt2",
            layer_norm=lambda ops, right, x, weight, bias, epsilon: right(
                ops, x, weight, bias, float(np.float16(epsilon))
            ),
        ),
    ),
    bug(
        "scores softly capped at 50",
        says="50 tanh(s / 50), as in Gemma 2; for scores of ordinary size it is nearly nothing.",
        place="blocks.*.attn.out",
        plant=into("torch", "llama", attention=scores_capped),
    ),
    bug(
        "SiLU from a table for float16",
        says="The input is rounded to float16 to look it up, as ggml does for its GELU and SiLU.",
        place="blocks.*.ffn.act",
        plant=into("numpy", "llama", silu=float16_table),
    ),
    bug(
        "weights went through float16",
        says="One backend keeps its weights in float16 and computes in float32, and says float32.",
        place="embed",
        plant=into("torch", "gpt2", methods={"place": weights_through_float16}),
    ),
)
