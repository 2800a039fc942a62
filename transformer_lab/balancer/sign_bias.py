"""The bias of DeepSeek-V3: each step the experts that had too much become a little dearer, the others cheaper.

Wang et al. 2024, arXiv 2408.15664, algorithm 1; DeepSeek-AI 2024, arXiv 2412.19437, section 2.1.2. The bias decides who
is chosen and never how much an expert weighs, so nothing has a gradient from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from transformer_lab.model.axes import Axis, Shape
from transformer_lab.model.limits import require_positive


@dataclass(frozen=True)
class SignBias:
    """bias_i += rate * sign(mean load - load_i), of the tokens of a whole step.

    centred: the mean of the change is taken off it, so that the biases do not drift together (torchtitan).
    """

    moves: ClassVar[str] = "bias"  # of the router

    rate: float = 0.001
    centred: bool = False

    def __post_init__(self) -> None:
        require_positive("balancer.rate", self.rate)

    def states(self, experts: int) -> dict[str, Shape]:
        return {"bias": (Axis(experts, "experts"),)}

    def training_terms(
        self, ops: Any, router: Any, state: Mapping[str, Any], taps: Mapping[str, Any], share: Any
    ) -> tuple[Any, dict[str, Any]]:
        """Nothing is added to the loss, and the load is all that is asked for."""
        return None, {}

    def moved(self, ops: Any, state: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
        load = found["load"]
        change = ops.xp.sign(ops.xp.mean(load) - load) * self.rate
        return {"bias": state["bias"] + (change - ops.xp.mean(change) if self.centred else change)}
