"""What a prompt is: a text, or token ids in one row. Whether several were given, and whether one fits the context."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from transformer_lab.errors import ConfigurationError
from transformer_lab.language_model.token_ids import checked_ids
from transformer_lab.model.config import ModelConfig

Prompt = str | Sequence[int]

# The longest tokens of published vocabularies are runs of 128 letters or spaces, and few prompts are made of these.
MOST_LETTERS_PER_TOKEN = 256


def several_prompts(prompt: Any) -> bool:
    """Whether this is a list of prompts: a list of texts or of lists of ids, and not one text or one list of ids."""
    if hasattr(prompt, "ndim"):  # an array of any framework
        return bool(prompt.ndim == 2)
    if not isinstance(prompt, (list, tuple)):
        return False
    return not all(whole(item) for item in prompt)


def whole(value: Any) -> bool:
    """Whether this is a whole number, of Python or of NumPy; True and False are none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def given_ids(prompt: Any, vocab_size: int) -> list[int]:
    """The ids of a prompt that is not a text."""
    message = "A prompt must be a text, or whole numbers in one row."
    rows = checked_ids(prompt, vocab_size, 0, None, message)
    if len(rows) != 1:
        raise ConfigurationError(message)
    return list(rows[0].tolist())


def require_possible(text: str, context_length: int) -> None:
    """Refuses a text that cannot fit into the context, before it is cut into tokens: 60 MB of it would take 3 GB."""
    if len(text) > MOST_LETTERS_PER_TOKEN * context_length:
        message = (
            f"The prompt has {len(text):,} characters, more than {MOST_LETTERS_PER_TOKEN} for each token that the "
            f"context of this model holds, {context_length}. Shorten the prompt."
        )
        raise ConfigurationError(message)


def begun_and_fitting(ids: list[int], config: ModelConfig, max_new_tokens: int) -> list[int]:
    """The ids, or begin-of-text if there are none, after it was made sure that the context holds so many new ones."""
    if not ids:
        if config.begin_of_text_id is None:
            message = "The prompt is empty, and this model has no begin-of-text token to start from."
            raise ConfigurationError(message)
        ids = [config.begin_of_text_id]
    room = config.context_length - len(ids)
    if max_new_tokens > room:
        cure = f"Ask for at most {room} new tokens, or shorten the prompt." if room > 0 else "Shorten the prompt."
        message = (
            f"The prompt has {len(ids)} tokens and {max_new_tokens} new ones are asked for, but the context of "
            f"this model holds {config.context_length}. {cure}"
        )
        raise ConfigurationError(message)
    return ids
