"""What keys and values hang on beside their tokens: of another run they are the same only where all of this is."""

import hashlib
import platform
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from typing import Any

import numpy as np

from transformer_lab.model.config import ModelConfig
from transformer_lab.model.parameters import flatten, shapes
from transformer_lab.tiers.key import Provenance


def provenance(ops: Any, config: ModelConfig, params: Any, block: int, below: str) -> Provenance:
    """block: of how many tokens the passes of a prompt are. below: how numbers lie in the tiers. All of the
    configuration counts, though not all of it touches keys and values: what is there too much costs a block, and what
    is missing would cost a right answer."""
    return Provenance(
        weights=weights_digest(ops, config, params),
        configuration=f"{config!r}, blocks of {block}, {below}",
        backend=f"{ops.name} {ops.version} on {ops.device}, {platform.machine()}",
        operations=repr(sorted(ops.ops.items())),
        precision=ops.precision,
    )


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
