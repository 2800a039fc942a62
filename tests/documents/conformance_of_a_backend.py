"""The conformance cases of tests/conformance on a backend that is in no configuration."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from tolerances import OPERATION

from transformer_lab.backends.base import OPERATIONS
from transformer_lab.config import component

sys.path.append(str(Path(__file__).resolve().parents[1] / "conformance"))

from operation_cases import CASES, call


def judge(ops: Any) -> list[str]:
    """What the bound operations of `ops` get wrong, against the plain ones in float64."""
    truth = component("backend", "numpy", precision="float64", ops="manual")
    wrong = []
    for operation in OPERATIONS:
        for title, case in CASES[operation].items():
            inputs = case.inputs(np.random.default_rng(7))
            rounded = {name: rounded_to(ops.precision, array) for name, array in inputs.items()}
            found, expected = call(ops, operation, case, inputs), call(truth, operation, case, rounded)
            finite = np.isfinite(expected)
            same = np.array_equal(found[~finite], expected[~finite])
            error = np.abs(found[finite] - expected[finite]).max() / np.abs(expected[finite]).max()
            if not same or error > OPERATION[ops.precision]:
                wrong.append(f"{operation}: {title}: {error:.1e}")
    return wrong


def rounded_to(precision: str, array: np.ndarray) -> np.ndarray:
    return array.astype(precision).astype(array.dtype) if array.dtype.kind == "f" else array
