"""Random weights of a comparison are shaken, so that what is wrong with a norm's weight or a bias is seen."""

import io
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from reference_models import save_gpt2
from rich.console import Console

import transformer_lab as lab
from transformer_lab.balancer.sign_bias import SignBias
from transformer_lab.comparison.reporting.console import print_report
from transformer_lab.ffn.dense import Dense
from transformer_lab.ffn.experts import Experts
from transformer_lab.ffn.moe import MixtureOfExperts
from transformer_lab.language_model import with_parts
from transformer_lab.model.init import initialise
from transformer_lab.norm.layer_norm import LayerNorm
from transformer_lab.norm.rms_norm import RMSNorm
from transformer_lab.router.olmoe import OLMoE

IDS = [5, 17, 3, 88, 41, 2, 60, 9]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("shape")
    save_gpt2(found)
    return found


@dataclass(frozen=True)
class BiasTwice:
    """relu(up(x) + bias) @ down, where one backend adds the bias twice."""

    taps: ClassVar[tuple[str, ...]] = ("pre",)

    size: int = 24
    wrong: str = ""

    def shapes(self, hidden_size):
        maps = {"up.kernel": (hidden_size, self.size), "up.bias": (self.size,)}
        return maps | {"down.kernel": (self.size, hidden_size)}

    def __call__(self, ops, params, x, tap):
        pre = ops.linear(x, params["up"]["kernel"], params["up"]["bias"])
        pre = tap("pre", pre + params["up"]["bias"] if ops.name == self.wrong else pre)
        return ops.linear(ops.relu(pre), params["down"]["kernel"])


@dataclass(frozen=True)
class Forgetful:
    """A norm from outside, of which one backend forgets the weight, the offset from 1, or the bias."""

    wrong: str = ""
    forgotten: str = "weight"

    def shapes(self, size):
        return {"weight": (size,), "offset": (size,), "bias": (size,)}

    def __call__(self, ops, params, x):
        kept = {name: ops.name != self.wrong or self.forgotten != name for name in ("weight", "offset", "bias")}
        normal = ops.rms_norm(x, params["weight"] if kept["weight"] else ops.xp.ones_like(params["weight"]), 1e-5)
        normal = normal * (1.0 + params["offset"]) if kept["offset"] else normal
        return normal + params["bias"] if kept["bias"] else normal


BUGS = {
    "a bias added twice": ("ffn", BiasTwice(), BiasTwice(wrong="torch"), "blocks.0.ffn.pre"),
    **{
        f"a forgotten {name}": ("norm", Forgetful(forgotten=name), Forgetful("torch", name), "blocks.0.norm_1")
        for name in ("weight", "offset", "bias")
    },
}


@pytest.mark.parametrize("title", BUGS)
def test_a_bug_in_what_training_begins_at_0_or_1_is_found(folder, title):
    part, right, wrong, tap = BUGS[title]
    found = {
        kind: [lab.load_model(folder, name, weights=kind, **{part: wrong}).logits(IDS) for name in ("numpy", "torch")]
        for kind in ("random", "shaken")
    }
    np.testing.assert_allclose(*found["random"], atol=1e-6)  # as training begins nobody can see it
    assert np.abs(np.subtract(*found["shaken"])).max() > 1e-3

    def compared(own):
        options = {"weights": "random", part: own}
        return lab.compare(folder, IDS, ["numpy", "torch"], exact=False, new_tokens=0, options=options)

    assert compared(right).sound
    report = compared(wrong)
    assert report.status == "defect" and report.first_divergence.tap == tap, report.verdict


def test_only_what_begins_at_0_or_1_is_shaken(folder):
    config = with_parts(
        lab.load_model(folder, weights="random").config,
        norm=RMSNorm(from_one=True),
        attention={"norm": LayerNorm(), "norm_over": "each_head"},
        ffn=MixtureOfExperts(OLMoE(2), Experts(4, 8), balancer=SignBias()),
    )
    begun, shaken, again, other = (
        dict(initialise(config, seed, shaking)) for seed, shaking in ((3, False), (3, True), (3, True), (4, True))
    )
    assert {name: array.tobytes() for name, array in dict(initialise(config, 3)).items()} == {
        name: array.tobytes() for name, array in begun.items()
    }
    moved = {"bias", "offset", "weight"}
    for name, array in begun.items():
        assert array.dtype == shaken[name].dtype == np.float32
        np.testing.assert_array_equal(shaken[name], again[name])
        assert (shaken[name] != other[name]).all(), name
        if name.rpartition(".")[2] in moved:
            assert set(np.unique(array)) <= {0.0, 1.0} and (shaken[name] != array).all(), name
            assert np.abs(shaken[name] - array).max() < 0.6
        else:
            np.testing.assert_array_equal(shaken[name], array, err_msg=name)
    assert {name.rpartition(".")[2] for name in begun} >= moved
    states = [name for name in begun if "balancer" in name]
    assert states and all(np.abs(shaken[name]).max() < 0.01 for name in states), "the tokens still choose their experts"


def test_the_report_says_so(folder, tmp_path):
    def said(**options):
        report = lab.compare(folder, IDS, ["numpy"], exact=False, gradients=False, new_tokens=0, options=options)
        out = io.StringIO()
        print_report(report.to_dict(), Console(file=out, width=300))
        report.to_html(tmp_path / "report.html")
        return report.to_dict()["model"]["weights"], out.getvalue(), (tmp_path / "report.html").read_text()

    words = "drawn at random, and shaken: norms are not 1 and biases not 0"
    kind, console, page = said(weights="random", ffn=Dense(8))
    assert kind == "shaken" and f"Weights: {words}." in console and f"<dt>Weights</dt><dd>{words}</dd>" in page
    kind, console, page = said()
    assert kind == "pretrained" and words not in console and words not in page
