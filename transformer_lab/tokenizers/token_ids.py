"""Token ids from a caller: any iterable of Python's or NumPy's integers, each of them a token of the vocabulary."""

from collections.abc import Iterable

from transformer_lab.errors import ConfigurationError


def checked_token_ids(token_ids: Iterable[int], vocab_size: int) -> list[int]:
    """The ids as a list; a ConfigurationError names the first that is no int (Python's or NumPy's) in range."""
    try:
        ids = list(token_ids)
    except TypeError:
        message = f"Token ids must be a sequence of ints, got {type(token_ids).__name__}."
        raise ConfigurationError(message) from None
    if set(map(type, ids)) <= {int} and (not ids or (min(ids) >= 0 and max(ids) < vocab_size)):
        return ids
    for token_id in ids:
        if not _is_integer(token_id):
            message = f"A token id must be an int, got {token_id!r} ({type(token_id).__name__})."
            raise ConfigurationError(message)
        if not 0 <= token_id < vocab_size:
            message = (
                f"Token id {int(token_id)} does not exist: the vocabulary has {vocab_size} ids, 0 to {vocab_size - 1}."
            )
            raise ConfigurationError(message)
    return ids


def _is_integer(value: object) -> bool:
    if type(value) is int:
        return True
    # NumPy's integers have __index__ too, but so have one-element arrays, which are no single id: those have no
    # scalar `shape`.
    return hasattr(value, "__index__") and not isinstance(value, bool) and getattr(value, "shape", ()) == ()
