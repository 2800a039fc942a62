"""What keys and values hang on beside their tokens: of another run they are the same only where all of this is."""

import hashlib
import os
import platform
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from transformer_lab.model.config import ModelConfig
from transformer_lab.model.parameters import flatten, shapes
from transformer_lab.tiers.key import Provenance

_PACKAGE = Path(__file__).resolve().parents[1]


def provenance(ops: Any, config: ModelConfig, params: Any, block: int, below: str) -> Provenance:
    """block: of how many tokens the passes of a prompt are. below: how numbers lie in the tiers. All of the
    configuration counts, though not all of it touches keys and values, and all of the code, ours and that of parts that
    are somebody's own: what is there too much costs a block, and what is missing would cost a right answer."""
    modules: set[str] = {kind.__module__ for kind in type(ops).__mro__}
    for versions in ops.implementations.values():
        modules |= {getattr(implementation.run, "__module__", "") for implementation in versions.values()}
    configuration = described(config, modules)
    return Provenance(
        weights=weights_digest(ops, config, params),
        configuration=f"{configuration}, blocks of {block}, {below}",
        backend=f"{ops.name} {ops.version} on {ops.device}, {platform.machine()}",
        operations=f"{sorted(ops.ops.items())!r}, code {code_digest(modules)}",
        precision=ops.precision,
    )


def described(value: Any, modules: set[str]) -> str:
    """Everything that a part holds, in words, what its repr leaves out too; the modules of its classes are added."""
    if isinstance(value, np.ndarray):
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return f"array {value.dtype} {value.shape} {digest}"
    if isinstance(value, (list, tuple)):
        return f"({', '.join(described(one, modules) for one in value)})"
    if isinstance(value, Mapping):
        return described(tuple(value.items()), modules)
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return repr(value)
    if callable(value) and hasattr(value, "__qualname__"):
        modules.add(value.__module__)
        around = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
        around += getattr(value, "__defaults__", None) or ()
        around = [repr(one) if callable(one) else one for one in around]  # a function may hold itself
        return f"{value.__module__}.{value.__qualname__} {described(around, modules)}"
    modules |= {kind.__module__ for kind in type(value).__mro__}
    if is_dataclass(value):  # without what it has worked out since it was made
        held = {field.name: getattr(value, field.name) for field in fields(value)}
    else:  # a repr that says where it lies in memory is another one in each process, and nothing is found
        held = {"itself": repr(value), **getattr(value, "__dict__", {})}
    return f"{type(value).__module__}.{type(value).__qualname__} {described(held, modules)}"


def code_digest(modules: set[str]) -> str:
    """Of this package, and of the files of other modules with those that lie beside them. What has no file, as a class
    in a notebook, is another one in each process."""
    digest = hashlib.sha256(_digest_of_folder(_PACKAGE).encode())
    ours = (f"{_PACKAGE.name}.", "builtins.", "abc.", "typing.", "functools.")
    for name in sorted(name for name in modules if not f"{name}.".startswith(ours)):
        file = getattr(sys.modules.get(name), "__file__", None)
        digest.update(_digest_of_files_beside(Path(file)) if file and os.path.isfile(file) else os.urandom(32))
    return digest.hexdigest()


def _digest_of_files_beside(path: Path) -> bytes:
    """Of a module's file, and of those in its folder that were loaded too: it may stand on them."""
    files = {Path(file) for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))}
    beside = sorted(file for file in files if file == path or (file.parent == path.parent and file.is_file()))
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in beside)).digest()


@cache
def _digest_of_folder(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder)} ".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def weights_digest(ops: Any, config: ModelConfig, params: Any) -> str:
    """SHA-256 of the digests of all that was learned, each array with its name, type and shape, in hexadecimal. What is
    derived from it, a tied head say, is not looked at."""
    learned = shapes(config)
    arrays = sorted((entry for entry in flatten(params) if entry[0] in learned), key=itemgetter(0))

    def of_array(entry: tuple[str, Any]) -> bytes:
        name, array = entry
        there = np.ascontiguousarray(ops.recover(name, array))
        digest = hashlib.sha256(f"{name} {there.dtype} {there.shape} ".encode())
        digest.update(there.reshape(-1).view(np.uint8).data)
        return digest.digest()

    with ThreadPoolExecutor() as threads:  # hashing leaves the interpreter to others
        return hashlib.sha256(b"".join(threads.map(of_array, arrays))).hexdigest()
