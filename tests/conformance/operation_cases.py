"""Inputs for every operation, and how a version of it is called. A new operation needs one entry here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """`inputs(draw)` makes NumPy arrays by argument name; `options` are the other arguments, in order."""

    inputs: Callable[[np.random.Generator], Arrays]
    options: tuple[Any, ...] = ()


def normal(draw: np.random.Generator, *shape: int) -> np.ndarray:
    return draw.standard_normal(shape)


# For activations: ordinary values, and ones so large that exp overflows where a formula is careless.
ELEMENTWISE = {
    "ordinary": Case(lambda draw: {"x": normal(draw, 10, 20) * 2}),
    "extreme": Case(lambda draw: {"x": np.array([0.0, -0.0, 100.0, -100.0, 30.0, -30.0, 1e-20, -1e-20])}),
}


def attention_inputs(heads: int, kv_heads: int, queries: int, keys: int, start: list[int]) -> Callable[..., Arrays]:
    def inputs(draw: np.random.Generator) -> Arrays:
        batch = len(start)
        return {
            "query": normal(draw, batch, heads, queries, 8),
            "key": normal(draw, batch, kv_heads, keys, 8),
            "value": normal(draw, batch, kv_heads, keys, 8),
            "start": np.array(start),
        }

    return inputs


CASES: dict[str, dict[str, Case]] = {
    "linear": {
        "rows": Case(lambda d: {"x": normal(d, 2, 5, 48), "kernel": normal(d, 48, 33), "bias": normal(d, 33)}),
        "one row": Case(lambda d: {"x": normal(d, 1, 1, 48), "kernel": normal(d, 48, 33), "bias": normal(d, 33)}),
        "square, no bias": Case(lambda d: {"x": normal(d, 3, 32), "kernel": normal(d, 32, 32)}),
        "many rows": Case(lambda d: {"x": normal(d, 40, 16), "kernel": normal(d, 16, 9), "bias": normal(d, 9)}),
        "many columns": Case(lambda d: {"x": normal(d, 3, 8), "kernel": normal(d, 8, 1100), "bias": normal(d, 1100)}),
        "one column": Case(lambda d: {"x": normal(d, 4, 16), "kernel": normal(d, 16, 1), "bias": normal(d, 1)}),
    },
    "embed": {"ids": Case(lambda d: {"table": normal(d, 11, 6), "ids": d.integers(0, 11, (3, 4))})},
    "layer_norm": {
        "rows": Case(
            lambda d: {"x": normal(d, 2, 3, 40) * 5 + 3, "weight": normal(d, 40), "bias": normal(d, 40)}, (1e-5,)
        ),
        "large epsilon": Case(
            lambda d: {"x": normal(d, 4, 40), "weight": normal(d, 40), "bias": normal(d, 40)}, (0.5,)
        ),
    },
    "rms_norm": {
        "rows": Case(lambda d: {"x": normal(d, 2, 3, 40) * 5 + 3, "weight": normal(d, 40)}, (1e-5,)),
        "large epsilon": Case(lambda d: {"x": normal(d, 4, 40), "weight": normal(d, 40)}, (0.5,)),
    },
    "gelu_tanh": ELEMENTWISE,
    "gelu_erf": ELEMENTWISE,
    "relu": ELEMENTWISE,
    "silu": ELEMENTWISE,
    "sigmoid": ELEMENTWISE,
    "softmax": {
        "rows": Case(lambda d: {"x": normal(d, 3, 4, 31) * 4}),
        "masked": Case(lambda d: {"x": np.where(np.tri(9, dtype=bool), normal(d, 9, 9), -np.inf)}),
        "large": Case(lambda d: {"x": normal(d, 2, 12) * 10 + 1000}),
    },
    "logsumexp": {
        "rows": Case(lambda d: {"x": normal(d, 3, 4, 31) * 4}),
        "large": Case(lambda d: {"x": normal(d, 2, 12) * 10 + 100}),
    },
    "rotary": {
        "heads": Case(lambda d: {"x": normal(d, 2, 3, 4, 8), "cos": normal(d, 2, 4, 4), "sin": normal(d, 2, 4, 4)})
    },
    "attention": {
        "prefill": Case(attention_inputs(4, 4, 7, 7, [0, 0]), (0.35,)),
        "one token": Case(attention_inputs(4, 4, 1, 9, [8]), (0.35,)),
        "rows of unequal lengths": Case(attention_inputs(2, 2, 1, 9, [8, 3, 0]), (0.35,)),
        "prefill in pieces": Case(attention_inputs(4, 4, 3, 12, [5, 9]), (1.0,)),
        "long prompt in pieces": Case(attention_inputs(2, 1, 200, 230, [11, 30]), (0.35,)),
        "square heads": Case(attention_inputs(8, 8, 8, 8, [0] * 8), (0.35,)),
        "grouped": Case(attention_inputs(6, 2, 5, 5, [0, 0]), (0.35,)),
        "grouped, one token": Case(attention_inputs(6, 2, 1, 6, [4, 5]), (0.35,)),
        "window": Case(attention_inputs(4, 2, 9, 9, [0, 0]), (0.35, 3)),
        "window as long as the text": Case(attention_inputs(4, 2, 9, 9, [0, 0]), (0.35, 9)),
        "window one shorter than the text": Case(attention_inputs(4, 2, 9, 9, [0, 0]), (0.35, 8)),
        "window, one token": Case(attention_inputs(4, 4, 1, 9, [8, 2]), (0.35, 4)),
        "window, long prompt in pieces": Case(attention_inputs(2, 1, 200, 230, [11, 30]), (0.35, 40)),
    },
    "cross_entropy": {
        "rows": Case(lambda d: {"logits": normal(d, 3, 5, 17) * 6, "targets": d.integers(0, 17, (3, 5))}),
    },
}


def call(ops: Any, operation: str, case: Case, inputs: Arrays, packed: bool = True) -> Any:
    """Runs the bound version on NumPy inputs; kernels go the way that loaded ones go."""
    arrays = [
        ops.place(f"{name}.kernel" if name == "kernel" and packed else name, array)
        if array.dtype.kind == "f"
        else ops.asarray(array)
        for name, array in inputs.items()
    ]
    function = ops.compile(lambda *arrays: getattr(ops, operation)(*arrays, *case.options))
    return ops.to_numpy(function(*arrays))
