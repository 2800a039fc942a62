"""What `lab.routing` returns: plain data, which the console and the page show."""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from transformer_lab.atomic_file import write_json, write_text


@dataclass(frozen=True)
class RoutingReport:
    """content: {"schema", "model", "texts", "tokens", "classes", "layers"}; a layer is what `statistics.py` says, with
    None for what is not known."""

    content: Mapping[str, Any]

    @property
    def layers(self) -> list[dict[str, Any]]:
        return list(self.content["layers"])

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return dict(self.content)

    def to_json(self, path: str | PathLike[str]) -> None:
        """Raises UnavailableError where the disk refuses."""
        write_json(Path(path), self.content)

    def to_html(self, path: str | PathLike[str]) -> None:
        """Writes one self-contained page. Raises UnavailableError where the disk refuses."""
        from transformer_lab.routes.page.document import page

        write_text(Path(path), page(self.content))
