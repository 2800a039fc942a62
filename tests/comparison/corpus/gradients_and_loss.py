"""The backward pass of one operation of one backend, or its loss, is wrong; the forward pass is sound elsewhere.

On NumPy the version on recorded arrays is wrong, on torch there is an autograd function, on JAX a stopped gradient.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from corpus import probes
from corpus.form import Bug, Plant, everywhere, shared
from corpus.form import into as plant_into
from corpus.models import LONG, SHORT, VOCABULARY
from transformer_lab.backends.plain import gradients, manual

bug = partial(Bug, kind="gradients_and_loss", needs="gradients", probe=probes.gradients)
REPEATED = [[5, 9, 5, 17, 9, 5, 40, 41, 9, 9, 5, 3]]
MORE = {"gradients": True, "new_tokens": 0}


def into(name: str, model: str, *, prompts: Any = SHORT, **rest: Any) -> Plant:
    return plant_into(name, model, prompts, more=MORE, **rest)


# --- NumPy ------------------------------------------------------------------------------------------------------------


def passing(x: Any, change: Callable[[Any], Any]) -> Any:
    """x, but its gradient is change(the right one)."""
    return gradients.record(np.array(gradients.plain(x)), (x, change))


def layer_norm_keeps_the_mean(ops: Any, x: Any, weight: Any, bias: Any, epsilon: float) -> Any:
    p, w = gradients.plain(x), gradients.plain(weight)
    n = p - p.mean(axis=-1, keepdims=True)
    r = 1.0 / np.sqrt(np.mean(n * n, axis=-1, keepdims=True) + epsilon)
    n = n * r

    def to_x(g: Any) -> Any:
        h = g * w
        return (h - n * np.mean(h * n, axis=-1, keepdims=True)) * r

    return gradients.record(
        n * w + gradients.plain(bias),
        (x, to_x),
        (weight, lambda g: (g * n).reshape(-1, len(w)).sum(axis=0)),
        (bias, lambda g: g),
    )


def rms_norm_with_a_constant_root(ops: Any, x: Any, weight: Any, epsilon: float) -> Any:
    p, w = gradients.plain(x), gradients.plain(weight)
    r = 1.0 / np.sqrt(np.mean(p * p, axis=-1, keepdims=True) + epsilon)
    rows = partial(np.reshape, shape=(-1, len(w)))
    return gradients.record(p * r * w, (x, lambda g: g * w * r), (weight, lambda g: rows(g * p * r).sum(axis=0)))


def attention_keys_unscaled(ops: Any, query: Any, key: Any, value: Any, start: Any, scale: float, *tap: Any) -> Any:
    return gradients.attention(ops, query, passing(key, lambda g: g / scale), value, start, scale)


def attention_last_block_lost(ops: Any, query: Any, key: Any, value: Any, start: Any, scale: float, *tap: Any) -> Any:
    def whole_blocks(g: Any) -> Any:
        g = np.array(g)
        g[:, :, g.shape[2] // 128 * 128 or g.shape[2] :] = 0.0
        return g

    return gradients.attention(ops, passing(query, whole_blocks), key, value, start, scale)


def linear_bias_averaged(ops: Any, x: Any, kernel: Any, bias: Any = None) -> Any:
    rows = math.prod(x.shape[:-1])
    return gradients.linear(ops, x, kernel, None if bias is None else passing(bias, lambda g: g / rows))


def gelu_without_the_factor_3(ops: Any, x: Any) -> Any:
    p, twice = gradients.plain(x), 2.0 * math.sqrt(2.0 / math.pi)
    s = 1.0 / (1.0 + np.exp(-twice * (p + 0.044715 * p**3)))
    slope = twice * (1.0 + 0.044715 * p * p)
    return gradients.record(p * s, (x, lambda g: g * (s + p * s * (1.0 - s) * slope)))


def embed_last_one_wins(ops: Any, table: Any, ids: Any) -> Any:
    rows = gradients.plain(table)

    def to_table(g: Any) -> Any:
        result = np.zeros_like(rows)
        result[ids] = g
        return result

    return gradients.record(rows[ids], (table, to_table))


def rotary_not_turned_back(ops: Any, x: Any, cos: Any, sin: Any) -> Any:
    p, c, s = (gradients.plain(part) for part in (x, cos, sin))
    return gradients.record(manual.rotary(ops, p, c, s), (x, lambda g: manual.rotary(ops, g, c, s)))


# --- torch ------------------------------------------------------------------------------------------------------------


def torch_gradient(forward: Callable[..., Any], backward: Callable[..., Any], x: Any) -> Any:
    """forward(x), whose gradient is backward(g, x, y)."""
    import torch

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, x: Any) -> Any:
            y = forward(x)
            context.save_for_backward(x, y)
            return y

        @staticmethod
        def backward(context: Any, g: Any) -> Any:
            return backward(g, *context.saved_tensors)

    return Wrong.apply(x)


def softmax_without_the_mean(ops: Any, right: Any, x: Any) -> Any:
    return torch_gradient(lambda x: right(ops, x), lambda g, x, y: g * y, x)


def silu_of_a_constant_gate(ops: Any, right: Any, x: Any) -> Any:
    return torch_gradient(lambda x: right(ops, x), lambda g, x, y: g * x.sigmoid(), x)


def gelu_gradient_in_float16(ops: Any, right: Any, x: Any) -> Any:
    return right(ops, torch_gradient(lambda x: x.clone(), lambda g, x, y: g.half().to(g.dtype), x))


def first_head_of_a_group(
    ops: Any, right: Any, query: Any, key: Any, value: Any, start: Any, scale: float, *rest: Any
) -> Any:
    """Keys and values are repeated for the heads that share them, and only the first copy sends its gradient back."""
    shared = query.shape[1] // key.shape[1]
    key, value = (
        ops.xp.stack([x, *[x.detach()] * (shared - 1)], axis=2).reshape(x.shape[0], -1, *x.shape[2:])
        for x in (key, value)
    )
    return right(ops, query, key, value, start, scale)


def head_detached(ops: Any, right: Any, x: Any, kernel: Any, bias: Any = None) -> Any:
    return right(ops, x, kernel.detach() if kernel.shape[-1] == VOCABULARY else kernel, bias)


def targets_not_shifted(ops: Any, right: Any, logits: Any, targets: Any) -> Any:
    return right(ops, logits, ops.xp.roll(targets, 1, axis=-1))


def label_smoothing(ops: Any, right: Any, logits: Any, targets: Any) -> Any:
    return 0.9 * right(ops, logits, targets) - 0.1 * logits.log_softmax(-1).mean(-1)


# --- JAX and shared ---------------------------------------------------------------------------------------------------


def half_of_rotary_detached(ops: Any, right: Any, x: Any, cos: Any, sin: Any) -> Any:
    import jax

    half = x.shape[-1] // 2
    cos, sin = cos[:, None, ...], sin[:, None, ...]
    first, second = x[..., :half], x[..., half:]
    fixed_first, fixed_second = jax.lax.stop_gradient(first), jax.lax.stop_gradient(second)
    return ops.xp.concat([first * cos - fixed_second * sin, second * cos + fixed_first * sin], axis=-1)


def largest_as_a_constant_twice(ops: Any, right: Any, logits: Any, targets: Any) -> Any:
    """The logarithm of the sum of powers, of which the subtraction of the largest is undone outside of the gradient."""
    import jax

    largest = ops.xp.max(logits, axis=-1)
    total = ops.xp.log(ops.xp.sum(ops.xp.exp(logits - largest[..., None]), axis=-1)) + jax.lax.stop_gradient(largest)
    return total - ops.xp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]


def mean_over_tokens(right: Any, ops: Any, config: Any, params: Any, token_ids: Any, weights: Any) -> Any:
    count = token_ids.shape[1]
    return right(ops, config, params, token_ids, weights) * ((count - 1) / count)


BUGS = (
    bug(
        "backward of layer norm without the mean",
        says="The gradient is not made free of its mean; a norm by hand that treats the mean as a constant.",
        place="gradient through layer_norm",
        plant=into("numpy", "gpt2", backward={"layer_norm": layer_norm_keeps_the_mean}),
    ),
    bug(
        "backward of RMS norm with a constant root",
        says="1 / sqrt(mean x^2 + epsilon) is treated as a constant: a detached rsqrt.",
        place="gradient through rms_norm",
        plant=into("numpy", "llama", backward={"rms_norm": rms_norm_with_a_constant_root}),
    ),
    bug(
        "backward of softmax without the mean",
        says="dL/dx = y g without y sum(g y), the diagonal of the Jacobian alone.",
        place="gradient through softmax; of blocks.*.attn.qkv.kernel",
        plant=into("torch", "gpt2", ops={"attention": "manual"}, softmax=softmax_without_the_mean),
    ),
    bug(
        "backward of attention without the scale for keys",
        says="dL/dK lacks the factor 1 / sqrt(N) that dL/dQ has: a kernel that scales the queries first.",
        place="gradient through attention; of blocks.*.attn.qkv.kernel",
        plant=into("numpy", "gpt2", backward={"attention": attention_keys_unscaled}),
    ),
    bug(
        "backward of attention for the first head of each group",
        says="The gradient of shared keys and values is not summed over the query heads that share them.",
        place="gradient through attention; of blocks.*.attn.qkv.kernel",
        plant=into("torch", "llama", attention=first_head_of_a_group),
    ),
    bug(
        "backward of attention loses the last block of queries",
        says="Queries behind the last whole block of 128 send no gradient to their projection.",
        place="gradient through attention; of blocks.*.attn.qkv.kernel",
        needs="gradients, a prompt of more than 128 tokens",
        plant=into("numpy", "gpt2", prompts=LONG, backward={"attention": attention_last_block_lost}),
    ),
    bug(
        "bias gradient averaged over rows",
        says="The mean over the rows where the sum belongs.",
        place="gradient of *.bias of the linear maps",
        plant=into("numpy", "gpt2", backward={"linear": linear_bias_averaged}),
    ),
    bug(
        "half of the rotary gradient detached",
        says="The half that is turned by the sine passes no gradient back.",
        place="gradient through rotary; of blocks.*.attn.qkv.kernel",
        plant=into("jax", "llama", rotary=half_of_rotary_detached),
    ),
    bug(
        "backward of rotary turns forward",
        says="The gradient is turned by the angle itself and not back; hand-written kernels use one function for both.",
        place="gradient through rotary; of blocks.*.attn.qkv.kernel",
        plant=into("numpy", "llama", backward={"rotary": rotary_not_turned_back}),
    ),
    bug(
        "backward of SiLU with a constant gate",
        says="g sigmoid(x) without g x sigmoid'(x).",
        place="gradient through silu; of blocks.*.ffn.gate.kernel",
        plant=into("torch", "llama", silu=silu_of_a_constant_gate),
    ),
    bug(
        "backward of GELU without the factor 3",
        says="The derivative of 0.044715 x^3 is taken as 0.044715 x^2.",
        place="gradient through gelu_tanh; of blocks.*.ffn.up.kernel",
        plant=into("numpy", "gpt2", backward={"gelu_tanh": gelu_without_the_factor_3}),
    ),
    bug(
        "gradients rounded to float16 behind the activation",
        says="The gradient passes through float16, without any scaling of the loss.",
        place="gradient through gelu_tanh; of blocks.*.ffn.up.kernel",
        plant=into("torch", "gpt2", gelu_tanh=gelu_gradient_in_float16),
    ),
    bug(
        "gradient of a repeated token overwritten",
        says="table[ids] = g and not += g: of a token that occurs several times, the last place alone counts.",
        place="gradient of embed.token",
        plant=into("numpy", "llama", prompts=REPEATED, backward={"embed": embed_last_one_wins}),
    ),
    bug(
        "tied head detached",
        says="The embedding gets the gradient of its use as an embedding, and none of its use as the head.",
        place="gradient of embed.token",
        plant=into("torch", "gpt2", linear=head_detached),
    ),
    bug(
        "gradient of the largest logit added",
        says="The largest logit is taken off before exp and put back outside of the gradient, so that its share of the "
        "gradient is gone; a hand-written log-sum-exp.",
        place="gradient through cross_entropy",
        plant=into("jax", "gpt2", cross_entropy=largest_as_a_constant_twice),
    ),
    bug(
        "loss not shifted",
        says="In this backend each position is scored by the token it was given, not by the next one.",
        place="loss",
        plant=into("torch", "llama", cross_entropy=targets_not_shifted),
    ),
    bug(
        "label smoothing left on",
        says="A tenth of the loss is the mean over the vocabulary: an option of training that evaluation kept.",
        place="loss",
        plant=into("torch", "gpt2", cross_entropy=label_smoothing),
    ),
    bug(
        "loss divided by the number of tokens",
        says="The mean is over all tokens, of which one is never predicted; in the shared function, so all backends "
        "agree. transformers' gradient accumulation divided by a wrong count until 2024.",
        place="loss",
        needs="gradients, transformers",
        plant=shared(
            everywhere("transformer_lab.training.step", "weighted_loss", mean_over_tokens),
            model="llama",
            prompts=SHORT,
            transformers=True,
            more=MORE,
        ),
    ),
)
