"""The files under conf/: each composes, builds, and names what there is; and components from outside."""

import subprocess
import sys
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module

import pytest

from transformer_lab import ConfigurationError, available_backends
from transformer_lab.backends.base import OPERATIONS
from transformer_lab.composition import compose
from transformer_lab.config import component, construct, groups, names
from transformer_lab.language_model.changed_parts import PARTS
from transformer_lab.paths import data_folder

PRESETS = ("track", "experiment")  # groups that have no section of their own
FILES = [(group, name) for group in groups() for name in names(group)]


@pytest.mark.parametrize(("group", "name"), FILES)
def test_every_file_composes_and_builds(group, name):
    settings = compose([f"{group}={name}"])
    assert settings.choices[group] == name
    if group not in PRESETS and "_target_" in settings.sections[group]:
        parts = dict.fromkeys(("attention", "norm", "ffn")) if group == "block" else {}  # it is made of others
        built = settings.build(group, **parts)
        assert f"{type(built).__module__}.{type(built).__qualname__}" == settings.sections[group]["_target_"]


def unlisted(section, where=""):
    """The fields of a component that its section does not list, so that no command line could set them."""
    if not isinstance(section, dict):
        return []
    found = [f"{where}.{name}" for name, part in section.items() for name in unlisted(part, name)]
    if "_target_" in section:
        module, _, name = section["_target_"].rpartition(".")
        kind = getattr(import_module(module), name)
        if is_dataclass(kind):
            found += [f"{where}.{own.name}" for own in fields(kind) if own.name not in section]
    return found


# What is made of other parts, and a part that is set in Python alone.
NOT_WORDS = {"block": [".attention", ".ffn", ".norm"], "position": [".scaling"]}


@pytest.mark.parametrize(("group", "name"), [(group, name) for group, name in FILES if group in PARTS])
def test_every_field_can_be_set(group, name):
    """`ffn=mixtral ffn.z_loss=0.001` needs the line `z_loss: 0.0` in the file."""
    left = unlisted(compose([f"{group}={name}"]).sections[group])
    assert set(left) <= set(NOT_WORDS.get(group, [])), left


def test_every_folder_is_a_group_and_every_group_a_folder():
    assert {path.name for path in data_folder("conf").iterdir() if path.is_dir()} == set(groups())


@pytest.mark.parametrize("name", names("ops"))
def test_the_operations_are_those_of_the_backends(name):
    assert set(compose([f"ops={name}"]).sections["ops"]) == {*OPERATIONS, "dispatch"}


@pytest.mark.parametrize("name", names("sampling"))
def test_the_sampling_presets_share_one_set_of_fields(name):
    assert set(compose([f"sampling={name}"]).sections["sampling"]) == set(compose().sections["sampling"])
    assert compose([f"sampling={name}", "sampling.temperature=0.7"]).build("sampling").temperature == 0.7


def test_component_builds_by_name():
    assert component("sampling", "top_k", top_k=3, top_p=None).top_k == 3
    assert component("backend", "numpy", precision="float64", ops="manual", device=None).precision == "float64"
    with pytest.raises(ConfigurationError, match=r"backend=nunpy.*backend=numpy\?.*jax, numpy, torch"):
        component("backend", "nunpy")
    with pytest.raises(ConfigurationError, match=r"backend\.devise.*backend\.device"):
        component("backend", "numpy", devise="cpu")


def test_available_backends_lists_the_files():
    assert list(available_backends()) == names("backend")
    assert available_backends()["numpy"] is True


@dataclass
class Sample:
    width: int
    rates: list[float]
    name: str | None = None


def test_construct_checks_names_and_types():
    assert construct(Sample, {"width": 3, "rates": [1, 2.5]}, "ffn") == Sample(3, [1, 2.5])
    for values, words in (
        ({"width": 3}, r"ffn\.rates is missing"),
        ({"width": "x", "rates": []}, r"ffn\.width is 'x'.*whole number"),
        ({"width": True, "rates": []}, r"ffn\.width is True"),
        ({"width": 3, "rates": ["x"]}, r"ffn\.rates.*a list"),
        ({"width": 3, "rates": [], "name": 5}, r"ffn\.name is 5.*text.*or null"),
        ({"width": 3, "rates": [], "nam": "x"}, r"ffn\.nam\..*ffn\.name\?"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            construct(Sample, values, "ffn")


def own_options(folder, module, yaml="_target_: {module}.MyFFN\nwidth: 3\n", python=None):
    (folder / "ffn").mkdir(parents=True)
    (folder / "ffn" / "my_ffn.yaml").write_text(yaml.format(module=module))
    source = "from dataclasses import dataclass\n\n\n@dataclass(frozen=True)\nclass MyFFN:\n    width: int\n"
    (folder / f"{module}.py").write_text(source if python is None else python)


FAULTY = """
from dataclasses import dataclass


@dataclass(frozen=True)
class MyFFN:
    width: int
    taps = ()

    def shapes(self, hidden_size):
        return {}

    def __call__(self, ops, params, x, tap):
        return missing + x
"""


def test_an_error_in_a_component_of_the_users_own_is_theirs(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    own_options(tmp_path / "mine", "own_ffn_faulty", python=FAULTY)
    outcome = run("--config-dir", "mine", "ffn=my_ffn", "model.weights=random", "max_new_tokens=1")
    assert outcome.code == 2 and "own_ffn_faulty.py, line 14, fails: NameError: name 'missing'" in outcome.err
    assert "a bug" not in outcome.err


def test_a_component_of_the_users_own(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    given = {}

    def load_model(source, **options):
        given.update(options)
        raise KeyboardInterrupt  # that far is enough

    monkeypatch.setattr("transformer_lab.language_model.load_model", load_model)
    own_options(tmp_path / "mine", "own_ffn_a")
    run("--config-dir", "mine", "ffn=my_ffn", "ffn.width=5")
    assert type(given["ffn"]).__name__ == "MyFFN" and given["ffn"].width == 5
    run("ffn.activation=relu")
    assert given["ffn"] == {"activation": "relu"}
    given.clear()
    run()
    assert given and "ffn" not in given


@pytest.mark.parametrize(
    ("module", "yaml", "python", "words", "said"),
    [
        ("own_ffn_b", "_target_: {module}.MyFFN\nwidht: 3\n", None, [], "ffn.width?"),
        ("own_ffn_c", "_target_: {module}.MyFNN\nwidth: 3\n", None, [], "Did you mean MyFFN?"),
        ("own_ffn_d", "_target_: elsewhere.MyFFN\n", None, [], "no module elsewhere"),
        ("own_ffn_e", "_target_: 5\n", None, [], "ffn._target_ is 5"),
        ("own_ffn_f", "_target_: {module}.MyFFN\nwidth: 3\n", "class (", [], "line 1"),
        ("own_ffn_g", "_target_: {module}.MyFFN\nwidth: 3\n", "1 / 0", [], "ZeroDivisionError"),
        ("own_ffn_h", "_target_: {module}.MyFFN\nwidth: 3\n", None, ["ffn.width=wide"], "whole number"),
        ("own_ffn_i", "_target_: {module}.MyFFN\nwidth: 3\n", None, ["ffn.wide=1"], "ffn.width"),
        ("own_ffn_j", "_target_: {module}.MyFFN\nwidth: [\n", None, [], "my_ffn.yaml"),
    ],
)
def test_a_fault_in_the_users_own_component_is_named(run, tmp_path, monkeypatch, module, yaml, python, words, said):
    monkeypatch.setattr(sys, "path", [*sys.path])
    own_options(tmp_path / "mine", module, yaml, python)
    outcome = run("--config-dir", str(tmp_path / "mine"), "+ffn=my_ffn", *words)
    assert outcome.code == 2 and "Traceback" not in outcome.err
    assert said in outcome.err


def test_an_unknown_key_in_the_users_own_run_is_named(run, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "mine.yaml").write_text("# @package _global_\nsede: 3\n")
    outcome = run("-cd", "mine", "experiment=mine")
    assert outcome.code == 2
    assert "sede" in outcome.err and "seed" in outcome.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ffn=moe", "router=mixtral", "ffn.router.k=1"], "Say router.k=."),
        (["ffn.router.k=1", "ffn=moe", "router=olmoe"], "router=olmoe takes the place of ffn.router"),
        (["ffn=deepseek_v3", "balancer=quantile", "ffn.balancer.rate=0.1"], "Say balancer.rate=."),
    ],
)
def test_a_field_of_a_part_that_is_replaced_is_refused(run, words, said):
    outcome = run(*words, "model.weights=random")
    assert outcome.code == 2 and said in outcome.err


@pytest.mark.parametrize("job", ["train", "compare", "inspect", "tokenizer"])
@pytest.mark.parametrize("word", ["cache=tiered", "residency=tiered", "cache.block=4"])
def test_what_a_job_does_not_look_at_is_refused(run, job, word):
    outcome = run(f"job={job}", "cache=paged", word) if word == "cache.block=4" else run(f"job={job}", word)
    key = "cache" if word == "cache.block=4" else word.partition("=")[0]
    assert outcome.code == 2 and f"{key} is given, and job={job} does not look at it. Leave it out." in outcome.err


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("cache.cold_folder=blocks", "cache.cold_folder is a setting of cache=tiered. Choose it in the same line."),
        ("cache.recent=4", "cache.recent is a setting of cache=int4, cache=sinks. Choose one in the same line."),
        ("cache.recant=4", "There is no setting cache.recant."),
    ],
)
def test_a_setting_of_another_choice_is_named_with_it(run, word, said):
    outcome = run(word)
    assert outcome.code == 2 and said in outcome.err


def test_a_group_of_the_users_own_needs_no_sign(run, tmp_path):
    (tmp_path / "mine" / "course").mkdir(parents=True)
    (tmp_path / "mine" / "course" / "monday.yaml").write_text("# @package _global_\nseed: 11\n")
    for sign in ("", "+", "++"):
        outcome = run("-cd", "mine", f"{sign}course=monday", "--cfg", "job")
        assert outcome.code == 0 and "seed: 11" in outcome.out


def test_help_names_every_option(run):
    outcome = run("--help")
    assert outcome.code == 0 and outcome.err == ""
    for group, name in FILES:
        assert group in outcome.out and name in outcome.out


def test_the_configuration_can_be_shown(run):
    assert "source: storybook" in run("--cfg", "job", "-p", "model").out
    assert "attention: manual" in run("--cfg", "job", "+track=native").out
    assert run("--cfg", "job", "seed=[").code == 2
    assert run("--cfg", "job", "-p", "sampeling").code == 2
    assert run("--version").out.startswith("transformer_lab ")


def test_the_origin_of_the_configuration_can_be_shown(tmp_path, environment):
    command = [sys.executable, "-m", "transformer_lab", "--info", "defaults", "+backend=jax"]  # Hydra sets up logging
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment)
    assert "backend/jax" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_tab_completion(run, monkeypatch):
    assert "complete" in run("-sc", "install=bash").out
    for typed, offered in (("transformer-lab +back", "+backend="), ("transformer-lab backend=n", "backend=numpy")):
        monkeypatch.setenv("COMP_LINE", typed)
        assert run("-sc", "query=bash").out.split() == [offered]
    assert run("-sc", "install=nosuchshell").code == 2


IMPORTS = (
    "import sys; {code}; print(*sorted({{'torch', 'jax', 'hydra', 'jinja2', 'numpy', 'rich'}} & set(sys.modules)))"
)


@pytest.mark.parametrize(
    ("code", "imported"),
    [
        ("import transformer_lab; dir(transformer_lab); transformer_lab.LabError", ""),
        ("import transformer_lab; transformer_lab.available_backends()", ""),
        ("import transformer_lab; transformer_lab.load_model", "numpy"),
        ("from transformer_lab.config import component; component('backend', 'numpy')", "numpy"),
    ],
)
def test_nothing_heavy_is_imported_early(code, imported, environment):
    command = [sys.executable, "-c", IMPORTS.format(code=code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == imported


def test_the_public_names_exist():
    import transformer_lab

    for name in transformer_lab.__all__:
        assert getattr(transformer_lab, name) is not None
        assert name in dir(transformer_lab)
    with pytest.raises(AttributeError, match="load_modle"):
        transformer_lab.load_modle  # noqa: B018


def test_a_field_that_a_file_leaves_out_can_be_set():
    """The signature says what a part takes, not the YAML; what no part takes is refused as before."""
    folder = str(data_folder("resources").parent / "examples" / "outside_router" / "conf")
    sys.path.append(str(data_folder("resources").parent / "examples" / "outside_router"))
    try:
        settings = compose(["ffn=mine", "ffn.z_loss=0.25", "ffn.router.sharpness=3.0"], folder)
        assert settings.sections["ffn"]["z_loss"] == 0.25
        built = settings.build("ffn")
        assert (built.z_loss, built.router.sharpness, built.balance_loss) == (0.25, 3.0, 0.01)
        with pytest.raises(ConfigurationError, match=r"no setting ffn\.z_los\. Did you mean ffn\.z_loss\?"):
            compose(["ffn=mine", "ffn.z_los=0.25"], folder)
        with pytest.raises(ConfigurationError, match=r"no setting ffn\.router\.gamma\. Known here: .*sharpness"):
            compose(["ffn=mine", "ffn.router.gamma=1"], folder)
    finally:
        sys.path.pop()


def test_such_a_field_can_be_swept_over(run):
    folder = data_folder("resources").parent / "examples" / "outside_router"
    words = ["-m", "--config-dir", str(folder / "conf"), "ffn=mine", "ffn.z_loss=0.0,0.25", "model.weights=random"]
    sys.path.append(str(folder))
    try:
        outcome = run(*words, "max_new_tokens=1", "prompt=a")
    finally:
        sys.path.pop()
    assert outcome.code == 0, outcome.err
    assert [record["settings"]["ffn"]["z_loss"] for record in outcome.records] == [0.0, 0.25]
