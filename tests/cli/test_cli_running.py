"""Whole runs on a tiny model: what goes to standard output, to standard error, and into result.json."""

import errno
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from transformer_lab import UnavailableError, cli, load_model
from transformer_lab.jobs import record
from transformer_lab.tokenizers import load_tokenizer

PROMPT = 'It\'s late, "he" said: {x}=$5? ${oc.env:HOME}'


def test_the_continuation_alone_goes_to_standard_output(run_tiny, tiny_model):
    outcome = run_tiny(f"prompt={PROMPT}")
    expected = load_model(tiny_model).generate(PROMPT, max_new_tokens=4)
    assert outcome.code == 0
    assert outcome.out == expected.text + "\n"
    assert "tokens/s" in outcome.err and "Warning" not in outcome.err


def test_the_record(run_tiny, tiny_model):
    found = run_tiny(f"prompt={PROMPT}", "+backend=numpy", "hash_logits=true").record
    model = load_model(tiny_model)
    expected = model.generate(PROMPT, max_new_tokens=4, hash_logits=True)
    assert (found["schema"], found["job"], found["status"]) == (1, "generate", "ok")
    assert found["backend"].keys() == {"name", "version", "device", "precision", "ops"}
    assert found["backend"]["name"] == "numpy" and found["backend"]["ops"] == model.backend.ops
    digest = hashlib.sha256((tiny_model / "model.safetensors").read_bytes()).hexdigest()
    count = model.parameters_count
    source = str(tiny_model)
    assert found["model"] == {"source": source, "sha256": digest, "parameters": count, "active_parameters": count}
    assert found["timing"].keys() == {*record.TIMINGS, "peak_memory_bytes"}
    assert found["timing"]["first_token_s"] > 0 and found["timing"]["peak_memory_bytes"] > 2**20
    assert found["environment"].keys() == {
        *("python", "platform", "processor", "cores", "threads", "packages", "blas", "variables", "command")
    }
    assert found["environment"]["packages"]["numpy"] == np.__version__
    assert found["choices"]["backend"] == "numpy" and found["settings"]["model"]["source"] == source
    assert found["output"] == {
        "prompt": PROMPT,
        "text": expected.text,
        "prompt_token_ids": expected.prompt_token_ids,
        "token_ids": expected.token_ids,
        "finish_reason": "length",
        "logits_sha256": expected.logits_sha256,
    }


def test_the_prompt_is_in_none_of_hydras_files(run_tiny):
    outcome = run_tiny("prompt=${oc.env:HOME} secretly", "-m", "seed=1,2", "sampling=nucleus")
    assert outcome.code == 0
    assert [found["output"]["prompt"] for found in outcome.records] == ["${oc.env:HOME} secretly"] * 2
    files = list(outcome.folder.rglob("*.yaml"))
    assert len(files) == 2 * 3 + 1
    assert all("secretly" not in path.read_text() for path in files)


def test_runs_go_where_they_are_told_and_nothing_else_is_written(run_tiny, monkeypatch, tmp_path):
    run_tiny("prompt=a")
    assert re.fullmatch(
        r"outputs/generate/\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d-\d{6}/result\.json",
        next(tmp_path.rglob("result.json")).relative_to(tmp_path).as_posix(),
    )
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
    monkeypatch.setenv("TRANSFORMER_LAB_RUNS", "else where, x=[1]")
    run_tiny("prompt=a")
    assert len(list((tmp_path / "else where, x=[1]").rglob("result.json"))) == 1
    run_tiny("prompt=a", "hydra.run.dir=exactly/here")
    assert sorted(path.name for path in (tmp_path / "exactly" / "here").iterdir()) == [".hydra", "result.json"]


def test_a_sweep_runs_every_backend(run_tiny):
    outcome = run_tiny("prompt=Once upon", "-m", "+backend=numpy,torch,jax")
    assert outcome.code == 0, outcome.err
    assert [found["backend"]["name"] for found in outcome.records] == ["numpy", "torch", "jax"]
    texts = {found["output"]["text"] for found in outcome.records}
    assert len(texts) == 1 and outcome.out == 3 * (texts.pop() + "\n")


def test_one_failing_run_of_a_sweep_leaves_the_others(run_tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "transformer_lab.backends.frameworks.torch", raising=False)
    outcome = run_tiny("prompt=Once upon", "-m", "backend=numpy,torch,numpy")
    assert outcome.code == 4
    assert "transformer_lab[torch]" in outcome.err and "Traceback" not in outcome.err
    assert [found["status"] for found in outcome.records] == ["ok", "error", "ok"]
    assert outcome.records[1]["error"]["exit_code"] == 4


def test_prompts_from_a_file(run_tiny, tmp_path):
    path = tmp_path / "a, 'b' = [c].txt"
    path.write_bytes("Once\r\nupon ☃\n".encode())
    assert run_tiny(f"prompt_file={path.name}").record["output"]["prompt"] == "Once\r\nupon ☃\n"


def test_prompts_from_standard_input(run_tiny, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("Once ☃\n".encode())))
    outcome = run_tiny("prompt=-", "-m", "seed=1,2")
    assert [found["output"]["prompt"] for found in outcome.records] == ["Once ☃\n"] * 2


@pytest.mark.parametrize("content", [b"good \xff", b"\xe2\x98"])
def test_standard_input_must_be_utf8(run_tiny, monkeypatch, content):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    outcome = run_tiny("prompt=-")
    assert outcome.code == 3 and "UTF-8" in outcome.err


def test_prompt_files_that_are_none(run_tiny, tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    (tmp_path / "large").write_bytes(b"x" * 2000)
    monkeypatch.setattr("transformer_lab.jobs.prompts.LARGEST_PROMPT_BYTES", 1000)
    for name in ("folder", "pipe", "latin", "large", "missing", "/dev/zero", "nul\0"):
        outcome = run_tiny(f"prompt_file={name}")
        assert outcome.code == 3, outcome.err
        assert outcome.out == "" and "Traceback" not in outcome.err
        assert name.rstrip("\0") in outcome.err


def test_half_a_character_is_refused_and_recorded(run_tiny):
    outcome = run_tiny("prompt=\udcff")
    assert outcome.code == 2 and "UTF-8" in outcome.err
    assert outcome.record["settings"]["prompt"] == "\udcff"


def test_token_ids_and_several_texts(run_tiny, tiny_model):
    found = run_tiny("prompt_ids=[5, 6,7]").record["output"]
    assert (found["prompt"], found["prompt_token_ids"]) == (None, [5, 6, 7])
    for word in ('prompts=["It\'s late,\\nhe", "b"]', "prompts=['It''s late,\n\nhe', b]"):
        outcome = run_tiny(word, "hydra.run.dir=here")
        lines = [json.loads(line) for line in outcome.out.splitlines()]
        assert [line["prompt"] for line in lines] == ["It's late,\nhe", "b"]
        expected = load_model(tiny_model).generate(["It's late,\nhe", "b"], max_new_tokens=4)
        assert [line["text"] for line in lines] == [generation.text for generation in expected]
        output = json.loads((outcome.folder / "here" / "result.json").read_text())["output"]
        assert [completion["token_ids"] for completion in output["completions"]] == [
            generation.token_ids for generation in expected
        ]
        assert output["text"] == expected[0].text


def test_a_model_without_a_tokenizer_continues_ids_by_ids(run, tiny_model, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny_model / name).read_bytes())
    outcome = run("model.source=.", "prompt_ids=[1,2]", "max_new_tokens=3")
    assert outcome.code == 0, outcome.err
    assert outcome.out.split() == [str(token) for token in outcome.record["output"]["token_ids"]]
    assert outcome.record["output"]["text"] is None
    assert run("model.source=.", "prompt=text").code == 2


def test_stop_strings_are_free_text(run_tiny):
    whole = run_tiny("prompt=Once upon", "max_new_tokens=20", "hydra.run.dir=a").out
    stop = whole[3:5]
    for word in (f"stop={stop}", f"stop={json.dumps([stop, 'never'])}"):
        outcome = run_tiny("prompt=Once upon", "max_new_tokens=20", word, "hydra.run.dir=b")
        assert outcome.code == 0, outcome.err
        assert outcome.out == whole[: whole.index(stop)] + "\n"
    assert run_tiny("stop=").code == 2


def test_too_long_a_prompt(run_tiny):
    outcome = run_tiny(f"prompt={'x ' * 5000}")
    assert outcome.code == 2 and "4096" in outcome.err
    assert outcome.record["status"] == "error"
    assert outcome.record["error"] == {
        "type": "ConfigurationError",
        "message": outcome.err.removeprefix("Error: ").strip(),
        "exit_code": 2,
    }


def test_an_operation_the_backend_does_not_have(run_tiny):
    outcome = run_tiny("ops.attention=warp")
    assert outcome.code == 2 and "attention=warp" in outcome.err


@pytest.mark.parametrize("source", ["/nowhere/at all", "./a,b=[c] ${d}", "no_such_name"])
def test_a_model_that_is_not_there(run, source):
    outcome = run(f"model.source={source}")
    assert outcome.code == (2 if source == "no_such_name" else 3), outcome.err
    assert Path(source).name in outcome.err and "Traceback" not in outcome.err


def test_a_model_folder_of_any_name(run, tiny_model, tmp_path):
    folder = tmp_path / "a,b=[c] ${oc.env:HOME} 'd'"
    folder.symlink_to(tiny_model)
    assert run(f"model.source={folder}", "max_new_tokens=2").record["model"]["source"] == str(folder)


def failing(error):
    """A load_model that fails, as if it stood in the package: what fails elsewhere is a component of the user's."""
    where = str(Path(cli.__file__).with_name("sources.py"))
    here = {"error": error}
    exec(compile("def load_model(*arguments, **options):\n    raise error\n", where, "exec"), here)
    return here["load_model"]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UnavailableError("No such device."), 4, "No such device."),
        (MemoryError(), 4, "memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), 4, "memory"),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 4, "No space left"),
        (KeyboardInterrupt(), 130, "Interrupted."),
        (RuntimeError("boom"), 1, "bug"),
    ],
)
def test_exit_codes(run_tiny, monkeypatch, error, code, said):
    monkeypatch.setattr("transformer_lab.language_model.load_model", failing(error))
    outcome = run_tiny()
    assert outcome.code == code
    assert said in outcome.err and "Traceback" not in outcome.err
    assert outcome.record["status"] == ("interrupted" if code == 130 else "error")
    assert outcome.record["error"]["exit_code"] == code


def test_debug_adds_the_traceback(run_tiny, monkeypatch):
    monkeypatch.setattr("transformer_lab.language_model.load_model", failing(RuntimeError("boom")))
    assert "--debug" in run_tiny().err
    assert "Traceback" in run_tiny("--debug").err
    monkeypatch.setenv("TRANSFORMER_LAB_DEBUG", "1")
    assert "Traceback" in run_tiny().err
    assert "Traceback" in run_tiny("backend=jaxx").err
    monkeypatch.setenv("TRANSFORMER_LAB_DEBUG", "0")
    assert "Traceback" not in run_tiny().err


def test_a_failure_replaces_no_record(run_tiny, monkeypatch, tmp_path):
    run_tiny("prompt=a", "hydra.run.dir=here")
    before = (tmp_path / "here" / "result.json").read_text()
    monkeypatch.setattr("transformer_lab.language_model.load_model", failing(MemoryError()))
    assert run_tiny("prompt=b", "hydra.run.dir=here").code == 4
    assert (tmp_path / "here" / "result.json").read_text() == before


def test_a_disk_that_is_full_at_the_end(run_tiny, monkeypatch, tmp_path):
    run_tiny("prompt=a", "hydra.run.dir=here")
    before = (tmp_path / "here" / "result.json").read_text()

    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("transformer_lab.atomic_file.os.replace", full)
    outcome = run_tiny("prompt=b", "hydra.run.dir=here")
    assert outcome.code == 4 and "No space left" in outcome.err and "result.json" in outcome.err
    assert (tmp_path / "here" / "result.json").read_text() == before
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == [".hydra", "result.json"]


def test_a_run_folder_that_cannot_be_made(run_tiny, tmp_path):
    (tmp_path / "file").write_text("")
    outcome = run_tiny("hydra.run.dir=file/below")
    assert outcome.code == 4 and "file" in outcome.err and "Traceback" not in outcome.err


def test_numbers_that_json_does_not_know_become_null(tmp_path):
    record.write(tmp_path, {"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": "\udcff ☃"}})
    assert json.loads((tmp_path / "result.json").read_text()) == {"a": None, "b": [None, 1.5], "c": {"d": "\udcff ☃"}}


def test_bench(run_tiny):
    outcome = run_tiny("job=bench", "job.prompt_length=5", "job.new_tokens=3", "job.batch_sizes=[1,3]", "job.repeats=2")
    assert outcome.code == 0, outcome.err
    assert "tok/s" in outcome.out
    rows = outcome.record["output"]["rows"]
    assert [row["batch_size"] for row in rows] == [1, 3]
    assert all(row["prefill_tokens_per_s"] > 0 and row["decode_tokens_per_s"] > 0 for row in rows)
    assert outcome.record["timing"]["load_s"] > 0


@pytest.mark.parametrize(
    "word", ["job.repeats=0", "job.new_tokens=1", "job.batch_sizes=[]", "job.batch_sizes=3", "job.prompt_length=4095"]
)
def test_bench_refuses(run_tiny, word):
    outcome = run_tiny("job=bench", word)
    assert outcome.code == 2 and word.split("=")[0] in outcome.err


def test_inspect(run_tiny, tiny_model, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "200")
    outcome = run_tiny("job=inspect")
    assert outcome.code == 0, outcome.err
    count = load_model(tiny_model).parameters_count
    assert f"{count:,}" in outcome.out and "h.0.attn.c_attn.weight" in outcome.out
    assert outcome.record["output"]["total_parameters"] == count
    assert outcome.record["backend"] is None
    file = run_tiny("job=inspect", f"model.source={tiny_model}/model.safetensors", f"hydra.run.dir={tmp_path}/file")
    assert file.code == 0 and "h.0.attn.c_attn.weight" in file.out
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 20)
    assert run_tiny("job=inspect", "model.source=bad.safetensors").code == 3
    assert run_tiny("job=inspect", "model.source=./nothing").code == 3


# --- Real processes ------------------------------------------------------------------------------------------------


def command(tiny_model, *words):
    return [sys.executable, "-m", "transformer_lab", f"model.source={tiny_model}", *words]


def test_numpy_runs_import_no_other_framework(tiny_model, tmp_path, environment):
    code = (
        "import sys; from transformer_lab.cli import main; assert main(sys.argv[1:]) == 0; "
        "print(sorted({'torch', 'jax', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    )
    words = [f"model.source={tiny_model}", "max_new_tokens=2", "prompt_ids=[1]"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tmp_path, env=environment, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_interrupted_keeps_what_was_written(tiny_model, tmp_path, environment):
    words = command(tiny_model, "max_new_tokens=4000", "prompt=Once upon", "cache=none")
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, env=environment
    ) as process:
        first = process.stdout.read(5)
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(first) == 5 and (first + rest).endswith(b"\n")
    assert said.decode() == "Interrupted.\n"
    assert json.loads(next(tmp_path.rglob("result.json")).read_text())["status"] == "interrupted"


def test_a_closed_pipe_ends_quietly(tiny_model, tmp_path, environment):
    words = command(tiny_model, "max_new_tokens=4000", "prompt=Once upon", "cache=none")
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, env=environment
    ) as process:
        process.stdout.read(10)
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(timeout=60) == 0
    assert said == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_standard_output(tiny_model, tmp_path, environment):
    with open("/dev/full", "wb") as full:
        words = command(tiny_model, "max_new_tokens=3", "prompt=Once upon")
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, cwd=tmp_path, env=environment, text=True)
    assert done.returncode == 4, done.stderr
    assert "No space left" in done.stderr and "Traceback" not in done.stderr


TALK = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
TEMPLATE = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '<|endoftext|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


@pytest.fixture
def chatting_model(tiny_model, tmp_path):
    """The tiny model with a chat template, two end tokens, values to sample by, and `<|endoftext|>` before a text."""
    folder = tmp_path / "chatting"
    model = load_model(tiny_model)
    model.save(folder)
    end = model.tokenizer.special_tokens["<|endoftext|>"]
    one_file = json.loads((folder / "tokenizer.json").read_text())
    one_file["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [end], "tokens": ["<|endoftext|>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(one_file))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    suggested = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [3, end]}
    (folder / "generation_config.json").write_text(json.dumps(suggested))
    return folder


def test_a_chat(run_tiny, chatting_model):
    model = load_model(chatting_model)
    source = f"model.source={chatting_model}"
    for words, messages in ((json.dumps(TALK), TALK), ("Hello", TALK[1:])):
        text = "".join(f"{one['role']}: {one['content']}<|endoftext|>" for one in messages) + "assistant:"
        expected = model.tokenizer.encode(text, allow_special=True)
        output = run_tiny(source, f"chat={words}").records[-1]["output"]
        assert output["prompt_token_ids"] == expected and output["chat"] == messages and output["prompt"] is None
        answer = model.chat(messages, max_new_tokens=4)
        assert (answer.text, answer.prompt_token_ids) == (output["text"], expected)
    outcome = run_tiny(source, "chat=Hello")
    assert "generation_config.json suggests sampling.temperature=0.6 sampling.top_p=0.9" in outcome.err
    assert outcome.records[-1]["settings"]["sampling"]["temperature"] == 0
    assert model.end_of_text_ids == (3, model.tokenizer.end_of_text_id)


def test_special_tokens_in_a_prompt_and_around_it(run_tiny, chatting_model):
    model = load_model(chatting_model)
    source, text = f"model.source={chatting_model}", "a<|endoftext|>b"
    end = model.tokenizer.end_of_text_id
    plain, special = (model.tokenizer.encode(text, allow_special=allowed) for allowed in (False, True))
    assert end in special and end not in plain
    for words, expected in (
        ([], [end, *plain]),
        (["prompt_special=true"], [end, *special]),
        (["prompt_template=false"], plain),
        (["prompt_special=true", "prompt_template=false"], special),
    ):
        outcome = run_tiny(source, f"prompt={text}", *words)
        assert outcome.records[-1]["output"]["prompt_token_ids"] == expected
    outcome = run_tiny(source, "prompt=", "prompt_template=false")
    assert outcome.records[-1]["output"]["prompt_token_ids"] == [0], "begin-of-text of config.json"


def test_the_advice_for_another_kind_of_tokenizer_can_be_taken(run_tiny, tiny_model, tmp_path):
    folder = tmp_path / "words"
    load_model(tiny_model).save(folder)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (folder / name).unlink()
    model = {"type": "WordLevel", "vocab": {"the": 0, "king": 1}, "unk_token": "the"}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    words = (f"model.source={folder}", "prompt=king", "max_new_tokens=2")
    outcome = run_tiny(*words)
    assert outcome.code == 3 and "found 'WordLevel', but byte_bpe needs BPE" in outcome.err
    (advice,) = set(re.findall(r"tokenizer=\w+", outcome.err))
    assert run_tiny(*words, advice).records[-1]["output"]["prompt_token_ids"] == [1]
    (name, value) = re.search(r'(kind)="(\w+)" for load_tokenizer', outcome.err).groups()
    assert load_tokenizer(folder, **{name: value}).encode("king") == [1]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["chat=Hello"], 3, "This tokenizer has no chat template"),
        (["chat=[]"], 2, "A chat is a list of messages"),
        (['chat=["Hello"]'], 2, "A chat is a list of messages"),
        (["chat=Hello", "prompt=Hello"], 2, "prompt and chat are given together"),
        (["prompt_special=perhaps"], 2, "prompt_special"),
    ],
)
def test_mistakes_in_a_chat(run_tiny, words, code, said):
    outcome = run_tiny(*words)
    assert outcome.code == code and said in outcome.err and "Traceback" not in outcome.err


def test_a_stop_string_in_brackets_is_a_text(run_tiny):
    assert run_tiny("prompt=x", "stop=[END]").record["settings"]["stop"] == "[END]"
    outcome = run_tiny("prompt=x", 'stop=["a", 3]')
    assert outcome.code == 2 and "stop cannot be read" in outcome.err
