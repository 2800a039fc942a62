"""What a GGUF header says of its model, asked for by name and type. Every refusal names the file, the key, the value.

Keys stand below the name of the architecture: "llama.block_count" is asked for as "block_count".
"""

from typing import Any, NoReturn

from transformer_lab.checkpoints.config_fields import Fields
from transformer_lab.checkpoints.gguf.file import GGUFFile
from transformer_lab.errors import shown

LARGEST = 10**9


class Header:
    """architecture: its name, as `general.architecture` says it. values: by their whole names."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self.fields = Fields(file.path, {key: _in_decimals(value) for key, value in file.values.items()})
        name = self.fields.values.get("general.architecture")
        if not isinstance(name, str):
            self.fields.refuse("general.architecture", f"is {shown(name)}; it must be the name of an architecture")
        self.architecture = name

    def key(self, name: str) -> str:
        return f"{self.architecture}.{name}"

    def names(self) -> list[str]:
        """All that is said of the architecture, below its name."""
        start = self.key("")
        return [key.removeprefix(start) for key in self.fields.values if key.startswith(start)]

    def has(self, name: str) -> bool:
        return self.key(name) in self.fields.values

    def has_tensor(self, name: str) -> bool:
        return name in self.file.tensors

    def get(self, name: str, usual: Any = None) -> Any:
        """As it stands there, of any type."""
        return self.fields.values.get(self.key(name), usual)

    def whole(self, name: str, usual: int | None = None) -> int:
        """Without `usual` it must be there."""
        self._require(name, usual)
        return self.fields.whole(self.key(name), usual or 0, LARGEST)

    def positive(self, name: str, usual: float | None = None) -> float:
        self._require(name, usual)
        return self.fields.positive(self.key(name), usual or 0.0)

    def refuse(self, name: str, reason: str) -> NoReturn:
        self.fields.refuse(self.key(name), reason)

    def _require(self, name: str, usual: Any) -> None:
        if usual is None and not self.has(name):
            self.refuse(name, "is missing")


def _in_decimals(value: Any) -> Any:
    """A number that was written in decimals, and kept in float32: 1e-5 is 1e-5 again."""
    return float(f"{value:.7g}") if isinstance(value, float) else value
