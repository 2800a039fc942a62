"""examples/outside_router: a router that this package knows nothing of, trained, saved, resumed and judged."""

import sys
from pathlib import Path

import numpy as np
import pytest
from reference_models import save_gpt2

import transformer_lab as lab
from transformer_lab.cli import main

EXAMPLE = Path(__file__).parents[2] / "examples" / "outside_router"


@pytest.fixture
def mine(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(EXAMPLE), *sys.path])
    yield __import__("mine").Cosine(k=2)
    sys.modules.pop("mine", None)


def test_it_is_two_files_of_forty_lines():
    files = sorted(
        path.relative_to(EXAMPLE).as_posix() for path in EXAMPLE.rglob("*") if path.suffix in (".py", ".yaml")
    )
    assert files == ["conf/ffn/mine.yaml", "mine.py"]
    assert sum(len((EXAMPLE / name).read_text().splitlines()) for name in files) <= 40


def test_the_document_shows_these_files():
    page = (EXAMPLE.parents[1] / "docs" / "extending.md").read_text()
    for language, name in (("python", "mine.py"), ("yaml", "conf/ffn/mine.yaml")):
        assert f"```{language}\n# {'my_' * (language == 'yaml')}{name}\n{(EXAMPLE / name).read_text()}```" in page


def test_it_is_judged_like_ours(mine, tmp_path):
    save_gpt2(tmp_path)
    options = {"weights": "random", "ffn": "moe", "router": mine}
    report = lab.compare(tmp_path, [7, 8, 9, 10, 11], ["numpy", "torch", "jax"], new_tokens=2, options=options)
    assert report.status == "sound"


def test_it_is_saved_and_must_be_given_again(mine, tmp_path):
    model = lab.load_model("storybook", weights="random", ffn="moe", router=mine)
    model.save(tmp_path)
    again = lab.load_model(tmp_path, router=mine)
    assert (again.logits([3, 4, 5]) == model.logits([3, 4, 5])).all()
    with pytest.raises(lab.LabError, match=r"part from outside, mine\.Cosine"):
        lab.load_model(tmp_path).logits([3, 4, 5])


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_it_is_trained_and_goes_on_with_the_same_bits(mine, backend, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("The king said to his son that the old woman had a house in the wood.\n" * 100)
    words = [f"--config-dir={EXAMPLE / 'conf'}", "job=train", "ffn=mine", f"data.path={text}", "job.batch_size=2"]
    words += ["model=new", f"backend={backend}", "ffn.experts.size=8", "model.hidden_size=16", "model.num_layers=1"]
    words += ["model.context_length=16", "job.evaluation_tokens=64"]
    found = []
    for steps in ((4,), (2, 4)):
        folder = tmp_path / f"run{len(steps)}"
        for number in steps:
            own = [f"hydra.run.dir={folder}", f"job.steps={number}"]
            assert main([*words, *own, *([f"job.resume={folder}"] if number != steps[0] else [])]) == 0
        found.append(lab.load_model(folder / "model", router=mine).logits([3, 4, 5]))
    assert (found[0] == found[1]).all()
    assert np.isfinite(found[0]).all()
