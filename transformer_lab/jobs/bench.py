"""`job=bench`: the speed of this machine with the chosen model and backend, as a table on standard output.

One process and one backend: comparisons between backends are made by running it once for each.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np

from transformer_lab.config import Settings
from transformer_lab.errors import ConfigurationError
from transformer_lab.jobs.loading import in_words, load_chosen_model
from transformer_lab.jobs.record import TIMINGS, Result, peak_memory_bytes


@dataclass(frozen=True)
class Bench:
    """prompt_length, new_tokens: of each row. batch_sizes: rows at a time. repeats: the medians are reported."""

    prompt_length: int
    new_tokens: int
    batch_sizes: list[int]
    repeats: int

    def __post_init__(self) -> None:
        smallest = {"prompt_length": 1, "new_tokens": 2, "repeats": 1}  # decoding begins with the second token
        for name, least in smallest.items():
            if getattr(self, name) < least:
                message = f"job.{name} is {getattr(self, name)}; it must be at least {least}."
                raise ConfigurationError(message)
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            message = f"job.batch_sizes is {self.batch_sizes}; it must list at least one size, each at least 1."
            raise ConfigurationError(message)

    def run(self, settings: Settings) -> Result:
        model = load_chosen_model(settings)
        context = model.config.context_length
        if self.prompt_length + self.new_tokens > context:
            message = (
                f"job.prompt_length={self.prompt_length} and job.new_tokens={self.new_tokens} are more than the "
                f"{context} tokens of this model's context. Make one of them smaller."
            )
            raise ConfigurationError(message)
        rows = [self._measure(model, batch_size, settings.seed) for batch_size in self.batch_sizes]
        _print_table(model, rows)
        output = asdict(self) | {"rows": rows}
        timing = {name: rows[0][name] for name in TIMINGS if name in rows[0]} | {"load_s": model.load_seconds}
        return Result(output=output, model=model, timing=timing)

    def _measure(self, model: Any, batch_size: int, seed: int) -> dict[str, Any]:
        """Medians over the repeats. A first call, not counted in them, takes the compilation. Each call has prompts of
        its own, for a cache may remember those of the others."""
        noise, shape = np.random.default_rng([seed, batch_size]), (1 + self.repeats, batch_size, self.prompt_length)
        warm, *timings = [
            model.generate(prompts, max_new_tokens=self.new_tokens)[0].timing
            for prompts in noise.integers(0, model.config.vocab_size, shape).tolist()
        ]
        names = ("first_token_s", "prefill_tokens_per_s", "decode_tokens_per_s")
        return {"batch_size": batch_size, "compile_s": warm.compile_s} | {
            name: _median([getattr(timing, name) for timing in timings]) for name in names
        }


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _print_table(model: Any, rows: Sequence[dict[str, Any]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    memory = peak_memory_bytes()
    caption = f"loaded in {model.load_seconds:.2f} s"
    if memory is not None:
        caption += f", at most {memory / 1e6:,.0f} MB of memory"
    table = Table(title=Text(in_words(model)), caption=caption, box=SIMPLE_HEAD)
    for title in ("batch", "compile s", "first token s", "prefill tok/s", "decode tok/s"):
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(
            str(row["batch_size"]),
            f"{row['compile_s']:.2f}",
            f"{row['first_token_s']:.3f}",
            f"{row['prefill_tokens_per_s']:,.1f}",
            "-" if row["decode_tokens_per_s"] is None else f"{row['decode_tokens_per_s']:,.1f}",
        )
    Console(file=sys.stdout).print(table)
