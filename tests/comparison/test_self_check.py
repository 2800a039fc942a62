"""The judge is held against mpmath and central differences while it runs: it passes, and a fault planted in it is seen.

The formulas of `witness.py` are judged the other way round here, by NumPy and torch in float64.
"""

import numpy as np
import pytest
from components import COMPONENTS
from reference_models import save_gpt2, save_llama
from test_bounded_reading import CASES, drawn

import transformer_lab as lab
from transformer_lab.backends.plain.manual import OPERATIONS
from transformer_lab.backends.readings.bounded import algebra, gradients, operations
from transformer_lab.backends.readings.bounded.pairs import Bounded
from transformer_lab.backends.readings.bounded.witness import FORMULAS, Witness
from transformer_lab.comparison.judging.gradients import TrueGradients
from transformer_lab.comparison.judging.self_check import check_judge

IDS = [5, 17, 3, 88, 41, 2, 60, 9, 5, 17]
# They move, choose or compare numbers, or cut off their digits: nothing is computed.
WITHOUT_FORMULA = {
    *("negative", "positive", "abs", "maximum", "minimum", "clip", "where", "max", "min", "sort", "getitem", "unstack"),
    *("zeros_like", "ones_like", "full_like", "sign", "argsort", "argmax", "argmin", "logical_not", "concat", "stack"),
    *("floor", "ceil", "trunc", "round", "take", "take_along_axis", "isfinite", "isinf", "isnan"),
    *("less", "less_equal", "greater", "greater_equal", "equal", "not_equal", "logical_and", "logical_or"),
    *("logical_xor", "reshape", "permute_dims", "matrix_transpose", "moveaxis", "flip", "roll", "squeeze"),
    *("expand_dims", "broadcast_to", "repeat", "tile", "tril", "triu"),
}


def test_every_function_that_computes_has_a_formula():
    assert set(algebra.FUNCTIONS) | set(OPERATIONS) == set(FORMULAS) | WITHOUT_FORMULA
    assert not set(FORMULAS) & WITHOUT_FORMULA


@pytest.mark.parametrize("name", CASES)
def test_mpmath_confirms_every_function(name):
    for seed in range(3):
        witness = Witness(seed)
        arrays = [witness.exactly(x) for x in drawn(CASES[name], seed, 10.0 ** (seed - 1))]
        CASES[name].run(witness, *arrays)
        assert witness.wrong == []
        if name in FORMULAS:
            asked = "divide" if name == "reciprocal" else name  # by its operator
            assert witness.checked[asked] == 2


@pytest.mark.parametrize("name", ["sum", "mean", "prod", "var", "std"])
@pytest.mark.parametrize("keepdims", [True, False])
@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2)])
def test_mpmath_goes_along_every_axis(name, axis, keepdims):
    witness = Witness()
    x = np.random.default_rng(0).standard_normal((3, 2, 4))
    for options in ({}, {"correction": 1.0}) if name in ("var", "std") else ({},):
        getattr(witness.xp, name)(witness.exactly(x), axis=axis, keepdims=keepdims, **options)
    assert witness.wrong == [] and witness.checked[name]


def test_mpmath_knows_the_reciprocal():
    witness = Witness()
    witness.xp.reciprocal(witness.exactly(np.array([0.3, -7.0])))
    assert witness.wrong == [] and witness.checked["reciprocal"] == 2


@pytest.mark.parametrize("shapes", [((2, 3, 4), (4, 5)), ((4,), (2, 4, 5)), ((2, 3, 4), (4,)), ((4,), (4,))])
def test_mpmath_multiplies_matrices_of_every_shape(shapes):
    witness = Witness()
    a, b = (np.random.default_rng(0).standard_normal(shape) for shape in shapes)
    witness.xp.matmul(witness.exactly(a), witness.exactly(b))
    assert witness.wrong == [] and witness.checked["matmul"] == 2


@pytest.mark.parametrize("name", [None, *COMPONENTS])
@pytest.mark.parametrize("save", [save_gpt2, save_llama])
def test_the_judge_of_a_random_model_passes(tmp_path, save, name):
    save(tmp_path)
    options = {"weights": "random", "ffn": COMPONENTS[name]} if name else {}
    for seed in range(4):
        truth = lab.load_model(tmp_path, "numpy", "float64", "manual", **options, **({"seed": seed} if name else {}))
        ids = np.random.default_rng(seed).integers(0, truth.config.vocab_size, 12)
        found = check_judge(truth, ids, TrueGradients(truth, ids))
        assert found.wrong == []
        assert {"linear", "attention", "add"} <= found.values.keys() & found.gradients.keys()


def compared(folder, **options):
    return lab.compare(folder, IDS, ["numpy"], exact=False, new_tokens=0, **options)


def test_a_value_that_mpmath_does_not_confirm_leaves_nothing_judged(tmp_path, monkeypatch):
    """On every backend and in the judge alike: no comparison of these can see it."""
    save_gpt2(tmp_path)
    right = operations.layer_norm

    def wrong(reading, x, weight, bias, epsilon):
        found = right(reading, x, weight, bias, epsilon)
        return Bounded(found.value * (1.0 + 1e-9), found.errors, reading)

    monkeypatch.setattr(operations, "layer_norm", wrong)
    found = compared(tmp_path, gradients=False)
    assert found.status == "not judged" and not found.sound
    assert found.verdict.startswith("Not judged: the judge itself is wrong: layer_norm is ")
    assert " differ." in found.to_dict()["reached"]["judge"]


def test_so_does_a_gradient_that_is_no_slope(tmp_path, monkeypatch):
    save_gpt2(tmp_path)
    right = gradients.layer_norm

    def wrong(*inputs, g, steps):
        for name, place, found in right(*inputs, g=g, steps=steps):
            # So wide a bound that the participant passes.
            yield name, place, Bounded(found.value * 1.001, (np.inf, np.inf), found.reading)

    monkeypatch.setattr(gradients, "layer_norm", wrong)
    found = compared(tmp_path)
    assert "the gradient of layer_norm (weight, " in found.verdict and found.status == "not judged"


def test_the_report_says_what_was_looked_at(tmp_path):
    save_gpt2(tmp_path)
    said = compared(tmp_path).to_dict()["reached"]["judge"]
    assert said.startswith("The judge shares the definition of the decoder with the participants that are ours.")
    assert "linear" in said and "by mpmath" in said and "by central differences" in said
    assert said.endswith("none differs beyond its bound.")
