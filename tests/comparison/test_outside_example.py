"""The stack of examples/outside_participant: it shows what our model shows, and its bug is where its page says."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

import transformer_lab as lab
from transformer_lab.comparison.participants.dumped import Dumped
from transformer_lab.comparison.participants.participant import Function
from transformer_lab.paths import data_folder

SCRIPT = data_folder("resources").parent / "examples" / "outside_participant" / "my_stack.py"
IDS = np.array([3, 14, 15, 92, 65])

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="needs the checkout")


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("my_stack", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model():
    return lab.load_model("storybook", precision="float64", ops="manual")


def departures(run, model):
    """The taps that are off by more than float32 can explain, in the order of the computation."""
    truth, found = model.record(IDS), dict(Function("my stack", run, config=model.config).taps(IDS))
    assert len(found) == 2 + 5 * model.config.num_layers
    off = []
    for name, array in found.items():
        array = array.reshape(truth[name].shape)  # with or without the axis of 1
        finite = np.isfinite(truth[name])
        np.testing.assert_array_equal(np.isfinite(array), finite)
        if np.abs(array[finite] - truth[name][finite]).max() > 1e-5 * np.abs(truth[name][finite]).max():
            off.append(name)
    return off


def test_the_stack_shows_what_ours_shows(example, model):
    assert departures(example.my_stack(model.folder), model) == []


def test_its_bug_begins_where_the_page_says(example, model):
    assert departures(example.my_stack(model.folder, "none"), model)[0] == "blocks.0.ffn.act"


def test_its_dump_is_read(example, model, tmp_path):
    words = [sys.executable, SCRIPT, "--dump", tmp_path / "run.npz", *map(str, IDS)]
    subprocess.run(words, check=True, capture_output=True)
    dump = Dumped(tmp_path / "run.npz")
    assert dump.precision == "float32" and dump.prompts == [IDS.tolist()]
    expected = dict(Function("my stack", example.my_stack(model.folder)).taps(IDS))
    found = dict(dump.taps(IDS))
    assert list(found) == list(expected)
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-4)  # another process may sum in another order
