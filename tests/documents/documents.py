"""Reads the project's documents and does what they show: their fenced blocks, links, options and tables.

A block whose first line is a comment with a file name is written to that file. Other Python blocks of a document run
one after the other in one namespace, bash blocks line by line. `# -> text` behind a Python statement, or in the lines
below it, is what the statement must print or be worth; `...` in it stands for anything.
"""

import ast
import contextlib
import io
import re
import shlex
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformer_lab import composition
from transformer_lab.cli import main
from transformer_lab.config import groups, names, read_yaml, top_level_keys
from transformer_lab.errors import LabError
from transformer_lab.paths import data_folder
from transformer_lab.sources import file_in_package

CHECKOUT = Path(__file__).resolve().parents[2]
REAL_MODEL = file_in_package(read_yaml(data_folder("conf") / "model" / "smollm2.yaml")["package"])
ENVIRONMENT = "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e '.[dev]' && .venv/bin/python -m "
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INSTALLING = re.compile(r"^pip install --no-deps [\w-]+ && ")  # what the line needs; it is run where that is there
FILE_NAME = re.compile(r"# ([\w./-]+\.(?:py|yaml))\n")
EXPECTED = re.compile(r"#\s*->\s?(.*)")


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    line: int  # of its first line in the document

    @property
    def file_name(self) -> str | None:
        found = FILE_NAME.match(self.text)
        return found[1] if found else None


def documents() -> list[Path]:
    """Every Markdown file that belongs to the project."""
    folders = ("docs", "experiments", "benchmarks", "resources", "examples")
    found = [path for folder in folders for path in (CHECKOUT / folder).rglob("*.md")]
    return sorted([*CHECKOUT.glob("*.md"), *found])


def blocks(text: str) -> list[Block]:
    return [Block(m[1], m[2], text[: m.start(2)].count("\n") + 1) for m in FENCE.finditer(text)]


def prose(text: str) -> str:
    """The document without its fenced blocks."""
    return FENCE.sub("", text)


# --- Python ----------------------------------------------------------------------------------------------------------


def run_python(block: Block, namespace: dict[str, Any]) -> list[str]:
    """Runs the statements of a block; the complaints about outputs that are not as shown."""
    lines = block.text.splitlines()
    complaints = []
    statements = ast.parse(block.text).body
    for number, statement in enumerate(statements):
        last = statements[number + 1].lineno - 1 if number + 1 < len(statements) else len(lines)
        shown = list(expected_lines(lines[(statement.end_lineno or 0) - 1 : last]))
        found = outcome(statement, namespace)
        if shown and not matches("\n".join(shown), found):
            complaints.append(f"line {block.line + statement.lineno - 1}: shows {shown}, but it is {found!r}")
        elif not shown and found.startswith("Traceback"):
            complaints.append(f"line {block.line + statement.lineno - 1}: {found}")
    return complaints


def expected_lines(lines: list[str]) -> Iterator[str]:
    """What stands behind `# ->` at the end of the first line, or in the comments after it."""
    for number, line in enumerate(lines):
        found = EXPECTED.search(line) if number == 0 else EXPECTED.match(line)
        if found:
            yield found[1].strip()


def outcome(statement: ast.stmt, namespace: dict[str, Any]) -> str:
    """What a statement prints, or else the repr of its value; an error of ours as `Kind: message`."""
    printed = io.StringIO()
    value = None
    try:
        with contextlib.redirect_stdout(printed):
            if isinstance(statement, ast.Expr):
                value = eval(compile(ast.Expression(statement.value), "document", "eval"), namespace)
            else:
                exec(compile(ast.Module([statement], []), "document", "exec"), namespace)
    except LabError as error:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return traceback.format_exc()
    return printed.getvalue().rstrip("\n") or ("" if value is None else repr(value))


def matches(shown: str, found: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, shown.split("..."))), found, re.DOTALL) is not None


# --- Command lines ---------------------------------------------------------------------------------------------------


def commands(block: Block) -> list[str]:
    """The lines of a bash block; one that ends with a backslash, and the `# ->` below a line, are joined with it."""
    text = re.sub(r"\n#\s*->", "  # ->", block.text.replace("\\\n", " "))
    return [line for line in text.splitlines() if line.strip()]


def shown_output(command: str) -> str | None:
    found = re.search(r"  # -> ?(.*)", command)
    return found[1].strip() if found else None


def words_of(command: str) -> tuple[str | None, list[str], int]:
    """A line that calls this project -> (standard input, its words, the exit code that its comment announces)."""
    shell, _, comment = command.partition("  #")
    shell = INSTALLING.sub("", shell)
    typed, pipe, shell = shell.rpartition(" | ")
    program, *words = shlex.split(shell)
    if program == "transformer-lab":
        pass
    elif words[:2] == ["-m", "transformer_lab"] and program in ("python", ".venv/bin/python"):
        words = words[2:]
    else:
        raise ValueError(command)
    announced = re.search(r"exit code (\d+)", comment)
    echoed = shlex.split(typed)[1] + "\n" if pipe else None
    return echoed, words, int(announced[1]) if announced else 0


def needs_what_is_not_here(words: list[str]) -> bool:
    """Weights of the hub, a text, a folder or a device of the reader's own: then the line is composed and not run."""
    here = "storybook|smollm2" if REAL_MODEL and find_spec("gguf") else "storybook"
    own = {word.partition("=")[2] for word in words if word.startswith(("data.path=", "model.source="))}
    if own and all(Path(path).exists() for path in own):  # what the document made before
        return False
    from_hub = any(re.fullmatch(rf"\+*model=(?!{here}).*|model\.source=.*", word) for word in words)
    device = any(word.startswith("backend.device=") and not word.endswith("=cpu") for word in words)
    return device or (from_hub and "model.weights=random" not in words)


def run_command(command: str, monkeypatch: Any, slow: bool = True) -> list[str]:
    """Runs the line in this process, or composes it; a list with the complaint if it does not do what it should.

    slow=False composes only.
    """
    echoed, words, announced = words_of(command)
    if needs_what_is_not_here(words) or not slow or "gpt2" in command:
        flags = [word for word in words if word not in ("-m", "--debug")]
        try:
            composition.compose(flags)
        except LabError as error:
            return [f"{command}: {error}"]
        return []
    if echoed is not None:
        from transformer_lab.jobs import prompts

        prompts._read_standard_input.cache_clear()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(echoed.encode())))
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    if code != announced:
        return [f"{command}: exit code {code}: {err.getvalue()}"]
    shown = shown_output(command)
    if shown is not None and not matches(shown, out.getvalue().strip()):
        return [f"{command}: it printed {out.getvalue()!r}"]
    silent = not out.getvalue() and not err.getvalue()  # training speaks on standard error alone
    return [f"{command}: printed nothing"] if silent and not announced else []


# --- Links, paths and options ----------------------------------------------------------------------------------------


def broken_links(document: Path, text: str) -> list[str]:
    """Links to files, and to headings in them, that are not there; also paths in `code` that look like ours."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        if not path.exists():
            broken.append(f"{document.name}: {target} is not there")
        elif anchor and anchor not in anchors(path.read_text(encoding="utf-8") if name else text):
            broken.append(f"{document.name}: {target} has no such heading")
    tops = "transformer_lab|conf|tests|docs|experiments|benchmarks|resources"
    ours = rf"`((?:{tops})/[\w./-]*|\.ci/\w+|\w+\.(?:md|toml))`"
    for name in re.findall(ours, prose(text)):
        beside = (CHECKOUT / name, document.parent / name)
        if not any(path.exists() for path in beside):
            broken.append(f"{document.name}: `{name}` is not there")
    return broken


def anchors(text: str) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def unknown_options(text: str, folder: Path | None = None) -> list[str]:
    """`group=option` and `group.field=value` in the text that conf/ does not have. `folder` adds a --config-dir."""
    unknown = []
    for sign, key, value in re.findall(r"(?<![\w.=/-])(\+{0,2})([a-z_]+(?:\.[a-z_]+)*)=([\w,]*)", text):
        top, *rest = key.split(".")
        if top not in groups():
            if sign and top not in top_level_keys():
                unknown.append(f"{sign}{key}={value}")
            continue
        if not rest:
            own = {path.stem for path in (folder / top).glob("*.yaml")} if folder else set()
            wrong = [option for option in value.split(",") if option and option not in {*names(top), *own}]
            unknown += [f"{key}={option}" for option in wrong]
        elif rest[-1] not in fields_of(top, folder):
            unknown.append(f"{key}={value}")
    return unknown


def fields_of(group: str, folder: Path | None = None) -> set[str]:
    places = [data_folder("conf"), *([folder] if folder else [])]
    return {key for place in places for path in (place / group).glob("*.yaml") for key in keys_of(read_yaml(path))}


def keys_of(section: dict[str, Any]) -> set[str]:
    """Those of the parts within, too: `ffn.router.k` is a field of the router in conf/ffn/moe.yaml."""
    inner = (keys_of(value) for value in section.values() if isinstance(value, dict))
    return set(section).union(*inner)


# --- Messages --------------------------------------------------------------------------------------------------------


def message_templates(package: Path) -> dict[str, str]:
    """Every message of the package that is assigned to `message`, with `…` for what is filled in -> where it stands."""
    found: dict[str, str] = {}
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assign) and any(
                isinstance(t, ast.Name) and t.id == "message" for t in node.targets
            ):
                found.setdefault(template(node.value), f"{path.relative_to(package)}:{node.lineno}")
    return found


def template(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    return template(node.left) + template(node.right) if isinstance(node, ast.BinOp) else "…"


def patterns(table: str) -> list[str]:
    """The messages in the first column of a document's tables."""
    rows = re.findall(r"^\| (`.*?) \| ", table, re.MULTILINE)
    return [pattern for row in rows for pattern in re.findall(r"`([^`]+)`", row)]


def covers(pattern: str, message: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("…"))), message, re.DOTALL) is not None
