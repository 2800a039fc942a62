"""Two runs of a mixture of experts differ: how much of it is arithmetic, and how much is that tokens went elsewhere?

`lab.routing_split`. A small error turns into a large one where two scores lie so close that it exchanges experts. So b
runs again on a's routes: once with a's experts, whose weights b works out anew, once with a's weights too. What is left
then is arithmetic. A recorded route is forced by the taps, whose order allows it: scores, experts, weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from transformer_lab.atomic_file import finite, write_json
from transformer_lab.comparison.default_prompts import default_prompts
from transformer_lab.comparison.judging.logits import LogitAgreement, agreement_of, merge
from transformer_lab.errors import ConfigurationError
from transformer_lab.language_model import LanguageModel, Prompt, several_prompts
from transformer_lab.routes.layer import Layer, Routes, joined, require_mixtures

SCHEMA = 1
RUNS = ("as it is", "with the experts of a", "with the experts and the weights of a")
FORCED = (("router.expert_ids", "router.kept"), ("router.expert_ids", "router.kept", "router.weights"))


@dataclass(frozen=True)
class Flip:
    """A token whose experts are others in b. margin: the distance of a's scores there, or None where the router does
    not choose by scores. own: whether b's router still chooses others where all before it went a's way; else the flip
    was inherited. certified: the margin is more than twice the largest error of a score in this layer."""

    text: int
    position: int
    layer: int
    a: list[int]
    b: list[int]
    margin: float | None
    own: bool
    certified: bool


@dataclass(frozen=True)
class LayerSplit:
    """tokens; flips: whose set of experts is another in b; own: of them not inherited; reordered: the same set in
    another order. error: the largest difference of a score where b goes a's way, and so by arithmetic alone. certified:
    the share of tokens whose margin is more than twice that, which no such error can flip; None without scores.
    smallest_margin, margin_of_flips: of a; the second is the largest of the own flips."""

    layer: int
    tokens: int
    flips: int
    own: int
    reordered: int
    error: float | None
    certified: float | None
    smallest_margin: float | None
    margin_of_flips: float | None


@dataclass(frozen=True)
class RoutingSplit:
    """What `routing_split` returns: plain data in `content`."""

    content: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """{"participants", "texts", "tokens", "runs": rows of KL and largest differences, "kl": its parts, "certified":
        the share of tokens that are it in all layers, or None, "layers": as `LayerSplit`, "flips": as `Flip`}."""
        return dict(self.content)

    def to_json(self, path: str | PathLike[str]) -> None:
        """Raises UnavailableError where the disk refuses."""
        write_json(Path(path), self.content)


def routing_split(a: LanguageModel, b: LanguageModel, prompts: Prompt | Sequence[Prompt] | None = None) -> RoutingSplit:
    """Splits the difference of b's logits from a's into what comes of other experts, of other weights, of arithmetic.

    prompts: a text, token ids, or a list of either; None is what `comparison/default_prompts.py` offers. KL(a || b) is
    a mean over tokens, in nats; its three parts are differences of the runs, add up to it, and may be negative, for
    errors can cancel. Raises ConfigurationError for models of which one cannot go the other's way.
    """
    layers = _same_layers(a, b)
    if prompts is None:
        longest = min(a.config.context_length, b.config.context_length)
        prompts = default_prompts(a.tokenizer, a.config.vocab_size, longest)
    listed: list[Any] = list(prompts) if several_prompts(prompts) else [prompts]
    taps = [name for layer, _ in layers for name in layer.taps]
    agreements: list[list[LogitAgreement]] = [[] for _ in RUNS]
    largest = [0.0 for _ in RUNS]
    each: list[list[_Seen]] = [[] for _ in layers]
    for number, prompt in enumerate(listed):
        ids = np.asarray(a.prompt_ids(prompt))
        of_a, of_b = a.record(ids, [*taps, "logits"]), b.record(ids, [*taps, "logits"])
        forced = [b.record(ids, [*taps, "logits"], patches=_routes(of_a, names)) for names in FORCED]
        for place, run in enumerate((of_b, *forced)):
            agreements[place].append(agreement_of(run["logits"][0], of_a["logits"][0], number))
            largest[place] = max(largest[place], float(np.abs(_wide(run["logits"]) - _wide(of_a["logits"])).max()))
        for place, (ours, theirs) in enumerate(layers):
            each[place].append(_seen(ours, theirs, ids[None], of_a, of_b, forced[-1]))
    runs = [_run(*found) for found in zip(RUNS, map(merge, agreements), largest, strict=True)]
    found = [_layer(ours.number, seen) for (ours, _), seen in zip(layers, each, strict=True)]
    kl, safe = [run["kl"] for run in runs], [sure for _, _, sure in found if sure is not None]
    content = {
        "schema": SCHEMA,
        "participants": {"a": _name(a), "b": _name(b)},
        "texts": len(listed),
        "tokens": merge(agreements[0]).positions,
        "runs": runs,
        "certified": float(np.all(safe, axis=0).mean()) if len(safe) == len(found) else None,
        "kl": {"total": kl[0], "experts": kl[0] - kl[1], "weights": kl[1] - kl[2], "arithmetic": kl[2]},
        "layers": [asdict(layer) for layer, _, _ in found],
        "flips": [asdict(flip) for _, flips, _ in found for flip in flips],
    }
    return RoutingSplit(finite(content))


def _same_layers(a: LanguageModel, b: LanguageModel) -> list[tuple[Layer, Layer]]:
    """The mixtures of both. Raises ConfigurationError if a's routes are none for b."""
    ours, theirs = require_mixtures(a.config), require_mixtures(b.config)
    forms = [
        {number: (ffn.experts.count, ffn.router.slots(ffn.experts.count), ffn.drops) for number, ffn in one.items()}
        for one in (ours, theirs)
    ]
    if forms[0] != forms[1] or a.config.vocab_size != b.config.vocab_size:
        message = (
            "The two models have other vocabularies, or mixtures of experts in other layers or of other numbers of "
            "experts or slots. Routes can be forced only where all these are the same."
        )
        raise ConfigurationError(message)
    return [(Layer(a, number), Layer(b, number)) for number in ours]


def _routes(taps: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
    return {name: array for name, array in taps.items() if name.endswith(tuple(names))}


@dataclass(frozen=True)
class _Seen:
    """One layer and one text. a, b: the routes; forced: b's where all went a's way; would: the experts that b's router
    asks for there, booleans [N, E]."""

    a: Routes
    b: Routes
    forced: Routes
    would: np.ndarray


def _seen(ours: Layer, theirs: Layer, ids: np.ndarray, of_a: Any, of_b: Any, forced: Any) -> _Seen:
    would = theirs.wanted(ids, forced[theirs.prefix + "router.logits"])
    return _Seen(ours.routes(of_a), theirs.routes(of_b), theirs.routes(forced), would.reshape(-1, would.shape[-1]))


def _layer(number: int, seen: Sequence[_Seen]) -> tuple[LayerSplit, list[Flip], np.ndarray | None]:
    """The last: which tokens are certified, booleans [N], or None where nothing can be said."""
    a, b, forced = (joined([getattr(one, name) for one in seen]) for name in ("a", "b", "forced"))
    margins = a.margins()
    error = None if a.scores is None or forced.scores is None else float(np.abs(forced.scores - a.scores).max())
    safe = np.zeros(len(a.ids), bool) if margins is None or error is None else margins > 2.0 * error
    own = np.any(np.concatenate([one.would for one in seen]) != a.used(a.asked), axis=-1)
    before, after = a.used(a.kept), b.used(b.kept)
    flipped = np.any(before != after, axis=-1)
    reordered = ~flipped & np.any(a.ids != b.ids, axis=-1)
    places = [(text, position) for text, one in enumerate(seen) for position in range(len(one.a.ids))]
    flips = [
        Flip(
            *places[token],
            number,
            np.flatnonzero(before[token]).tolist(),
            np.flatnonzero(after[token]).tolist(),
            None if margins is None else float(margins[token]),
            bool(own[token]),
            bool(safe[token]),
        )
        for token in np.flatnonzero(flipped).tolist()
    ]
    found = LayerSplit(
        number,
        len(a.ids),
        len(flips),
        sum(flip.own for flip in flips),
        int(reordered.sum()),
        error,
        None if margins is None or error is None else float(safe.mean()),
        None if margins is None else float(margins.min()),
        max((flip.margin for flip in flips if flip.own and flip.margin is not None), default=None),
    )
    return found, flips, None if found.certified is None else safe


def _run(name: str, agreement: LogitAgreement, largest: float) -> dict[str, Any]:
    return {"run": name, "kl": agreement.kl_from_truth, "max_abs": largest, "top_1": agreement.top_1}


def _wide(logits: np.ndarray) -> np.ndarray:
    return np.asarray(logits, np.float64)


def _name(model: LanguageModel) -> str:
    return f"{model.backend.name} {model.backend.precision}"
