"""The calls by which Python changes a disk, numbered, and what can befall a process at each of them.

`install` puts itself between this process and `os`, and lets Python's own files be written by `_pyio`, which calls `os`
for everything that the files of `io` do in C. It cannot be taken off again: it is for a process of its own.
What is written past Python (memory maps, libraries in C or Rust that are given a path) is not seen.
"""

import _pyio
import builtins
import errno
import io
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
NAMING = ("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "link", "symlink", "truncate")
TAKING_A_FILE = ("write", "fsync", "fdatasync", "ftruncate")
GROWING = {"open", "write", "mkdir", "link", "symlink", "fsync", "fdatasync"}  # what a full disk refuses
Before = Callable[[str, Path, int], int | None]


def install(root: Path, before: Before, after: Callable[[str, Path], object] = lambda call, path: None) -> None:
    """From now on `before(call, path, size)` is asked before each call that changes something below `root`.

    It may raise, or end the process. size: of what is to be written, else 0. Of a write it may return how many bytes
    are to be written, as the system may. after(call, path): when it was done. Nothing waits for the disk: what is
    synced changes nothing that can be seen before the power fails.
    """
    real = {name: getattr(os, name) for name in ("open", "close", *NAMING, *TAKING_A_FILE)}
    real_open = io.open
    files: dict[int, Path] = {}

    def place(path: object, folder: int | None) -> Path:
        given = Path(os.fsdecode(path))  # type: ignore[arg-type]
        return files[folder] / given if folder is not None else Path.cwd() / given

    def ours(path: Path) -> bool:
        return path.is_relative_to(root)

    def os_open(path: object, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        where = place(path, dir_fd)
        watched = ours(where) and flags & WRITING
        if watched:
            before("open", where, 0)
        number = real["open"](path, flags, mode, dir_fd=dir_fd)
        files[number] = where
        if watched:
            after("open", where)
        return number

    def os_close(number: int) -> None:
        files.pop(number, None)
        real["close"](number)

    def naming(name: str) -> Callable:
        def call(path: object, *more: object, dir_fd: int | None = None, **named: object) -> object:
            where = place(path, dir_fd)
            if not ours(where):
                return real[name](path, *more, **({"dir_fd": dir_fd} if dir_fd is not None else {}), **named)
            before(name, where, 0)
            done = real[name](path, *more, **({"dir_fd": dir_fd} if dir_fd is not None else {}), **named)
            after(name, where)
            return done

        return call

    def taking_a_file(name: str) -> Callable:
        def call(number: int, *more: object) -> object:
            where = files.get(number)
            if where is None or not ours(where):
                return real[name](number, *more)
            data = bytes(more[0]) if name == "write" else b""  # type: ignore[call-overload]
            size = before(name, where, len(data))
            done = None
            if name == "write":
                done = real[name](number, data[:size])
            elif name == "ftruncate":
                real[name](number, *more)
            after(name, where)
            return done

        return call

    def python_open(file: object, mode: str = "r", *more: object, **named: object) -> object:
        return (_pyio.open if set(mode) & set("wax+") else real_open)(file, mode, *more, **named)  # type: ignore

    os.open, os.close = os_open, os_close  # type: ignore[assignment]
    for name in NAMING:
        setattr(os, name, naming(name))
    for name in TAKING_A_FILE:
        setattr(os, name, taking_a_file(name))
    builtins.open = io.open = python_open  # type: ignore[assignment]


@dataclass
class Fault:
    """Something that happens at the call `number`, from 0.

    killed: the process, by the system. failing: this call, with EIO. full: the disk, from this call on; what it cuts
    off of a write is half of it. none: nothing.
    """

    kind: str
    number: int = -1
    seen: int = 0

    def __call__(self, call: str, path: Path, size: int) -> int | None:
        number, self.seen = self.seen, self.seen + 1
        if self.kind == "killed" and number == self.number:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "failing" and number == self.number:
            raise OSError(errno.EIO, "Input/output error", str(path))
        if self.kind == "full" and number >= self.number and call in GROWING:
            if call == "write" and number == self.number and size > 1:
                return size // 2
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return None


@dataclass(frozen=True)
class State:
    """kind: `killed`, `cut` or `gone`. call: the number of the call that was next. content: a `tree`."""

    kind: str
    call: int
    content: dict[str, bytes | None]


@dataclass
class Moments:
    """Keeps what is below `root` as it is before each call, in the middle of each write, and at the end.

    That is what a process leaves that is killed there. And what a power cut leaves at the worst: of files and folders
    what was synced last, with (`cut`) or without (`gone`) the names that were removed since. Each state is kept once.
    """

    root: Path
    calls: list[str] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    _known: set[tuple] = field(default_factory=set)
    _contents: dict[bytes, bytes] = field(default_factory=dict)  # each but once in memory
    _in_a_write: bool = False
    _new: bool = False
    # Inodes are used again, so each thing has a number of its own.
    _numbers: dict[int, int] = field(default_factory=dict)
    _on_disk: dict[int, bytes | dict[str, int]] = field(default_factory=dict)  # what was synced of a file or folder

    def __post_init__(self) -> None:
        paths = [self.root, *self.root.rglob("*")]
        for path in paths:
            self._begin(path)
        for path in paths:
            self._sync(path)

    def before(self, call: str, path: Path, size: int) -> int | None:
        self._new = call == "mkdir" or (call == "open" and not path.exists())
        if not self._in_a_write:
            self.calls.append(f"{call} {path.relative_to(self.root)}")
        self.keep()
        self._in_a_write = call == "write" and size > 1 and not self._in_a_write
        return size // 2 if self._in_a_write else None  # what is left of the write comes as another call

    def after(self, call: str, path: Path) -> None:
        if self._new:
            self._begin(path)
        if call in ("fsync", "fdatasync"):
            self._sync(path)

    def keep(self) -> None:
        self._keep("killed", tree(self.root))
        self._keep("cut", self._synced(gone=False))
        self._keep("gone", self._synced(gone=True))

    def _keep(self, kind: str, content: dict[str, bytes | None]) -> None:
        content = {name: data and self._contents.setdefault(data, data) for name, data in content.items()}
        key = tuple(sorted(content.items()))
        if key not in self._known:
            self._known.add(key)
            self.states.append(State(kind, len(self.calls) - 1, content))

    def _begin(self, path: Path) -> None:
        number = self._numbers[path.stat().st_ino] = len(self._on_disk)
        self._on_disk[number] = {} if path.is_dir() else b""

    def _sync(self, path: Path) -> None:
        number = self._numbers[path.stat().st_ino]
        if path.is_dir():
            self._on_disk[number] = {entry.name: self._numbers[entry.inode()] for entry in os.scandir(path)}
        else:
            self._on_disk[number] = path.read_bytes()

    def _synced(self, gone: bool) -> dict[str, bytes | None]:
        content: dict[str, bytes | None] = {}

        def walk(number: int, above: str) -> None:
            names = self._on_disk[number]
            assert isinstance(names, dict)
            for name, inner in names.items():
                if gone and not (self.root / above / name).exists():
                    continue
                what = self._on_disk[inner]
                content[above + name] = what if isinstance(what, bytes) else None
                if isinstance(what, dict):
                    walk(inner, f"{above}{name}/")

        walk(self._numbers[self.root.stat().st_ino], "")
        return content


def tree(root: Path) -> dict[str, bytes | None]:
    """Path below root -> content of a file, None for a folder."""
    paths = sorted(root.rglob("*"))
    return {path.relative_to(root).as_posix(): None if path.is_dir() else path.read_bytes() for path in paths}


def make_tree(root: Path, content: dict[str, bytes | None]) -> None:
    """The inverse of `tree`."""
    root.mkdir(parents=True)
    for name, data in content.items():
        if data is None:
            (root / name).mkdir(parents=True, exist_ok=True)
        else:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
