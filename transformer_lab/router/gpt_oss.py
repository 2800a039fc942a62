"""GPT-OSS's router (OpenAI 2025, arXiv 2508.10925): logits with a learned bias, softmax over the chosen."""

from dataclasses import dataclass
from typing import Any, ClassVar

from transformer_lab.model.axes import Axis, Shape
from transformer_lab.router.gates import at
from transformer_lab.router.router import Router


@dataclass(frozen=True)
class GptOss(Router):
    """softmax over the k largest of x W + bias; unlike a balancer's, this bias is a parameter and weighs too."""

    renormalises: ClassVar[bool] = True

    k: int = 4

    def shapes(self, hidden_size: int, experts: int) -> dict[str, Shape]:
        return super().shapes(hidden_size, experts) | {"bias": (Axis(experts, "experts"),)}

    def logits(self, ops: Any, params: Any, x: Any, tap: Any, tokens: Any) -> Any:
        return super().logits(ops, params, x, tap, tokens) + params["bias"]

    def weigh(self, ops: Any, params: Any, logits: Any, ids: Any) -> Any:
        return ops.softmax(at(ops, logits, ids))
