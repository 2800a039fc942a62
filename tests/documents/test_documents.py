"""The documents tell the truth: their commands run, their snippets give what they show, their links lead somewhere."""

import re
import subprocess
import sys

import numpy as np
import pytest
from conformance_of_a_backend import judge
from documents import (
    CHECKOUT,
    ENVIRONMENT,
    Block,
    blocks,
    broken_links,
    commands,
    covers,
    documents,
    message_templates,
    patterns,
    prose,
    run_command,
    run_python,
    unknown_options,
    words_of,
)

from transformer_lab import load_model
from transformer_lab.ffn.capacity import Capacity
from transformer_lab.ffn.dense import Dense
from transformer_lab.ffn.experts import Experts
from transformer_lab.ffn.moe import MixtureOfExperts
from transformer_lab.model.decoder import tap_names
from transformer_lab.paths import data_folder
from transformer_lab.router.gshard import GShard

pytestmark = pytest.mark.skipif(
    not (data_folder("resources") / "models" / "storybook").is_dir(), reason="needs the embedded model"
)
ALL = [path.relative_to(CHECKOUT).as_posix() for path in documents()]
# docs/command_line.md is run by tests/cli/test_cli_documentation.py, with its exit codes.
EXECUTED = ["README.md", *(name for name in ALL if name.startswith("docs/") and name != "docs/command_line.md")]
COMPOSED = ["DEPLOY.md", "CONTRIBUTING.md"]
# Mistakes that the documents show on purpose, and the reader's own component in docs/command_line.md.
MEANT = {"+bakend=jax", "sampling.temprature=1", "ffn=my_ffn", "ffn.width=5", "ops.attention=NAME"}


def read(name: str) -> str:
    return (CHECKOUT / name).read_text(encoding="utf-8")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder whose modules can be imported, and are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delenv("TRANSFORMER_LAB_RUNS", raising=False)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def carry_out(text: str, folder, monkeypatch) -> list[str]:
    """Does everything that a document shows, in order; the complaints."""
    namespace: dict = {"__name__": "document"}
    complaints = []
    for block in blocks(text):
        if block.file_name:
            path = folder / block.file_name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            complaints += run_python(block, namespace)
        elif block.language == "bash":
            for command in commands(block):
                if not is_for_the_shell(command):
                    complaints += run_command(command, monkeypatch)
    return complaints


def is_for_the_shell(command: str) -> bool:
    """Lines that are not run here: making the environment, and the tests, whose paths are looked at."""
    if command.startswith((ENVIRONMENT, "source ")):
        return True
    if re.match(r"(\.venv/bin/)?python -m pytest", command):
        paths = [word for word in command.split()[3:] if "/" in word]
        assert all((CHECKOUT / path.split("::")[0]).exists() for path in paths), command
        return True
    return False


@pytest.mark.parametrize("name", EXECUTED)
def test_what_a_document_shows_is_so(name, elsewhere, monkeypatch):
    assert carry_out(read(name), elsewhere, monkeypatch) == []


@pytest.mark.parametrize("name", COMPOSED)
def test_the_commands_of_other_documents_are_well_formed(name, elsewhere, monkeypatch):
    lines = [line for block in blocks(read(name)) if block.language == "bash" for line in commands(block)]
    ours = [line for line in lines if re.search(r"(^| )(transformer-lab|python -m transformer_lab)( |$)", line)]
    assert len(lines) > 3
    for line in lines:
        if line in ours:
            assert run_command(re.sub(r"^([A-Z_]+=\S+ )+", "", line), monkeypatch, slow=False) == []
        else:
            is_for_the_shell(line)


def test_the_two_commands_of_the_readme():
    lines = [line for block in blocks(read("README.md")) if block.language == "bash" for line in commands(block)]
    assert lines[0] == ENVIRONMENT + "transformer_lab +backend=jax"
    assert lines[1] == ENVIRONMENT + "pytest"
    assert words_of(lines[0].rpartition(" && ")[2])[1] == ["+backend=jax"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs bash")
def test_the_check_script_takes_the_second_command():
    shown = subprocess.run([CHECKOUT / ".ci" / "run", "--show"], capture_output=True, text=True)
    assert shown.stdout == ENVIRONMENT + "pytest\n"


@pytest.mark.parametrize("name", ALL)
def test_links_and_paths_lead_somewhere(name):
    assert broken_links(CHECKOUT / name, read(name)) == []


@pytest.mark.parametrize("name", [name for name in ALL if not name.startswith("resources/")])
def test_every_option_exists(name, tmp_path):
    text = read(name)
    for block in blocks(text):
        if block.file_name:
            (tmp_path / block.file_name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / block.file_name).write_text(block.text)
    for block in blocks(text):  # Python is run, and its arguments may be called like groups
        text = text.replace(block.text, "\n") if block.language == "python" else text
    assert [option for option in unknown_options(text, tmp_path / "my_conf") if option not in MEANT] == []


def test_the_map_of_the_readme_is_complete():
    text = read("README.md").partition("## The map of the house")[2].partition("\n## ")[0]
    kept = subprocess.run(["git", "ls-files"], cwd=CHECKOUT, capture_output=True, text=True).stdout.split()
    if not kept:
        pytest.skip("not a git checkout")
    parts = {name.split("/")[0] + "/" for name in kept if "/" in name and name[0] != "."} - {"transformer_lab/"}
    parts |= {"/".join(name.split("/")[:2]) + "/" for name in kept if re.match(r"transformer_lab/\w+/", name)}
    assert [part for part in sorted(parts) if f"`{part}`" not in text] == []


TAPS = r"^\| `([\w.{}]+)` \| \[(.*?)\] \|"


def test_the_table_of_taps_of_experts_is_complete_and_has_the_right_shapes():
    ffn = MixtureOfExperts(GShard(2), Experts(4, 8), Dense(6), capacity=Capacity(1.0))
    model = load_model("storybook", weights="random", ffn=ffn)
    sizes = {"B": 2, "T": 4, "D": model.config.hidden_size, "E": 4, "k": 2}
    table = dict(re.findall(TAPS, read("docs/taps.md").partition("A mixture of experts shows")[2], re.MULTILINE))
    assert list(table) == list(ffn.taps)
    for name, array in model.record(np.arange(8).reshape(2, 4), [f"blocks.0.ffn.{n}" for n in table]).items():
        letters = table[name.removeprefix("blocks.0.ffn.")].split(", ")
        assert array.shape == tuple(sizes[letter] for letter in letters), name


def test_the_table_of_taps_is_complete_and_has_the_right_shapes():
    model = load_model("storybook", ops="manual")
    config = model.config
    sizes = {"B": 2, "T": 4, "S": 4, "D": config.hidden_size, "V": config.vocab_size}
    block = config.blocks[0]
    sizes |= {"H": block.attention.num_heads, "K": block.attention.num_kv_heads, "N": block.attention.head_size}
    sizes |= {"F": block.ffn.size}
    table = dict(re.findall(TAPS, read("docs/taps.md").partition("A mixture of experts shows")[0], re.MULTILINE))
    order = [re.sub(r"\.\d+\.", ".{i}.", name) for name in tap_names(config)]
    assert list(table) == list(dict.fromkeys(order))
    for name, array in model.record(np.arange(8).reshape(2, 4), [n.format(i=0) for n in table]).items():
        letters = table[name.replace(".0.", ".{i}.")].split(", ")
        assert array.shape == tuple(sizes[letter] for letter in letters), name


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_backend_of_the_page_passes_the_conformance_cases(precision, elsewhere):
    (source,) = [block for block in blocks(read("docs/backends.md")) if block.file_name == "strict_backend.py"]
    (elsewhere / "strict_backend.py").write_text(source.text)
    from strict_backend import StrictBackend

    assert judge(StrictBackend(precision=precision)) == []
    assert judge(StrictBackend(precision=precision, ops="manual")) == []
    wrong = StrictBackend(precision=precision)
    wrong.relu = lambda x: wrong.xp.abs(x)
    assert {line.split(":")[0] for line in judge(wrong)} == {"relu"}


def test_every_message_has_its_cure():
    """DEPLOY.md lists every error. A new message needs a row there, or a row that speaks of it already."""
    known = patterns(read("DEPLOY.md").partition("## Errors and cures")[2])
    templates = message_templates(CHECKOUT / "transformer_lab")
    assert len(templates) > 100
    # Python's own sentence about a missing attribute, and a message of ModelConfig with the file in front of it.
    passed_on = {"module 'transformer_lab' has no attribute …", "…: …"}
    uncured = [
        f"{where}: {message}"
        for message, where in templates.items()
        if message not in passed_on and not any(covers(pattern, message) for pattern in known)
    ]
    assert uncured == []
    unheard = [p for p in known if not any(covers(p, message) for message in templates) and not said_elsewhere(p)]
    assert unheard == []


def said_elsewhere(pattern: str) -> bool:
    """Whether each part of the pattern stands in the package, for messages that are put together from parts."""
    package = "".join(path.read_text(encoding="utf-8") for path in (CHECKOUT / "transformer_lab").rglob("*.py"))
    package = re.sub(r'"\s*\n\s*f?"', "", package)
    return all(part.strip(" .") in package for part in pattern.split("…"))


# --- the checks can fail ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("```python\n1 + 1  # -> 3\n```\n", "shows ['3'], but it is '2'"),
        ("```python\nprint('a')\nprint('b')\n# -> a\n```\n", "but it is 'b'"),
        ("```python\nimport no_such_module\n```\n", "ModuleNotFoundError"),
        (
            "```python\nimport transformer_lab as lab\nlab.load_model('x')\n# -> ConfigurationError: y\n```\n",
            "no model",
        ),
        ("```bash\npython -m transformer_lab +bakend=jax\n```\n", "Did you mean backend?"),
        ("```bash\npython -m transformer_lab model=gpt2 sampling=hot\n```\n", "There is no sampling=hot"),
        ("```bash\npython -m transformer_lab job=inspect  # exit code 3\n```\n", "exit code 0"),
    ],
)
def test_a_wrong_document_is_found(text, said, elsewhere, monkeypatch):
    (complaint,) = carry_out(text, elsewhere, monkeypatch)
    assert said in complaint


def test_a_wrong_link_path_option_and_cure_are_found(tmp_path):
    text = (
        "[a](nowhere.md) [b](#no-heading) `conf/none.yaml` `backend=torch` `backend=nump` `sampling.heat=1`\n# Title\n"
    )
    assert len(broken_links(tmp_path / "x.md", text)) == 3
    assert unknown_options(text) == ["backend=nump", "sampling.heat=1"]
    assert not covers("There is no … in …", "There is nothing in x")
    assert run_python(Block("python", "1 / 0\n", 1), {})[0].startswith("line 1: Traceback")


def test_the_documents_name_no_machine():
    """Absolute paths of somebody's machine have no place in a document."""
    for name in ALL:
        assert not re.search(r"(?<![\w.])/(home|root|work|Users)/", prose(read(name))), name
