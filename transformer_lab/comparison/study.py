"""The whole comparison, `lab.compare`: one participant after the other beside the truth, then the verdict.

Models are loaded one at a time and forgotten again; what they showed and is needed later waits on disk.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from os import PathLike
from typing import Any

import numpy as np

from transformer_lab.comparison.default_prompts import default_prompts
from transformer_lab.comparison.judging.exactness import GRADIENT, Exactness
from transformer_lab.comparison.judging.examination import Examination, examine
from transformer_lab.comparison.judging.generation.continuations import continuations
from transformer_lab.comparison.judging.gradients import GradientRow, TrueGradients, compare_gradients
from transformer_lab.comparison.judging.logits import agreement_of
from transformer_lab.comparison.judging.self_check import check_judge
from transformer_lab.comparison.judging.spool import Spool
from transformer_lab.comparison.judging.sweeps import require_known, sweep
from transformer_lab.comparison.judging.training_loss import wrong_loss
from transformer_lab.comparison.participants.own_model import OwnModel
from transformer_lab.comparison.participants.participant import Participant
from transformer_lab.comparison.reporting.report import Part, Report, report_of
from transformer_lab.errors import ConfigurationError, LabError
from transformer_lab.ffn.moe import mixtures
from transformer_lab.language_model import LanguageModel, Prompt, load_model, several_prompts
from transformer_lab.left_over import temporary_folder
from transformer_lab.model.causality import not_in_pieces
from transformer_lab.routes.split import routing_split

Progress = Callable[[str, int, int], None]
LONGEST_GRADIENT = 32  # tokens: a backward pass keeps every score of every layer


@np.errstate(all="ignore")  # what is not finite is in the report
def compare(
    source: str | PathLike[str],
    prompts: Prompt | Sequence[Prompt] | None = None,
    backends: Sequence[Any] = ("numpy", "torch", "jax"),
    precision: str = "float32",
    *,
    ops: Any = "fused",
    participants: Sequence[Participant] = (),
    exact: bool = True,
    gradients: bool = True,
    sweeps: Sequence[str] = (),
    new_tokens: int = 32,
    runs: int = 2,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Runs one model on several backends, and whoever else takes part, beside the truth: NumPy in float64, plainly.

    source, precision, ops: as for load_model. prompts: a text, token ids, or a list of either, none longer than the
    context; None is what `default_prompts.py` offers. backends: names under conf/backend, or Backend objects that are
    built (precision and ops are then theirs). participants: others, see `participants/participant.py`.
    exact: also run the backends that were given by name in exact mode, where all must be equal bit for bit.
    gradients: of the loss of the first LONGEST_GRADIENT tokens of the first prompt, on backends that train; in exact
    mode they must be equal, too. sweeps: names out of `sweeps.SWEEPS`, on the first prompt. new_tokens: how far each
    backend continues the prompts, `runs` times; no further than the context goes. options: further arguments of
    load_model (revision, weights, seed, device, and parts such as ffn). Random weights are "shaken": norms of 1 and
    biases of 0 would hide what is wrong with them.
    progress(what, done, total) is called on the way.

    Raises ConfigurationError, InputFileError or UnavailableError; each says in words what to do.
    """
    begin = time.perf_counter()
    require_known(sweeps)
    for name, value, least in (("new_tokens", new_tokens, 0), ("runs", runs, 1)):
        if value < least:
            message = f"{name} is {value}; it must be at least {least}."
            raise ConfigurationError(message)
    chosen = dict(options or {})
    if chosen.get("weights") == "random":
        chosen["weights"] = "shaken"
    true_model = load_model(source, "numpy", "float64", "manual", **chosen)
    truth = OwnModel(true_model)
    config = true_model.config
    if prompts is None:
        # Of a short context the longer half is the prompt's: what is not fed is not judged.
        longest = max(config.context_length - new_tokens, (config.context_length + 1) // 2)
        prompts = default_prompts(true_model.tokenizer, config.vocab_size, longest)
    listed: list[Any] = list(prompts) if several_prompts(prompts) else [prompts]
    if not listed:
        message = "The list of prompts is empty; give at least one."
        raise ConfigurationError(message)
    ids = [np.asarray(true_model.prompt_ids(prompt)) for prompt in listed]
    generated = new_tokens > 0
    new_tokens = min(new_tokens, true_model.config.context_length - max(map(len, ids)))
    competing = not_in_pieces(config)
    new_tokens = new_tokens if competing is None else 0
    true_tokens: list[list[int]] = []
    if new_tokens:
        together: Any = true_model.generate([row.tolist() for row in ids], max_new_tokens=new_tokens)
        true_tokens = [found.token_ids for found in together]
    ours = [(backend, precision) for backend in backends]
    if exact and precision != "exact":
        ours += [(backend, "exact") for backend in backends if isinstance(backend, str)]
    parts: list[Part] = []

    def say(what: str) -> None:
        if progress:
            progress(what, len(parts), len(ours) + len(participants))

    true_gradients: TrueGradients | None = None
    detached: list[str] = []
    without_gradient: list[str] = (
        [] if competing is None or not generated else [f"Not judged: what generate gives. {competing}"]
    )
    if gradients and len(ids[0]) > 1:
        say("gradients of the truth")
        try:
            true_gradients = TrueGradients(true_model, ids[0][: LONGEST_GRADIENT + 1])
            detached = true_gradients.detached() if true_gradients.infinite is None else []
            if true_gradients.infinite is not None:
                how = f"that at {true_gradients.infinite} is not finite in float64 itself"
                without_gradient.append(f"Not judged: the gradients: {how}.")
        except ConfigurationError as error:  # a function without a gradient, in somebody's own network
            without_gradient.append(f"Not judged: the gradients: {error}")
    judge = check_judge(true_model, ids[0], true_gradients)

    def examined(own: OwnModel, look_on: Callable[[int, str, np.ndarray], None]) -> Examination:
        """Who shows the bits of the first one in exact mode is judged with it."""
        first = next((part.examination for part in parts if part.facts["name"] in bits.sizes), None)
        if own.precision != "exact" or first is None:
            return examine(own, truth, ids, look_on)
        for number, token_ids in enumerate(ids):
            for name, value in own.taps(token_ids):
                look_on(number, name, value)
        if bits.equal(own.name):
            return first.of(own.name)
        bits.begin(own.name)
        return examine(own, truth, ids, look_on)

    def gradients_of(own: OwnModel, asked: bool) -> list[GradientRow]:
        """asked: in the precision that was asked for. Beside it, exact mode answers one question alone: are the
        gradients the same everywhere?"""
        exactly = own.precision == "exact"
        if true_gradients is None or not (exactly or asked):
            return []
        look_on = (lambda name, found: bits.look_on(0, f"{GRADIENT}{name}", found)) if exactly else None
        try:
            rows = compare_gradients(own.model, true_gradients, own.name, look_on, steps=asked)
        except ConfigurationError as error:  # one of this backend's functions has none
            without_gradient.append(f"Not judged: the gradients of {own.name}: {error}")
            return []
        if unknown := next((row for row in rows if row.unknown), None):
            how = f"{unknown.unknown:,} elements may be beyond the largest number of their precision"
            without_gradient.append(f"Not judged: the gradient {unknown.parameter} on {own.name}: {how}.")
        return rows

    def own_part(backend: Any, wanted: str) -> Part:
        """All about one of our models, which is forgotten with this call."""
        load = partial(load_model, source, backend, **{"precision": wanted, "ops": ops, **chosen})
        model = load()
        own, plain = OwnModel(model), Spool(scratch / str(len(parts)))
        own.name = _unused(own.name, parts)
        say(own.name)
        exactly, asked = own.precision == "exact", wanted == precision
        if exactly:
            bits.begin(own.name)

        def look_on(prompt: int, name: str, value: np.ndarray) -> None:
            if sweeps and prompt == 0:
                plain.write(prompt, name, value)
            if exactly:
                bits.look_on(prompt, name, value)

        part = Part.of(own, examined(own, look_on))
        if exactly:
            bits.certificate[own.name] = part.examination.certificate
        # Not of exact mode beside what was asked for, which is there to see that it is the same everywhere.
        if new_tokens and asked and "logits" in part.examination.taps:
            shown = max(errors.max_abs for errors in part.examination.taps["logits"].total)
            part.continuations = continuations(model, own.name, true_model, true_tokens, ids, new_tokens, runs, shown)
        part.gradients = gradients_of(own, asked)
        if len(ids[0]) > 1 and asked:
            part.loss = wrong_loss(model, own.name, ids[0], training=gradients)
        if asked and mixtures(config):
            with suppress(ConfigurationError):  # its routes are none, which is a defect and found already
                part.routing = routing_split(true_model, model, [row.tolist() for row in ids]).to_dict()
        again = load if isinstance(backend, str) else None
        part.sweeps = list(sweep(sweeps, model, own.name, again, truth, ids[0], plain))
        return part

    with temporary_folder() as scratch:
        bits = Exactness(scratch / "exact")
        for backend, wanted in ours:
            parts.append(own_part(backend, wanted))
        for participant in participants:
            say(participant.name)
            parts.append(Part.of(participant, examine(participant, truth, ids)))
    say("report")
    texts = [prompt if isinstance(prompt, str) else None for prompt in listed]
    logits = [(part.examination.precision, part.examination.taps.get("logits")) for part in parts]
    of_unknown_logits = sorted({name for name, found in logits if found is not None and found.unjudged})
    sound_kl = {name: _sound_kl(source, name, true_model, ids, chosen) for name in of_unknown_logits}
    seconds = time.perf_counter() - begin
    return report_of(
        true_model, precision, texts, ids, parts, bits, detached, without_gradient, judge, sound_kl, seconds
    )


def _sound_kl(
    source: Any, precision: str, truth: LanguageModel, prompts: Sequence[np.ndarray], options: Mapping[str, Any]
) -> float | None:
    """The largest KL divergence of the logits of a run of ours in this precision from the truth's, in nats."""
    for backend in ("numpy", "torch", "jax"):
        try:
            model = load_model(source, backend, precision, **options)
        except LabError:
            continue
        return max(agreement_of(model.logits(ids)[0], truth.logits(ids)[0]).kl_from_truth for ids in prompts)
    return None


def _unused(name: str, parts: Sequence[Part]) -> str:
    """The name, or with a number behind it if somebody has it."""
    names = {part.facts["name"] for part in parts}
    numbered = (f"{name} ({number})" for number in range(2, len(parts) + 3))
    return next(found for found in (name, *numbered) if found not in names)
