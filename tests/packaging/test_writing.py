"""Who may write, rename and remove: a few files that do it so that a killed process does no harm; all others use them.

Read from the source with `ast`. What passes here is broken at each call in `tests/durability/`.
"""

import ast
from pathlib import Path

import pytest

import transformer_lab

PACKAGE = Path(transformer_lab.__file__).parent
ALLOWED = {
    "left_over.py",  # what is temporary: made, held, removed
    "atomic_file.py",
    "atomic_folder.py",
    "training/metrics_file.py",  # grows by a line for each step
    "training/token_file.py",  # grows while a text is tokenised, in a folder that has no good name yet
    "cli.py",  # /dev/null in the place of a stream that the caller closed
}
ALSO_ALLOWED = {
    "tiers/cold.py": {"unlink"},  # blocks that were damaged, or had to make room
    "tiers/index.py": {"unlink"},  # an index that cannot be read, before it is made again from the blocks
    "checkpoints/saving.py": {"unlink"},  # what a model that was saved anew replaces
    "tokenizers/original_files.py": {"unlink"},  # the same of a tokenizer
}
METHODS = {"write_text", "write_bytes", "touch", "unlink", "rmdir", "rename", "symlink_to", "hardlink_to"}
FUNCTIONS = {
    "os": {"replace", "rename", "renames", "unlink", "remove", "rmdir", "removedirs", "truncate", "link", "symlink"},
    "shutil": {"rmtree", "move", "copy", "copyfile", "copytree", "copy2"},
    "tempfile": {"mkstemp", "mkdtemp", "NamedTemporaryFile", "TemporaryFile", "TemporaryDirectory"},
}


def writes(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if isinstance(function, ast.Attribute):
            module = function.value.id if isinstance(function.value, ast.Name) else ""
            if name in FUNCTIONS.get(module, METHODS):
                found.add(name)
        if name == "open":
            modes = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
            texts = [mode.value for mode in modes if isinstance(mode, ast.Constant) and isinstance(mode.value, str)]
            if any(set(text) <= set("rwaxbt+") and set(text) & set("wax+") for text in texts):
                found.add("open")
    return found


def violations(package: Path) -> dict[str, set[str]]:
    found = {}
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        here = writes(ast.parse(path.read_text(encoding="utf-8"))) - ALSO_ALLOWED.get(name, set())
        if here and name not in ALLOWED:
            found[name] = here
    return found


def test_there_is_one_way_to_write():
    assert violations(PACKAGE) == {}


@pytest.mark.parametrize(
    "line",
    [
        "path.write_text(text)",
        "open(path, 'w')",
        "path.open('ab')",
        "open(path, mode='x')",
        "os.replace(a, b)",
        "shutil.rmtree(folder)",
        "tempfile.mkdtemp()",
        "path.unlink(missing_ok=True)",
    ],
)
def test_a_planted_violation_is_found(tmp_path, line):
    (tmp_path / "jobs").mkdir()
    for name in ("jobs/bench.py", "cli.py"):
        (tmp_path / name).write_text(f"def f():\n    {line}\n    write_text(path, text)\n    open(path, 'rb')\n")
    assert [*violations(tmp_path)] == ["jobs/bench.py"]
