"""The same tokens another way: rows of zeros in exact mode, one of them not where a defect is; threads come back."""

from functools import partial

import numpy as np
import pytest
from reference_models import save_gpt2
from threadpoolctl import threadpool_info, threadpool_limits

import transformer_lab as lab
from transformer_lab.backends.plain import manual
from transformer_lab.cache.paged import PagedLayer
from transformer_lab.comparison.judging.spool import Spool
from transformer_lab.comparison.judging.sweeps import FEEDINGS, SWEEPS, require_known, sweep
from transformer_lab.comparison.participants.own_model import OwnModel
from transformer_lab.errors import ConfigurationError, UnavailableError

IDS = np.random.default_rng(0).integers(0, 101, 11)
WITHOUT_CACHES = tuple(name for name in SWEEPS if name != "caches")  # whose rows have tests of their own


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("gpt2")
    save_gpt2(found)
    return found


@pytest.fixture(scope="module")
def truth(folder):
    return OwnModel(lab.load_model(folder, "numpy", "float64", "manual"))


def rows_of(names, folder, truth, spool, backend, precision, change=None, ids=IDS, loads=True):
    model = lab.load_model(folder, backend, precision)
    base = Spool(spool / f"{backend} {precision}")
    for name, value in OwnModel(model).taps(ids):
        base.write(0, name, value)
    if change:
        change(model)

    load = partial(lab.load_model, folder, backend, precision=precision) if loads else None
    return list(sweep(names, model, "mine", load, truth, ids, base))


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_in_exact_mode_every_row_is_zero(backend, folder, truth, tmp_path):
    rows = rows_of(WITHOUT_CACHES, folder, truth, tmp_path, backend, "exact")
    fed = ("pieces", "cached", "batch", "unequal")
    assert [row.change for row in rows] == [FEEDINGS[name][0] for name in fed] + ["1 thread"]
    elements = sum(value.size for value in truth.model.record(IDS).values())
    for row in rows:
        assert (row.participant, row.precision, row.note) == ("mine", "exact", None)
        assert (row.elements, row.differing, row.max_abs, row.logits_max_abs) == (elements, 0, 0.0, 0.0)
        assert row.ratio <= 1.0


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_in_float32_rows_are_rounding(backend, folder, truth, tmp_path):
    rows = rows_of(WITHOUT_CACHES, folder, truth, tmp_path, backend, "float32")
    assert [row.change for row in rows][4:6] == ["manual operations", "1 thread"]
    rows = rows[:6]
    assert all(row.precision == row.judged_by == "float32" for row in rows)
    assert all(0.0 < row.ratio <= 1.0 and row.tap and row.logits_max_abs <= row.max_abs < 1e-4 for row in rows)
    assert next(row for row in rows if row.change == "manual operations").differing > 0


@pytest.mark.parametrize(
    ("backend", "precision"),
    [*((name, "float32") for name in ("numpy", "torch", "jax")), ("torch", "bfloat16"), ("torch", "float64")],
)
def test_every_other_precision_is_a_row_within_its_own_bounds(backend, precision, folder, truth, tmp_path):
    offered = lab.load_model(folder, backend).backend.precisions
    rows = rows_of(["precision"], folder, truth, tmp_path, backend, precision)
    others = [other for other in offered if other != precision]
    assert [(row.change, row.judged_by) for row in rows] == [(f"precision {other}", other) for other in others]
    for row in rows:
        assert (row.participant, row.precision, row.note) == ("mine", precision, None)
        assert row.elements > row.differing > 0 and 0.0 < row.logits_max_abs <= row.max_abs
        assert 0.0 < row.ratio <= 1.0 and row.tap
    farther = {row.judged_by: row.logits_max_abs for row in rows}
    if precision == "float32" and backend != "numpy":
        assert farther["exact"] < 1e-5 < farther["bfloat16"] < farther["int8"]


def test_a_defect_of_one_precision_is_found_where_it_is(folder, truth, tmp_path):
    def load(precision):
        model = lab.load_model(folder, "torch", precision)
        if precision == "bfloat16":
            right = model.backend.softmax
            model.backend.softmax = lambda x: right(1.01 * x)
            model.backend.attention = partial(manual.attention, model.backend)
        return model

    base = Spool(tmp_path / "base")
    model = lab.load_model(folder, "torch")
    rows = {row.judged_by: row for row in sweep(["precision"], model, "mine", load, truth, IDS, base)}
    assert {name for name, row in rows.items() if row.ratio > 1.0} == {"bfloat16"}
    assert rows["bfloat16"].tap == "blocks.0.attn.pattern"


def test_what_cannot_be_tried_says_why(folder, truth, tmp_path):
    def load(precision=None, ops=None):
        if precision == "int8":
            message = "no product of 8 bits here"
            raise UnavailableError(message)
        return lab.load_model(folder, "torch", precision or "float32", ops or "fused")

    model = lab.load_model(folder, "torch")
    rows = list(sweep(["precision"], model, "mine", load, truth, IDS, Spool(tmp_path / "base")))
    notes = {row.change: row.note for row in rows}
    assert notes.pop("precision int8") == "no product of 8 bits here"
    assert len(notes) == 3 and set(notes.values()) == {None}
    rows = rows_of(["manual", "precision"], folder, truth, tmp_path, "numpy", "float32", loads=False)
    assert [row.change for row in rows] == ["manual operations", "other precisions"]
    assert all("given as an object" in row.note and row.ratio is None for row in rows)


EXACT_CACHES = ("contiguous", "growing", "paged", "prefix", "tiered", "window")
OTHER_COMPUTATIONS = ("int4", "sinks", "snapkv")


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("precision", ["float32", "exact"])
def test_every_cache_is_a_row(backend, precision, folder, truth, tmp_path):
    rows = {row.change: row for row in rows_of(["caches"], folder, truth, tmp_path, backend, precision)}
    assert set(rows) == {f"cache={name}" for name in (*EXACT_CACHES, *OTHER_COMPUTATIONS, "int8")}
    for name in OTHER_COMPUTATIONS:
        assert "another computation" in rows[f"cache={name}"].note
    judged = [rows[f"cache={name}"] for name in (*EXACT_CACHES, "int8")]
    assert all(row.note is None and row.ratio <= 1.0 and row.elements > 0 for row in judged)
    assert [row.stored_in_fewer_bits for row in judged] == [False] * len(EXACT_CACHES) + [True]
    assert judged[-1].differing > 0
    if precision == "exact":
        assert all(row.differing == 0 for row in judged[:-1])


def test_a_defect_of_one_cache_is_found_in_its_row(folder, truth, tmp_path, monkeypatch):
    """Later passes write into the neighbouring place of a block."""
    right = PagedLayer._slots

    def swapped(self, ops, tokens):
        blocks, places = right(self, ops, tokens)
        return blocks, ops.xp.where(tokens.start[0] > 0, places ^ 1, places)

    monkeypatch.setattr(PagedLayer, "_slots", swapped)
    rows = rows_of(["caches"], folder, truth, tmp_path, "numpy", "float32")
    wrong = [row for row in rows if row.ratio is not None and row.ratio > 1.0]
    assert {row.change for row in wrong} == {"cache=paged", "cache=prefix", "cache=tiered"}
    assert all(row.tap.startswith("blocks.0.attn.") for row in wrong)


def test_a_bound_is_computed_from_what_was_read(folder, truth, tmp_path, monkeypatch):
    """Of a cache in fewer bits: from what was written it would be a defect."""
    monkeypatch.setattr(OwnModel, "read_otherwise", lambda self, name, value: None)
    (row,) = (row for row in rows_of(["caches"], folder, truth, tmp_path, "numpy", "float32") if "int8" in row.change)
    assert row.ratio > 1.0 and ".attn." in row.tap


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_one_token_cannot_be_cut(backend, folder, truth, tmp_path):
    rows = rows_of(WITHOUT_CACHES, folder, truth, tmp_path, backend, "float32", ids=IDS[:1])
    notes = {row.change: row.note for row in rows if row.note is not None}
    assert notes == {FEEDINGS[name][0]: "the prompt is one token" for name in ("pieces", "cached", "unequal")}
    assert all(row.ratio <= 1.0 for row in rows if row.note is None)


def test_a_change_of_one_bit_in_one_way_of_feeding_is_seen(folder, truth, tmp_path):
    def plant(model):
        right = model.backend.gelu_tanh

        def wrong(x):
            y = right(x)
            if x.shape[1] == 1:  # a single token
                unit = np.zeros(x.shape, np.float32)
                unit[0, 0, 5] = np.spacing(np.abs(model.backend.to_numpy(y)[0, 0, 5]))
                y = y + model.backend.asarray(unit)
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
