"""What the numbers of a configuration may be. A damaged one is refused here, before anything is allocated for it."""

from typing import Any

from transformer_lab.errors import ConfigurationError, shown

LARGEST_NUMBER = 1e300  # what is larger may not be a float at all
# Far above any model that exists.
LIMITS = {
    "vocab_size": 10_000_000,
    "context_length": 100_000_000,
    "hidden_size": 1_000_000,
    "num_layers": 10_000,
    "num_heads": 10_000,
    "num_kv_heads": 10_000,
    "head_size": 100_000,
    "num_experts": 100_000,
}


def require_whole(name: str, value: Any, largest: int) -> None:
    """Raises ConfigurationError unless value is a whole number from 1 to largest."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
        message = f"{name} is {shown(value)}; it must be a whole number from 1 to {largest}."
        raise ConfigurationError(message)


def require_positive(name: str, value: Any) -> None:
    """Raises ConfigurationError unless value is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < LARGEST_NUMBER:
        message = f"{name} is {shown(value)}; it must be a positive number."
        raise ConfigurationError(message)


def require_coefficient(name: str, value: Any) -> None:
    """Raises ConfigurationError unless value is a finite number from 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < LARGEST_NUMBER:
        message = f"{name} is {shown(value)}; it must be a number that is not negative."
        raise ConfigurationError(message)


def require_part(name: str, value: Any, asked: tuple[str, ...], how: str) -> None:
    """Raises ConfigurationError unless value has what a part is asked for; `how` says how one is chosen."""
    if isinstance(value, type) or not all(hasattr(value, one) for one in asked):
        message = f"{name} is {shown(value)}; it must be a part. {how}"
        raise ConfigurationError(message)


def require_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises ConfigurationError unless value is one of the choices."""
    if value not in choices:
        message = f"{name} is {shown(value)}; choose one of {', '.join(choices)}."
        raise ConfigurationError(message)
