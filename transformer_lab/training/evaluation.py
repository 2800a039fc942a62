"""How well a model predicts a text: loss, perplexity and bits per byte. It trains nothing."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from transformer_lab.errors import ConfigurationError


@dataclass(frozen=True)
class Evaluation:
    """loss: mean next-token cross-entropy in nats per token. perplexity: exp(loss), per token.

    bits_per_byte: the sum of the losses in bits over the bytes of the text: other than perplexity, it can be compared
    between tokenizers. None if the text was not read to its end. tokens: how many were predicted.
    """

    loss: float
    perplexity: float
    bits_per_byte: float | None
    tokens: int


def evaluate(
    model: Any,
    text: Any,
    batch_size: int = 16,
    length: int | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Reads a TokenFile from its beginning in windows of `length` tokens (by default the model's whole context).

    stride: how many tokens a window goes on from the last; below `length` each token but the first ones is predicted
    from at least length - stride tokens before it, at the cost of length / stride as much work. By default windows do
    not overlap, and the last one is as short as what is left. max_tokens ends it after about so many tokens.

    Raises ConfigurationError for a length or stride that does not fit the model.
    """
    context = model.config.context_length
    length = context if length is None else length
    stride = length if stride is None else stride
    if not 1 <= length <= context:
        message = f"Windows of {length} tokens were asked for; this model's context holds 1 to {context}."
        raise ConfigurationError(message)
    if not 1 <= stride <= length:
        message = f"A stride of {stride} tokens was asked for; it must be from 1 to the window's {length}."
        raise ConfigurationError(message)
    total, count = 0.0, 0
    last = text.count - 1 if max_tokens is None else min(text.count - 1, max_tokens)
    for ids, new in _windows(text, length, stride, last, batch_size):
        losses = model.token_losses(ids)
        for row, size in zip(losses, new, strict=True):
            total += float(row[len(row) - size :].sum(dtype=np.float64))
            count += size
        if progress:
            progress("evaluation", count, last)
    loss = total / count
    whole = last == text.count - 1
    bits = total / math.log(2) / text.text_bytes if whole and text.text_bytes else None
    return Evaluation(loss, math.exp(min(loss, 700.0)), bits, count)


def _windows(text: Any, length: int, stride: int, last: int, batch_size: int) -> Iterator[tuple[np.ndarray, list[int]]]:
    """(ids [B, T + 1], how many targets at the end of each row are new); rows of one batch have one length."""
    rows: list[np.ndarray] = []
    new: list[int] = []
    done = 0  # targets so far
    while done < last:
        begin = done + stride - length if done else 0
        stop = min(begin + length, last)  # targets up to here
        row = text.read(begin, stop + 1)
        if rows and (len(row) != len(rows[0]) or len(rows) == batch_size):
            yield np.stack(rows), new
            rows, new = [], []
        rows.append(row)
        new.append(stop - done)
        done = stop
    yield np.stack(rows), new
