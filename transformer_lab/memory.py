"""Memory that is not there: asked for before much is allocated, and the errors of every library as one of ours."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from transformer_lab.errors import LabError, UnavailableError

# How torch, oneDNN, JAX and C++ say it; Python and NumPy raise MemoryError.
_WORDS = re.compile(r"out of memory|can't allocate memory|RESOURCE_EXHAUSTED|bad_alloc|bad allocation", re.IGNORECASE)
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error of some library means that memory was refused."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and not isinstance(error, LabError) and bool(_WORDS.search(str(error)))


@contextmanager
def enough_memory(what: str) -> Iterator[None]:
    """Turns such an error into an UnavailableError: there is not enough memory for `what`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        message = f"There is not enough memory for {what}."
        raise UnavailableError(message) from error


def require_bytes(needed: int, what: str) -> None:
    """Refuses what cannot fit. Linux grants more memory than there is, and ends the process when it is used."""
    free = available_bytes()
    if free is not None and needed > free:
        message = (
            f"There is not enough memory for {what}: it takes {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} are free."
        )
        raise UnavailableError(message)


def available_bytes() -> int | None:
    """What can still be had, swap included, or None where the system does not tell (only Linux does)."""
    found = []
    with suppress(OSError, ValueError, KeyError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
        found.append(sizes["MemAvailable"] + sizes["SwapFree"])
    for limit in _LIMITS:
        with suppress(OSError, ValueError):  # "max": no limit
            found.append(int(Path(limit).read_text(encoding="ascii")))
    return min(found, default=None)
