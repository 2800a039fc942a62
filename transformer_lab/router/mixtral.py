"""Mixtral's router (Jiang et al. 2024, arXiv 2401.04088, equation 1; Qwen3 too): the weights of the chosen sum to 1."""

from dataclasses import dataclass
from typing import Any, ClassVar

from transformer_lab.router.gates import at
from transformer_lab.router.router import Router


@dataclass(frozen=True)
class Mixtral(Router):
    """softmax over the k largest logits, which is the softmax over all, renormalised."""

    renormalises: ClassVar[bool] = True

    k: int = 2

    def weigh(self, ops: Any, params: Any, logits: Any, ids: Any) -> Any:
        return ops.softmax(at(ops, logits, ids))
