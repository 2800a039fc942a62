"""Who takes part in a comparison: anything that turns token ids into taps, and what its taps are checked for.

`Function` is the shortest way in for a stack of one's own. Nothing here knows how the taps are judged.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Protocol

import numpy as np

from transformer_lab.errors import ConfigurationError
from transformer_lab.ffn.dense import Dense
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.decoder import tap_names

PRECISIONS = ("float32", "float64", "exact", "bfloat16", "int8")

# The shape of every tap for one sequence (B = 1), by the letters of docs/taps.md; S is T, since nothing is cached.
SHAPES = {
    "embed": "TD",
    "norm_1": "TD",
    "attn.q": "HTN",
    "attn.k": "KTN",
    "attn.v": "KTN",
    "attn.scores": "HTT",
    "attn.pattern": "HTT",
    "attn.out": "TD",
    "resid_mid": "TD",
    "norm_2": "TD",
    "ffn.pre": "TF",
    "ffn.act": "TF",
    "ffn.out": "TD",
    "resid_post": "TD",
    "final_norm": "TD",
    "logits": "TV",
}
_PLACES = {name: place for place, name in enumerate(SHAPES)}
_OUTSIDE = ("embed", "final_norm", "logits")
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
        """token_ids [T] -> (tap name, array with B = 1) in the order of the computation (docs/taps.md).

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
        """token_ids [T] -> (tap name, array with B = 1), in the order of the computation."""
        ids = np.asarray(token_ids, np.int64)
        found = self.run(ids)
        if not isinstance(found, Mapping):
            message = (
                f"{self.name} returned {type(found).__name__}; a dictionary of arrays by the names of taps is expected."
            )
            raise ConfigurationError(message)
        yield from in_order(
            {name: checked(name, array, self.config, len(ids), self.name) for name, array in found.items()}
        )


def require_precision(precision: str, participant: str) -> None:
    if precision not in PRECISIONS:
        message = f"The precision of {participant} is {precision!r}; choose one of {', '.join(PRECISIONS)}."
        raise ConfigurationError(message)


def in_order(taps: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The taps in the order of the computation; those of a feed-forward network of one's own keep theirs."""
    return iter(sorted(taps.items(), key=lambda tap: _place(tap[0])))


def _place(tap: str) -> tuple[int, int]:
    if tap in _OUTSIDE:
        return (-1 if tap == "embed" else 10**6), _PLACES[tap]
    layer, inner = _BLOCK.fullmatch(tap).groups()  # type: ignore[union-attr]  # checked
    return int(layer), _PLACES.get(inner, _PLACES["ffn.act"])


def checked(tap: str, array: Any, config: Any, length: int, participant: str) -> np.ndarray:
    """The array of a tap for one sequence of `length` tokens, as NumPy float32 or float64 with a batch axis of 1.

    config: a ModelConfig says which taps there are and what shape each has. Anything else is as good as None: then
    only the form of the name and the number of axes are checked.

    Raises ConfigurationError, naming participant and tap, for a tap that does not exist (the nearest name is offered),
    a shape that does not fit, or an array that does not hold real numbers.
    """
    config = config if isinstance(config, ModelConfig) else None
    letters = _letters(tap, config, participant)
    array = _as_floats(array, tap, participant)
    if letters is None:  # of a feed-forward network of one's own: only its author knows the shape
        return array
    if array.ndim == len(letters):
        array = array[None]
    expected = [1, *(_sizes(config, length).get(letter, letter) for letter in letters)]
    if array.ndim != len(expected) or any(
        isinstance(size, int) and size != found for size, found in zip(expected, array.shape, strict=True)
    ):
        message = (
            f"{participant} shows {tap} as {list(array.shape)}; expected is [{', '.join(map(str, expected))}], "
            "with or without the first axis (docs/taps.md)."
        )
        raise ConfigurationError(message)
    return array


def _letters(tap: Any, config: ModelConfig | None, participant: str) -> str | None:
    """The shape of a tap by its name, or None for one that only its feed-forward network knows."""
    match = _BLOCK.fullmatch(tap) if isinstance(tap, str) else None
    inner = match[2] if match else tap
    if config is None:
        local = match is not None and inner not in _OUTSIDE and (inner in SHAPES or inner.startswith("ffn."))
        known = local or (match is None and inner in _OUTSIDE)
    else:
        known = tap in tap_names(config)
    if not known:
        layer = match[1] if match else "0"
        offered = (
            tap_names(config) if config else [*_OUTSIDE, *(f"blocks.{layer}.{n}" for n in SHAPES if n not in _OUTSIDE)]
        )
        near = get_close_matches(str(tap), offered, 1)
        message = (
            f"{participant} shows {tap!r}, which is no tap{f'; is {near[0]!r} meant?' if near else ' (docs/taps.md).'}"
        )
        raise ConfigurationError(message)
    if inner in ("ffn.pre", "ffn.act") and config is not None and not isinstance(config.ffn, Dense):
        return None
    return SHAPES.get(inner)


def _sizes(config: ModelConfig | None, length: int) -> dict[str, int]:
    if config is None:
        return {"T": length}
    sizes = {"T": length, "D": config.hidden_size, "H": config.num_heads, "K": config.num_kv_heads}
    sizes |= {"N": config.head_size, "V": config.vocab_size}
    return sizes | ({"F": config.ffn.size} if isinstance(config.ffn, Dense) else {})


def _as_floats(array: Any, tap: str, participant: str) -> np.ndarray:
    """An array of any framework as float32 or float64 of NumPy; narrower floats are widened, which is exact."""
    if hasattr(array, "detach"):  # a torch tensor: out of the graph and off its device
        array = array.detach().cpu()
        array = array.float() if str(array.dtype) in ("torch.bfloat16", "torch.float16") else array
    array = np.asarray(array)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype.name in ("bfloat16", "float16"):
        return array.astype(np.float32)
    if array.dtype not in (np.float32, np.float64):
        message = f"{participant} shows {tap} as {array.dtype}; float32, float64, bfloat16 or float16 is expected."
        raise ConfigurationError(message)
    return array
