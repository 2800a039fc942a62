"""A mixture of experts: a router gives each token a few experts, and adds up what they make of it. `ffn=moe` builds it.

Which experts is the affair of `router/`; how rows come to them of `dispatch.py`; what the router is told between steps
of training of `balancer/`. B batch, T tokens, D hidden size, E experts, k slots.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from transformer_lab.backends.plain.manual import identity
from transformer_lab.errors import ConfigurationError
from transformer_lab.ffn.dispatch import dispatched
from transformer_lab.ffn.losses import balance, counted, used, z_loss
from transformer_lab.model.axes import Shape
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.limits import require_choice, require_coefficient, require_part
from transformer_lab.model.outside_part import OutsidePart
from transformer_lab.model.state import State
from transformer_lab.model.tokens import Tokens
from transformer_lab.router.every_expert import EveryExpert

SCOPES = ("step", "piece", "sequence")
# Of each part: what it is asked for, and how it is chosen on the command line.
_PARTS = {
    "router": (("logits", "choose", "weigh"), "On the command line, router=NAME chooses one."),
    "experts": (("count", "shapes"), "On the command line, ffn.experts.count=8 and the like change it."),
    "shared": (
        ("shapes",),
        "In Python it is a network such as Dense(320); docs/experts.md has it on the command line.",
    ),
    "capacity": (("kept", "most"), "In Python it is Capacity(1.25); docs/experts.md has it on the command line."),
    "balancer": (("states", "moved", "training_terms"), "On the command line, balancer=NAME chooses one."),
}


@dataclass(frozen=True)
class MixtureOfExperts:
    """sum over the slots s of a token: weights[s] * expert[ids[s]](x), plus shared(x).

    router: a part (`router/`). experts: an `Experts`. shared: a network that every token goes through, or None
    (DeepSeekMoE, Dai et al. 2024, arXiv 2401.06066); shared_gate: its result is multiplied by sigmoid(x w) (Qwen2-MoE).
    capacity: a `Capacity`, or None, and nothing is ever dropped. balancer: a part (`balancer/`), or None.

    In training balance_loss times the balance loss, which is 1 where all experts are used alike, and z_loss times the
    z-loss are added to the loss (`losses.py`); balance_scope: over which tokens balance is asked for.
    """

    sees_tokens: ClassVar[bool] = True

    router: Any
    experts: Any
    shared: Any = None
    shared_gate: bool = False
    capacity: Any = None
    balancer: Any = None
    balance_loss: float = 0.0
    balance_scope: str = "step"
    z_loss: float = 0.0

    def __post_init__(self) -> None:
        require_choice("ffn.balance_scope", self.balance_scope, SCOPES)
        for name in ("balance_loss", "z_loss"):
            require_coefficient(f"ffn.{name}", getattr(self, name))
        if self.shared_gate and self.shared is None:
            message = "ffn.shared_gate is true, and there is no ffn.shared to be gated."
            raise ConfigurationError(message)
        for name, (asked, how) in _PARTS.items():
            part = getattr(self, name)
            if not isinstance(part, OutsidePart) and (part is not None or name in ("router", "experts")):
                require_part(f"ffn.{name}", part, asked, how)
        if self.capacity is not None and isinstance(self.router, EveryExpert):
            kind = type(self.router).__name__
            message = f"ffn.capacity is for routers that choose k experts; {kind} has a rule of its own."
            raise ConfigurationError(message)
        if not isinstance(self.router, OutsidePart):  # which gives way to another before it is asked for anything
            self.router.slots(self.experts.count)
            self._require_balance()

    def _require_balance(self) -> None:
        """Raises ConfigurationError if router and balancer are none for each other."""
        kind, moves = type(self.router).__name__, getattr(self.balancer, "moves", None)
        if moves is not None and moves not in getattr(self.router, "balanced", (moves,)):
            message = (
                f"ffn.balancer is {type(self.balancer).__name__}, which moves the {moves} of a router, and {kind} has "
                "none. Choose another balancer, or ffn.balancer=null."
            )
            raise ConfigurationError(message)
        if self.balancer is None and getattr(self.router, "needs_balancer", False):
            message = (
                f"{kind} needs its balancer, without which every expert takes every token. Say balancer=threshold."
            )
            raise ConfigurationError(message)

    @property
    def taps(self) -> tuple[str, ...]:
        routes = ["logits", "expert_ids", "asked", "kept", "weights"]
        names = [f"router.{name}" for name in [*self.router.taps, *routes]] + ["experts.out", "shared.out"]
        absent = [] if self.router.drops else ["router.asked"]
        absent += [] if self.drops else ["router.kept"]
        absent += ["shared.out"] if self.shared is None else []
        return tuple(name for name in names if name not in absent)

    @property
    def same_in_pieces(self) -> bool:
        """Whether what comes of a token hangs on it and its past alone (`model/causality.py`)."""
        return self.router.causal and self.capacity is None

    @property
    def same_in_batches(self) -> bool:
        return self.capacity is None or self.capacity.scope == "sequence"

    @property
    def drops(self) -> bool:
        """Whether a slot may be left unused."""
        return self.capacity is not None or self.router.drops

    def shapes(self, hidden_size: int) -> dict[str, Shape]:
        """The parameters below `blocks.{i}.ffn`."""
        count = self.experts.count
        parts = {"router": self.router.shapes(hidden_size, count), "experts": self.experts.shapes(hidden_size)}
        if self.shared is not None:
            parts["shared"] = self.shared.shapes(hidden_size)
        if self.balancer is not None:
            parts["balancer"] = {name: State(shape) for name, shape in self.balancer.states(count).items()}
        shapes = {f"{part}.{name}": shape for part, own in parts.items() for name, shape in own.items()}
        return shapes | ({"shared_gate": (hidden_size, 1)} if self.shared_gate else {})

    def idle(self, hidden_size: int) -> int:
        """How many numbers of its experts a token does not use; a router without a fixed k counts with its most."""
        experts = sum(math.prod(shape) for shape in self.experts.shapes(hidden_size).values())
        return experts - experts // self.experts.count * self.router.slots(self.experts.count)

    def __call__(self, ops: Any, params: Any, x: Any, tap: Callable[[str, Any], Any], tokens: Tokens) -> Any:
        """x [B, T, D] -> [B, T, D].

        Taps: router.logits [B, T, E]; router.expert_ids [B, T, k]; booleans [B, T, k]: router.asked, the slots that
        the router wants, where it may leave some out, and router.kept, those that it gets, where that may be fewer than
        k; router.weights [B, T, k], 0 elsewhere; experts.out [B, T, k, D], not weighted; shared.out [B, T, D].
        """
        xp, router, own, state = ops.xp, self.router, params.get("router", {}), params.get("balancer", {})

        def of_router(name: str, seen: Any) -> Any:
            return tap(f"router.{name}", seen)

        logits = of_router("logits", router.logits(ops, own, x, of_router, tokens))
        ids = tap("router.expert_ids", router.choose(ops, own, logits, state, tokens))
        weights = router.weigh(ops, own, logits, ids)
        kept = router.kept(ops, logits, ids, state, tokens)
        if (chosen := ids.shape[-1]) != (said := router.slots(self.experts.count)):
            message = f"{type(router).__name__} chose {chosen} experts for a token, and its k says {said}."
            raise ConfigurationError(message)
        if weights.shape != ids.shape:
            message = (
                f"{type(router).__name__} gave weights of the shape {tuple(weights.shape)} for chosen experts of the "
                f"shape {tuple(ids.shape)}. It must give one weight for each."
            )
            raise ConfigurationError(message)
        if router.drops:
            kept = tap("router.asked", xp.broadcast_to(ids >= 0, ids.shape) if kept is None else kept)
        if self.capacity is not None:
            kept = self.capacity.kept(ops, ids, kept, weights, self.experts.count, tokens)
        if kept is not None:
            kept = tap("router.kept", kept)
            weights = xp.where(kept, weights, 0.0)
        weights = tap("router.weights", weights)
        slots, width = ids.shape[-1], x.shape[-1]
        copies = xp.reshape(xp.broadcast_to(x[:, :, None, :], (*ids.shape, width)), (-1, width))
        numbers, asked = xp.reshape(ids, (-1,)), None if kept is None else xp.reshape(kept, (-1,))
        most = x.shape[0] * x.shape[1]  # the experts of a token are all others
        if self.capacity is not None:
            most = min(most, self.capacity.most(x.shape[0], x.shape[1], slots, self.experts.count))
        out = dispatched(ops, self.experts, params["experts"], copies, numbers, asked, most)
        out = tap("experts.out", xp.reshape(out, (*ids.shape, width)))
        y = weights[..., :1] * out[..., 0, :]
        for slot in range(1, slots):  # one after the other, so that the order of the sum is the same everywhere
            y = y + weights[..., slot : slot + 1] * out[..., slot, :]
        if self.shared is None:
            return y
        shared = self.shared(ops, params["shared"], x, identity)
        if self.shared_gate:
            gate = xp.matmul(xp.reshape(x, (-1, width)), params["shared_gate"])
            shared = xp.reshape(ops.sigmoid(gate), (*x.shape[:-1], 1)) * shared
        return y + tap("shared.out", shared)

    def training_terms(
        self, ops: Any, state: Any, taps: Mapping[str, Any], share: Any, of_step: Any
    ) -> tuple[Any, dict[str, Any]]:
        """What training is told by one pass: (what is added to its loss, what its balancer and its metrics ask for).

        taps: this layer's. share [B, T]: as in `losses.py`. of_step: the "load" of the whole step, or None. Everything
        in the dict is a sum over tokens, so that pieces can be added up. Whole numbers: "tokens"; "load" [E], tokens
        that the router wants to give to each expert; "kept", slots that were used. Of each token its share:
        "importance" [E], the probabilities; "entropy", theirs; "z", of the z-loss; "balance", the balance loss. And
        what the balancer asks for.
        """
        xp, logits, ids = ops.xp, taps["router.logits"], taps["router.expert_ids"]
        kept = taps.get("router.kept")
        load = used(ops, ids, taps.get("router.asked"), share, self.experts.count)
        probabilities = self.router.probabilities(ops, logits)
        balance_loss = balance(ops, load, probabilities, share, self.balance_scope, of_step)
        z = z_loss(ops, logits, share)
        loss = self.balance_loss * balance_loss + self.z_loss * z
        own = self.router.training_loss(ops, taps, share)
        loss = loss if own is None else loss + own
        entropy = -xp.sum(probabilities * xp.log(probabilities + 1e-20), axis=-1)
        tokens = ops.xp.sum(counted(ops, share > 0.0, share))
        in_use = tokens * ids.shape[-1] if kept is None else xp.sum(counted(ops, kept, share))
        found = {
            "load": xp.sum(load, axis=0),
            "importance": xp.sum(probabilities * share[..., None], axis=(0, 1)),
            "tokens": tokens,
            "kept": in_use,
            "entropy": xp.sum(entropy * share),
            "z": z,
            "balance": balance_loss,
        }
        if self.balancer is not None:
            more, asked = self.balancer.training_terms(ops, self.router, state, taps, share)
            loss = loss if more is None else loss + more
            found |= asked
        return loss, found

    def moved(self, ops: Any, state: Any, found: Mapping[str, Any]) -> Any:
        """The balancer's state after a step. found: of all tokens of the step, from `training_terms`."""
        moved = self.balancer.moved(ops, state, found)
        have = {name: tuple(array.shape) for name, array in state.items()}
        new = {name: tuple(array.shape) for name, array in moved.items()} if isinstance(moved, Mapping) else moved
        if new != have:
            message = f"{type(self.balancer).__name__}.moved gave {new!r}; it must give what its states are: {have}."
            raise ConfigurationError(message)
        return moved


def mixtures(config: ModelConfig) -> dict[int, MixtureOfExperts]:
    """The mixtures of experts of a model by the number of their block."""
    return {
        number: block.ffn
        for number, block in enumerate(config.blocks)
        if isinstance(getattr(block, "ffn", None), MixtureOfExperts)
    }
