"""A comparison of mixtures of experts tells which part of a difference is that tokens went elsewhere."""

import io
from dataclasses import dataclass

import numpy as np
import pytest
from rich.console import Console
from small_models import small_model

import transformer_lab as lab
from transformer_lab.comparison.reporting.console import print_report
from transformer_lab.config import component
from transformer_lab.ffn.experts import Experts
from transformer_lab.ffn.moe import MixtureOfExperts
from transformer_lab.language_model import assemble
from transformer_lab.model.init import initialise
from transformer_lab.router.olmoe import OLMoE

IDS = np.random.default_rng(0).integers(0, 61, (6, 24)).tolist()
ALONE = {"exact": False, "gradients": False, "new_tokens": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A mixture of many experts that hardly differ in their scores, and much in what they compute."""
    found = tmp_path_factory.mktemp("mixture")
    config = small_model(61, 32, 16, 2, 4, MixtureOfExperts(OLMoE(4), Experts(64, 24)))
    arrays = dict(initialise(config, 3))
    large = {name: array * np.float32(12 if name.endswith("kernel") else 1) for name, array in arrays.items()}
    assemble(config, large, component("backend", "numpy")).save(found)
    return found


@dataclass(frozen=True)
class WrongOnTorch(OLMoE):
    """The second expert is one further on torch."""

    def choose(self, ops, params, logits, state, tokens):
        ids = super().choose(ops, params, logits, state, tokens)
        if ops.name != "torch":
            return ids
        return ops.xp.concat([ids[..., :1], (ids[..., 1:] + 1) % logits.shape[-1]], axis=-1)


def shown(report, path):
    out = io.StringIO()
    print_report(report.to_dict(), Console(file=out, width=200))
    report.to_html(path)
    return out.getvalue(), path.read_text()


def test_int8_is_split_and_float32_stays_on_its_way(folder, tmp_path):
    sections = [lab.compare(folder, IDS, ["torch"], precision, **ALONE) for precision in ("int8", "float32")]
    low, high = (report.to_dict()["routing"][0] for report in sections)
    kl = low["kl"]
    assert kl["experts"] + kl["weights"] + kl["arithmetic"] == pytest.approx(kl["total"], rel=1e-9)
    assert len(low["flips"]) > 3 and kl["experts"] > kl["arithmetic"] > 0
    assert low["tokens"] == 144 and 0.0 < low["certified"] < high["certified"]
    assert not any(flip["own"] and flip["certified"] for flip in low["flips"])
    assert high["flips"] == [] and high["kl"]["total"] < 1e-9
    console, page = shown(sections[0], tmp_path / "report.html")
    assert "what of KL from the truth comes of tokens that went elsewhere" in console
    assert f"{len(low['flips'])} flips" in page and "Its experts" in page


def test_another_route_is_a_defect_and_no_arithmetic(folder):
    wrong = lab.compare(folder, IDS, ["numpy", "torch"], options={"router": WrongOnTorch(4)}, **ALONE)
    assert wrong.status == "defect" and wrong.first_divergence.tap == "blocks.0.ffn.router.expert_ids"
    numpy, torch = wrong.to_dict()["routing"]
    assert numpy["flips"] == [] and torch["layers"][0]["flips"] == 144
    assert torch["kl"]["total"] > 1e-6 > 1e-9 > torch["kl"]["arithmetic"]


def test_a_dense_model_has_no_such_section(tmp_path):
    report = lab.compare("storybook", IDS[0][:4], ["numpy"], **ALONE)
    assert report.to_dict()["routing"] == []
    console, page = shown(report, tmp_path / "report.html")
    assert "went elsewhere" not in console and "went elsewhere" not in page
