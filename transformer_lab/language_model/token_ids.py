"""Token ids that somebody gives, as an array that is safe to compute on."""

from typing import Any

import numpy as np

from transformer_lab.errors import ConfigurationError


def checked_ids(
    token_ids: Any,
    vocab_size: int,
    shortest: int,
    longest: int | None,
    expected: str = "token_ids must be whole numbers, [T] or [B, T] with rows of one length.",
) -> np.ndarray:
    """[T] or [B, T] -> int64 [B, T]. Raises ConfigurationError; `expected` is its message for what are no ids."""
    try:
        ids = np.asarray(token_ids)
    except (TypeError, ValueError):  # rows of unequal lengths, or no numbers at all
        raise ConfigurationError(expected) from None
    if ids.ndim not in (1, 2) or (ids.size and ids.dtype.kind not in "iu"):  # an empty list becomes floats
        raise ConfigurationError(expected)
    ids = ids.reshape((-1, ids.shape[-1])) if ids.size else np.empty((1, 0), np.int64)
    length = ids.shape[1]
    if length < shortest or (longest is not None and length > longest):
        message = f"{length} token ids were given in a row; expected {shortest} to {longest}."
        raise ConfigurationError(message)
    wrong = ids[(ids < 0) | (ids >= vocab_size)]
    if wrong.size:
        message = f"The token id {int(wrong[0])} is outside the vocabulary, 0 to {vocab_size - 1}."
        raise ConfigurationError(message)
    return ids.astype(np.int64)
