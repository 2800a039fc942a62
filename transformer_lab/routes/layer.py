"""The routes of one layer as its taps show them: which experts each token has, by which scores, with what weights.

B rows of T tokens; N of them are no padding. E experts, k slots. On the host, in float64.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from transformer_lab.config import component
from transformer_lab.errors import ConfigurationError
from transformer_lab.ffn.moe import MixtureOfExperts, mixtures
from transformer_lab.language_model import LanguageModel
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.parameters import flatten, nest
from transformer_lab.model.tokens import tokens_of
from transformer_lab.router.router import Router


@dataclass(frozen=True)
class Routes:
    """logits, probabilities [N, E]: of the router. ids, weights [N, k]: of the slots.

    asked [N, k]: the slots that the router wants; kept [N, k]: those that it got, fewer where there is a capacity.
    scores [N, E]: a token has the experts with the largest; None where the router chooses otherwise.
    """

    logits: np.ndarray
    probabilities: np.ndarray
    ids: np.ndarray
    asked: np.ndarray
    kept: np.ndarray
    weights: np.ndarray
    scores: np.ndarray | None

    @property
    def experts(self) -> int:
        return int(self.logits.shape[-1])

    def used(self, slots: np.ndarray) -> np.ndarray:
        """slots, booleans [N, k] -> booleans [N, E]: has the token this expert in one of them?"""
        found = np.zeros(self.logits.shape, bool)
        token, slot = np.nonzero(slots)
        found[token, self.ids[token, slot]] = True
        return found

    def margins(self) -> np.ndarray | None:
        """[N], how far the lowest score of a chosen expert lies above the highest of the others; None where the router
        does not choose by scores, or takes all."""
        chosen = self.used(np.ones_like(self.asked))
        if self.scores is None or chosen.all():
            return None
        lowest = np.where(chosen, self.scores, np.inf).min(axis=-1)
        return lowest - np.where(chosen, -np.inf, self.scores).max(axis=-1)


class Layer:
    """One mixture of experts of a model. number: of its block. What the router keeps is read from the model once."""

    def __init__(self, model: LanguageModel, number: int) -> None:
        self.number, self.ffn = number, mixtures(model.config)[number]
        self.prefix = f"blocks.{number}.ffn."
        self._ops = component("backend", "numpy", precision="float64", ops="manual")
        own = {
            name.removeprefix(self.prefix): np.asarray(model.backend.recover(name, array), np.float64)
            for name, array in flatten(model.params)
            if name.startswith((self.prefix + "router.", self.prefix + "balancer."))
        }
        tree = nest(own)
        self._router, self._state = tree.get("router", {}), tree.get("balancer", {})

    @property
    def taps(self) -> list[str]:
        """The names of those that tell the route, with the block before them."""
        return [self.prefix + name for name in self.ffn.taps if name.startswith("router.")]

    def routes(self, taps: Mapping[str, np.ndarray], real: np.ndarray | None = None) -> Routes:
        """Of what was recorded of rows [B, T]. real: booleans [B, T], False where there is padding; None: all True.

        Raises ConfigurationError for experts that there are not.
        """
        router, found = self.ffn.router, {name.removeprefix(self.prefix): array for name, array in taps.items()}
        logits = np.asarray(found["router.logits"], np.float64)
        ids = found["router.expert_ids"]
        if ids.min(initial=0) < 0 or ids.max(initial=0) >= self.ffn.experts.count:
            message = f"The router of layer {self.number} chose experts that there are not."
            raise ConfigurationError(message)
        asked = np.asarray(found.get("router.asked", np.ones(ids.shape, bool)), bool)
        kept = np.asarray(found.get("router.kept", asked), bool)
        scores = self.scores(logits)
        real = np.ones(logits.shape[:2], bool) if real is None else np.asarray(real, bool)
        return Routes(
            logits[real],
            np.asarray(router.probabilities(self._ops, logits))[real],
            ids[real],
            asked[real],
            kept[real],
            np.asarray(found["router.weights"], np.float64)[real],
            None if scores is None else scores[real],
        )

    def scores(self, logits: np.ndarray) -> np.ndarray | None:
        """What the k largest are taken of: logits [B, T, E] -> [B, T, E], or None if the router has another rule."""
        if type(self.ffn.router).choose is not Router.choose:
            return None
        return np.asarray(self.ffn.router.selection(self._ops, logits, self._state))

    def wanted(self, token_ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """What this router asks for by these logits: token_ids [B, T], logits [B, T, E] -> booleans [B, T, E]."""
        router, wide = self.ffn.router, np.asarray(logits, np.float64)
        tokens = tokens_of(self._ops, token_ids, np.zeros(len(token_ids), np.int64), None)
        ids = np.asarray(router.choose(self._ops, self._router, wide, self._state, tokens))
        kept = router.kept(self._ops, wide, ids, self._state, tokens)
        chosen = ids[..., None] == np.arange(logits.shape[-1])
        return np.any(chosen if kept is None else chosen & np.asarray(kept)[..., None], axis=-2)


def require_mixtures(config: ModelConfig) -> dict[int, MixtureOfExperts]:
    """The same. Raises ConfigurationError if there is none."""
    if not (found := mixtures(config)):
        message = (
            "This model has no layer in which a router chooses experts, so nothing is routed. "
            "Take one that has, or ffn=moe."
        )
        raise ConfigurationError(message)
    return found


def joined(several: Sequence[Routes]) -> Routes:
    """The tokens of all, one after the other."""

    def together(name: str) -> Any:
        arrays = [getattr(one, name) for one in several]
        return None if arrays[0] is None else np.concatenate(arrays)

    return Routes(*(together(field.name) for field in fields(Routes)))
