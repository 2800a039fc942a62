"""What stood in somebody's file, made short and safe to print: one line, no escape sequences, no half characters."""

_LONGEST = 80


def shown(value: object) -> str:
    """`value` as Python would write it, cut to some 80 characters; of a list or an object only what it is."""
    if isinstance(value, dict | list | tuple):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)} entries"
    text = repr(value[: _LONGEST + 1] if isinstance(value, str) else value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
