"""download() against a hub of our own on this machine: online, then offline, and all that can go wrong on the way."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_cases import GPT2, assert_same, random_parameters
from local_hub import COMMIT, LocalHub

from transformer_lab.checkpoints import load_parameters, read_config, save_folder

pytest.importorskip("huggingface_hub")
INDEX = "model.safetensors.index.json"

SCRIPT = """
import sys
from transformer_lab.checkpoints import download
from transformer_lab.errors import LabError
assert "huggingface_hub" not in sys.modules
try:
    print(download(sys.argv[1], *sys.argv[2:3]))
except LabError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def hub(tmp_path):
    save_folder(tmp_path / "m", GPT2, random_parameters(GPT2))
    save_folder(tmp_path / "s", GPT2, random_parameters(GPT2), max_shard_size=2000)
    files, shards = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "ms")
    extra = {"vocab.json": b"{}", "merges.txt": b"#", "pytorch_model.bin": b"\x80", "onnx/model.onnx": b"x",
             "onnx/config.json": b"{}", "fp16/model.safetensors": b"x", "README.md": b"x", "run.py": b"x"}  # fmt: skip
    only = {"config.json": files["config.json"]}
    return LocalHub(
        {"lab/tiny": files | extra, "lab/shards": shards, "lab/pickle": only | {"pytorch_model.bin": b"\x80"},
         "lab/empty": only, "lab/bare": {"model.safetensors": files["model.safetensors"]}}
    )  # fmt: skip


@pytest.fixture
def get(tmp_path):
    """Runs download() in a process of its own: huggingface_hub reads its environment once. -> exit code, output."""

    def run(endpoint, *arguments, **environment):
        # A list of what is wanted, not of what is not: the settings of whoever runs this stay outside.
        kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
        variables = {"HF_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path), "HF_ENDPOINT": endpoint,
                     "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_ETAG_TIMEOUT": "3"}  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *arguments],
            env=kept | variables | environment,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=50,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert done.stdout.count("\n") == 1, done.stdout
        return done.returncode, done.stdout.strip()

    return run


def nobody():
    """An address at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_online_then_offline(hub, get, tmp_path):
    with hub.running() as endpoint:
        code, folder = get(endpoint, "lab/tiny")
        assert code == 0, folder
        assert hub.log
        hub.log.clear()
        assert get(endpoint, "lab/tiny", COMMIT) == (0, folder)
        assert not hub.log, "a commit in the cache asks nothing"
    present = sorted(path.name for path in Path(folder).rglob("*"))
    assert present == ["config.json", "merges.txt", "model.safetensors", "vocab.json"]
    assert read_config(folder) == GPT2
    assert_same(load_parameters(folder, GPT2), random_parameters(GPT2))
    assert get(nobody(), "lab/tiny") == (0, folder)
    for revision in ("main", COMMIT):
        assert get(nobody(), "lab/tiny", revision, HF_HUB_OFFLINE="1") == (0, folder)


def test_shards(hub, get):
    with hub.running() as endpoint:
        code, folder = get(endpoint, "lab/shards")
    assert code == 0, folder
    assert_same(load_parameters(folder, read_config(folder)), random_parameters(GPT2))


NAMES = [
    "model.safetensors-{:05d}-of-{:05d}.safetensors",
    "pytorch_model-{:05d}-of-{:05d}.safetensors",
    "[a-c]*{}of{}.safetensors",
]


def renamed(files, pattern):
    """A sharded model whose shards are called something else, by the index too."""
    old = sorted(name for name in files if name.endswith(".safetensors"))
    new = {name: pattern.format(number, len(old)) for number, name in enumerate(old, 1)}
    index = json.loads(files[INDEX])
    index["weight_map"] = {tensor: new[file] for tensor, file in index["weight_map"].items()}
    return {new.get(name, name): data for name, data in files.items()} | {INDEX: json.dumps(index).encode()}


@pytest.mark.parametrize("pattern", NAMES)
def test_the_index_says_what_the_shards_are_called(hub, get, pattern):
    wanted = renamed(hub.repositories["lab/shards"], pattern)
    others = ["model-00001-of-00009.safetensors", "model.fp16.safetensors", "consolidated.safetensors", "a.safetensors"]
    hub.repositories["lab/odd"] = wanted | dict.fromkeys(others, b"x")
    with hub.running() as endpoint:
        code, folder = get(endpoint, "lab/odd")
        assert code == 0, folder
    assert {path.name for path in Path(folder).iterdir()} == set(wanted)
    assert_same(load_parameters(folder, read_config(folder)), random_parameters(GPT2))
    for revision in ("main", COMMIT):
        assert get(nobody(), "lab/odd", revision, HF_HUB_OFFLINE="1") == (0, folder)


def test_shards_without_an_index(hub, get):
    files = renamed(hub.repositories["lab/shards"], NAMES[0])
    del files[INDEX]
    hub.repositories["lab/lost"] = files | {
        "model.fp16.safetensors": b"x",
        "sub/model-00001-of-00002.safetensors": b"x",
    }
    with hub.running() as endpoint:
        code, folder = get(endpoint, "lab/lost")
        assert code == 0, folder
        assert_same(load_parameters(folder, read_config(folder)), random_parameters(GPT2))
        assert get(nobody(), "lab/lost", HF_HUB_OFFLINE="1") == (0, folder)
        hub.repositories["lab/torn"] = {name: data for name, data in files.items() if "-00002-" not in name}
        code, message = get(endpoint, "lab/torn")
    assert code == 3 and "model.safetensors-00002-of-" in message and "lab/torn" in message


def test_an_index_that_names_what_the_hub_does_not_have(hub, get):
    files = renamed(hub.repositories["lab/shards"], NAMES[1])
    hub.repositories["lab/torn"] = {name: data for name, data in files.items() if "-00002-" not in name}
    with hub.running() as endpoint:
        code, message = get(endpoint, "lab/torn")
    assert code == 3 and "'pytorch_model-00002-of-" in message and "lab/torn" in message


def test_an_adapter(hub, get):
    adapter = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}
    hub.repositories |= {
        "lab/adapter": adapter | {"config.json": b"{}", "optimizer.pt": b"x"},
        "lab/pickled": {"adapter_config.json": b"{}", "adapter_model.bin": b"x"},
    }
    with hub.running() as endpoint:
        code, folder = get(endpoint, "lab/adapter")
        assert code == 0, folder
        assert sorted(path.name for path in Path(folder).iterdir()) == sorted([*adapter, "config.json"])
        code, message = get(endpoint, "lab/pickled")
    assert code == 3 and "adapter_model.bin" in message and "lab/pickled" in message


def test_not_reachable_and_not_in_the_cache(get):
    code, message = get(nobody(), "lab/tiny")
    assert code == 4 and "lab/tiny" in message and "not in the cache" in message and "network" in message
    code, message = get(nobody(), "lab/tiny", HF_HUB_OFFLINE="1")
    assert code == 4 and "lab/tiny" in message and "HF_HUB_OFFLINE" in message
    code, message = get(nobody(), "lab/tiny", COMMIT, HF_HUB_OFFLINE="1")
    assert code == 4 and COMMIT in message


def test_what_the_hub_does_not_have(hub, get):
    with hub.running() as endpoint:
        code, message = get(endpoint, "lab/none")
        assert code == 3 and "'lab/none'" in message and "HF_TOKEN" in message
        code, message = get(endpoint, "lab/tiny", "v9")
        assert code == 3 and "'v9'" in message and "'lab/tiny'" in message
        code, message = get(endpoint, "lab/pickle")
        assert code == 3 and "pytorch_model.bin" in message and "save_pretrained" in message
        code, message = get(endpoint, "lab/empty")
        assert code == 3 and "model.safetensors" in message
        code, message = get(endpoint, "lab/bare")
        assert code == 3 and "config.json" in message


@pytest.mark.parametrize("name", ["a/b/c", "a b"])
def test_what_cannot_be_a_name(get, name):
    code, message = get(nobody(), name)
    assert code == 3 and "owner/name" in message


def test_gated_and_failing(hub, get):
    hub.gated.add("lab/tiny")
    with hub.running() as endpoint:
        code, message = get(endpoint, "lab/tiny")
        assert code == 4 and "gated" in message and "HF_TOKEN" in message
        hub.status = 500
        code, message = get(endpoint, "lab/shards")
        assert code == 4 and "lab/shards" in message


def test_an_interrupted_download(hub, get):
    """The line is cut inside the weights: no model, nothing to load offline, and complete after the next try."""
    hub.cut_after = 100
    with hub.running() as endpoint:
        code, message = get(endpoint, "lab/tiny", HF_HUB_DOWNLOAD_TIMEOUT="1")
        assert code == 4 and "lab/tiny" in message, message
    code, message = get(nobody(), "lab/tiny", HF_HUB_OFFLINE="1")
    assert code == 4 and "not all of it" in message
    hub.cut_after = None
    with hub.running() as endpoint:
        code, folder = get(endpoint, "lab/tiny")
    assert code == 0, folder
    assert_same(load_parameters(folder, read_config(folder)), random_parameters(GPT2))


def test_a_cache_that_cannot_be_written(hub, get, tmp_path):
    (tmp_path / "file").touch()
    with hub.running() as endpoint:
        code, message = get(endpoint, "lab/tiny", HF_HOME=str(tmp_path / "file"))
    assert code == 4 and "HF_HOME" in message


def test_without_huggingface_hub(monkeypatch):
    from transformer_lab.checkpoints import download
    from transformer_lab.errors import UnavailableError

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UnavailableError, match=r"pip install 'transformer_lab\[hub\]'"):
        download("lab/tiny")
