"""Who takes part in a comparison: anything that turns token ids into taps, and what its taps are checked for.

`Function` is the shortest way in for a stack of one's own. Nothing here knows how the taps are judged.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Protocol

import numpy as np

from transformer_lab.errors import ConfigurationError, InputFileError, LabError

PRECISIONS = ("float32", "float64", "exact", "bfloat16", "int8")

AFTER = 10**6  # what lies behind the blocks
_OUTSIDE = {"embed": -1, "final_norm": AFTER, "logits": AFTER}
_BLOCK = re.compile(r"blocks\.(0|[1-9]\d{0,4})\.(.+)")


class Participant(Protocol):
    """What a comparison asks of anyone.

    name: unique in a report, such as "transformers float32". kind: "backend", "transformers", "file" or "function".
    precision: one of PRECISIONS; it says which bound applies. version and device: None if nobody knows.
    config: a ModelConfig, a mapping of the same field names, or None; what differs in it is reported before numbers.
    """

    name: str
    kind: str
    precision: str
    version: str | None
    device: str | None
    config: Any

    def taps(self, token_ids: np.ndarray) -> Iterable[tuple[str, np.ndarray]]:
        """token_ids [T] -> (tap name, array), in the order of the computation (docs/taps.md): [1, T, ...] or [T, ...].

        What a participant cannot show is left out.
        """


@dataclass(eq=False)
class Function:
    """Any function from token ids to a dictionary of arrays takes part: `Function("my stack", run)`.

    run: NumPy int64 [T] -> {tap name: array}, with the names and shapes of docs/taps.md, with the batch axis (B = 1)
    or without it. Arrays may be NumPy's, torch's, JAX's, or what np.asarray takes; float16 and bfloat16 are widened.
    It shows what it can, in any order; "logits" alone is enough to begin with. Scores are -inf where a key is not
    visible. precision: what it computes in, one of PRECISIONS. config: see Participant.

    Raises ConfigurationError, naming the tap, for a name that is no tap or an array that cannot be one.
    """

    name: str
    run: Callable[[np.ndarray], Mapping[str, Any]]
    precision: str = "float32"
    config: Any = None
    version: str | None = None
    device: str | None = None
    kind: str = field(default="function", init=False)

    def __post_init__(self) -> None:
        require_precision(self.precision, self.name)

    def taps(self, token_ids: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """token_ids [T] -> (tap name, array), in the order of the computation: [1, T, ...] or [T, ...]."""
        ids = np.asarray(token_ids, np.int64)
        found = self.run(ids)
        if not isinstance(found, Mapping):
            message = (
                f"{self.name} returned {type(found).__name__}; a dictionary of arrays by the names of taps is expected."
            )
            raise ConfigurationError(message)
        yield from in_order({name: numbers(array, name, self.name) for name, array in found.items()}, self.name)


def require_precision(precision: str, participant: str) -> None:
    if precision not in PRECISIONS:
        message = f"The precision of {participant} is {precision!r}; choose one of {', '.join(PRECISIONS)}."
        raise ConfigurationError(message)


def in_order(taps: Mapping[str, Any], participant: str) -> Iterator[tuple[str, Any]]:
    """The taps, block by block. Raises ConfigurationError for a name that has not the form of one."""
    return iter(sorted(taps.items(), key=lambda tap: block_of(tap[0], participant)))


def block_of(tap: Any, participant: str) -> int:
    """The number of the block that a tap belongs to; -1 before them, AFTER behind them. Raises as `in_order` does."""
    match = _BLOCK.fullmatch(tap) if isinstance(tap, str) else None
    if match:
        return int(match[1])
    if tap in _OUTSIDE:
        return _OUTSIDE[tap]
    block = re.sub(r"^\w*\.", "blocks.", str(tap))
    near = get_close_matches(str(tap), [*_OUTSIDE, *([block] if _BLOCK.fullmatch(block) else [])], 1)
    message = (
        f"{participant} shows {tap!r}, which is no tap{f'; is {near[0]!r} meant?' if near else ' (docs/taps.md).'}"
    )
    raise ConfigurationError(message)


def fitting(array: np.ndarray, tap: str, expected: Sequence[int], participant: Participant) -> np.ndarray:
    """The array of a tap with its batch axis of 1, which may be left out. expected: the shape that it must have.

    Raises ConfigurationError (InputFileError for a file), naming participant and tap, for another shape.
    """
    shape = [1, *array.shape] if array.ndim == len(expected) - 1 else list(array.shape)
    if shape != list(expected):
        message = (
            f"{participant.name} shows {tap} as {list(array.shape)}; expected is {list(expected)}, "
            "with or without the first axis (docs/taps.md)."
        )
        raise refusal(participant)(message)
    return array.reshape(shape)


def refusal(participant: Participant) -> type[LabError]:
    """The kind of error that its taps may be."""
    return InputFileError if participant.kind == "file" else ConfigurationError


def numbers(array: Any, tap: str, participant: str) -> np.ndarray:
    """An array of any framework as NumPy's float32, float64, integers or booleans; narrower floats are widened, which
    is exact."""
    if hasattr(array, "detach"):  # a torch tensor: out of the graph and off its device
        array = array.detach().cpu()
        array = array.float() if str(array.dtype) in ("torch.bfloat16", "torch.float16") else array
    try:
        array = np.asarray(array)
    except ValueError as error:  # lists of different lengths
        message = f"{participant} shows {tap} as something that is no array: {error}"
        raise ConfigurationError(message) from error
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype.name in ("bfloat16", "float16"):
        return array.astype(np.float32)
    if array.dtype not in (np.float32, np.float64) and array.dtype.kind not in "iub":
        message = f"{participant} shows {tap} as {array.dtype}; numbers are expected."
        raise ConfigurationError(message)
    return array
