"""What stood in somebody's file, made short and safe to print: no escape sequences, no half characters, one line."""

from collections.abc import Collection
from typing import Any

LONGEST = 80
LISTED = 8


def quoted(value: Any) -> str:
    """`value` as Python would write it, cut to LONGEST characters. repr escapes what a terminal would obey."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)} entries"
    if isinstance(value, str) and len(value) > LONGEST:
        return repr(value[:LONGEST]) + "..."
    text = repr(value)
    return text if len(text) <= LONGEST + 2 else text[:LONGEST] + "..."


def listed(items: Collection[str]) -> str:
    """The first few of many, and how many more there are."""
    shown = ", ".join(list(items)[:LISTED])
    return f"{shown} and {len(items) - LISTED} more" if len(items) > LISTED else shown
