"""One step of training: loss, gradients over the pieces of a batch, AdamW, the average of the weights, balancers.

Pure functions over flat parameter trees, written once for every backend and compiled as a whole where the backend
compiles. Nothing here knows data, files or schedules.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from transformer_lab.backends.plain.manual import identity
from transformer_lab.errors import ConfigurationError
from transformer_lab.language_model.placing import rotary_tables
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.decoder import forward
from transformer_lab.model.parameters import nest, shapes
from transformer_lab.model.state import is_state
from transformer_lab.training.optimizer import AdamW, Tree, moving_average
from transformer_lab.training.pieces import summed

TRAINABLE_PRECISIONS = ("float32", "float64", "bfloat16")


def weighted_loss(
    ops: Any,
    config: ModelConfig,
    params: Any,
    token_ids: Any,
    weights: Any,
    tap: Callable[[str, Any], Any] = identity,
    noise: Mapping[int, Any] | None = None,
) -> Any:
    """The sum of the next-token cross-entropies of token_ids [B, T + 1] times weights [B, T]: a scalar, in nats.

    noise: layer -> [B, T, N], as in `decoder.forward`.
    """
    xp = ops.xp
    start = xp.zeros((token_ids.shape[0],), dtype=ops.index_dtype, device=ops.array_device)
    lengths = None
    if tap is not identity:  # somebody asks what is padding
        places = xp.arange(1, weights.shape[1] + 1, dtype=ops.index_dtype, device=ops.array_device)
        lengths = xp.max(xp.where(weights > 0.0, places, 0), axis=-1)
    logits, _ = forward(ops, config, params, token_ids[:, :-1], start, tap=tap, lengths=lengths, noise=noise)
    return xp.sum(ops.cross_entropy(logits, token_ids[:, 1:]) * weights)


def require_trainable(ops: Any) -> None:
    """Raises ConfigurationError if this backend, or its precision, has no gradients."""
    if not ops.can_train:
        message = f"The {ops.name} backend has no gradients. Choose backend=torch or backend=jax to train."
        raise ConfigurationError(message)
    if ops.precision not in TRAINABLE_PRECISIONS:
        message = (
            f"precision={ops.precision} cannot be trained in; choose one of {', '.join(TRAINABLE_PRECISIONS)} "
            "(bfloat16 computes in bfloat16 and keeps the weights in float32)."
        )
        raise ConfigurationError(message)


def require_learning(config: ModelConfig) -> None:
    """Raises ConfigurationError if the loss of the text says nothing to a router of this model."""
    for layer, block in enumerate(config.blocks):
        router = getattr(block.ffn, "router", None)
        if router is not None and not getattr(router, "learns", True):
            message = (
                f"The router of layer {layer} would learn nothing: of k={router.k} expert, the renormalised weight is "
                "always the same. Choose ffn.router.k=2 or more to train, or a router that does not renormalise."
            )
            raise ConfigurationError(message)


class TrainingStep:
    """The state of a training run on one backend, and the step that changes it.

    params: flat, dotted name -> array of this backend, kernels plain [in, out]. states: the parameters that are not
    learned. moments: of AdamW, {"first", "second"}. average: the exponential moving average of params, or None without
    `average_decay`. noise_seed: of what routers are given at random, the same on every backend. told: after a step,
    {layer: {name: array}}, what its networks have to tell (`training_terms`).
    """

    def __init__(
        self,
        ops: Any,
        config: ModelConfig,
        arrays: dict[str, np.ndarray],
        optimizer: AdamW,
        average_decay: float | None = None,
        noise_seed: int = 0,
    ) -> None:
        require_trainable(ops)
        require_learning(config)
        self.ops, self.optimizer, self.average_decay = ops, optimizer, average_decay
        self._states = {name for name, shape in shapes(config).items() if is_state(shape)}
        self.params, self.states = self._apart({name: ops.asarray(array) for name, array in arrays.items()})
        self.moments = optimizer.begin(ops, self.params)
        # A copy: on a backend that donates its arguments, one array cannot be given twice.
        self.average: Tree | None = (
            None if average_decay is None else {name: ops.asarray(arrays[name].copy()) for name in self.params}
        )
        self.told: dict[int, dict[str, np.ndarray]] = {}
        self.noise_seed = noise_seed
        ffns = {layer: block.ffn for layer, block in enumerate(config.blocks) if hasattr(block.ffn, "router")}
        self._noisy = {
            layer: (ffn.router, ffn.router.noise_size(config.hidden_size, ffn.experts.count))
            for layer, ffn in ffns.items()
            if ffn.router.noise is not None
        }
        self._constants = {"rotary": rotary_tables(config, ops)}
        self._step = ops.compile(make_step(ops, config, optimizer), donate=(0, 1, 2, 3))

    def _apart(self, tree: Mapping[str, Any]) -> tuple[Tree, Tree]:
        learned = {name: array for name, array in tree.items() if name not in self._states}
        return learned, {name: array for name, array in tree.items() if name in self._states}

    def run(self, token_ids: np.ndarray, weights: np.ndarray, step: int, share: float) -> tuple[float, float]:
        """token_ids [A, B, T + 1] and weights [A, B, T] in A pieces -> (loss before the step, norm of the gradients).

        step counts from 1; share is the schedule's. The loss is the mean over all targets whose weight is 1, without
        what the networks add to it. If loss or norm are not finite, nothing was changed.
        """
        ops = self.ops
        share_of_each = weights / weights.sum(dtype=np.float64)
        self.params, self.moments, self.average, self.states, loss, norm, told = self._step(
            self.params,
            self.moments,
            self.average,
            self.states,
            self._constants,
            ops.asarray(token_ids),
            ops.asarray(share_of_each),
            ops.asarray(np.append(self.optimizer.rates(step, share), self._average_decay_at(step))),
            {layer: ops.asarray(drawn) for layer, drawn in self._noise(step, weights.shape).items()},
        )
        self.told = {
            int(layer): {name: np.array(ops.to_numpy(array)) for name, array in own.items()}
            for layer, own in told.items()
        }
        return float(ops.to_numpy(loss)), float(ops.to_numpy(norm))

    def _noise(self, step: int, shape: tuple[int, ...]) -> dict[int, np.ndarray]:
        """Of each layer whose router wants some, float32 [A, B, T, N]; it hangs on nothing but seed, step and shape."""
        draw = np.random.default_rng([self.noise_seed, step])
        kinds: dict[str, Callable[..., Any]] = {"normal": draw.standard_normal, "uniform": draw.random}
        return {layer: kinds[router.noise]((*shape, size), np.float32) for layer, (router, size) in self._noisy.items()}

    def _average_decay_at(self, step: int) -> float:
        """Less at first, so that the random weights of the beginning are soon forgotten."""
        return min(self.average_decay or 0.0, (1 + step) / (10 + step))

    def trees(self) -> dict[str, dict[str, np.ndarray]]:
        """Everything that changes, as NumPy arrays: {"params", "first", "second"} and "average" if there is one.

        What is not learned is among the params, and beside the average.
        """
        trees = {"params": self.params | self.states, **self.moments}
        if self.average is not None:
            trees["average"] = self.average | self.states
        return {
            title: {name: np.array(self.ops.to_numpy(array)) for name, array in tree.items()}
            for title, tree in trees.items()
        }

    def restore(self, trees: dict[str, dict[str, np.ndarray]]) -> None:
        """The inverse of `trees`."""
        placed = {
            title: {name: self.ops.asarray(array) for name, array in tree.items()} for title, tree in trees.items()
        }
        self.params, self.states = self._apart(placed["params"])
        self.moments = {moment: placed[moment] for moment in ("first", "second")}
        self.average = self._apart(placed["average"])[0] if "average" in placed else None


def make_step(ops: Any, config: ModelConfig, optimizer: AdamW) -> Callable[..., Any]:
    """(params, moments, average, states, constants, token_ids, weights, rates, noise) ->
    (params, moments, average, states, loss, norm, what the networks tell)."""
    talking = _talking(config)
    wanted = {start + name for start, part in talking.values() for name in part.taps if "router" in name}
    whole_step = any(
        getattr(part, "balance_scope", None) == "step" and part.balance_loss > 0.0 for _, part in talking.values()
    )

    def loss_of(
        params: Tree,
        states: Tree,
        constants: Any,
        ids: Any,
        weights: Any,
        noise: Mapping[int, Any],
        of_step: Mapping[str, Any],
    ) -> tuple[Any, Any]:
        """(what is minimised, {"loss": of the text alone, "told": {layer: {name: array}}})."""
        seen: dict[str, Any] = {}

        def look(name: str, x: Any) -> Any:
            if name in wanted:
                seen[name] = x
            return x

        tree = nest({**params, **states}) | constants
        text = weighted_loss(ops, config, tree, ids, weights, look if talking else identity, noise)
        total, told = text, {}
        for layer, (start, part) in talking.items():
            taps = {name.removeprefix(start): x for name, x in seen.items() if name.startswith(start)}
            state = tree["blocks"][layer].get("ffn", {}).get("balancer", {})
            more, told[str(layer)] = part.training_terms(ops, state, taps, weights, of_step.get(str(layer)))
            total = total + more
        return total, {"loss": text, "told": told}

    loss_and_gradients = (
        ops.value_and_grad(loss_of, extra=True)
        if talking
        else ops.value_and_grad(lambda *arguments: loss_of(*arguments)[0])
    )

    def step(
        params: Tree,
        moments: dict[str, Tree],
        average: Tree | None,
        states: Tree,
        constants: Any,
        ids: Any,
        weights: Any,
        rates: Any,
        noise: Mapping[int, Any] = MappingProxyType({}),
    ) -> Any:
        def of_piece(index: Any, of_step: Mapping[str, Any]) -> Any:
            drawn = {layer: array[index] for layer, array in noise.items()}
            return params, states, constants, ids[index], weights[index], drawn, of_step

        of_step: dict[str, Any] = {}
        if whole_step and ids.shape[0] > 1:  # how all pieces use the experts has to be known before the first gradient

            def loads(index: Any) -> Any:
                _, found = loss_of(*of_piece(index, {}))
                return {layer: own["load"] for layer, own in found["told"].items() if "load" in own}

            of_step = summed(ops, loads, ids.shape[0])

        def piece(index: Any) -> Any:
            found, gradients = loss_and_gradients(*of_piece(index, of_step))
            if talking:
                return {"gradients": gradients} | found[1]
            return {"gradients": gradients, "loss": found, "told": {}}

        found = summed(ops, piece, ids.shape[0])
        params, moments, norm = optimizer.update(ops, params, found["gradients"], moments, rates)
        if average is not None:
            average = moving_average(average, params, rates[3])
        if states:
            states = _moved(ops, talking, states, found["told"], ops.xp.isfinite(norm))
        return params, moments, average, states, found["loss"], norm, found["told"]

    return step


def _talking(config: ModelConfig) -> dict[int, tuple[str, Any]]:
    """Layer -> (how its taps begin, the part of it that adds to the loss and tells something), which is its network or
    the block itself. A layer without one is not there."""
    found = {}
    for layer, block in enumerate(config.blocks):
        for start, part in ((f"blocks.{layer}.", block), (f"blocks.{layer}.ffn.", block.ffn)):
            if hasattr(part, "training_terms"):
                found[layer] = start, part
    return found


def _moved(ops: Any, talking: Mapping[int, tuple[str, Any]], states: Tree, told: Mapping[str, Any], good: Any) -> Tree:
    """The states after a step, each moved once by its layer's own rule; as they were if the step was not finite."""
    new = dict(states)
    for layer, (_, part) in talking.items():
        start = f"blocks.{layer}.ffn.balancer."
        state = {name.removeprefix(start): x for name, x in states.items() if name.startswith(start)}
        if state:
            moved = part.moved(ops, state, told[str(layer)])
            new |= {start + name: ops.xp.where(good, x, state[name]) for name, x in moved.items()}
    return new
