"""One pass over whole rows, without a cache, as NumPy: logits, losses, taps to look at or to change. Compiled
once for each.

What is compiled holds on to nothing but the backend and the configuration: JAX keeps it for good, and a model that is
forgotten must give its weights back. So the weights come with every call.
"""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np

from transformer_lab.errors import ConfigurationError
from transformer_lab.memory import enough_memory
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.decoder import forward, tap_names

THIS_CALL = "this call. Take shorter texts, or fewer of them at a time"  # what there is not enough memory for


class ForwardPasses:
    """ids are int64 [B, T], and were checked."""

    def __init__(self, backend: Any, config: ModelConfig) -> None:
        self.backend, self.config = backend, config

        def logits(params: Any, ids: Any, start: Any, lengths: Any) -> Any:
            return forward(backend, config, params, ids, start, lengths=lengths)[0]

        self._logits = backend.compile(logits)
        self._losses = backend.compile(
            lambda params, ids, start, lengths, targets: backend.cross_entropy(
                logits(params, ids, start, lengths), targets
            )
        )
        self._recorders: dict[tuple[tuple[str, ...] | None, tuple[str, ...]], Callable[..., Any]] = {}

    def logits(self, params: Any, ids: np.ndarray) -> np.ndarray:
        """[B, T, V] in float32, or float64 if precision=float64."""
        dtype = np.float64 if self.backend.precision == "float64" else np.float32
        return self._run_padded(self._logits, params, ids).astype(dtype, copy=False)

    def losses(self, params: Any, ids: np.ndarray) -> np.ndarray:
        """[B, T + 1] -> [B, T], the cross-entropy of each id but the first."""
        return self._run_padded(self._losses, params, ids[:, :-1], ids[:, 1:])

    def taps(
        self,
        params: Any,
        ids: np.ndarray,
        names: str | Sequence[str] | None,
        patches: Mapping[str, Any] | None = None,
    ) -> dict[str, np.ndarray]:
        """{tap name: array} in the order of the pass; names None is all that the bound operations show.

        patches: {tap name: what it returns in place of what it is given}.
        """
        wanted = None if names is None else self._checked_taps(names)
        patches = {name: np.asarray(array) for name, array in (patches or {}).items()}
        which = wanted, self._checked_taps(list(patches))
        for name, array in patches.items():
            _require_experts(self.config, name, array)
        if which not in self._recorders:
            self._recorders[which] = _recorder(self.backend, self.config, *which)
        with enough_memory(THIS_CALL):
            given = {name: self.backend.asarray(patches[name]) for name in which[1]}
            kept = self._recorders[which](params, self.backend.asarray(ids), self._starts(ids), given)
        for name in (*(wanted or ()), *which[1]):
            if name not in kept:
                message = (
                    f"The tap {name} lies inside a fused operation of the {self.backend.name} backend and cannot be "
                    "recorded; load the model with ops='manual'."
                )
                raise ConfigurationError(message)
        order = [name for name in tap_names(self.config) if name in kept and (wanted is None or name in wanted)]
        return {name: np.array(self.backend.to_numpy(kept[name])) for name in order}

    def _run_padded(self, function: Callable[..., Any], params: Any, ids: np.ndarray, *more: np.ndarray) -> np.ndarray:
        """Runs function(params, ids, start, lengths, *more) over rows [B, T] padded on the right, and cuts that off.

        A backend that compiles sees few lengths that way, and causality keeps the padding out of the result.
        """
        length = ids.shape[1]
        width = self.backend.bucket(length, self.config.context_length)
        padded = [self.backend.asarray(np.pad(x, ((0, 0), (0, width - length)))) for x in (ids, *more)]
        start, lengths = self._starts(ids), self.backend.asarray(np.full(len(ids), length))
        with enough_memory(THIS_CALL):
            result = self.backend.to_numpy(function(params, padded[0], start, lengths, *padded[1:]))
            return np.array(result[:, :length])

    def _starts(self, ids: np.ndarray) -> Any:
        """Each row begins at position 0."""
        return self.backend.asarray(np.zeros(len(ids), np.int64))

    def _checked_taps(self, names: str | Sequence[str]) -> tuple[str, ...]:
        known = tap_names(self.config)
        names = [names] if isinstance(names, str) else names
        for name in names:
            if name not in known:
                near = get_close_matches(str(name), known, 1)
                message = f"There is no tap {name!r}{f'; did you mean {near[0]!r}?' if near else '.'}"
                raise ConfigurationError(message)
        return tuple(sorted(set(names)))


def _recorder(
    backend: Any, config: ModelConfig, wanted: tuple[str, ...] | None, patched: tuple[str, ...]
) -> Callable[..., Any]:
    """The pass that hands out the wanted taps (None: all) and takes others from its last argument, compiled."""

    def recorded(params: Any, ids: Any, start: Any, patches: Mapping[str, Any]) -> dict[str, Any]:
        kept: dict[str, Any] = {}

        def keep(name: str, x: Any) -> Any:
            if name in patched:
                x = _in_place_of(backend, name, x, patches[name])
            if wanted is None or name in wanted or name in patched:
                kept[name] = x
            return x

        forward(backend, config, params, ids, start, tap=keep)
        return kept

    return backend.compile(recorded)


def _require_experts(config: ModelConfig, name: str, patch: np.ndarray) -> None:
    """A number of an expert that there is not would be an error on one backend, and another expert on the next."""
    if name.endswith(".router.expert_ids"):
        count = config.blocks[int(name.split(".")[1])].ffn.experts.count
        if patch.dtype.kind not in "iu" or (patch.size and not 0 <= patch.min() <= patch.max() < count):
            message = f"The patch of {name} must hold numbers of experts, whole ones from 0 to {count - 1}."
            raise ConfigurationError(message)


def _in_place_of(backend: Any, name: str, x: Any, patch: Any) -> Any:
    if tuple(patch.shape) != tuple(x.shape):
        message = f"The patch of {name} has the shape {list(patch.shape)}; this tap has {list(x.shape)}."
        raise ConfigurationError(message)
    return backend.cast(patch, x.dtype)
