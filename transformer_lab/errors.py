"""What a user can get wrong, in three kinds; each kind knows its exit code. And how values are shown in messages.

A message is one to three plain sentences: what was given, what was expected, what to do. The command line prints
it without a traceback. Anything that is not a LabError is a bug of ours and exits with 1.
"""

import re
from collections.abc import Collection
from typing import Any

LONGEST_VALUE = 80
LONGEST_WORD = 300  # far above the paths and names that people use
LONGEST_MESSAGE = 2000
LISTED = 8


def printable(text: str) -> str:
    """The text with what a terminal would obey, line ends too, written as Python writes it."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def shortened(text: str) -> str:
    """The text without the middle of what is too long: of each word, such as a path, and of the whole."""
    text = re.sub(rf"\S{{{LONGEST_WORD + 1},}}", lambda word: _ends(word[0], LONGEST_WORD), text)
    return _ends(text, LONGEST_MESSAGE)


def _ends(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest * 2 // 3]}...{text[-longest // 4 :]}"


def shown(value: Any) -> str:
    """A value out of somebody's file or command line, for a message: one line, cut to LONGEST_VALUE characters.

    It is written as Python would, which escapes what a terminal would obey, but null, true and false as in JSON; of a
    list or an object only what it is.
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)} entries"
    if isinstance(value, str) and len(value) > LONGEST_VALUE:
        return repr(value[:LONGEST_VALUE]) + "..."
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE + 2 else text[:LONGEST_VALUE] + "..."


def listed(items: Collection[str]) -> str:
    """The first few of many, and how many more there are."""
    first = ", ".join(list(items)[:LISTED])
    return f"{first} and {len(items) - LISTED} more" if len(items) > LISTED else first


class TierWarning(RuntimeWarning):
    """A run goes on without a tier of its memory, or with one that is of no use. The command line says it in a line."""


class LabError(Exception):
    """Something that the user can put right. Raise one of the three kinds below."""

    exit_code = 1

    def __str__(self) -> str:
        """The message on one line, printable and not too long, since names come from files and command lines."""
        return shortened(printable(super().__str__()))


class ConfigurationError(LabError, ValueError):
    """A wrong option or argument: an unknown choice, a value out of range, more tokens than the context holds."""

    exit_code = 2


class InputFileError(LabError, ValueError):
    """A file or folder that the user named is missing, damaged, or does not fit."""

    exit_code = 3


class UnavailableError(LabError, RuntimeError):
    """Not to be had on this machine: a package not installed, no such device, memory, disk or network."""

    exit_code = 4
