"""Feed-forward networks that somebody might write, as docs/extending.md has it: each with steps of its own in `ops.xp`.

`guilty`: {a mistake of `test_components.py`: the tap at which it must be seen}, of those that the network would make.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

Taps = ClassVar[tuple[str, ...]]


@dataclass(frozen=True)
class SquaredReLU:
    """The README's: down(relu(up(x))^2)."""

    taps: Taps = ("pre", "act")
    guilty: ClassVar[dict[str, str]] = {}
    size: int = 24

    def shapes(self, hidden_size: int) -> dict[str, tuple[int, ...]]:
        return {"up.kernel": (hidden_size, self.size), "down.kernel": (self.size, hidden_size)}

    def __call__(self, ops: Any, params: Any, x: Any, tap: Any) -> Any:
        pre = tap("pre", ops.linear(x, params["up"]["kernel"]))
        act = tap("act", ops.relu(pre) ** 2)
        return ops.linear(act, params["down"]["kernel"])


@dataclass(frozen=True)
class SoftmaxGate(SquaredReLU):
    """A softmax gate by hand: exponential, sum, quotient, hyperbolic tangent, logarithm."""

    taps: Taps = ("pre", "gate", "entropy", "act")
    guilty: ClassVar[dict[str, str]] = {"exp": "gate", "sum": "gate", "tanh": "act"}

    def shapes(self, hidden_size: int) -> dict[str, tuple[int, ...]]:
        return super().shapes(hidden_size) | {"scale": (self.size,)}

    def __call__(self, ops: Any, params: Any, x: Any, tap: Any) -> Any:
        xp = ops.xp
        pre = tap("pre", ops.linear(x, params["up"]["kernel"]))
        powers = xp.exp(pre - xp.max(pre, axis=-1, keepdims=True))
        gate = tap("gate", powers / xp.sum(powers, axis=-1, keepdims=True))
        entropy = tap("entropy", -xp.sum(gate * xp.log(gate + 1e-3), axis=-1, keepdims=True))
        act = tap("act", xp.tanh(pre) * gate * params["scale"] + entropy)
        return ops.linear(act, params["down"]["kernel"])


@dataclass(frozen=True)
class RunningSum(SquaredReLU):
    """Sums along the inner axis, cut off where they are negative."""

    taps: Taps = ("pre", "sums", "act")
    guilty: ClassVar[dict[str, str]] = {"exp": "act"}

    def __call__(self, ops: Any, params: Any, x: Any, tap: Any) -> Any:
        xp = ops.xp
        pre = tap("pre", ops.linear(x, params["up"]["kernel"]))
        sums = tap("sums", xp.cumulative_sum(pre, axis=-1))
        act = tap("act", xp.where(sums > 0.0, sums, 0.1 * (xp.exp(-xp.abs(sums)) - 1.0)))
        return ops.linear(act, params["down"]["kernel"])


@dataclass(frozen=True)
class InnerAttention(SquaredReLU):
    """The inner values in four groups that attend to each other, by a softmax of its own."""

    taps: Taps = ("pre", "weights", "act")
    guilty: ClassVar[dict[str, str]] = {"exp": "weights", "sum": "weights"}

    def __call__(self, ops: Any, params: Any, x: Any, tap: Any) -> Any:
        xp = ops.xp
        pre = tap("pre", ops.linear(x, params["up"]["kernel"]))
        groups = xp.reshape(pre, (*pre.shape[:-1], 4, self.size // 4))
        scores = xp.matmul(groups, xp.matrix_transpose(groups)) * (self.size // 4) ** -0.5
        powers = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))
        weights = tap("weights", powers / xp.sum(powers, axis=-1, keepdims=True))
        act = tap("act", xp.reshape(xp.matmul(weights, groups), pre.shape))
        return ops.linear(act, params["down"]["kernel"])


@dataclass(frozen=True)
class BestTwo(SquaredReLU):
    """The two largest inner values of each token, weighted; which they are is a tap of whole numbers."""

    taps: Taps = ("pre", "chosen", "weights")
    guilty: ClassVar[dict[str, str]] = {"tanh": "weights"}

    def shapes(self, hidden_size: int) -> dict[str, tuple[int, ...]]:
        return {"up.kernel": (hidden_size, self.size), "down.kernel": (2, hidden_size)}

    def __call__(self, ops: Any, params: Any, x: Any, tap: Any) -> Any:
        pre = tap("pre", ops.linear(x, params["up"]["kernel"]))
        chosen = tap("chosen", ops.top_k(pre, 2)[1])
        weights = tap("weights", ops.xp.tanh(ops.xp.take_along_axis(pre, chosen, axis=-1)))
        return ops.linear(weights, params["down"]["kernel"])


@dataclass(frozen=True)
class Sorted(SquaredReLU):
    """The inner values in their order, beside themselves and their spread."""

    taps: ClassVar[tuple[str, ...]] = ("pre", "act")

    def __call__(self, ops, params, x, tap):
        xp = ops.xp
        pre = tap("pre", ops.linear(x, params["up"]["kernel"]))
        ranked = xp.sort(pre, axis=-1) - 0.5 * xp.std(pre, axis=-1, keepdims=True)
        act = tap("act", xp.concat([ranked[..., ::2], pre[..., 1::2]], axis=-1))
        return ops.linear(act, params["down"]["kernel"])


@dataclass(frozen=True)
class Ranks(SquaredReLU):
    """Weighted by their ranks, which are places of places; and a row of a table, by a choice of whole numbers."""

    taps: ClassVar[tuple[str, ...]] = ("pre", "rank", "least")

    def shapes(self, hidden_size):
        return super().shapes(hidden_size) | {"table": (self.size, hidden_size)}

    def __call__(self, ops, params, x, tap):
        xp = ops.xp
        pre = tap("pre", ops.linear(x, params["up"]["kernel"]))
        rank = tap("rank", xp.argsort(xp.argsort(pre, axis=-1, descending=True), axis=-1))
        least = tap("least", xp.argmin(pre, axis=-1))
        weighted = ops.sigmoid(pre) * xp.exp(-ops.cast(rank, pre.dtype))
        return ops.linear(weighted, params["down"]["kernel"]) + ops.embed(params["table"], least)


@dataclass(frozen=True)
class Capacity(SquaredReLU):
    """Of the inner values above 0 the first eight of each token go on, as experts take no more than fit: counted."""

    taps: ClassVar[tuple[str, ...]] = ("pre", "place", "act")

    def __call__(self, ops, params, x, tap):
        xp = ops.xp
        pre = tap("pre", ops.linear(x, params["up"]["kernel"]))
        place = tap("place", xp.cumulative_sum(ops.cast(pre > 0.0, ops.index_dtype), axis=-1))
        act = tap("act", xp.where(place <= 8, ops.relu(pre), xp.zeros_like(pre)))
        return ops.linear(act, params["down"]["kernel"])


KINDS = (SquaredReLU, SoftmaxGate, RunningSum, InnerAttention, BestTwo, Sorted, Ranks, Capacity)
COMPONENTS = {kind.__name__: kind() for kind in KINDS}
