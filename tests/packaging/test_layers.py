"""Who may import whom: imports point downward, and each framework is named in one file.

The rules are read from the source with `ast`, so nothing is imported. Each rule is also shown to catch a violation.
"""

import ast
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import transformer_lab

PACKAGE = Path(transformer_lab.__file__).parent

# From the bottom up. A part may import what lies below it, itself, and its neighbours on the same level.
LEVELS = (
    {"errors", "paths", "config", "memory", "environment", "left_over", "atomic_file", "atomic_folder"},
    {"backends", "charts"},
    {"model", "block", "attention", "position", "norm", "ffn", "router", "balancer", "cache", "tiers", "checkpoints"},
    {"generation", "sources"},
    {"language_model"},
    {"orchestrator", "comparison", "routes", "contracts", "training", "feedback"},
    {"jobs", "interfaces", "composition"},
    {"cli", "__main__"},
)
# Beside the levels: these import nothing of ours but these few, and who lies above the second level may import them.
ALONE = {"tokenizers": {"errors", "paths", "atomic_file"}, "backends": {"errors", "paths"}, "charts": {"errors"}}
ALONE["tiers"] = {"errors", "paths", "atomic_file", "atomic_folder", "left_over", "memory", "environment"}
# The only files that may name a package.
ONLY_IN = {
    "torch": {"backends/frameworks/torch.py", "comparison/participants/transformers.py"},
    "jax": {"backends/frameworks/jax.py"},
    "jaxlib": {"backends/frameworks/jax.py"},
    "jinja2": {
        "comparison/reporting/page/document.py",
        "routes/page/document.py",
        "tokenizers/chat_template_process.py",
    },
    "tokenizers": {"tokenizers/huggingface.py"},
    "hydra": {"composition.py"},
    "omegaconf": {"composition.py", "config.py"},
    "transformers": {"comparison/participants/transformers.py"},
    "tiktoken": set(),
}


def level(part: str) -> int:
    if part == "tokenizers":
        return 1
    return next((number for number, parts in enumerate(LEVELS) if part in parts), -1)


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import, wherever it stands; `from a import b` counts as a and as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield node.lineno, module
            if not node.level:
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def violations(package: Path) -> list[str]:
    found = []
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        part = name.split("/")[0].removesuffix(".py")
        if part == "__init__":  # the lazy front door names everything
            continue
        if level(part) < 0:
            found.append(f"{name}: {part} is on no level; say in this test where it belongs")
            continue
        for line, module in imported(ast.parse(path.read_text(encoding="utf-8"))):
            if module.startswith("."):
                found.append(f"{name}:{line}: relative import of {module}")
            elif module.startswith("transformer_lab."):
                other = module.split(".")[1]
                if other == part or level(other) < 0:  # the second: a name of the front door, such as __version__
                    continue
                if part in ALONE and other not in ALONE[part]:
                    found.append(f"{name}:{line}: {part} imports {other}")
                elif level(other) > level(part):
                    found.append(f"{name}:{line}: {part} imports {other}, which lies above it")
            else:  # also array_api_compat.torch names torch
                named = {*module.split(".")} & {*ONLY_IN}
                found += [f"{name}:{line}: names {other}" for other in named if name not in ONLY_IN[other]]
    return sorted(set(found))


def test_imports_point_downward():
    assert violations(PACKAGE) == []


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        ("model/decoder.py", "from transformer_lab.generation import sampling", "generation, which lies above it"),
        ("model/decoder.py", "from transformer_lab import cli", "cli, which lies above it"),
        ("tokenizers/byte_bpe.py", "import transformer_lab.config", "tokenizers imports config"),
        ("backends/frameworks/numpy.py", "import transformer_lab.tokenizers", "backends imports tokenizers"),
        ("backends/frameworks/numpy.py", "def f():\n    import torch.nn", "names torch"),
        ("model/decoder.py", "import array_api_compat.torch", "names torch"),
        ("generation/sampling.py", "from jax import numpy", "names jax"),
        ("tokenizers/byte_bpe.py", "import tokenizers", "names tokenizers"),
        ("jobs/bench.py", "from omegaconf import OmegaConf", "names omegaconf"),
        ("language_model/loading.py", "import transformers", "names transformers"),
        ("ffn/dense.py", "from . import other", "relative"),
        ("helpers.py", "x = 1", "on no level"),
    ],
)
def test_a_planted_violation_is_found(tmp_path, file, line, said):
    package = tmp_path / "transformer_lab"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "conf", "resources"))
    with (package / file).open("a", encoding="utf-8") as source:
        source.write(f"\n{line}\n")
    (found,) = violations(package)
    assert found.startswith(file) and said in found


def test_the_standard_library_is_not_shadowed():
    shadowed = {path.stem for path in PACKAGE.glob("*.py")} & set(sys.stdlib_module_names)
    assert shadowed <= {"__main__"}
