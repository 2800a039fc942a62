"""What a user can get wrong, in three kinds; each kind knows its exit code.

A message is one to three plain sentences: what was given, what was expected, what to do. The command line prints
it without a traceback. Anything that is not a LabError is a bug of ours and exits with 1.
"""


def printable(text: str) -> str:
    """The text with what a terminal would obey, line ends too, written as Python writes it."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


class LabError(Exception):
    """Something that the user can put right. Raise one of the three kinds below."""

    exit_code = 1

    def __str__(self) -> str:
        """The message on one line, printable, since names come from files."""
        return printable(super().__str__())


class ConfigurationError(LabError, ValueError):
    """A wrong option or argument: an unknown choice, a value out of range, more tokens than the context holds."""

    exit_code = 2


class InputFileError(LabError, ValueError):
    """A file or folder that the user named is missing, damaged, or does not fit."""

    exit_code = 3


class UnavailableError(LabError, RuntimeError):
    """Not to be had on this machine: a package not installed, no such device, memory, disk or network."""

    exit_code = 4
