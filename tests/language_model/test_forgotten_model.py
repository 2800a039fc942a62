"""A model that nobody holds any more gives its weights back, whatever was done with it."""

import gc
import weakref

import pytest
from reference_models import BACKENDS

import transformer_lab as lab
from transformer_lab.comparison.participants.own_model import OwnModel

USES = {
    "logits": lambda model: model.logits([1, 2, 3]),
    "loss": lambda model: model.loss([1, 2, 3]),
    "record": lambda model: model.record([1, 2, 3], "logits"),
    "generate": lambda model: model.generate([1, 2, 3], max_new_tokens=3),
    "taps": lambda model: list(OwnModel(model).taps([1, 2, 3])),
}


@pytest.mark.parametrize("precision", ["float32", "exact"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("use", USES)
def test_a_forgotten_model_is_gone(plain, backend, use, precision):
    model = lab.load_model(plain[0], backend=backend, precision=precision)
    table = model.params["embed"]["token"]
    weights = weakref.ref(table.value if precision == "exact" else table)
    del table
    USES[use](model)
    assert weights() is not None
    del model
    gc.collect()
    assert weights() is None
