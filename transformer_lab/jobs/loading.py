"""The model that the settings choose, with a progress bar on standard error while it is read, and what to call it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from transformer_lab.config import Settings
from transformer_lab.errors import printable
from transformer_lab.sources import load_tokenizer
from transformer_lab.tokenizers import Tokenizer


def load_chosen_model(settings: Settings) -> Any:
    """The LanguageModel of `settings`, on the chosen backend, with the chosen operations, cache and tokenizer."""
    from transformer_lab.language_model import load_model

    precision = settings.sections["precision"]["name"]
    ops = settings.sections["ops"]
    chosen = settings.sections["model"]
    with progress_bar() as progress:
        model = load_model(
            str(chosen["source"] or settings.choices["model"]),  # a shape without weights is refused by its name
            backend=settings.build("backend", precision=precision, ops=ops),
            precision=precision,
            ops=ops,
            tokenizer=settings.sections["tokenizer"]["name"],
            cache=settings.build("cache"),
            residency=settings.build("residency") if "residency" in settings.sections else None,
            **chosen_parts(settings),
            revision=chosen["revision"],
            weights=chosen["weights"],
            seed=settings.seed,
            progress=progress,
        )
    if (source := settings.sections["tokenizer"]["source"]) is not None:
        model.tokenizer = chosen_tokenizer(source, settings.sections["tokenizer"]["name"], model.config.vocab_size)
    return model


def chosen_tokenizer(source: str, kind: str, vocab_size: int | None = None) -> Tokenizer:
    """The tokenizer that `tokenizer.source` names; InputFileError if a model of vocab_size cannot take its ids."""
    from transformer_lab.language_model import require_fitting

    tokenizer = load_tokenizer(source, kind)
    if vocab_size is not None:
        require_fitting(tokenizer, vocab_size, source)
    return tokenizer


def in_words(model: Any) -> str:
    """Which model runs where, for the head of a table."""
    where = f"{model.backend.name} on {model.backend.device}, {model.backend.precision}"
    total, active = model.parameters_count, model.active_parameters_count
    of_a_token = f", {active:,} of them for a token" if active != total else ""
    return f"{printable(model.source)}, {total:,} parameters{of_a_token}; {where}"


def chosen_parts(settings: Settings) -> dict[str, Any]:
    """The parts that replace those of the model, or the fields to change in them: what `with_parts` takes."""
    from transformer_lab.language_model.changed_parts import PARTS

    return {group: part for group in PARTS if (part := _chosen_part(settings, group)) is not None}


def _chosen_part(settings: Settings, group: str) -> Any:
    section = settings.sections.get(group) or {}
    if group == "ffn" and "_target_" in section:  # whole, lest a router that gives way to another is complained of
        more = [name for name in ("router", "balancer") if name in section and settings.choices.get(name)]
        return settings.build(group, **{name: settings.build(name) for name in more})
    if "_target_" in section:
        return partial(settings.build, group) if group == "block" else settings.build(group)
    return {name: value for name, value in section.items() if value is not None} or None


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None] | None]:
    """A callback (description, done, total) that draws a bar, if somebody is looking."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress, TaskID

    tasks: dict[str, TaskID] = {}
    with Progress(console=Console(stderr=True), transient=True) as bar:

        def advance(description: str, done: int, total: int) -> None:
            if description not in tasks:
                tasks[description] = bar.add_task(description, total=total)
            bar.update(tasks[description], completed=done, total=total)

        yield advance
