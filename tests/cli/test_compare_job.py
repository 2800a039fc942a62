"""`job=compare` on the command line: what it prints and writes, and what it says to mistakes."""

import json
from pathlib import Path

import numpy as np
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
    write_dump(tmp_path / "theirs, of today.npz", ids, load_model(tiny_model, ops="manual").record(ids))
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


def dumped(folder, tiny_model, ids, change):
    """A dump of what the tiny model shows, changed."""
    from transformer_lab import load_model
    from transformer_lab.comparison.participants.dumped import write_dump

    write_dump(folder / "theirs.npz", ids, change(load_model(tiny_model, ops="manual").record(ids)))
    return folder / "theirs.npz"


CHANGES = {
    "sound": lambda taps: taps,
    "defect": lambda taps: taps | {"logits": taps["logits"] * np.float32(1.5)},
    "not judged": lambda taps: {"logits": taps["logits"]},
}


@pytest.mark.parametrize(("status", "code"), [("sound", 0), ("defect", 5), ("not judged", 6)])
def test_the_exit_code_is_for_other_peoples_ci(run, tiny_model, tmp_path, status, code):
    path = dumped(tmp_path, tiny_model, [3, 1, 4], CHANGES[status])
    words = [f"model.source={tiny_model}", "prompt_ids=[3,1,4]", "job.participants=[numpy]", f"job.dump={path}"]
    words += ["job.exact=false", "job.gradients=false", "job.new_tokens=0"]
    found = run("job=compare", *words, "hydra.run.dir=first")
    assert found.code == code, found.err
    assert found.record["status"] == "ok" and "error" not in found.record
    assert found.record["output"]["status"] == status
    assert found.record["output"]["sound"] is (status == "sound")
    assert json.loads((tmp_path / "first" / "report.json").read_text(encoding="utf-8"))["verdict"]["status"] == status
    again = run("job=compare", *words, "job.exit_zero=true", "hydra.run.dir=first")
    assert again.code == 0 and again.record["output"]["status"] == status


def test_a_sweep_ends_with_the_first_code_that_is_not_0(run, tiny_model, tmp_path):
    path = dumped(tmp_path, tiny_model, [3, 1, 4], CHANGES["defect"])
    words = [f"model.source={tiny_model}", "prompt_ids=[3,1,4]", "job.participants=[numpy]", f"job.dump={path}"]
    words += ["job.exact=false", "job.gradients=false", "job.new_tokens=0", "-m"]
    found = run("job=compare", *words, "job.exit_zero=true,false", "job.runs=1,2")
    assert found.code == 5
    assert [record["status"] for record in found.records] == ["ok"] * 4
    assert run("job=compare", *words, "job.exit_zero=true", "job.runs=1,2").code == 0


def test_every_status_has_an_exit_code():
    from transformer_lab.comparison.reporting import verdict
    from transformer_lab.jobs.compare import EXIT_CODES

    assert list(EXIT_CODES) == [verdict.SOUND, verdict.DEFECT, verdict.NOT_JUDGED]
    assert list(EXIT_CODES.values()) == [0, 5, 6]
