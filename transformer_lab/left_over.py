"""Temporary files and folders beside what they become, and the removal of those that a killed process left over.

A process that is killed cannot clean up behind itself, and several may write into one folder at once. So each holds a
lock on what it is writing; the system takes the lock back when the process ends, however it ends. What can be locked
has no writer any more. Locks are believed on the writer's own machine alone: what came from another over a shared disk
is left over when nothing has touched it for a day, and so is all where there are no locks (Windows, some disks).
"""

import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_DAY = 86_400
_ENDING = ".transformer-lab"  # nobody else's temporary files are to be taken for ours
_NAME = re.compile(rf"\..+\.(?P<machine>[\w-]*)\.[0-9a-f]{{12}}{re.escape(_ENDING)}", re.DOTALL)


@contextmanager
def temporary(path: Path, make: Callable[[Path], object]) -> Iterator[Path]:
    """A new file or folder beside `path`, made by make(place); removed after the block, unless it has gone elsewhere.

    Raises OSError as the system does.
    """
    place, lock = _held(path, make)
    try:
        yield place
    finally:
        discard(place)
        if lock is not None:
            os.close(lock)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder where the system keeps temporary ones, for this user alone; it is gone after the block."""
    parent = Path(tempfile.gettempdir())
    remove_left_over(parent)
    with temporary(parent / "temporary", lambda place: place.mkdir(0o700)) as folder:
        yield folder


def temporary_name(path: Path) -> Path:
    """A name beside `path` that nothing has, and that `remove_left_over` knows."""
    return path.with_name(f".{path.name[:40]}.{_machine()}.{secrets.token_hex(6)}{_ENDING}")


def remove_left_over(folder: Path) -> None:
    """Removes the temporary files and folders in `folder` whose writers are dead. What cannot be removed stays."""
    with suppress(OSError):
        for name in os.listdir(folder):
            if found := _NAME.fullmatch(name):
                with suppress(OSError):
                    _remove_if_left_over(folder / name, found["machine"])


def discard(path: Path) -> None:
    """Removes a file or folder, as far as the system lets it; what stays of a temporary one goes another time."""
    with suppress(OSError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock on a file or folder during the block, where there are locks. BlockingIOError: another has it."""
    lock = _lock(path)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _held(path: Path, make: Callable[[Path], object]) -> tuple[Path, int | None]:
    """Something new beside `path`, and its lock. Until it is locked it may be taken for left over: then another one."""
    while True:
        place = temporary_name(path)
        make(place)
        lock = None
        try:
            lock = _lock(place)
            if lock is None or os.path.samestat(os.fstat(lock), os.stat(place)):
                return place, lock
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            discard(place)
            raise
        if lock is not None:
            os.close(lock)


def _lock(path: Path) -> int | None:
    """The open file that holds the lock, None where there are no locks. Raises BlockingIOError if another has it."""
    if fcntl is None:
        return None
    # Network disks lock nothing that is not open for writing. O_NONBLOCK: a pipe of such a name must not be waited for.
    way = os.O_RDONLY if os.path.isdir(path) else os.O_RDWR
    file = os.open(path, way | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return file


def _remove_if_left_over(path: Path, machine: str) -> None:
    """Raises OSError, of which BlockingIOError is one, if it is not to be removed."""
    lock = _lock(path) if machine == _machine() else None
    try:
        if lock is not None or time.time() - _last_touched(path) > _DAY:
            discard(path)
    finally:
        if lock is not None:
            os.close(lock)


def _last_touched(path: Path) -> float:
    """In seconds since 1970. A folder's own time does not change while the files in it grow, so theirs count too."""
    inside = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
    return max(os.lstat(place).st_mtime for place in (path, *inside))


def _machine() -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", platform.node())[:60]
