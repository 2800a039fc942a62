"""A text as generation sees it: a prompt over the cache, then token by token, with the text's own tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from transformer_lab.language_model import LanguageModel

Windows = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Fed:
    """logits: of each window [T - prompt + 1, V], after its prompt and after each token behind it. bytes: of what the
    cache held in the end."""

    logits: list[np.ndarray]
    bytes: int


def fed(model: LanguageModel, windows: Windows, prompts: Sequence[int]) -> Fed:
    """The windows as rows of one batch, by the engine that users run. prompts: how many tokens of each come at once."""
    rows = [list(ids[:prompt]) for ids, prompt in zip(windows, prompts, strict=True)]
    steps = max(len(ids) - prompt for ids, prompt in zip(windows, prompts, strict=True))
    sequences = model.engine.begin(rows, steps)
    found = [np.array(sequences.logits)]
    for step in range(steps):
        # A row that is at its end goes on with its last token; nobody looks at what comes of it.
        at = [min(prompt + step, len(ids) - 1) for ids, prompt in zip(windows, prompts, strict=True)]
        sequences.feed([ids[place] for ids, place in zip(windows, at, strict=True)])
        found.append(np.array(sequences.logits))
    held = model.engine.policy.arrays(sequences.cache)
    size = held_bytes(model.backend, held)
    sequences.end()
    each = np.stack(found, axis=1)
    lengths = [len(ids) - prompt + 1 for ids, prompt in zip(windows, prompts, strict=True)]
    return Fed([row[:length] for row, length in zip(each, lengths, strict=True)], size)


def uncached(model: LanguageModel, ids: Sequence[int], prompt: int) -> np.ndarray:
    """The same of one window, from one pass."""
    return np.asarray(model.logits(ids)[0, prompt - 1 :])


def held_bytes(ops: Any, held: Any) -> int:
    if held is None:
        return 0
    if isinstance(held, (list, tuple)):
        return sum(held_bytes(ops, one) for one in held)
    return int(ops.to_numpy(held).nbytes)
