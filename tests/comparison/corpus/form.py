"""What a planted bug is, and the ways to plant one: into one backend, or into the code that all backends share.

Whoever chose the bugs has not read the judge (transformer_lab/comparison/) and has not run it on them. Each bug says
how it can be seen directly, without the judge: `probe`.
"""

import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any
from unittest.mock import patch

from corpus import probes
from corpus.models import folder
from transformer_lab.backends.base import Implementation
from transformer_lab.backends.frameworks import numpy as on_numpy
from transformer_lab.backends.plain import manual
from transformer_lab.config import component

OTHER = {"numpy": "torch", "torch": "numpy", "jax": "numpy"}  # the sound neighbour of a backend with a bug
Arguments = dict[str, Any]
Plant = Callable[[], AbstractContextManager[Arguments]]


@dataclass(frozen=True)
class Bug:
    """One bug.

    kind: the file it is in. says: what is wrong, and where such a thing was seen. place: where a good judge should
    point: a tap (with * for the number of any block), or words. needs: the smallest thing that a reader of
    docs/comparing.md must add to the default call; what can be an argument of `lab.compare` is one already.
    plant(): a context manager that gives the arguments for `lab.compare`; what it changed is as before afterwards.
    The last of its `backends` has the bug, or all have it, if the code is shared.
    probe(source, backend, prompts): a direct look, which comes out otherwise with the bug than without.
    """

    name: str
    kind: str
    says: str
    place: str
    plant: Plant
    needs: str = "default"
    probe: probes.Probe = probes.logits


def arguments(
    model: str, backends: Sequence[Any], prompts: Sequence[Any], precision: str = "float32", **more: Any
) -> Arguments:
    """Those of `lab.compare`. Exact mode stays off: it has versions of its own, into which nothing is planted."""
    given = {"source": folder(model), "prompts": list(prompts), "backends": list(backends), "precision": precision}
    return given | {"exact": False} | more


# --- into one backend -------------------------------------------------------------------------------------------------


def wrong_backend(
    name: str,
    operations: Mapping[str, Callable[..., Any]],
    methods: Mapping[str, Callable[..., Any]],
    backward: Mapping[str, Callable[..., Any]],
    precision: str,
    ops: Any,
) -> Any:
    """A backend whose best version of some operations is wrong.

    operations: wrong(ops, right, *arguments), where right(ops, *arguments) is the sound version. methods: wrong(ops,
    right, *arguments) for members of the backend, where right(*arguments). backward: operation -> the version that
    runs on NumPy's recorded arrays, (ops, *arguments), whose gradient is wrong.
    """
    sound = component("backend", name, precision=precision, ops=ops)
    base = type(sound)
    listed = {operation: dict(versions) for operation, versions in base.implementations.items()}
    for operation, wrong in operations.items():
        versions = listed.get(operation, {})
        right = versions.get(sound.ops[operation]) or Implementation(getattr(manual, operation))
        planted = replace(right, run=_around(wrong, right.run), unavailable=lambda ops: None)
        listed[operation] = {"planted": planted, **versions}
    members: dict[str, Any] = {"implementations": listed, "choice": ops}
    for member, wrong in methods.items():
        members[member] = _method(wrong, getattr(base, member))
    if backward:

        def bind(self: Any, choice: Any) -> Any:
            chosen = base._bind(self, choice)
            for operation, wrong in backward.items():
                setattr(self, operation, on_numpy.or_recorded(getattr(self, operation), partial(wrong, self)))
            return chosen

        members["_bind"] = bind
    return type(f"Wrong{base.__name__}", (base,), members)(precision=precision, ops=ops)


def _around(wrong: Callable[..., Any], right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda ops, *given, **named: wrong(ops, right, *given, **named)


def _method(wrong: Callable[..., Any], right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *given, **named: wrong(self, partial(right, self), *given, **named)


def into(
    name: str,
    model: str,
    prompts: Sequence[Any],
    *,
    precision: str = "float32",
    ops: Any = "fused",
    methods: Mapping[str, Callable[..., Any]] | None = None,
    backward: Mapping[str, Callable[..., Any]] | None = None,
    more: Mapping[str, Any] | None = None,
    **operations: Callable[..., Any],
) -> Plant:
    """Plants wrong operations into the backend `name`, beside a sound one of another framework."""

    @contextmanager
    def plant() -> Iterator[Arguments]:
        sound = component("backend", OTHER[name], precision=precision, ops=ops)
        wrong = wrong_backend(name, operations, methods or {}, backward or {}, precision, ops)
        yield arguments(model, [sound, wrong], prompts, precision, **(more or {}))

    return plant


# --- into what all backends share -------------------------------------------------------------------------------------


@cache
def all_modules() -> None:
    """Imports the whole package, so that nothing is imported, and keeps what it finds, while something is patched."""
    import transformer_lab

    for module in pkgutil.walk_packages(transformer_lab.__path__, "transformer_lab."):
        if not module.name.endswith("__main__"):
            try:
                importlib.import_module(module.name)
            except Exception:  # needs a package that is not installed, or is being written
                continue


def everywhere(home: str, name: str, wrong: Callable[..., Any]) -> Callable[[], AbstractContextManager[None]]:
    """wrong(right, *arguments) in place of the function `home.name`, in every module that has imported it."""

    @contextmanager
    def patched() -> Iterator[None]:
        all_modules()
        right = getattr(importlib.import_module(home), name)

        def instead(*given: Any, **named: Any) -> Any:
            return wrong(right, *given, **named)

        with ExitStack() as stack:
            for title, module in list(sys.modules.items()):
                if title.split(".")[0] == "transformer_lab":
                    for attribute in [key for key, value in vars(module).items() if value is right]:
                        stack.enter_context(patch.object(module, attribute, instead))
            yield

    return patched


def method(home: str, owner: str, name: str, wrong: Callable[..., Any]) -> Callable[[], AbstractContextManager[None]]:
    """wrong(right, self, *arguments) in place of a method."""

    @contextmanager
    def patched() -> Iterator[None]:
        all_modules()
        kind = getattr(importlib.import_module(home), owner)
        right = getattr(kind, name)

        def instead(self: Any, *given: Any, **named: Any) -> Any:
            return wrong(right, self, *given, **named)

        with patch.object(kind, name, instead):
            yield

    return patched


def shared(
    *patches: Callable[[], AbstractContextManager[None]],
    model: str,
    prompts: Sequence[Any],
    backends: Sequence[str] = ("torch", "numpy"),
    transformers: bool = False,
    more: Mapping[str, Any] | None = None,
) -> Plant:
    """Plants into shared code. With `transformers`, it takes part with the same folder, in which nothing is wrong."""

    @contextmanager
    def plant() -> Iterator[Arguments]:
        where = folder(model)  # written while all is sound
        with ExitStack() as stack:
            for patched in patches:
                stack.enter_context(patched())
            built = [component("backend", name, precision="float32", ops="fused") for name in backends]
            given = arguments(model, built, prompts, **(more or {}))
            if transformers:
                from transformer_lab.comparison.participants.transformers import Transformers

                given["participants"] = [Transformers(where)]
            yield given

    return plant
