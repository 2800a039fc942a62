"""A tiny model of random weights with a tokenizer of its own, and the command line called in this process."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import transformer_lab
from transformer_lab.cli import main
from transformer_lab.jobs import prompts

TEXTS = ["Once upon a time there was an old man who lived by the sea. He said: it is late, my dear."] * 20


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in Hugging Face layout: two layers, 300 tokens, a context of 4096."""
    from transformer_lab import load_model, train_tokenizer

    shape = tmp_path_factory.mktemp("shape")
    config = {"model_type": "gpt2", "vocab_size": 300, "n_positions": 4096, "n_embd": 16, "n_layer": 2, "n_head": 2}
    (shape / "config.json").write_text(json.dumps(config | {"eos_token_id": None, "bos_token_id": 0}))
    model = load_model(shape, weights="random")
    model.tokenizer = train_tokenizer(TEXTS, 300)
    folder = tmp_path_factory.mktemp("tiny_model")
    model.save(folder)
    return folder


@dataclass
class Outcome:
    code: int
    out: str
    err: str
    folder: Path

    @property
    def records(self) -> list[dict[str, Any]]:
        """Every result.json under the working directory, in order of path."""
        return [json.loads(path.read_text()) for path in sorted(self.folder.rglob("result.json"))]

    @property
    def record(self) -> dict[str, Any]:
        (record,) = self.records
        return record


Run = Callable[..., Outcome]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line with these words in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRANSFORMER_LAB_RUNS", raising=False)
    monkeypatch.delenv("TRANSFORMER_LAB_DEBUG", raising=False)
    prompts._read_standard_input.cache_clear()

    def call(*words: str) -> Outcome:
        capsys.readouterr()
        code = main(list(words))
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err, tmp_path)

    return call


@pytest.fixture
def run_tiny(run: Run, tiny_model: Path) -> Run:
    """The same on the tiny model, for 4 tokens."""
    return lambda *words: run(f"model.source={tiny_model}", "max_new_tokens=4", *words)


@pytest.fixture
def environment() -> dict[str, str]:
    """For real processes: the variables of this one, and the package that is tested here in reach."""
    return os.environ | {"PYTHONPATH": str(Path(transformer_lab.__file__).parents[1])}
