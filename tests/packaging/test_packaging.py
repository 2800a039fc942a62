"""The wheel (built by way of the sdist), the editable install and the bare checkout, each used from another folder.

No network: each is installed without its dependencies into a fresh virtual environment that finds those of the
environment in which the tests run.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import transformer_lab

CHECKOUT = Path(transformer_lab.__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(
    not (CHECKOUT / "pyproject.toml").is_file() or sys.platform == "win32", reason="needs a checkout on a POSIX system"
)
IGNORED = (
    ".venv",
    ".git",
    "outputs",
    "multirun",
    "dist",
    "build",
    "*.egg-info",
    "__pycache__",
    ".*_cache",
    ".hypothesis",
)
WHERE = "import transformer_lab, transformer_lab.paths as p; print(transformer_lab.__file__, p.data_folder('conf'))"


def call(*command, cwd, path=None):
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "TRANSFORMER_LAB_RUNS")}
    environment |= {"PYTHONPATH": str(path)} if path else {}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy, so that building leaves nothing behind, with two files in it that must stay at home."""
    copy = tmp_path_factory.mktemp("copy") / "checkout"
    shutil.copytree(CHECKOUT, copy, ignore=shutil.ignore_patterns(*IGNORED))
    (copy / "conf" / "build").mkdir()
    (copy / "conf" / "build" / "secret.yaml").write_text("ignored: by git\n")
    return copy


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, checkout, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def fresh_environment(folder: Path, *what: object) -> Path:
    """The python of a new environment with `what` installed in it, and the packages of this one in reach."""
    call(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    packages = Path(call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    # A .pth file: the folder that it names is searched, but the .pth files there, editable installs, are not followed.
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--disable-pip-version-check"]
    call(*pip, "--no-deps", "--no-index", "--no-build-isolation", *what, cwd=folder)
    return python


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """The shape of a tiny model; its weights are drawn at random."""
    folder = tmp_path_factory.mktemp("model")
    config = {"model_type": "gpt2", "vocab_size": 50, "n_positions": 32, "n_embd": 8, "n_layer": 1, "n_head": 2}
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 0, "bos_token_id": 0}))
    return folder


def use(command, model, folder, path=None):
    """Runs the command line in `folder`; returns the choices in its record."""
    folder.mkdir()
    words = [f"model.source={model}", "model.weights=random", "prompt_ids=[1,2]", "max_new_tokens=2", "+ops=manual"]
    out = call(*command, *words, cwd=folder, path=path)
    assert len(out.split()) <= 2
    (record,) = folder.rglob("result.json")
    return json.loads(record.read_text())["choices"]


def files(folder: Path) -> set[str]:
    skipped = shutil.ignore_patterns(*IGNORED)
    found = set()
    for path, folders, names in os.walk(folder):
        folders[:] = set(folders) - skipped(path, folders)
        found |= {(Path(path) / name).relative_to(folder).as_posix() for name in set(names) - skipped(path, names)}
    return found


def test_the_wheel_holds_the_package_and_its_data_and_nothing_else(checkout, wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {f"transformer_lab/{name}" for name in files(checkout / "transformer_lab")}
    for data in ("conf", "resources"):
        expected |= {f"transformer_lab/{data}/{name}" for name in files(checkout / data)}
    assert packed == expected


def test_the_wheel_runs_from_anywhere(wheel, model, tmp_path):
    python = fresh_environment(tmp_path / "environment", wheel)
    package, conf = call(python, "-c", WHERE, cwd=tmp_path).split()
    assert Path(package).is_relative_to(tmp_path) and Path(conf) == Path(package).parent / "conf"
    assert use([python, "-m", "transformer_lab"], model, tmp_path / "module")["ops"] == "manual"
    assert use([python.parent / "transformer-lab"], model, tmp_path / "script")["ops"] == "manual"
    completion = call(python.parent / "transformer-lab", "-sc", "install=bash", cwd=tmp_path)
    assert completion.rstrip().endswith("transformer-lab")
    # A conf/ beside the package in site-packages belongs to somebody else.
    (Path(package).parents[1] / "conf").mkdir()
    assert call(python, "-c", WHERE, cwd=tmp_path).split() == [package, conf]


def test_the_editable_install_uses_the_checkout(checkout, model, tmp_path):
    before = files(checkout)
    python = fresh_environment(tmp_path / "environment", "-e", checkout)
    package, conf = call(python, "-c", WHERE, cwd=tmp_path).split()
    assert (Path(package).parents[1], Path(conf)) == (checkout, checkout / "conf")
    assert use([python.parent / "transformer-lab"], model, tmp_path / "script")["ops"] == "manual"
    assert files(checkout) == before
    copies = [path for path in (tmp_path / "environment").rglob("config.yaml") if "transformer_lab" in path.parts]
    assert copies == []


def test_the_bare_checkout_runs(checkout, model, tmp_path):
    package, conf = call(sys.executable, "-c", WHERE, cwd=tmp_path, path=checkout).split()
    assert (Path(package).parents[1], Path(conf)) == (checkout, checkout / "conf")
    assert use([sys.executable, "-m", "transformer_lab"], model, tmp_path / "run", path=checkout)["ops"] == "manual"


def test_the_embedded_model_travels_in_the_wheel(wheel, tmp_path):
    if not (CHECKOUT / "resources" / "models" / "storybook").is_dir():
        pytest.skip("there is no embedded model yet")
    python = fresh_environment(tmp_path / "environment", wheel)
    assert len(call(python, "-m", "transformer_lab", "max_new_tokens=5", cwd=tmp_path)) > 1
