"""`job=routing` on the command line, and what a mixture of experts adds to a training's metrics."""

import pytest
from test_training_jobs import TEXT, words

from transformer_lab.training import metrics_file

SMALL = ["ffn=moe", "ffn.experts.count=4", "ffn.experts.size=8", "ffn.router.k=2"]


def test_a_table_a_page_and_the_numbers(run_tiny):
    weights = ("model.weights=random", *SMALL)
    outcome = run_tiny("job=routing", "prompt=Once upon a time", *weights, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert "2 of 4" in outcome.out and "routing.html" in outcome.out
    assert (outcome.folder / "run" / "routing.html").stat().st_size > 5000
    output = outcome.record["output"]
    assert output["texts"] == 1 and len(output["layers"]) == 2 and "split" not in output
    for layer in output["layers"]:
        assert sum(layer["load"]) == 2 * output["tokens"]


def test_against_another_backend(run_tiny):
    weights = ("model.weights=random", *SMALL)
    outcome = run_tiny("job=routing", 'prompts=["Once upon", "a time"]', *weights, "job.against=torch")
    assert outcome.code == 0, outcome.err
    split = outcome.record["output"]["split"]
    assert split["participants"] == {"a": "numpy float32", "b": "torch float32"} and split["texts"] == 2
    assert "with the experts of a" in outcome.out
    outcome = run_tiny("job=routing", "prompt=a", *weights, "job.against_precision=exact", "hydra.run.dir=other")
    assert "numpy exact (b) beside numpy float32 (a)" in outcome.out


def test_a_dense_model_has_no_routes(run_tiny):
    outcome = run_tiny("job=routing", "prompt=a")
    assert outcome.code == 2 and "no layer in which a router chooses experts" in outcome.err


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


DENSE = {"step", "loss", "gradient_norm", "learning_rate", "tokens_per_s"}
ROUTING = {"balance_loss", "max_violation", "load_entropy", "dead_experts", "dropped_slots", "z", "gate_entropy"}


def test_metrics_of_a_training(run, text, tmp_path):
    outcome = run(*words(text, "torch", 6, "hydra.run.dir=run", *SMALL, "job.accumulate=2"))
    assert outcome.code == 0, outcome.err
    assert "balance 1." in outcome.err and "busiest expert 1." in outcome.err
    lines = metrics_file.read(tmp_path / "run" / "metrics.jsonl")
    sometimes = {"validation_loss", "bits_per_byte", "sample", "loads"}
    assert [set(line) - sometimes for line in lines] == [DENSE | ROUTING] * 6
    assert [line["step"] for line in lines if "loads" in line] == [4, 6]
    for line in lines:
        assert line["balance_loss"] > 0.9 and 0 < line["load_entropy"] <= 1 and line["dropped_slots"] == 0
    assert sum(lines[-1]["loads"]["0"]) == 2 * 2 * 4 * 16  # slots of two pieces of four windows
    assert list(lines[-1]["loads"]) == ["0"]


def test_metrics_of_a_dense_training_stay_as_they_are(run, text, tmp_path):
    assert run(*words(text, "torch", 2, "hydra.run.dir=run")).code == 0
    lines = metrics_file.read(tmp_path / "run" / "metrics.jsonl")
    assert set(lines[0]) == DENSE
    assert set(lines[1]) == DENSE | {"validation_loss", "bits_per_byte"}
