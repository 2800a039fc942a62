"""The fields of a config.json, asked for by name and type. Every refusal names the file, the field and the value.

A field that is absent takes the default that transformers gives it. An explicit null counts as a value, because it
does in transformers too. What the fields mean is known to the families alone.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from transformer_lab.errors import InputFileError, shown

# Names in config.json (ACT2FN in transformers) -> the function of ours that they mean. Names in one group are the same
# function up to rounding; the first of each group is what is written.
ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu": "gelu_erf",
    "gelu_python": "gelu_erf",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def activation_name(ours: str) -> str:
    """The inverse."""
    return next(name for name, meant in ACTIVATIONS.items() if meant == ours)


class Fields:
    """`values` as read from the file at `path`. `aliases` maps a family's own name of a field to the usual one, under
    which it is asked for; what is said about it has the name that the file has."""

    def __init__(self, path: Path, values: Mapping[str, Any], aliases: Mapping[str, str] | None = None) -> None:
        self.path = path
        self.values = dict(values)
        self.written: dict[str, str] = {}  # usual name -> the file's
        for alias, name in (aliases or {}).items():
            if name not in self.values:
                self.written[name] = alias
            if alias not in self.values:
                continue
            value = self.values.pop(alias)
            if name in self.values and self.values[name] != value:
                self.refuse(name, f"is {shown(self.values[name])}, but {alias!r}, which means the same, differs")
            self.values[name] = value

    def holding(self, values: Mapping[str, Any]) -> "Fields":
        """Other values, about which the same words are said."""
        fields = Fields(self.path, values)
        fields.written = self.written
        return fields

    def without(self, *names: str) -> "Fields":
        """The same, as if these fields were absent."""
        return self.holding({name: value for name, value in self.values.items() if name not in names})

    def renamed(self, aliases: Mapping[str, str]) -> "Fields":
        """The same, with a family's own names of some fields; see above."""
        fields = Fields(self.path, self.values, aliases)
        fields.written |= self.written
        return fields

    def refuse(self, name: str, reason: str) -> NoReturn:
        for usual, written in self.written.items():
            reason = re.sub(rf"\b{usual}\b", written, reason)
        message = f"{self.path}: the field {self.written.get(name, name)!r} {reason}."
        raise InputFileError(message)

    def whole(self, name: str, default: int, largest: int) -> int:
        value = self.values.get(name, default)
        if type(value) is not int or not 1 <= value <= largest:
            self.refuse(name, f"is {shown(value)}; it must be a whole number from 1 to {largest}")
        return value

    def whole_or_null(self, name: str, largest: int) -> int | None:
        return None if self.values.get(name) is None else self.whole(name, 0, largest)

    def positive(self, name: str, default: float) -> float:
        value = self.values.get(name, default)
        if type(value) not in (int, float) or not 0 < value <= 1e300 or not math.isfinite(float(value)):
            self.refuse(name, f"is {shown(value)}; it must be a positive number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            self.refuse(name, f"is {shown(value)}; it must be true or false")
        return value

    def activation(self, name: str, default: str) -> str:
        value = self.values.get(name, default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            self.refuse(name, f"is {shown(value)}; choose one of {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[value]

    def token_ids(self, name: str, default: int | None, vocab_size: int) -> tuple[int, ...]:
        """The ids in the field: none for null, several for a list.

        An id outside the vocabulary can never be generated, so it stands for none, as in transformers: a small model
        saved with the defaults of GPT-2 says 50256.
        """
        value = self.values.get(name, default)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(type(token_id) is int for token_id in ids):
            self.refuse(name, f"is {shown(value)}; it must be a token id, a list of them, or null")
        return tuple(token_id for token_id in ids if 0 <= token_id < vocab_size)

    def require(self, name: str, allowed: tuple[Any, ...], why: str) -> None:
        """Refuses a field that changes the result in a way that the decoder does not offer."""
        if name in self.values and not any(self.values[name] is choice for choice in allowed):
            self.refuse(name, f"is {shown(self.values[name])}; {why}")

    def require_decoder(self) -> None:
        """Fields of every family that would change the function, in the way that transformers 5 reads them."""
        self.require("quantization_config", (None,), "quantized checkpoints are not read, save it unquantized")
        self.require("per_layer_config", (None,), "layers of different shapes are not offered")
        self.require("is_causal", (None, True), "only causal attention is offered")

    def require_plain_decoder(self, context_length: int) -> None:
        """The same, of a family that has no windows."""
        self.require_decoder()
        window = self.values.get("sliding_window")
        if window is not None and not (type(window) is int and window >= context_length):
            self.refuse("sliding_window", f"is {shown(window)}; only null, full attention, is offered")
        kinds = self.values.get("layer_types")
        if kinds is not None and not (isinstance(kinds, list) and all(kind == "full_attention" for kind in kinds)):
            self.refuse("layer_types", "asks for something else than full_attention in every layer")
