"""Experts of which only some are in memory: the kernels of the others lie in files until a router asks for them.

A model of many experts uses few of them for a token. Kernels are placed on the device under a budget in bytes, and the
one that was used longest ago goes first. Files are those of the cold tier (`tiers/cold.py`), by content, so that a
second start finds them written. What is computed is the same to the last bit: the same kernels go into the same
products.

Which experts the next layer will want is guessed: its gate is asked about what the present layer is given (Eliseev and
Mazur 2023, arXiv 2312.17238, section 3.2). A thread reads them meanwhile.
"""

import hashlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from transformer_lab.backends.plain.experts import Fetched
from transformer_lab.backends.plain.manual import identity
from transformer_lab.errors import ConfigurationError, UnavailableError
from transformer_lab.ffn.moe import mixtures
from transformer_lab.model.config import ModelConfig
from transformer_lab.paths import cache_folder, expanded
from transformer_lab.router.router import Router
from transformer_lab.tiers.block import Block
from transformer_lab.tiers.block_file import file_size, header_of
from transformer_lab.tiers.key import named_key
from transformer_lab.tiers.tiers import Tiers


@dataclass
class ResidencyCounts:
    """In kernels, each of one map of one expert, and in bytes as they are placed.

    A kernel that was needed is a hit, a miss or awaited; the three together are how often one was. What is read to save
    or to hash the whole model is not counted.
    """

    hits: int = 0  # it was in memory
    misses: int = 0  # it was read because it was needed
    awaited: int = 0  # it was guessed, and still being read
    evicted: int = 0
    prefetched: int = 0  # read because they were guessed
    guessed_right: int = 0  # of these, used before they went: hits, or awaited
    resident_bytes: int = 0
    most_resident_bytes: int = 0


@dataclass(frozen=True)
class Residency:
    """bytes: how many the kernels of experts may take on the device; what is being used may be above them.

    folder: in which the files are, in a folder `experts` of their own; None is the cache folder. disk_bytes: their
    budget, which must hold the whole model's experts. prefetch: whether the next layer's experts are guessed.
    """

    bytes: int = 2**30
    folder: str | Path | None = None
    disk_bytes: int = 2**38
    prefetch: bool = False

    def __post_init__(self) -> None:
        for name in ("bytes", "disk_bytes"):
            size = getattr(self, name)
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                message = f"residency.{name} is {size!r}; it must be a whole number of bytes, at least 1."
                raise ConfigurationError(message)
        if self.folder is not None and not str(self.folder).strip():
            message = "residency.folder is empty. Give the name of a folder, or leave it out for the cache folder."
            raise ConfigurationError(message)

    def begin(self, ops: Any, config: ModelConfig) -> "ResidentExperts":
        """Raises ConfigurationError for a model without experts, for a backend that compiles what it runs, and for a
        budget of the files that is too small; UnavailableError for a folder that cannot be used."""
        if not (found := mixtures(config)):
            message = "residency is for the experts of a mixture, and this model has none. Leave it out."
            raise ConfigurationError(message)
        dtype = np.dtype(np.float64 if ops.precision == "float64" else np.float32)
        needed = sum(
            shape[0] * _size_of_file(shape[1:], dtype)
            for ffn in found.values()
            for name, shape in ffn.experts.shapes(config.hidden_size).items()
            if name.endswith(".kernel")
        )
        if needed > self.disk_bytes:
            message = (
                f"residency.disk_bytes is {self.disk_bytes:,}, and the files of this model's experts take {needed:,} "
                "bytes. Give it as many, or more."
            )
            raise ConfigurationError(message)
        if not ops.in_place and ops.precision != "exact":
            message = (
                f"The {ops.name} backend compiles a whole step, with every kernel in it, so none can be brought "
                "meanwhile. Use backend=numpy or torch, or precision=exact."
            )
            raise ConfigurationError(message)
        if self.prefetch and ops.precision == "exact":
            message = "residency.prefetch is true, and exact mode guesses no experts. Leave it out there."
            raise ConfigurationError(message)
        folder = cache_folder() if self.folder is None else expanded(self.folder)
        return ResidentExperts(ops, self, folder.absolute() / "experts")  # a cache may have its own files beside it


@dataclass(eq=False)
class _Placed:
    """kernel: as the backend has it. guessed: it was read because of a guess, and not used yet."""

    kernel: Any
    size: int
    guessed: bool = False


@dataclass(eq=False)
class ResidentExperts:
    """The kernels of one model's experts. From any thread."""

    ops: Any
    policy: Residency
    folder: Path
    counts: ResidencyCounts = field(default_factory=ResidencyCounts)

    def __post_init__(self) -> None:
        self.tiers = Tiers(0, self.folder, self.policy.disk_bytes, warns=False)
        self._require_files()
        self._keys: dict[str, list[bytes]] = {}
        self._hot: OrderedDict[tuple[str, int], _Placed] = OrderedDict()
        self._coming: dict[tuple[str, int], Future[_Placed]] = {}
        self._lock = threading.Lock()
        self._reader = ThreadPoolExecutor(1) if self.policy.prefetch else None
        weakref.finalize(self, self.tiers.finish)  # at the end of the process too

    def place(self, name: str, array: np.ndarray) -> Any:
        """As `Backend.place`; of the kernels of experts [E, in, out] what fetches one when it is needed."""
        if array.ndim != 3 or not name.endswith(".kernel"):
            return self.ops.place(name, array)
        self._keys[name] = [self._put(np.ascontiguousarray(one)) for one in array]
        self._require_files()
        return Fetched(len(array), lambda number: self.kernel(name, number), lambda number: self.read(name, number))

    def settle(self) -> None:
        """Waits until all that was placed is in the files. Raises UnavailableError if it is not: a full disk is found
        here, and not in the middle of a text."""
        self.tiers.flush()
        self._require_files()
        for name, keys in self._keys.items():
            for number, key in enumerate(keys):
                if not self.tiers.contains(key):
                    raise self._gone(name, number)

    def anew(self) -> "ResidentExperts":
        """For other weights of the same model, in the same folder under the same budgets; nothing is in it yet."""
        return ResidentExperts(self.ops, self.policy, self.folder)

    def kernel(self, name: str, number: int) -> Any:
        """The placed kernel of this expert. Raises UnavailableError if its file cannot be read any more."""
        at = (name, number)
        with self._lock:
            here = self._hot.get(at)
            coming = None if here is not None else self._coming.get(at)
            self.counts.hits += here is not None
            self.counts.awaited += coming is not None
            self.counts.misses += here is None and coming is None
            if here is not None:
                self._hot.move_to_end(at)
                self.counts.guessed_right += here.guessed
                here.guessed = False
                return here.kernel
        if coming is not None:
            placed = coming.result()
            with self._lock:
                self.counts.guessed_right += placed.guessed
                placed.guessed = False
            return placed.kernel
        placed = self._read(at)
        self._keep(at, placed)
        return placed.kernel

    def read(self, name: str, number: int) -> Any:
        """The same past all that is kept: nothing is counted, and nothing goes for it."""
        return self._read((name, number)).kernel

    def guess(self, name: str, number: int) -> None:
        """It will be needed soon: a thread reads it."""
        at = (name, number)
        with self._lock:
            if self._reader is None or at in self._hot or at in self._coming:
                return
            self._coming[at] = self._reader.submit(self._read_ahead, at)
            self.counts.prefetched += 1

    def to_dict(self) -> dict[str, Any]:
        """What a record says of it."""
        return asdict(self.counts) | {"tiers": asdict(self.tiers.ledger)}

    def _put(self, kernel: np.ndarray) -> bytes:
        """The key of its content, under which it is in the files afterwards. What is there already is read once: a
        damaged file goes by that, and is written again."""
        digest = hashlib.sha256(kernel.reshape(-1).view(np.uint8).data).digest()
        key = named_key(digest, f"kernel {kernel.dtype} {kernel.shape}")
        if not self.tiers.contains(key) or self.tiers.get(key, ()) is None:
            self.tiers.put(key, (), {"kernel": kernel})
        return key

    def _read(self, at: tuple[str, int]) -> _Placed:
        name, number = at
        found = self.tiers.get(self._keys[name][number], ())
        if found is None:
            self._require_files()
            raise self._gone(name, number)
        kernel = self.ops.place(name, found.arrays["kernel"])
        return _Placed(kernel, _bytes_of(kernel))

    def _require_files(self) -> None:
        if self.tiers.reason is not None:
            message = f"Experts cannot be kept in {self.folder}: {self.tiers.reason}. Give another residency.folder."
            raise UnavailableError(message)

    def _gone(self, name: str, number: int) -> UnavailableError:
        message = (
            f"An expert's kernel, {name} number {number}, is not in {self.folder} any more. Load the model again; "
            "residency.disk_bytes must hold all of its experts."
        )
        return UnavailableError(message)

    def _read_ahead(self, at: tuple[str, int]) -> _Placed:
        try:
            placed = self._read(at)
            placed.guessed = True
            self._keep(at, placed)
        finally:
            with self._lock:
                del self._coming[at]
        return placed

    def _keep(self, at: tuple[str, int], placed: _Placed) -> None:
        with self._lock:
            if at in self._hot or placed.size > self.policy.bytes:
                return
            while self.counts.resident_bytes + placed.size > self.policy.bytes:
                _, gone = self._hot.popitem(last=False)
                self.counts.resident_bytes -= gone.size
                self.counts.evicted += 1
            self._hot[at] = placed
            self.counts.resident_bytes += placed.size
            self.counts.most_resident_bytes = max(self.counts.most_resident_bytes, self.counts.resident_bytes)

    def looking_ahead(self, config: ModelConfig, params: Any) -> Callable[[str, Any], Any]:
        """A tap: of a single token it guesses, at a layer's feed-forward network, which experts the next layer with
        some will want. Where a router scores otherwise than by a gate, nothing is guessed."""
        layers = mixtures(config)
        following = {f"blocks.{here}.norm_2": after for here, after in pairwise(layers)}

        def tap(name: str, x: Any) -> Any:
            after = following.get(name)
            if after is not None and x.shape[0] * x.shape[1] == 1 and self._reader is not None:
                ffn, own = layers[after], params["blocks"][after]["ffn"]
                if type(ffn.router).logits is Router.logits and type(ffn.router).choose is Router.choose:
                    logits = ffn.router.logits(self.ops, own.get("router", {}), x, identity, None)
                    ids = ffn.router.choose(self.ops, own.get("router", {}), logits, own.get("balancer", {}), None)
                    self._guess_all(f"blocks.{after}.ffn.experts.", self.ops.to_numpy(ids).reshape(-1).tolist())
            return x

        return tap

    def _guess_all(self, prefix: str, numbers: Sequence[int]) -> None:
        for number in numbers:
            for name in self._keys:
                if name.startswith(prefix):
                    self.guess(name, number)


def _size_of_file(shape: Sequence[int], dtype: np.dtype) -> int:
    """Of one kernel, in bytes; nothing of its size is made for it."""
    block = Block((), {"kernel": np.broadcast_to(np.zeros((), dtype), shape)})
    return file_size(header_of(bytes(32), block), block)


def _bytes_of(kernel: Any) -> int:
    """Of a placed kernel, which may be several arrays: numbers of a lower precision with their scales, say."""
    return sum(map(_bytes_of, kernel)) if isinstance(kernel, tuple) else int(kernel.nbytes)
