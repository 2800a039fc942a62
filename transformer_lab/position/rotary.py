"""Rotary positions: queries and keys are turned by angles that grow with the position. `position=rotary` builds it."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from transformer_lab.errors import ConfigurationError
from transformer_lab.model.limits import LIMITS, require_choice, require_positive, require_whole


@dataclass(frozen=True)
class Rotary:
    """RoPE (Su et al. 2021, arXiv 2104.09864).

    base: pair i of a head is turned by position * base^(-2 i / size). size: how many numbers of a head are turned, from
    its beginning, N if not given; the rest stays (GPT-J, GPT-NeoX, Phi). pairs: "halves", (x[i], x[i + size / 2]), as
    published Llama checkpoints have them, or "neighbours", (x[2 i], x[2 i + 1]), as in the paper and GPT-J.
    scaling: one of `rotary_scaling.py`, which stretches the angles for longer texts, or None.
    """

    in_attention: ClassVar[bool] = True

    base: float = 10000.0
    size: int | None = None
    pairs: str = "halves"
    scaling: Any = None

    def __post_init__(self) -> None:
        require_positive("position.base", self.base)
        if self.size is not None:
            require_whole("position.size", self.size, LIMITS["head_size"])
            if self.size % 2:
                message = f"position.size is {self.size}; rotary positions turn pairs, so it must be even."
                raise ConfigurationError(message)
        if self.scaling is not None and not hasattr(self.scaling, "stretched"):
            message = f"position.scaling is {type(self.scaling).__name__}, which is none: see rotary_scaling.py."
            raise ConfigurationError(message)
        if self.scaling is not None and self.base <= 1:
            message = f"position.base is {self.base}; with a scaling it must be above 1."
            raise ConfigurationError(message)
        require_choice("position.pairs", self.pairs, ("halves", "neighbours"))
        if self.size is not None:
            self.angles(1)  # a scaling that does not fit is refused here

    def angles(self, context_length: int) -> np.ndarray:
        """float64 [C, size / 2]. Computed once, on the host."""
        size = self.size or 0
        frequencies = self.base ** (-2.0 * np.arange(size // 2) / size)
        if self.scaling is not None:
            frequencies = self.scaling.stretched(frequencies, self.base)
        return np.arange(context_length)[:, None] * frequencies

    def table(self, context_length: int) -> dict[str, np.ndarray]:
        """{"cos", "sin"} of the angles, float64 [C, size / 2]; some scalings make them longer than 1."""
        angles = self.angles(context_length)
        length = 1.0 if self.scaling is None else self.scaling.length
        return {"cos": length * np.cos(angles), "sin": length * np.sin(angles)}

    def turn(self, ops: Any, x: Any, angles: tuple[Any, Any]) -> Any:
        """x [B, H, T, N] and the rows of the table that belong to its tokens, each [B, T, size / 2] -> [B, H, T, N]."""
        xp, size = ops.xp, self.size or x.shape[-1]
        turned = x[..., :size]
        if self.pairs == "neighbours":
            turned = self._swapped(xp, turned, (size // 2, 2))
        turned = ops.rotary(turned, *angles)
        if self.pairs == "neighbours":
            turned = self._swapped(xp, turned, (2, size // 2))
        return turned if size == x.shape[-1] else xp.concat([turned, x[..., size:]], axis=-1)

    def _swapped(self, xp: Any, x: Any, form: tuple[int, int]) -> Any:
        """The last axis, read as a matrix of this form, transposed."""
        whole = (*x.shape[:-1], -1)
        return xp.reshape(xp.matrix_transpose(xp.reshape(x, (*x.shape[:-1], *form))), whole)
