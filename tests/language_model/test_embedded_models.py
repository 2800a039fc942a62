"""The models that come along: small enough to travel, what their cards say, the same on three backends."""

import numpy as np
import pytest
import torch
import transformers
from tolerances import LOGITS_FLOAT32

import transformer_lab as lab
from transformer_lab.paths import data_folder

MODELS = {"storybook": 12.0e6, "storybook_moe": 20.0e6}  # and the most bytes that each may have
FOLDER = data_folder("resources") / "models"
PROMPT = "Once upon a time there was a king who had three sons"


def test_these_are_all():
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_comes_along(name):
    assert sum(path.stat().st_size for path in (FOLDER / name).iterdir()) < MODELS[name]
    models = [lab.load_model(name, backend) for backend in ("numpy", "torch", "jax")]
    texts = {model.generate(PROMPT, max_new_tokens=24).text for model in models}
    assert len(texts) == 1
    assert f"{models[0].parameters_count:,}" in (FOLDER / name / "README.md").read_text(encoding="utf-8")
    ids = models[0].tokenizer.encode(PROMPT)
    exact = [lab.load_model(name, backend, "exact").logits(ids).tobytes() for backend in ("numpy", "torch", "jax")]
    assert exact[0] == exact[1] == exact[2]


@pytest.mark.parametrize("name", MODELS)
def test_transformers_reads_it_too(name):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(FOLDER / name, dtype=torch.float32).eval()
    model = lab.load_model(name)
    ids = model.tokenizer.encode(PROMPT)
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits.numpy()
    assert np.abs(model.logits(ids) - expected).max() < LOGITS_FLOAT32 * expected.std()


def test_experts_of_the_embedded_mixture_are_used_alike():
    """Over the default texts no expert is idle, and none has the threefold of its part."""
    report = lab.routing(lab.load_model("storybook_moe"))
    assert len(report.layers) == 4
    for layer in report.layers:
        assert layer["dead"] == []
        assert layer["max_over_mean"] < 3.0
    kinds = np.array([layer["by_class"]["word start"]["asked"] for layer in report.layers], float)
    shares = kinds / np.array([layer["asked"] for layer in report.layers])
    assert (shares.max(-1) > 1.3 * shares.min(-1)).all()
