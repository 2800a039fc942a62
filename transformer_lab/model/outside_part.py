"""The place of a part that does not belong to this package, in a model that was saved with it and is read without."""

from dataclasses import dataclass
from dataclasses import fields as fields_of
from typing import Any, NoReturn

from transformer_lab.errors import ConfigurationError, shown


@dataclass(frozen=True)
class OutsidePart:
    """where: the field of the configuration. name: of its class. fields: as they were saved.

    It is asked for nothing but to give way: whoever calls it or asks what it needs is told to give the part again.
    """

    where: str
    name: str
    fields: tuple[tuple[str, Any], ...]

    @property
    def in_attention(self) -> bool:
        """Whether it stood in an attention: the one thing that a position is asked for before it can be replaced."""
        return self.where.endswith("attention.position")

    def require(self, part: Any) -> None:
        """Raises ConfigurationError unless part is of that class, with those fields."""
        kind = type(part)
        if f"{kind.__module__}.{kind.__qualname__}" != self.name:
            self._refuse()
        given = {field.name: getattr(part, field.name) for field in fields_of(part)}
        for name, saved in self.fields:
            if given.get(name) != saved:
                message = f"{self.where}.{name} is {shown(given.get(name))}; the model was saved with {shown(saved)}."
                raise ConfigurationError(message)

    def _refuse(self) -> NoReturn:
        *above, group = self.where.split(".")
        whole = f" ({above[-1]}=NAME, where FOLDER has it in {above[-1]}/NAME.yaml)" if above else ""
        message = (
            f"This model was saved with a part from outside, {self.name}, as its {group}. Give it again: "
            f"`--config-dir FOLDER {group}=NAME` on the command line{whole}, {group}=... in Python."
        )
        raise ConfigurationError(message)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse()

    def __call__(self, *arguments: Any, **named: Any) -> NoReturn:
        self._refuse()
