"""One check of a participant: what was tried, and what came of it. It knows nothing of what is checked."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformer_lab.errors import UnavailableError


@dataclass(frozen=True)
class Check:
    """tried: what was really exercised. wrong: a sentence on the first defect. skipped: why it could not be tried.

    It is sound if neither of these is there.
    """

    check: str
    tried: str
    wrong: str | None = None
    skipped: str | None = None


class Wrong(Exception):
    """Ends a check: says what is wrong, on whom and where."""


class Untried(Exception):
    """Ends a check that is not possible here: says why."""


def checked(name: str, look: Callable[[], str]) -> Check:
    """look() returns what it tried, or raises one of the two above."""
    try:
        return Check(name, look())
    except Wrong as what:
        return Check(name, "It ended at the first defect.", wrong=f"A defect: {what}")
    except Untried as reason:
        return Check(name, "Nothing.", skipped=str(reason))


def require(sound: bool, finding: str) -> None:
    """Ends the check with this finding unless all is sound."""
    if not sound:
        raise Wrong(finding)


def require_possible(possible: bool, reason: str) -> None:
    """Ends the check as not tried unless it is possible here."""
    if not possible:
        raise Untried(reason)


def asked(what: str, call: Callable[[], Any]) -> Any:
    """call(). An error is a defect, too, but for memory that is not there. what: that was asked for, and of whom."""
    try:
        return call()
    except (MemoryError, UnavailableError):
        raise
    except Exception as error:
        finding = f"{what} raised {type(error).__name__}: {error}"
        raise Wrong(finding) from error
