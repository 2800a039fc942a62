"""Names for taps: `tap(name, value)` returns the value, and every part of the decoder has names below its own."""

from collections.abc import Callable
from typing import Any

from transformer_lab.backends.plain.manual import identity


def within(tap: Callable[[str, Any], Any], part: str) -> Callable[[str, Any], Any]:
    """The tap for a part of the decoder, whose names begin with `part`. No tap stays none, which operations may ask."""
    return tap if tap is identity else lambda name, x: tap(part + name, x)
