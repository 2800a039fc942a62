"""When the machine says no: memory, disk, Ctrl-C, and a reader that goes away. Real processes, since that is the point.

Ctrl-C and a closed pipe during generation are in test_cli_running.py.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from transformer_lab.checkpoints.config_file import read_config
from transformer_lab.checkpoints.families import gpt2

pytestmark = pytest.mark.skipif(os.name != "posix", reason="limits and signals of POSIX")

# A small run first, so that everything is imported and every thread has its stack; then a limit, and the real one.
# The limit of the address space makes every library meet a refused allocation, at a size that no machine notices.
LIMITED = """
import json, resource, sys
from transformer_lab.cli import main
warm_up, words, extra = json.loads(sys.argv[1])
assert main([*warm_up, "hydra.run.dir=warm"]) == 0
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + extra, used + extra))
sys.exit(main([*words, "hydra.run.dir=run"]))
"""


@pytest.fixture(scope="module")
def large_model(tmp_path_factory):
    """A folder that takes no room on the disk: 470 MB of zeros that are not stored, in one layer."""
    folder = tmp_path_factory.mktemp("large")
    config = {"model_type": "gpt2", "vocab_size": 300, "n_positions": 256, "n_embd": 3072, "n_layer": 1, "n_head": 2}
    (folder / "config.json").write_text(json.dumps(config))
    header, start = {}, 0
    for stored in gpt2.NAMES.stored(read_config(folder)).values():
        for name, shape in stored.parts:
            end = start + 4 * shape[0] * (shape[1] if len(shape) > 1 else 1)
            header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
            start = end
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + start)
    return folder


def limited(tiny_model, words, extra, tmp_path, environment):
    """`words` with at most `extra` bytes of address space more than a run of the tiny model needed."""
    backend = [word for word in words if word.startswith("backend=")]
    warm_up = [f"model.source={tiny_model}", "prompt_ids=[1]", "max_new_tokens=2", *backend]
    return subprocess.run(
        [sys.executable, "-c", LIMITED, json.dumps([warm_up, words, extra])],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        timeout=100,
    )


def assert_out_of_memory(done, tmp_path):
    assert done.returncode == 4, (done.returncode, done.stderr[-2000:])
    said = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(said) == 1 and "There is not enough memory for" in said[0], done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["error"]["type"] == "UnavailableError"


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of the address space")
@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_out_of_memory_while_loading(tiny_model, large_model, tmp_path, environment, backend):
    words = [f"model.source={large_model}", "prompt_ids=[1]", "max_new_tokens=2", f"backend={backend}"]
    done = limited(tiny_model, words, 250 * 2**20, tmp_path, environment)
    assert_out_of_memory(done, tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of the address space")
@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_out_of_memory_while_generating(tiny_model, tmp_path, environment, backend):
    prompt = "prompts=" + json.dumps(["Once upon a time " * 200] * 25)
    words = [f"model.source={tiny_model}", prompt, "max_new_tokens=2", f"backend={backend}", "ops=manual"]
    done = limited(tiny_model, words, 150 * 2**20, tmp_path, environment)
    assert_out_of_memory(done, tmp_path)


# Files of this process cannot grow beyond a limit: what a full disk is to a program. Pipes are not files.
SHORT_FILES = """
import resource, sys
from transformer_lab.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.exit(main(sys.argv[2:]))
"""


def short_files(tiny_model, words, tmp_path, environment, limit=1000):
    words = [f"model.source={tiny_model}", "prompt=Once", "max_new_tokens=3", *words]
    return subprocess.run(
        [sys.executable, "-c", SHORT_FILES, str(limit), *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
        timeout=60,
    )


def test_a_full_disk_under_the_record(tiny_model, tmp_path, environment):
    done = short_files(tiny_model, ["hydra.run.dir=run", "hydra.output_subdir=null"], tmp_path, environment)
    assert done.returncode == 4, done.stderr
    assert done.stdout.endswith("\n") and len(done.stdout) > 1  # the text was made, and is not lost
    assert done.stderr.splitlines()[-1].startswith("Error: ") and "run/result.json cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "run").iterdir()) == []


def test_a_full_disk_under_the_run_folder(tiny_model, tmp_path, environment):
    done = short_files(tiny_model, ["hydra.run.dir=run"], tmp_path, environment)
    assert done.returncode == 4 and done.stdout == "", done.stderr
    assert done.stderr == "Error: The folder of this run cannot be written: file too large.\n"


SAVE = """
import resource, sys
import transformer_lab as lab
model = lab.load_model(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    model.save(sys.argv[2])
except lab.UnavailableError as error:
    print(error)
"""


@pytest.mark.parametrize("exists", [True, False])
def test_a_full_disk_under_a_saved_model(tiny_model, tmp_path, environment, exists):
    target = tmp_path / "saved"
    if exists:
        target.mkdir()
        (target / "model.safetensors").write_bytes(b"old")
        (target / "config.json").write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", SAVE, str(tiny_model), str(target)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=60,
        check=True,
    )
    assert done.stdout == f"The model could not be saved in {target}: file too large.\n"
    left = {path.name: path.read_bytes() for path in target.iterdir()} if target.exists() else {}
    assert left == ({"model.safetensors": b"old", "config.json": b"old"} if exists else {})


def command(*words):
    return [sys.executable, "-m", "transformer_lab", *words]


def test_interrupted_while_loading(tmp_path, environment):
    """Drawing the weights of this shape takes ten seconds and more; Ctrl-C comes in the first of them."""
    shape = {"model_type": "gpt2", "vocab_size": 300, "n_embd": 2048, "n_layer": 24, "n_head": 2}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    words = command("model.source=.", "model.weights=random", "prompt_ids=[1]", "hydra.run.dir=run")
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, env=environment, text=True
    ) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "run" / ".hydra" / "overrides.yaml").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (out, err) == ("", "Interrupted.\n")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--cfg", "job"],
        ["job=inspect"],
        ["job=bench", "job.prompt_length=4", "job.new_tokens=2"],
        ["prompt=a"],
    ],
    ids=" ".join,
)
def test_nobody_reads_the_output(tiny_model, tmp_path, environment, words):
    """As in `... | true`: the reader is gone before the first word."""
    source = [] if words[0].startswith("--") else [f"model.source={tiny_model}", "max_new_tokens=2"]
    with subprocess.Popen(
        command(*words, *source), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, env=environment
    ) as process:
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(timeout=60) == 0, said
    assert said == b""


@pytest.mark.parametrize("closed", [">&-", "2>&-", "2>/dev/full", ">/dev/full"])
def test_streams_that_are_closed_or_full(tiny_model, tmp_path, environment, closed):
    shell = f'exec "$@" {closed}'
    words = command(f"model.source={tiny_model}", "prompt=Once", "max_new_tokens=2", "hydra.run.dir=run")
    done = subprocess.run(
        ["sh", "-c", shell, "sh", *words], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60
    )
    assert done.returncode == (4 if "full" in closed else 0), done.stderr
    assert "Traceback" not in done.stderr and "bug" not in done.stderr
    status = json.loads((tmp_path / "run" / "result.json").read_text())["status"]
    assert status == ("error" if "full" in closed else "ok")
