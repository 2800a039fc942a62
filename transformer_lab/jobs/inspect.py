"""`job=inspect`: what a model folder, a .safetensors or a .gguf file holds, from its headers. Needs no backend and no
memory.
"""

import json
import sys
from dataclasses import dataclass
from typing import ClassVar

from transformer_lab.checkpoints import Inspection, inspect_folder
from transformer_lab.checkpoints.regular_file import is_there
from transformer_lab.config import Settings
from transformer_lab.errors import printable
from transformer_lab.jobs.record import Result
from transformer_lab.paths import expanded
from transformer_lab.sources import ModelFiles, model_files


@dataclass(frozen=True)
class Inspect:
    """Has no options: `model=...` or `model.source=PATH` says what to look at."""

    unused: ClassVar[tuple[str, ...]] = ("cache", "residency")

    def run(self, settings: Settings) -> Result:
        found = inspect_folder(*_chosen_files(settings))
        _print_tables(found)
        return Result(output=found.to_dict())


def _chosen_files(settings: Settings) -> ModelFiles:
    """What the model's source means; other than for loading, it may be a single file."""
    chosen = settings.sections["model"]
    source, revision = str(chosen["source"] or settings.choices["model"]), chosen["revision"]
    file = expanded(source)
    return ModelFiles(file, None) if is_there(file) and not file.is_dir() else model_files(source, revision)


def _print_tables(found: Inspection) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout)
    used = found.active_parameters
    facts = Table(title=Text(printable(found.path)), show_header=False, box=SIMPLE_HEAD)
    for name, value in (
        ("model type", printable(found.model_type or "not said")),
        ("loads here", "yes" if found.loads else "no"),
        ("parameters", f"{found.total_parameters:,}"),
        *([("of a token", f"{used:,}")] if used not in (None, found.total_parameters) else []),
        ("bytes", f"{found.total_bytes:,}"),
        ("types", ", ".join(f"{count:,} {dtype}" for dtype, count in found.parameters_by_dtype.items())),
        ("tokenizer", ", ".join(found.tokenizer_files) or "none"),
        ("generation", printable(json.dumps(found.generation_config)) if found.generation_config else "nothing said"),
        *([("adapter", printable(found.adapter))] if found.adapter else []),
    ):
        facts.add_row(name, Text(value))
    for problem in found.problems:
        facts.add_row("problem", Text(printable(problem)))
    console.print(facts)
    files = {tensor.file for tensor in found.tensors}
    tensors = Table(title=f"{len(found.tensors)} tensors", box=SIMPLE_HEAD)
    for title in ("tensor", "shape", "type", "bytes", "file"):
        if title != "file" or len(files) > 1:
            tensors.add_column(title, justify="right" if title == "bytes" else "left", overflow="fold")
    for tensor in found.tensors:
        # Names come from the file: as Text, so that brackets are no markup, and escaped, so that nothing is obeyed.
        cells = [printable(tensor.name), str(list(tensor.shape)), tensor.dtype, f"{tensor.bytes:,}"]
        if len(files) > 1:
            cells.append(printable(tensor.file))
        tensors.add_row(*map(Text, cells))
    console.print(tensors)
