"""Direct looks at a model, without the judge: what a bug must change. Each gives a list of arrays, or of choices."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from transformer_lab.checkpoints import load_parameters, read_config
from transformer_lab.generation import sampling
from transformer_lab.model import parameters
from transformer_lab.training import step

Probe = Callable[[str, Any, Sequence[Any]], list[Any]]


def _model(source: str, backend: Any) -> Any:
    from transformer_lab import language_model

    return language_model.load_model(source, backend=backend)


def logits(source: str, backend: Any, prompts: Sequence[Any]) -> list[Any]:
    model = _model(source, backend)
    return [model.logits(prompt) for prompt in prompts]


def batch(source: str, backend: Any, prompts: Sequence[Any]) -> list[Any]:
    """The prompts, cut to one length, as rows of a batch."""
    shortest = min(map(len, prompts))
    return [_model(source, backend).logits([prompt[:shortest] for prompt in prompts])]


def cached(source: str, backend: Any, prompts: Sequence[Any]) -> list[Any]:
    """Rows of unequal lengths, the last eight tokens of each one by one, over a cache."""
    sequences = _model(source, backend).engine.begin([prompt[:-8] for prompt in prompts], 9)
    found = [sequences.logits]
    for place in range(-8, 0):
        sequences.feed([prompt[place] for prompt in prompts])
        found.append(sequences.logits)
    return [np.array(rows) for rows in found]


def gradients(source: str, backend: Any, prompts: Sequence[Any]) -> list[Any]:
    """The loss of the first prompt, and its gradients."""
    config = read_config(source)
    arrays = dict(parameters.flatten(load_parameters(source, config)))
    names = sorted(arrays)
    tables = [part.table(config.context_length) for part in config.rotaries]
    constants = {"rotary": [{name: backend.asarray(array) for name, array in table.items()} for table in tables]}

    def loss(params: Any, constants: Any, token_ids: Any, weights: Any) -> Any:
        return step.weighted_loss(backend, config, parameters.nest(params) | constants, token_ids, weights)

    given = np.array([prompts[0]])
    weights = backend.asarray(np.full((1, given.shape[1] - 1), 1.0 / (given.shape[1] - 1)))
    params = {name: backend.asarray(np.ascontiguousarray(array)) for name, array in arrays.items()}
    value, found = _differentiated(backend, loss)(params, constants, backend.asarray(given), weights)
    everything = [np.asarray(backend.to_numpy(value)), *(np.array(backend.to_numpy(found[name])) for name in names)]
    return [np.concatenate([array.reshape(-1) for array in everything])]


def _differentiated(backend: Any, loss: Any) -> Any:
    both = backend.value_and_grad(loss)
    return backend.compile(both) if backend.name == "jax" else both


def generation(together: bool = False, new_tokens: int = 32, **options: Any) -> Probe:
    """Tokens, text, the reason to end, and log-probabilities to three digits. together: as one batch."""

    def probe(source: str, backend: Any, prompts: Sequence[Any]) -> list[Any]:
        model = _model(source, backend)
        given = {"max_new_tokens": new_tokens} | options
        rows = model.generate(list(prompts), **given) if together else [model.generate(p, **given) for p in prompts]
        return [
            (row.token_ids, row.text, row.finish_reason, [round(number, 3) for number in row.logprobs]) for row in rows
        ]

    return probe


def candidates(**rules: Any) -> Probe:
    """What the sampler may choose, and with which probability, on logits that hold ties and negative numbers."""

    def probe(source: str, backend: Any, prompts: Sequence[Any]) -> list[Any]:
        row = np.round(np.random.default_rng(5).standard_normal(300) * 8.0) / 4.0
        sampler = sampling.Sampling(**rules)
        history = [3, 7, 7, 7, 20, *np.argsort(row)[-3:].tolist()]
        if sampler.repetition_penalty is not None:
            row = sampling.penalise(row, history, sampler.repetition_penalty)
        found, weights = sampling.candidates(row, sampler)
        return [(found.tolist(), np.round(weights / weights.sum(), 9).tolist())]

    return probe


def taps(source: str, backend: Any, prompts: Sequence[Any]) -> list[dict[str, np.ndarray]]:
    model = _model(source, backend)
    return [model.record(prompt) for prompt in prompts]


def difference(found: list[Any], expected: list[Any]) -> float:
    """The largest, by the largest number of the array; infinite for choices and for what is not finite."""
    worst = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        if not isinstance(theirs, np.ndarray):
            worst = max(worst, 0.0 if ours == theirs else np.inf)
        elif ours.shape != theirs.shape or not np.array_equal(np.isfinite(ours), np.isfinite(theirs)):
            worst = np.inf
        else:
            ours, theirs = (np.where(np.isfinite(x), x, 0.0) for x in (ours, theirs))  # scores are -inf where hidden
            worst = max(worst, float(np.abs(ours.astype(np.float64) - theirs).max() / np.abs(theirs).max()))
    return worst
