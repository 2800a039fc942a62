"""The same tokens another way: rows of zeros in exact mode, one of them not where a defect is; threads come back."""

import numpy as np
import pytest
from reference_models import save_gpt2
from threadpoolctl import threadpool_info, threadpool_limits

import transformer_lab as lab
from transformer_lab.comparison.own_model import OwnModel
from transformer_lab.comparison.spool import Spool
from transformer_lab.comparison.sweeps import FEEDINGS, SWEEPS, require_known, sweep
from transformer_lab.errors import ConfigurationError

IDS = np.random.default_rng(0).integers(0, 101, 11)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("gpt2")
    save_gpt2(found)
    return found


@pytest.fixture(scope="module")
def truth(folder):
    return OwnModel(lab.load_model(folder, "numpy", "float64", "manual"))


def rows_of(names, folder, truth, spool, backend, precision, change=None):
    model = lab.load_model(folder, backend, precision)
    base = Spool(spool / f"{backend} {precision}")
    for name, value in OwnModel(model).taps(IDS):
        base.write(0, name, value)
    if change:
        change(model)

    def plain():
        return lab.load_model(folder, backend, precision, "manual")

    return list(sweep(names, model, "mine", plain, truth, IDS, base))


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_in_exact_mode_every_row_is_zero(backend, folder, truth, tmp_path):
    rows = rows_of(SWEEPS, folder, truth, tmp_path, backend, "exact")
    fed = ("pieces", "cached", "batch", "unequal")
    assert [row.change for row in rows] == [FEEDINGS[name][0] for name in fed] + ["1 thread"]
    elements = sum(value.size for value in truth.model.record(IDS).values())
    for row in rows:
        assert (row.participant, row.precision, row.note) == ("mine", "exact", None)
        assert (row.elements, row.differing, row.max_abs, row.logits_max_abs) == (elements, 0, 0.0, 0.0)
        assert row.ratio <= 1.0


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_in_float32_rows_are_rounding(backend, folder, truth, tmp_path):
    rows = rows_of(SWEEPS, folder, truth, tmp_path, backend, "float32")
    assert [row.change for row in rows][-2:] == ["manual operations", "1 thread"]
    assert all(0.0 < row.ratio <= 1.0 and row.tap and row.logits_max_abs <= row.max_abs < 1e-4 for row in rows)
    assert next(row for row in rows if row.change == "manual operations").differing > 0


def test_a_change_of_one_bit_in_one_way_of_feeding_is_seen(folder, truth, tmp_path):
    def plant(model):
        right = model.backend.gelu_tanh

        def wrong(x):
            y = right(x)
            if x.shape[1] == 1:  # a single token
                y[0, 0, 5] = np.nextafter(y[0, 0, 5], np.float32(np.inf))
            return y

        model.backend.gelu_tanh = wrong

    pieces, cached = rows_of(["pieces", "cached"], folder, truth, tmp_path, "numpy", "exact", plant)
    assert pieces.differing == 0
    assert cached.differing >= 16 and cached.max_abs > 0.0  # eight tokens in two blocks


def test_jax_has_a_note_about_threads_and_the_threads_of_others_stay(folder, truth, tmp_path):
    with threadpool_limits(2):
        before = [pool["num_threads"] for pool in threadpool_info()]
        (row,) = rows_of(["threads"], folder, truth, tmp_path, "jax", "float32")
        assert [pool["num_threads"] for pool in threadpool_info()] == before
        rows_of(["threads"], folder, truth, tmp_path, "numpy", "float32")
        assert [pool["num_threads"] for pool in threadpool_info()] == before
    assert row.note == "the jax backend fixes its threads when the process starts"
    assert (row.change, row.elements, row.ratio) == ("1 thread", 0, None)


def test_an_unknown_sweep_is_refused():
    require_known(SWEEPS)
    with pytest.raises(ConfigurationError, match="There is no sweep 'peices'; choose among pieces, cached"):
        require_known(["cached", "peices"])
