"""job=train, job=evaluate and job=tokenizer as a user meets them: results, stopping and going on, mistakes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

import transformer_lab as lab
from transformer_lab.left_over import locked
from transformer_lab.training import checkpoint, metrics_file
from transformer_lab.training.step import TrainingStep

TEXT = "\n<|endoftext|>\n".join(
    f"The king of hill number {n} had {n % 7} sons. They went to sea, and the sea was {'deep' if n % 2 else 'calm'}."
    for n in range(60)
)
SHAPE = ["model=new", "model.hidden_size=16", "model.num_layers=1", "model.num_heads=2", "model.context_length=16"]
SHORT = ["job.batch_size=4", "schedule.warmup_steps=3", "job.evaluate_every=4", "job.checkpoint_every=3"]


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def words(text, backend, steps, *more):
    return ["job=train", f"backend={backend}", f"data.path={text}", *SHAPE, *SHORT, f"job.steps={steps}", *more]


def cut_at(cut_step, real=TrainingStep.run):
    """For TrainingStep.run: what fails at that step, after which nothing is saved."""

    def run(self, ids, weights, step, share):
        if step == cut_step:
            raise MemoryError
        return real(self, ids, weights, step, share)

    return run


def weights(folder, part="model"):
    return (folder / part / "model.safetensors").read_bytes()


def losses(folder):
    return {line["step"]: line["loss"] for line in metrics_file.read(folder / "metrics.jsonl")}


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_train_then_use_the_model(run, text, tmp_path, backend):
    outcome = run(*words(text, backend, 10, "hydra.run.dir=run", "job.sample_every=5"))
    assert outcome.code == 0, outcome.err
    assert "step 10/10" in outcome.err
    assert "Once upon a time" in outcome.err
    folder = tmp_path / "run"
    lines = metrics_file.read(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert all(line["loss"] > 0 and line["gradient_norm"] > 0 and line["tokens_per_s"] > 0 for line in lines)
    assert [line["step"] for line in lines if "validation_loss" in line] == [4, 8, 10]
    assert ElementTree.parse(folder / "loss.svg").getroot().tag.endswith("svg")
    record = outcome.record
    assert record["output"]["steps"] == 10
    assert record["output"]["evaluation"]["tokens"] > 0
    kept = [found.step for found in checkpoint.found(folder)]
    assert kept[-1] == 10
    assert len(kept) <= 3
    for loaded in (folder / "model", checkpoint.found(folder)[-1].path):
        assert lab.load_model(loaded).generate("The king", max_new_tokens=3).text is not None
    evaluated = run("job=evaluate", f"backend={backend}", f"data.path={text}", "model.source=run/model")
    assert evaluated.code == 0
    assert "bits per byte" in evaluated.out


def test_a_model_that_ends_its_texts_otherwise(run, text, tmp_path):
    """config.json names the end token, here Llama 3's: training and evaluating take it, without an <|endoftext|>."""
    tokenizer = lab.train_tokenizer(TEXT, 300, ("<|begin_of_text|>", "<|end_of_text|>"))
    tokenizer.save(tmp_path / "base")
    shape = {"model_type": "llama", "vocab_size": tokenizer.vocab_size, "hidden_size": 16, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 16}
    (tmp_path / "base" / "config.json").write_text(json.dumps(shape | {"bos_token_id": 0, "eos_token_id": 1}))
    start = ["job=train", f"data.path={text}", "model.source=base", "model.weights=random"]
    trained = run(*start, *SHORT, "job.steps=2", "hydra.run.dir=run")
    assert trained.code == 0, trained.err
    assert lab.load_model(tmp_path / "run" / "model").end_of_text_ids == (1,)
    evaluated = run("job=evaluate", f"data.path={text}", "model.source=run/model", "hydra.run.dir=evaluated")
    assert evaluated.code == 0, evaluated.err
    ends = {
        path.stem: json.loads(path.read_text()).get("end_of_text_id") for path in (tmp_path / "cache").rglob("*.json")
    }
    assert ends.items() >= {"train": 1, "validation": 1, "all": 1}.items()


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_going_on_gives_the_same_bits(run, text, tmp_path, backend):
    more = ("job.average_decay=0.9", "job.accumulate=2")
    assert run(*words(text, backend, 12, "hydra.run.dir=whole", *more)).code == 0
    # The same run, cut off in the middle of step 8, with checkpoints at 3 and 6.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingStep, "run", cut_at(8))
        assert run(*words(text, backend, 12, "hydra.run.dir=cut", *more)).code == 4
    assert max(losses(tmp_path / "cut")) == 7
    again = run(*words(text, backend, 12, "hydra.run.dir=again", "job.resume=cut", *more))
    assert again.code == 0, again.err
    assert "going on after step" in again.err
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")  # every loss, to the last bit
    assert weights(tmp_path / "whole") == weights(tmp_path / "cut")


def test_going_on_with_other_words_is_refused(run, text, tmp_path):
    """Each of them would give other bits."""
    (tmp_path / "other.txt").write_text(TEXT + " Something new.")
    assert run("job=tokenizer", f"data.path={text}", "job.vocab_size=300", "job.output=vocabulary").code == 0
    assert run(*words(text, "numpy", 3, "hydra.run.dir=run", "tokenizer.source=vocabulary")).code == 0
    for word, said in (
        ("optimizer.learning_rate=0.5", "optimizer.learning_rate=0.001, and now it is 0.5."),
        ("schedule=linear", "schedule._target_='Cosine', and now it is 'Linear'."),
        ("schedule.final_share=0.2", "schedule.final_share=0.1, and now it is 0.2."),
        ("seed=9", "seed=0, and now it is 9."),
        ("job.batch_size=5", "job.batch_size=4, and now it is 5."),
        ("job.average_decay=0.9", "job.average_decay=null, and now it is 0.9."),
        ("backend=torch", "backend='numpy', and now it is 'torch'."),
        ("precision=float64", "precision='float32', and now it is 'float64'."),
        ("ops=manual", "ops.linear='fused', and now it is 'manual'."),
        ("ops.attention=manual", "ops.attention='fused', and now it is 'manual'."),
        ("data.cross_documents=false", "data.cross_documents=true, and now it is false."),
        ("data.path=other.txt", "text_sha256="),
        ("data.validation_share=0.02", "data.validation_share=0.01, and now it is 0.02."),
        ("tokenizer=huggingface", "tokenizer_sha256="),
    ):
        outcome = run(*words(text, "numpy", 6, "tokenizer.source=vocabulary", "job.resume=run", word))
        assert outcome.code == 2, word
        assert f"was trained with {said}" in outcome.err, outcome.err
    assert run(*words(text, "numpy", 4, "tokenizer.source=vocabulary", "job.resume=run")).code == 0


def test_of_another_model_only_the_fields_that_differ_are_named(run, text):
    assert run(*words(text, "numpy", 3, "hydra.run.dir=run", "model.num_layers=2")).code == 0
    ffn, attention = "model.blocks.0.ffn", "model.blocks.0.attention"
    table = "model.position=position/learned, and now it is null"
    for word, said in (
        ("ffn.size=32", f"{ffn}.size=64, and now it is 32."),
        ("ffn.activation=relu", f"{ffn}.activation='gelu_tanh', and now it is 'relu'."),
        ("model.num_layers=3", "model.blocks.0.layers=2, and now it is 3."),
        ("model.num_heads=4", f"{attention}.num_heads=2, and now it is 4, {attention}.head_size=8, and now it is 4, "),
        ("position=rotary", f"{table}, {attention}.position=null, and now it is position/rotary."),
        ("block=parallel", "model.blocks.0=block/sequential, and now it is block/parallel."),
    ):
        outcome = run(*words(text, "numpy", 6, "model.num_layers=2", "job.resume=run", word))
        assert outcome.code == 2, word
        assert f"was trained with {said}" in outcome.err, outcome.err
        assert "ModelConfig" not in outcome.err and len(outcome.err) < 800, outcome.err


def test_what_changes_no_bits_is_not_refused(run, text, tmp_path):
    more = ("data.validation=other.txt", "job.average_decay=0.9")
    (tmp_path / "other.txt").write_text(TEXT[:300])
    assert run(*words(text, "numpy", 8, "hydra.run.dir=whole", *more)).code == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingStep, "run", cut_at(6))
        assert run(*words(text, "numpy", 8, "hydra.run.dir=cut", *more)).code == 4
    (tmp_path / "other.txt").write_text(TEXT[:500])
    intervals = ("job.evaluate_every=3", "job.evaluation_tokens=20", "job.checkpoint_every=5", "job.sample_every=4")
    outcome = run(*words(text, "numpy", 8, "job.resume=cut", *more, *intervals))
    assert outcome.code == 0
    assert "Warning: data.validation was" in outcome.err
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert weights(tmp_path / "whole") == weights(tmp_path / "cut")


def test_another_machine_or_version_is_said(run, text, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert run(*words(text, "numpy", 3, "hydra.run.dir=run")).code == 0
    assert "numbers may differ" not in run(*words(text, "numpy", 3, "job.resume=run")).err
    monkeypatch.setattr("transformer_lab.environment._cores", lambda: 77)
    outcome = run(*words(text, "numpy", 3, "job.resume=run"))
    assert outcome.code == 0
    assert "and is 77: numbers may differ from those of a run that was never stopped." in outcome.err


def test_more_steps_are_another_schedule_where_the_schedule_knows_their_number(run, text, tmp_path):
    assert run(*words(text, "numpy", 6, "hydra.run.dir=long")).code == 0
    longer = run(*words(text, "numpy", 9, "job.resume=long", "hydra.run.dir=first"))
    assert longer.code == 0
    assert "up to step 6 the learning rates were those of another schedule" in longer.err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingStep, "run", cut_at(11))
        assert run(*words(text, "numpy", 12, "job.resume=long")).code == 4
    assert run(*words(text, "numpy", 12, "job.resume=long", "hydra.run.dir=second")).code == 0
    said = {name: json.loads((tmp_path / name / "result.json").read_text())["output"] for name in ("first", "second")}
    assert (said["first"]["another_schedule_until"], said["second"]["another_schedule_until"]) == (6, 9)
    # One that does not know it, and one that had not begun to fall: as one run.
    for schedule in ("schedule=constant", "schedule=warmup_stable_decay"):
        folder = schedule.partition("=")[2]
        assert run(*words(text, "numpy", 20, f"hydra.run.dir={folder}/whole", schedule)).code == 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TrainingStep, "run", cut_at(7))
            assert run(*words(text, "numpy", 10, f"hydra.run.dir={folder}/cut", schedule)).code == 4
        outcome = run(*words(text, "numpy", 20, f"job.resume={folder}/cut", schedule))
        assert outcome.code == 0
        assert "Warning" not in outcome.err
        assert weights(tmp_path / folder / "whole") == weights(tmp_path / folder / "cut")


def test_a_damaged_checkpoint_is_said_and_passed_over(run, text, tmp_path):
    assert run(*words(text, "numpy", 8, "hydra.run.dir=whole")).code == 0
    damage = {
        checkpoint.FACTS: lambda path: path.unlink(),
        checkpoint.STATE: lambda path: path.write_bytes(path.read_bytes()[:-500]),
        "model.safetensors": lambda path: path.write_bytes(path.read_bytes()[:-500]),
        "config.json": lambda path: path.write_text("{"),
    }
    for name, harm in damage.items():
        shutil.copytree(tmp_path / "whole", tmp_path / name / "run")
        kept = checkpoint.found(tmp_path / name / "run")
        harm(kept[-1].path / name)
        outcome = run(*words(text, "numpy", 8, f"job.resume={name}/run"))
        assert outcome.code == 0, outcome.err
        assert name in outcome.err
        assert f"Going on from {name}/run/checkpoints/{kept[-2].path.name}, which is older." in outcome.err
        assert losses(tmp_path / name / "run") == losses(tmp_path / "whole")
        for part in ("model", f"checkpoints/{kept[-1].path.name}"):
            assert weights(tmp_path / "whole", part) == weights(tmp_path / name / "run", part)
        assert checkpoint.found(tmp_path / name / "run")[-1].facts()["step"] == 8
    for found in checkpoint.found(tmp_path / "whole"):
        (found.path / checkpoint.STATE).unlink()
    outcome = run(*words(text, "numpy", 8, "job.resume=whole"))
    assert outcome.code == 3
    assert "whole has no checkpoint that this run can go on from." in outcome.err and "is damaged." in outcome.err


@pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")
def test_one_process_at_a_time(run, text, tmp_path):
    assert run(*words(text, "numpy", 3, "hydra.run.dir=run")).code == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with locked(tmp_path / "run"):
        outcome = run(*words(text, "numpy", 6, "job.resume=run"))
    assert outcome.code == 4
    assert "Another process is training in run." in outcome.err
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_second_run_in_the_same_folder_is_refused(run, text):
    assert run(*words(text, "jax", 3, "hydra.run.dir=run")).code == 0
    outcome = run(*words(text, "jax", 3, "hydra.run.dir=run"))
    assert outcome.code == 2
    assert "job.resume" in outcome.err
    fewer = run(*words(text, "jax", 2, "job.resume=run"))
    assert fewer.code == 2
    assert "already done 3 steps. Ask for more with job.steps." in fewer.err


def test_going_on_where_all_is_done_finishes_again(run, text, tmp_path):
    """So a run that was killed just before its end, and one that is told to go on until it succeeds, get there."""
    assert run(*words(text, "numpy", 4, "hydra.run.dir=run")).code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    shutil.rmtree(tmp_path / "run" / "model")
    (tmp_path / "run" / "loss.svg").unlink()
    outcome = run(*words(text, "numpy", 4, "job.resume=run", "hydra.run.dir=again"))
    assert outcome.code == 0
    assert "run has already done 4 steps" in outcome.err
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    first, again = (json.loads((tmp_path / name / "result.json").read_text())["output"] for name in ("run", "again"))
    paths = {name: again[name] for name in ("folder", "model", "checkpoints")}
    assert again == first | paths | {"tokens_per_s": None}


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_process_that_is_stopped(run, text, tmp_path, environment, sent, code):
    arguments = words(text, "torch", 100_000, "hydra.run.dir=run", "job.evaluate_every=0", "job.checkpoint_every=5")
    command = [sys.executable, "-m", "transformer_lab", *arguments]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not checkpoint.found(tmp_path / "run"):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(sent)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code, error
    stopped_at = checkpoint.found(tmp_path / "run")[-1].step
    if sent == signal.SIGINT:
        assert "job.resume=" in error
        assert stopped_at == max(losses(tmp_path / "run"))  # nothing is lost
    outcome = run(
        *words(text, "torch", stopped_at + 2, "job.resume=run", "job.evaluate_every=0", "job.checkpoint_every=5")
    )
    assert outcome.code == 0, outcome.err
    assert max(losses(tmp_path / "run")) == stopped_at + 2


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_a_loss_that_is_not_finite(run, text, tmp_path, backend):
    """The weights of a checkpoint are damaged, so that the tap where it begins is known."""
    assert run(*words(text, backend, 3, "hydra.run.dir=run")).code == 0
    model = lab.load_model(tmp_path / "run" / "model")
    weights = {name: np.array(value) for name, value in _flat(model).items()}
    weights["blocks.0.ffn.up.bias"][3] = np.inf
    model.replace_weights(weights)
    model.save(tmp_path / "broken")
    outcome = run(
        "job=train", f"backend={backend}", f"data.path={text}", "model.source=broken", *SHORT, "job.steps=4",
        "hydra.run.dir=second", "ops=manual",
    )  # fmt: skip
    assert outcome.code == 4
    assert "Step 1 is not finite" in outcome.err
    assert "blocks.0.ffn.pre" in outcome.err
    assert "There is no checkpoint yet" in outcome.err


def _flat(model):
    from transformer_lab.model.parameters import flatten, shapes

    wanted = shapes(model.config)
    return {name: model.backend.recover(name, x) for name, x in flatten(model.params) if name in wanted}


def test_a_loss_that_explodes(run, text):
    outcome = run(*words(text, "jax", 60, "optimizer.learning_rate=30.0", "optimizer.clip_norm=null"))
    assert outcome.code == 4
    assert "exploded" in outcome.err or "not finite" in outcome.err
    assert "optimizer.learning_rate" in outcome.err


def test_train_a_tokenizer_and_train_with_it(run, text, tmp_path):
    outcome = run("job=tokenizer", f"data.path={text}", "job.vocab_size=300", "job.output=vocabulary")
    assert outcome.code == 0, outcome.err
    assert outcome.out.strip() == "vocabulary"
    tokenizer = lab.load_tokenizer(tmp_path / "vocabulary")
    assert tokenizer.vocab_size == 300
    assert tokenizer.decode(tokenizer.encode("The king")) == "The king"
    trained = run(*words(text, "jax", 2, "tokenizer.source=vocabulary", "hydra.run.dir=run"))
    assert trained.code == 0, trained.err
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["vocab_size"] == 300


def test_a_checkpoint_is_trained_further(run, text, tmp_path):
    assert run(*words(text, "jax", 8, "hydra.run.dir=first")).code == 0
    outcome = run(
        "job=train", "backend=torch", f"data.path={text}", "model.source=first/model", *SHORT, "job.steps=2",
        "hydra.run.dir=second",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    first, second = losses(tmp_path / "first"), losses(tmp_path / "second")
    assert second[1] < first[1] - 0.1  # it begins where the other ended


def test_training_keeps_what_the_folder_said(run, text, tmp_path):
    assert run(*words(text, "numpy", 2, "hydra.run.dir=first")).code == 0
    source = tmp_path / "first" / "model"
    fields = json.loads((source / "config.json").read_text())
    ends = [fields["eos_token_id"], 3]
    (source / "config.json").write_text(json.dumps(fields | {"eos_token_id": ends, "note": "of their own"}))
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [4, 5], "temperature": 0.6}))
    (source / "chat_template.jinja").write_text("{{ messages }}")
    further = [
        "job=train",
        f"data.path={text}",
        "model.source=first/model",
        *SHORT,
        "job.steps=2",
        "hydra.run.dir=again",
    ]
    assert run(*further).code == 0
    for folder in (tmp_path / "again" / "model", tmp_path / "again" / "checkpoints" / "step-00000002"):
        kept = json.loads((folder / "config.json").read_text())
        assert (kept["eos_token_id"], kept["note"]) == (ends, "of their own")
        for name in ("generation_config.json", "chat_template.jinja", "tokenizer.json"):
            original = json.loads if name.endswith("json") else str
            assert original((folder / name).read_text()) == original((source / name).read_text())
        assert lab.load_model(folder).end_of_text_ids == (4, 5)


@pytest.mark.parametrize(
    ("wrong", "code", "said"),
    [
        (["data.path=nowhere.txt"], 3, "nowhere.txt"),
        (["data.path=null"], 2, "data.path"),
        (["job.steps=0"], 2, "job.steps"),
        (["job.context=17"], 2, "job.context"),
        (["precision=exact"], 2, "float32, float64"),
        (["job.average_decay=1.0"], 2, "average_decay"),
        (["job.resume=nothing"], 3, "no checkpoints"),
        (["model.weights=shaken"], 2, "model.weights"),
        (["norm=rms_norn"], 2, "rms_norm"),
        (["schedule=cosin"], 2, "cosine"),
        (["optimizer.learning_rat=1"], 2, "learning_rate"),
        (["tokenizer.source=nowhere"], 2, "nowhere"),
        (["job.batch_size=100000000"], 4, "job.batch_size"),
        (["model.context_length=4000"], 3, "tokens"),
    ],
)
def test_mistakes(run, text, wrong, code, said):
    outcome = run(*words(text, "torch", 2), *wrong)
    assert outcome.code == code, outcome.err
    assert said in outcome.err
    assert "Traceback" not in outcome.err


def test_a_new_shape_generates_nothing_yet(run):
    outcome = run("model=new")
    assert outcome.code == 2
    assert "job=train" in outcome.err
    with pytest.raises(lab.ConfigurationError, match="job=train"):
        lab.load_model("new")


def test_evaluate_refuses_what_has_no_sense(run, text):
    for word, name in (("job.stride=0", "stride"), ("job.context=9999", "context"), ("data.path=null", "data.path")):
        outcome = run("job=evaluate", f"data.path={text}", word)
        assert outcome.code == 2
        assert name in outcome.err
