"""`lab.verify_cache`: does a cache keep what it promises?"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np

from transformer_lab.atomic_file import finite
from transformer_lab.cache.contiguous import Contiguous
from transformer_lab.cache.none import NoCache
from transformer_lab.cache.policy import CachePolicy
from transformer_lab.cache.prefix import PrefixPool
from transformer_lab.comparison.default_prompts import default_prompts
from transformer_lab.comparison.judging.examination import examine
from transformer_lab.comparison.judging.generation.uncached import CACHED_SLACK, ROUNDING
from transformer_lab.comparison.judging.sweeps import UNEQUAL
from transformer_lab.comparison.participants.own_model import OwnModel
from transformer_lab.config import component
from transformer_lab.contracts.fed import Fed, fed, uncached
from transformer_lab.contracts.read_again import read_again, read_from_below
from transformer_lab.contracts.report import CacheReport
from transformer_lab.contracts.statistics import statistics
from transformer_lab.errors import ConfigurationError
from transformer_lab.language_model import LanguageModel, Prompt, load_model, several_prompts
from transformer_lab.language_model.placing import placed
from transformer_lab.model.causality import not_in_pieces
from transformer_lab.model.limits import require_choice, require_coefficient
from transformer_lab.model.parameters import flatten, shapes

SCHEMA = 1
CONTRACTS = ("exact", "bounded", "lossy")
# Of how many tokens of a text exact mode is asked, which takes several times as long, and how many of the longest
# text's last ones it is given one by one; of how many the bounds are.
EXACT_TOKENS, EXACT_SINGLE, JUDGED_TOKENS = 96, 32, 512


def verify_cache(
    model: LanguageModel | str | PathLike[str],
    cache: CachePolicy | str | None = None,
    texts: Prompt | Sequence[Prompt] | None = None,
    prefill: float = 0.5,
    most_kl: float | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    **options: Any,
) -> CacheReport:
    """Feeds texts over the cache, by the engine that generates, and compares with one pass over each.

    model: a LanguageModel, or what load_model takes, with its options (backend, precision, ...). cache: a policy or its
    name; None is the model's. texts: a text, token ids, or a list of either; what is longer than the context is cut
    into windows of it. None is what `comparison/default_prompts.py` offers. prefill: the share of a window that is its
    prompt; the rest comes token by token. most_kl: the largest mean KL divergence in nats that a lossy cache may have,
    at the upper end of its interval; None does not judge it.

    "exact": in exact mode no bit may differ, alone and in a batch of unequal rows, and in the model's own precision
    each operation must be within its bound (`comparison/`). "bounded": each stored number is within what the cache
    says, and so is each operation that reads it, by bounds that are derived from that. "lossy": by most_kl alone.

    Raises ConfigurationError for a cache that cannot hold the model, for texts of less than two tokens, and what
    load_model raises.
    """
    if not 0.0 < prefill < 1.0:
        message = f"prefill is {prefill}; it must be a share of the text, above 0 and below 1."
        raise ConfigurationError(message)
    if not isinstance(model, LanguageModel):
        model = load_model(model, progress=progress, **options)
    policy = (component("cache", cache) if isinstance(cache, str) else cache) or model.engine.policy
    if isinstance(policy, NoCache):
        message = "cache=none keeps nothing: it is what the others are judged by. Choose another cache."
        raise ConfigurationError(message)
    require_choice("contract", policy.contract, CONTRACTS)
    if most_kl is not None:
        require_coefficient("most_kl", most_kl)
    ours = _over(model, policy)
    windows = _windows(model, texts)
    prompts = [max(1, round(prefill * len(ids))) for ids in windows]
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "model": {
            "source": model.source,
            "sha256": model.weights_sha256(),
            "backend": model.backend.name,
            "precision": model.backend.precision,
        },
        "cache": {"policy": repr(policy), "contract": policy.contract},
        "texts": len(windows),
    }
    if (why := not_in_pieces(model.config)) is not None:
        return CacheReport(content | {"status": "not judged", "verdict": f"Not judged. {why}"})
    steps = len(windows) + 2

    def say(done: int) -> None:
        if progress:
            progress("verifying the cache", done, steps)

    alone: list[Fed] = []
    whole: list[np.ndarray] = []
    for number, (ids, prompt) in enumerate(zip(windows, prompts, strict=True)):
        say(number)
        alone.append(fed(ours, [ids], [prompt]))
        whole.append(uncached(ours, ids, prompt))
    targets = [np.asarray(ids[prompt:], np.int64) for ids, prompt in zip(windows, prompts, strict=True)]
    plain = fed(_over(model, Contiguous()), windows[:1], prompts[:1])
    content["bytes"] = {"cache": alone[0].bytes, "contiguous": plain.bytes}
    rounds = [alone, *_rounds_again(ours, windows, prompts, content)]
    # Of the last round: from below the device, if there is anything.
    numbers = [statistics([one.logits[0] for one in fed_once], whole, targets) for fed_once in rounds]
    content["numbers"] = numbers[-1]
    largest = max((one["max_abs"] for one in numbers), key=lambda off: (off != off, off))
    reasons = [] if np.isfinite(largest) else ["its logits are not finite numbers"]
    unjudged = _not_found(content)
    say(len(windows))
    if policy.contract == "exact":
        content["exact"] = _in_exact_mode(ours, windows)
        reasons += _broken_bits(content["exact"])
    say(len(windows) + 1)
    if policy.contract in ("exact", "bounded"):
        truth = _truth(model)
        content["bounds"] = _within_bounds(ours, policy, truth, max(windows, key=len)[:JUDGED_TOKENS])
        reasons += _beyond(content["bounds"])
        unjudged = content["bounds"]["unjudged"] or unjudged
        if policy.contract == "exact":
            content["noise"] = _noise(truth, windows, prompts, whole)
            if not largest <= content["noise"]:
                reasons.append(f"a logit is off by {largest:.3g}, where one pass explains {content['noise']:.3g}")
    if policy.contract == "bounded":
        content["stored"] = read_again(ours, policy, max(windows, key=len)[:JUDGED_TOKENS])
        reasons += _wrongly_stored(content["stored"])
        below = read_from_below(_exactly(ours), policy, max(windows, key=len)[:JUDGED_TOKENS])
        if below:
            content["stored_below"] = below
            reasons += _wrongly_stored(below)
    if most_kl is not None:
        kl, interval = content["numbers"]["kl"], content["numbers"]["kl_interval"]
        upper = interval[1] if interval else kl
        if not upper <= most_kl:
            reasons.append(f"KL {kl:.3g} nats (up to {upper:.3g}) is more than {most_kl:g}")
    say(steps)
    measured = policy.contract == "lossy" and most_kl is None
    content["status"] = "broken" if reasons else "not judged" if unjudged else "measured" if measured else "holds"
    content["verdict"] = _verdict(policy.contract, content["status"], reasons, content["numbers"], unjudged)
    return CacheReport(finite(content))


def _verdict(contract: str, status: str, reasons: Sequence[str], numbers: dict[str, Any], unjudged: str | None) -> str:
    if reasons and contract == "lossy":
        return f"The cache is farther off than it may be: {reasons[0]}."
    if reasons:
        return f"The cache breaks its promise ({contract}): {'; '.join(reasons)}."
    if unjudged:
        return f"Not judged: {unjudged}."
    if status == "measured":
        return f"The cache is another computation: KL {numbers['kl']:.3g} nats, top-1 {100 * numbers['top_1']:.2f} %."
    return f"The cache keeps its promise ({contract})."


def _over(model: LanguageModel, policy: CachePolicy, backend: Any = None) -> LanguageModel:
    """The same model with another cache; backend: placed there anew."""
    if backend is None:
        params, backend = model.params, model.backend
    else:
        wanted = shapes(model.config)
        arrays = {name: model.backend.recover(name, x) for name, x in flatten(model.params) if name in wanted}
        params = placed(model.config, backend, arrays)
    other = LanguageModel(backend, model.config, params, model.tokenizer, policy)
    other.source, other.folder, other.adapter = model.source, model.folder, model.adapter
    return other


def _windows(model: LanguageModel, texts: Any) -> list[list[int]]:
    context = model.config.context_length
    if texts is None:
        texts = default_prompts(model.tokenizer, model.config.vocab_size, context)
    windows: list[list[int]] = []
    for text in texts if several_prompts(texts) else [texts]:
        if isinstance(text, str) and model.tokenizer is not None:
            ids = model.tokenizer.template.around(model.tokenizer.encode(text))
        else:  # who has no tokenizer is told so
            ids = model.prompt_ids(text) if isinstance(text, str) else list(text)
        parts = [ids[first : first + context] for first in range(0, len(ids), context)]
        windows += [model.prompt_ids(part) for part in parts]
    windows = [ids for ids in windows if len(ids) > 1]
    if not windows:
        message = "No text has two tokens, one for the prompt and one to feed after it. Give a longer one."
        raise ConfigurationError(message)
    return windows


def _rounds_again(
    model: LanguageModel, windows: Sequence[Sequence[int]], prompts: Sequence[int], content: dict[str, Any]
) -> list[list[Fed]]:
    """The windows once more if the cache remembers texts, and once more from below the device if anything is there.
    content["found"]: {"again", "below"}, how many tokens of the prompts were there."""
    memory = model.engine.memory
    if not isinstance(memory, PrefixPool):
        return []
    rounds, content["found"] = [], {}
    for name in ("again", "below") if memory.has_tiers else ("again",):
        before = memory.counts.found
        if name == "below":
            memory.forget()
        rounds.append([fed(model, [ids], [prompt]) for ids, prompt in zip(windows, prompts, strict=True)])
        content["found"][name] = memory.counts.found - before
    return rounds


def _not_found(content: dict[str, Any]) -> str | None:
    """Why what a cache remembers was not met."""
    if all(content.get("found", {}).values()):
        return None
    return "no prompt was found again, for none fills a block; give longer texts or a smaller cache.block"


def _in_exact_mode(model: LanguageModel, windows: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Logits in exact mode: {"elements", and how many differ: "differing" of texts alone, "differing_again" of the same
    a second time, "differing_in_batch" of unequal rows; and, where there are tiers, "differing_from_below", after the
    device has given away what it kept}."""
    exact = _exactly(model)
    some = [list(ids[:EXACT_TOKENS]) for ids in windows[:3]]
    prompts = [max(1, len(ids) // 2) for ids in some]
    longest = max(windows, key=len)
    if len(longest) > EXACT_TOKENS:  # what goes wrong late
        some.append(list(longest))
        prompts.append(len(longest) - EXACT_SINGLE)
    expected = [uncached(exact, ids, prompt) for ids, prompt in zip(some, prompts, strict=True)]
    alone = [fed(exact, [ids], [prompt]).logits[0] for ids, prompt in zip(some, prompts, strict=True)]
    again = [fed(exact, [ids], [prompt]).logits[0] for ids, prompt in zip(some, prompts, strict=True)]
    memory, below = exact.engine.memory, None
    if isinstance(memory, PrefixPool) and memory.has_tiers:
        memory.forget()
        below = [fed(exact, [ids], [prompt]).logits[0] for ids, prompt in zip(some, prompts, strict=True)]
    # Three rows of which neither the first nor the last is the longest, so that no row's length serves for all.
    short, middle, long = sorted([*some[:3], some[0], some[0]][:3], key=len)
    rows = [short[: max(2, len(short) // 2)], long, middle[: max(2, len(middle) * 3 // 4)]]
    cut = [max(1, len(ids) // 2) for ids in rows]
    together = fed(exact, rows, cut).logits
    of_rows = [uncached(exact, ids, prompt) for ids, prompt in zip(rows, cut, strict=True)]

    def differing(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> int:
        return sum(int(np.count_nonzero(one != other)) for one, other in zip(found, wanted, strict=True))

    return {
        "elements": sum(one.size for one in expected),
        "differing": differing(alone, expected),
        "differing_again": differing(again, expected),
        "differing_in_batch": differing(together, of_rows),
    } | ({} if below is None else {"differing_from_below": differing(below, expected)})


def _exactly(model: LanguageModel) -> LanguageModel:
    """The same in exact mode, with nothing in its memory."""
    if model.backend.precision == "exact":
        return _over(model, model.engine.policy)
    backend = component("backend", model.backend.name, precision="exact", device=model.backend.device)
    return _over(model, model.engine.policy, backend)


def _broken_bits(found: dict[str, Any]) -> list[str]:
    ways = {
        "differing": "of a text alone",
        "differing_again": "of a text that came before",
        "differing_from_below": "of a text that came before, and is kept below the device,",
        "differing_in_batch": "in a batch",
    }
    return [f"{found[name]:,} logits {way} differ in exact mode" for name, way in ways.items() if found.get(name)]


def _truth(model: LanguageModel) -> LanguageModel:
    """The same in float64, plainly."""
    return _over(model, Contiguous(), component("backend", "numpy", precision="float64", ops="manual"))


def _noise(truth: LanguageModel, windows: Any, prompts: Sequence[int], whole: Sequence[np.ndarray]) -> float:
    """How far cached logits may be from those of one pass: as with generations, in units of the largest error that
    this pass itself has (`comparison/judging/generation/uncached.py`)."""
    true = [uncached(truth, ids, prompt) for ids, prompt in zip(windows, prompts, strict=True)]
    own = max(float(np.abs(one - other).max()) for one, other in zip(whole, true, strict=True))
    return max(CACHED_SLACK * own, ROUNDING["float64"] * max(float(np.abs(one).max()) for one in true))


def _within_bounds(
    model: LanguageModel, policy: CachePolicy, truth: LanguageModel, ids: Sequence[int]
) -> dict[str, Any]:
    """{"tokens", "ratio", "tap", "unjudged"}: the worst operation of a pass in pieces, beside unequal rows, over its
    bound; why some could not be judged, or None."""
    found = examine(OwnModel(model, replace(UNEQUAL, cache=policy)), OwnModel(truth), [np.asarray(ids)])
    worst = found.first_divergence() or found.worst()
    unjudged = found.unjudged()
    return {
        "tokens": len(ids),
        "ratio": None if worst is None else worst.ratio,
        "tap": None if worst is None else worst.tap,
        "unjudged": None if unjudged is None else ": ".join(unjudged),
    }


def _beyond(found: dict[str, Any]) -> list[str]:
    if found["ratio"] is not None and not found["ratio"] <= 1.0:
        return [f"{found['tap']} is off by {found['ratio']:.3g} times its bound"]
    return []


def _wrongly_stored(found: dict[str, Any]) -> list[str]:
    said = []
    if not found["largest"] <= found["epsilon"]:
        said.append(f"a stored number is off by {found['largest']:.3g} of its vector, more than {found['epsilon']:.3g}")
    if not found["ratio"] <= 1.0:
        said.append(f"a stored number is off by {found['ratio']:.3g} times what its rounding allows")
    return said
