"""Every planted bug is found and put at the right operation; the same backends without one are sound."""

import numpy as np
import pytest
from injected_bugs import BUGS, GPT2_SHAPE, LLAMA_SHAPE, planted
from reference_models import save_gpt2, save_llama

from transformer_lab.comparison.study import compare
from transformer_lab.config import component


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    found = {"gpt2": tmp_path_factory.mktemp("gpt2"), "llama": tmp_path_factory.mktemp("llama")}
    save_gpt2(found["gpt2"], **GPT2_SHAPE)
    save_llama(found["llama"], **LLAMA_SHAPE)
    return found


def prompt(length):
    return np.random.default_rng(3).integers(0, 101, length).tolist()


def report_on(bug, ops, folders, sweeps=None):
    new_tokens = 24 if bug.place == "sampler" else 0
    sweeps = sweeps or ([bug.sweep] if bug.sweep else [])
    return compare(
        folders[bug.family],
        prompt(bug.length),
        [ops],
        exact=False,
        gradients=False,  # bugs of the forward pass, some of which are planted where no gradient could come from
        sweeps=sweeps,
        new_tokens=new_tokens,
        runs=1,
    )


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_bug_is_found_and_placed(bug, folders):
    with planted(bug) as ops:
        report = report_on(bug, ops, folders)
    assert not report.sound
    if bug.place == "sampler":
        assert "sampler" in report.verdict and report.first_divergence is None
        return
    if report.first_divergence is not None:
        tap = report.first_divergence.tap
    else:
        tap = next(row["tap"] for row in report.to_dict()["sweeps"])
    assert tap.removeprefix("blocks.0.").removeprefix("blocks.1.") == bug.place
    assert f"{tap} on {bug.backend}" in report.verdict


@pytest.mark.parametrize("bug", [bug for bug in BUGS if bug.sweep == "unequal"], ids=lambda bug: bug.name)
def test_rows_of_one_length_do_not_show_what_unequal_ones_do(bug, folders):
    with planted(bug) as ops:
        report = report_on(bug, ops, folders, ["pieces", "cached", "batch"])
    assert report.sound and len(report.to_dict()["sweeps"]) == 3


WAYS = sorted({(bug.backend, bug.ops, bug.family, bug.sweep or "", bug.length) for bug in BUGS})


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way)))
def test_without_a_bug_there_is_no_alarm(way, folders):
    backend, ops, family, sweep, length = way
    sound = component("backend", backend, precision="float32", ops=ops)
    sweeps = [sweep] if sweep else []
    report = compare(
        folders[family], prompt(length), [sound], exact=False, gradients=False, sweeps=sweeps, new_tokens=0
    )
    assert report.sound, report.verdict
    assert report.first_divergence is None


@pytest.mark.parametrize("name", ["epsilon outside the root", "epsilon 1e-6 for 1e-5"])
def test_what_is_below_the_bound_of_float32_takes_float64(name, tmp_path):
    """Where activations are large, the epsilon of a norm is less than the rounding of float32."""
    save_gpt2(tmp_path, **GPT2_SHAPE, initializer_range=2.0)
    (bug,) = (bug for bug in BUGS if bug.name == name)
    in_float32, in_float64 = (
        report_on(bug, bug.backend_object(precision), {"gpt2": tmp_path}) for precision in ("float32", "float64")
    )
    assert in_float32.sound
    assert in_float64.first_divergence.tap == "blocks.0.norm_1"


def test_the_corpus_is_large_enough():
    assert len(BUGS) >= 25
    assert sum(bug.ops == "fused" for bug in BUGS) >= 10
    assert len({bug.name for bug in BUGS}) == len(BUGS)
