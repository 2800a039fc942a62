"""No positions at all: the causal mask alone says what came before. `position=none` builds it."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class NoPosition:
    """NoPE (Kazemnejad et al. 2023, arXiv 2305.19466). In a configuration it stands as None."""

    in_attention: ClassVar[bool] = False
