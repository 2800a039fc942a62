"""`job=compare` on the command line: what it prints and writes, and what it says to mistakes."""

import json
from pathlib import Path

import pytest


def test_a_comparison(run, tiny_model):
    words = [f"model.source={tiny_model}", "job.participants=[numpy,torch]", "prompt=Once upon a time"]
    found = run("job=compare", *words, "job.new_tokens=4", "job.gradients=true", "compare.sweeps=[cached,threads]")
    assert found.code == 0, found.err
    assert "Identical in exact mode on numpy and torch" in " ".join(found.out.split())
    assert "report.html" in found.out
    output = found.record["output"]
    report = json.loads(Path(output["json"]).read_text(encoding="utf-8"))
    assert output["sound"] is True and output["first_divergence"] is None
    assert output["verdict"] == report["verdict"]["sentence"]
    assert report["prompts"][0]["text"] == "Once upon a time"
    assert {row["change"] for row in report["sweeps"]} == {"cached, the last 8 tokens one by one", "1 thread"}
    assert report["gradients"]
    assert "<html" in Path(output["html"]).read_text(encoding="utf-8")


def test_transformers_and_a_dump_take_part(run, tiny_model, tmp_path):
    from transformer_lab import load_model
    from transformer_lab.comparison.participants.dumped import write_dump

    ids = [3, 1, 4, 1, 5]
    write_dump(tmp_path / "theirs, of today.npz", ids, {"logits": load_model(tiny_model).logits(ids)})
    found = run(
        "job=compare",
        f"model.source={tiny_model}",
        "prompt_ids=[3,1,4,1,5]",
        "job.participants=[transformers]",
        f"job.dump={tmp_path / 'theirs, of today.npz'}",
        "job.new_tokens=0",
    )
    assert found.code == 0, found.err
    report = json.loads(Path(found.record["output"]["json"]).read_text(encoding="utf-8"))
    assert [row["kind"] for row in report["participants"]] == ["transformers", "file"]
    assert report["verdict"]["status"] == "sound" and report["exact"] is None


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["job.participants=[]"], 2, "job.participants is empty"),
        (["job.participants=[nympy]"], 2, "nympy"),
        (["job.sweeps=[cache]"], 2, "no sweep 'cache'"),
        (["job.new_tokens=-1"], 2, "new_tokens is -1"),
        (["job.runs=many"], 2, "job.runs"),
        (["precision=int8", "job.participants=[numpy]"], 2, "does not offer precision=int8"),
        (["job.dump=nowhere.npz", "job.participants=[]"], 3, "nowhere.npz"),
        (["model.source=./nowhere"], 3, "nowhere"),
    ],
)
def test_mistakes(run, tiny_model, words, code, said):
    model = [] if any(word.startswith("model.source") for word in words) else [f"model.source={tiny_model}"]
    found = run("job=compare", "prompt_ids=[1,2,3]", *model, *words)
    assert found.code == code
    assert said in found.err and "Traceback" not in found.err
