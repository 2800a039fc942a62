"""What a model is asked to continue, and how: the arguments of `generate` and `stream`, written once.

It checks what can be checked without a model. The ids of the prompt, and whether they fit, are the model's business.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from transformer_lab.errors import ConfigurationError
from transformer_lab.generation.sampling import Sampling
from transformer_lab.language_model.prompts import Prompt, several_prompts, whole


@dataclass(frozen=True)
class Beginning:
    """The first two arguments. They stand apart because a dataclass takes the fields of its last base first."""

    prompt: Prompt | Sequence[Prompt]
    max_new_tokens: int = 64


@dataclass(frozen=True)
class Request(Sampling, Beginning):
    """Its fields, in this order: those of Beginning, those of Sampling, and these. `generate` explains them.

    It is a Sampling, so a new rule there is at once an argument. Raises ConfigurationError for values out of range;
    `seeds` and `stop_strings` do that when they are asked for.
    """

    seed: int | Sequence[int] = 0
    stop: str | Sequence[str] | None = None
    hash_logits: bool = False
    prompt_special: bool = False
    prompt_template: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prompts:
            message = "The list of prompts is empty; give at least one."
            raise ConfigurationError(message)
        if not whole(self.max_new_tokens) or self.max_new_tokens < 1:
            message = f"max_new_tokens is {self.max_new_tokens!r}; it must be a whole number of at least 1."
            raise ConfigurationError(message)

    @property
    def several(self) -> bool:
        """Whether a list of prompts was given, so that a list is the answer."""
        return several_prompts(self.prompt)

    @property
    def prompts(self) -> list[Any]:
        """The prompts, also if there is one alone."""
        return list(self.prompt) if self.several else [self.prompt]

    def seeds(self) -> list[int]:
        """One for each prompt."""
        count = len(self.prompts)
        seeds = list(self.seed) if isinstance(self.seed, Sequence) else [self.seed] * count
        if len(seeds) != count or not all(whole(number) and number >= 0 for number in seeds):
            message = f"seed is {self.seed!r}; it must be a whole number of at least 0, or one such number per prompt."
            raise ConfigurationError(message)
        return seeds

    def stop_strings(self) -> list[str]:
        """The texts at which to end. To be asked for once: `stop` may be an iterator."""
        stops: list[Any] = [] if self.stop is None else [self.stop]
        if isinstance(self.stop, Iterable) and not isinstance(self.stop, str):
            stops = list(self.stop)
        if not all(isinstance(text, str) and text for text in stops):
            message = f"stop is {self.stop!r}; it must be a text, or a list of texts, none of them empty."
            raise ConfigurationError(message)
        return stops
