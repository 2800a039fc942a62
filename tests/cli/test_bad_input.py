"""Files that are damaged, hostile, or of the wrong kind: exit code 3, the file and what is wrong in it, no traceback.

Each case damages a copy of the tiny model and names the words that the answer must hold. What could hang, and what
could take memory, runs in a process of its own with a time limit.
"""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from transformer_lab import load_model, train_tokenizer

LLAMA = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "vocab_size": 300,
}


@pytest.fixture
def model(tiny_model, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def set_weights(data):
    return lambda model: (model / "model.safetensors").write_bytes(data)


def change_weights(change):
    def damage(model):
        path = model / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return damage


def header(entries, data=b"", length=None):
    text = json.dumps(entries).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def floats(shape, begin, end):
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


def set_config(**changes):
    return lambda model: edit(model / "config.json", **changes)


def set_text(name, text):
    return lambda model: (model / name).write_text(text)


def only_pair(name, change):
    """Without tokenizer.json, so that vocab.json and merges.txt count, one of them changed."""

    def damage(model):
        (model / "tokenizer.json").unlink()
        (model / name).write_bytes(change((model / name).read_bytes()))

    return damage


def set_index(file):
    def damage(model):
        (model / "model.safetensors").rename(model.parent / "outside.safetensors")
        index = {"weight_map": {"transformer.wte.weight": file}}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))

    return damage


def other_tokenizer(model):
    train_tokenizer(["Once upon a time, in another place and for somebody else, there was a tokenizer."], 310).save(
        model
    )


def edit_tokenizer(**changes):
    return lambda model: edit(model / "tokenizer.json", **changes)


WEIGHTS = "model/model.safetensors"
HUGE = {"transformer.wte.weight": floats([10**12, 10**5], 0, 4 * 10**17)}
CASES = {
    "truncated weights": (change_weights(lambda data: data[:-100]), WEIGHTS, "'transformer.", "truncated"),
    "truncated header": (change_weights(lambda data: data[:20]), WEIGHTS, "header", "20 in all"),
    "garbage": (set_weights(bytes(range(256)) * 40), WEIGHTS, "claims a header of"),
    "garbage header": (set_weights(b"\x10" + bytes(7) + b"\xff" * 16), WEIGHTS, "header", "JSON"),
    "empty": (set_weights(b""), WEIGHTS, "ends inside its header"),
    "empty header": (set_weights(header({})), "model", "do not fit", "Missing: "),
    "overlapping": (
        set_weights(header({"a": floats([2], 0, 8), "b": floats([2], 4, 12)}, bytes(12))),
        WEIGHTS,
        "'b' overlaps",
    ),
    "a hole": (
        set_weights(header({"a": floats([2], 0, 8), "b": floats([1], 12, 16)}, bytes(16))),
        WEIGHTS,
        "hole of 4 bytes before the tensor 'b'",
    ),
    "oversized": (change_weights(lambda data: data + bytes(64)), WEIGHTS, "end at byte"),
    "oversized header": (set_weights(header({}, b"", 2**63)), WEIGHTS, "9,223,372,036,854,775,808"),
    "oversized tensor": (set_weights(header(HUGE, bytes(8))), WEIGHTS, "'transformer.wte.weight'", "truncated"),
    "hostile tensor name": (set_weights(header({"\x1b[2J": floats([-1], 0, 4)})), WEIGHTS, "\\x1b[2J", "shape"),
    "pointer of Git LFS": (set_weights(b"version https://git-lfs.example/spec/v1\n"), WEIGHTS, "git lfs pull"),
    "config that does not fit": (
        set_config(n_embd=32),
        "model",
        "do not fit",
        "wte.weight is [300, 16], not [300, 32]",
    ),
    "too few layers": (set_config(n_layer=1), "model", "Unexpected: 'transformer.h.1."),
    "a billion layers": (set_config(n_layer=10**9), "model/config.json", "'n_layer' is 1000000000"),
    "a giant vocabulary": (set_config(vocab_size=10**12), "model/config.json", "'vocab_size'"),
    "giant positions": (
        set_text("config.json", json.dumps(LLAMA | {"max_position_embeddings": 10**8})),
        "model/config.json",
        "'max_position_embeddings' is 100000000",
    ),
    "a word for a number": (set_config(n_head="\x1b[2J"), "model/config.json", "'n_head' is '\\x1b[2J'"),
    "invalid JSON": (set_text("config.json", '{"n_layer": 2,,}'), "model/config.json", "line 1, column"),
    "no object": (set_text("config.json", "[1]"), "model/config.json", "a list of 1 entries"),
    "nested JSON": (set_text("config.json", '{"a":' * 10**5), "model/config.json", "nested too deeply"),
    "unknown model type": (
        set_config(model_type="mamba"),
        "model/config.json",
        "'model_type' is 'mamba'",
        "gpt2",
    ),
    "no config": (lambda model: (model / "config.json").unlink(), "model", "config.json"),
    "no weights": (lambda model: (model / "model.safetensors").unlink(), "model", "model.safetensors"),
    "missing folder": (shutil.rmtree, "model", "does not exist"),
    "tokenizer of another model": (other_tokenizer, "The tokenizer in", " tokens and the model's vocab_size is 300"),
    "invalid tokenizer.json": (set_text("tokenizer.json", '{"model": {'), "model/tokenizer.json", "not valid JSON"),
    "another kind of tokenizer": (
        edit_tokenizer(model={"type": "\x1b[2J"}),
        "model/tokenizer.json",
        "model.type: found '\\x1b[2J'",
    ),
    "hostile added token": (
        edit_tokenizer(added_tokens=[{"content": "\x1b[2J", "id": 10**30}]),
        "model/tokenizer.json",
        "at most 10,000,000",
    ),
    "a split nested too deeply": (
        edit_tokenizer(
            pre_tokenizer={
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": "(?:" * 900 + "a" + ")" * 900}, "behavior": "Isolated"},
                    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
                ],
            }
        ),
        "model/tokenizer.json",
        "hundreds of its groups",
    ),
    "invalid merges": (
        only_pair("merges.txt", lambda data: data + b"\x1b[2J"),
        "model/merges.txt",
        "\\x1b[2J",
        "line ",
    ),
    "merges that are no text": (only_pair("merges.txt", lambda data: b"\xff"), "model/merges.txt", "UTF-8"),
    "too many merges": (
        only_pair("merges.txt", lambda data: b"a b\n" * 10**6),
        "model/merges.txt",
        "1,000,000 entries",
    ),
    "invalid vocabulary": (only_pair("vocab.json", lambda data: b'{"a": "b"}'), "model/vocab.json", "'a'", "'b'"),
    "a digit too many": (
        only_pair("vocab.json", lambda data: b'{"a": ' + b"9" * 5000 + b"}"),
        "model/vocab.json",
        "too many digits",
    ),
    "index to the folder above": (set_index("../outside.safetensors"), "index.json", "'../outside.safetensors'", "wte"),
    "index to an absolute path": (set_index("/etc/x.safetensors"), "index.json", "'/etc/x.safetensors'", "wte"),
    "index to a file below": (set_index("a/b.safetensors"), "index.json", "'a/b.safetensors'", "wte"),
    "index to a file of another kind": (set_index("config.json"), "index.json", "'config.json'", "wte"),
    "index to nothing": (set_index("\x1b[2J.safetensors"), "index.json", "\\x1b[2J.safetensors", "not in the folder"),
}


def assert_refused(code, out, err, words):
    assert code == 3, err
    assert out == "" and "Traceback" not in err
    line = err.removesuffix("\n")
    assert line.startswith("Error: ") and line.isprintable(), err
    assert len(re.findall(r"[.!?](?= [A-Z']|$)", line)) <= 3 and len(line) < 1500, line
    for word in words:
        assert word in line


@pytest.mark.parametrize("case", CASES)
def test_refused(run, model, case):
    damage, *words = CASES[case]
    damage(model)
    outcome = run(f"model.source={model}", "max_new_tokens=2", "prompt=Once")
    assert_refused(outcome.code, outcome.out, outcome.err, words)
    assert outcome.record["error"]["exit_code"] == 3


def test_the_undamaged_copy_is_taken(run, model):
    assert run(f"model.source={model}", "max_new_tokens=2", "prompt=Once").code == 0


def test_links_as_in_the_cache_of_the_hub(run, model, tmp_path):
    blobs, snapshot = model.rename(tmp_path / "blobs"), tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert run(f"model.source={snapshot}", "max_new_tokens=2", "prompt=Once").code == 0
    (blobs / "tokenizer.json").unlink()
    outcome = run(f"model.source={snapshot}", "max_new_tokens=2", "prompt=Once", "hydra.run.dir=second")
    assert outcome.code == 3 and "tokenizer.json cannot be read" in outcome.err  # not: there is no tokenizer


def test_a_prompt_file_in_another_encoding(run, model, tmp_path):
    (tmp_path / "prompt\x1b[2J.txt").write_bytes(b"caf\xe9")
    outcome = run(f"model.source={model}", f"prompt_file={tmp_path}/prompt\x1b[2J.txt")
    assert_refused(outcome.code, outcome.out, outcome.err, ["prompt\\x1b[2J.txt is not UTF-8 text: byte 3 is 0xe9"])


def test_names_that_a_terminal_would_obey(run, model, monkeypatch):
    folder = model.rename(model.parent / "a\x1b[2J\n\u202eb")
    source = f"model.source=./{folder.name}"
    outcome = run(source, "max_new_tokens=2", "prompt=Once", "hydra.run.dir=first")
    assert outcome.code == 0 and "\x1b[2J" not in outcome.err
    monkeypatch.setenv("COLUMNS", "300")
    outcome = run(source, "job=inspect", "hydra.run.dir=second")
    assert outcome.code == 0 and "a\\x1b[2J\\n\\u202eb" in outcome.out and "\x1b" not in outcome.out
    (folder / "config.json").unlink()
    outcome = run(source, "hydra.run.dir=third")
    assert_refused(outcome.code, outcome.out, outcome.err, ["a\\x1b[2J\\n\\u202eb has no config.json"])


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_numbers_that_are_none(run, model, value, backend):
    """Such weights load, so that one can look where it begins; no text is made up from them."""
    path = model / "model.safetensors"
    length = int.from_bytes(path.read_bytes()[:8], "little")
    data = path.read_bytes()
    numbers = np.full((len(data) - 8 - length) // 4, value, "<f4")
    path.write_bytes(data[: 8 + length] + numbers.tobytes())
    for sampling in ("greedy", "nucleus"):
        outcome = run(
            f"model.source={model}",
            f"backend={backend}",
            f"sampling={sampling}",
            "prompt=Once",
            "max_new_tokens=20",
            f"hydra.run.dir={sampling}",
        )
        assert_refused(outcome.code, outcome.out.strip("\n"), outcome.err, ["logits are not finite numbers", "weights"])


# --- In a process of their own -------------------------------------------------------------------------------------

# Runs each command line of a JSON list and prints [exit code, what was said, peak memory in bytes] for each.
MANY = """
import contextlib, io, json, sys
from transformer_lab.cli import main
from transformer_lab.jobs.record import peak_memory_bytes
for number, words in enumerate(json.load(sys.stdin)):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*words, f"hydra.run.dir=runs/{number}", "hydra.output_subdir=null"])
    print(json.dumps([code, out.getvalue(), err.getvalue(), peak_memory_bytes()]), flush=True)
"""


def run_many(lines, tmp_path, environment):
    done = subprocess.run(
        [sys.executable, "-c", MANY],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=100,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_other_things_in_place_of_a_file(model, tmp_path, environment):
    """A pipe must not be waited for and a device not be read: the time limit is what fails then."""
    makers = {
        "pipe": os.mkfifo,
        "folder": os.mkdir,
        "link": lambda path: os.symlink("nowhere", path),
        "device": lambda path: os.symlink("/dev/zero", path),
    }
    files = ("config.json", "model.safetensors", "tokenizer.json", "merges.txt", "vocab.json", "tokenizer_config.json")
    lines, expected = [], []
    for kind, make in makers.items():
        for name in files:
            copy = shutil.copytree(model, tmp_path / kind / name)
            if name in ("merges.txt", "vocab.json", "tokenizer_config.json"):
                (copy / "tokenizer.json").unlink()  # else these count no more
            (copy / name).unlink()
            make(copy / name)
            lines.append([f"model.source={copy}", "prompt=Once"])
            expected.append(str(copy / name))
        make(tmp_path / f"{kind}.txt")
        lines.append([f"model.source={model}", f"prompt_file={tmp_path}/{kind}.txt"])
        expected.append(f"{kind}.txt")
        copy = shutil.copytree(model, tmp_path / kind / "index")
        (copy / "model.safetensors").unlink()
        make(copy / "model.safetensors.index.json")
        lines.append([f"model.source={copy}", "prompt=Once"])
        expected.append("model.safetensors.index.json")
    found = run_many(lines, tmp_path, environment)
    assert len(found) == len(lines) == 32
    for (code, out, err, _), name in zip(found, expected, strict=True):
        assert_refused(code, out, err, [name])


def test_absurd_claims_take_no_memory(model, tmp_path, environment):
    """A run that works comes first, so that all is imported; then the growth of the peak is what the claims took."""
    claims = {
        "layers": set_config(n_layer=10**9),
        "as many layers as are allowed": set_config(n_layer=10_000),
        "sizes": set_config(n_embd=10**6, n_head=100, vocab_size=10**7, n_positions=10**8),
        "positions": set_text("config.json", json.dumps(LLAMA | {"max_position_embeddings": 10**8})),
        "header": set_weights(header({}, b"", 24 * 10**6)),
        "tensor": set_weights(header(HUGE, bytes(8))),
        "tokenizer": other_tokenizer,
    }
    lines = [[f"model.source={model}", "prompt=Once", "max_new_tokens=2"]]
    for name, damage in claims.items():
        copy = shutil.copytree(model, tmp_path / "claims" / name)
        damage(copy)
        lines.append([f"model.source={copy}", "prompt=Once"])
    lines.append([f"model.source={tmp_path / 'claims' / 'sizes'}", "prompt_ids=[1]", "model.weights=random"])
    found = run_many(lines, tmp_path, environment)
    assert [code for code, *_ in found] == [0] + [3] * len(claims) + [4], found
    assert "not enough memory" in found[-1][2] and "are free" in found[-1][2]
    growth = found[-1][3] - found[0][3]
    assert growth < 100e6, f"{growth / 1e6:.0f} MB"


def test_a_tokenizer_that_does_not_fit_is_refused_before_the_weights_are_read(model, monkeypatch):
    other_tokenizer(model)
    monkeypatch.setattr("transformer_lab.checkpoints.loading.read_into", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(ValueError, match="tokens and the model's vocab_size is 300"):
        load_model(model)
