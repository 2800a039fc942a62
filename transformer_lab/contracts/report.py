"""What `lab.verify_cache` returns: plain data, which the console shows."""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from transformer_lab.atomic_file import write_json


@dataclass(frozen=True)
class CacheReport:
    """content: {"schema", "model", "cache", "texts", "status", "verdict", "numbers", "bytes", and by contract "exact",
    "bounds", "stored"}. status: "holds", "broken", "measured" (a lossy cache without a limit) or "not judged"."""

    content: Mapping[str, Any]

    @property
    def status(self) -> str:
        return str(self.content["status"])

    @property
    def holds(self) -> bool:
        """Whether the promise was examined and kept."""
        return self.status == "holds"

    @property
    def verdict(self) -> str:
        """In a sentence."""
        return str(self.content["verdict"])

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return dict(self.content)

    def to_json(self, path: str | PathLike[str]) -> None:
        """Raises UnavailableError where the disk refuses."""
        write_json(Path(path), self.content)
