"""The SHA-256 of a folder's weight files, remembered between runs so that a large file is read once.

The digests are kept in the user's cache folder, by path, size and times of the file. A cache that cannot be read or
written is passed over in silence: the digest is then computed again.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from transformer_lab.atomic_file import of_content, write_file
from transformer_lab.checkpoints.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS, holds_adapter
from transformer_lab.checkpoints.regular_file import open_regular
from transformer_lab.checkpoints.weight_files import require_folder, weight_files
from transformer_lab.errors import InputFileError
from transformer_lab.paths import cache_folder, expanded

_CHUNK_BYTES = 4 * 1024 * 1024
_LARGEST_CACHE = 5_000_000
_MOST_ENTRIES = 2_000


def weights_sha256(folder: str | Path, adapter: Path | None = None) -> str:
    """64 hexadecimal digits for the weights in `folder`, and of the LoRA adapter that is added to them.

    For one file it is the SHA-256 of the file, as `sha256sum model.safetensors` prints it. For shards it is the SHA-256
    of what `sha256sum model-*.safetensors` prints: a line "<digest>  <file name>" for each shard, in order of name. The
    two files of an adapter follow these in the same form. `adapter` as in `load_parameters`.
    """
    folder = expanded(folder)
    require_folder(folder)
    files = sorted(weight_files(folder))
    if adapter is None and holds_adapter(folder):
        adapter = folder
    if adapter is not None:
        files += [adapter / ADAPTER_CONFIG, adapter / ADAPTER_WEIGHTS]
    digests = [_sha256(path) for path in files]
    if len(files) == 1:
        return digests[0]
    lines = "".join(f"{digest}  {path.name}\n" for digest, path in zip(digests, files, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def _sha256(path: Path) -> str:
    with open_regular(path) as handle:
        status = os.fstat(handle.fileno())
        # The time of the last change of the inode is in it too: unlike the others, no program can set it back.
        key = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        name = os.path.realpath(path)
        cached = _read_cache().get(name)
        if isinstance(cached, list) and cached[:-1] == key and _is_digest(cached[-1]):
            return str(cached[-1])
        digest = hashlib.sha256()
        try:
            while piece := handle.read(_CHUNK_BYTES):
                digest.update(piece)
        except OSError as error:
            message = f"{path} cannot be read: {error.strerror}."
            raise InputFileError(message) from error
    _write_cache(name, [*key, digest.hexdigest()])
    return digest.hexdigest()


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _read_cache() -> dict[str, Any]:
    try:
        path = cache_folder() / "weights_sha256.json"
        if not path.is_file() or path.stat().st_size > _LARGEST_CACHE:
            return {}
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError, RuntimeError):  # RuntimeError: no home folder
        return {}
    return value if isinstance(value, dict) else {}


def _write_cache(name: str, entry: list[Any]) -> None:
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        kept = [(key, value) for key, value in _read_cache().items() if key != name]
        cache = dict(kept[-_MOST_ENTRIES + 1 :]) | {name: entry}
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / "weights_sha256.json", of_content(json.dumps(cache, indent=0)))
