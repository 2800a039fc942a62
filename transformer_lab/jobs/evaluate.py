"""`job=evaluate`: loss, perplexity and bits per byte of a text, as a table on standard output."""

import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from transformer_lab.config import Settings
from transformer_lab.errors import ConfigurationError
from transformer_lab.jobs.loading import in_words, load_chosen_model, progress_bar
from transformer_lab.jobs.record import Result


@dataclass(frozen=True)
class Evaluate:
    """batch_size: windows at a time. context, stride, max_tokens: see `training.evaluation.evaluate`."""

    batch_size: int
    context: int | None
    stride: int | None
    max_tokens: int | None

    def __post_init__(self) -> None:
        for name in ("batch_size", "context", "stride", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                message = f"job.{name} is {value}; it must be at least 1."
                raise ConfigurationError(message)

    def run(self, settings: Settings) -> Result:
        from transformer_lab.training.evaluation import evaluate

        data = settings.build("data")
        model = load_chosen_model(settings)
        if model.tokenizer is None:
            message = f"{model.source} has no tokenizer, which reading text needs. Name one with tokenizer.source."
            raise ConfigurationError(message)
        with progress_bar() as progress:
            text = data.whole(model.tokenizer, progress, model.config.end_of_text_id)
            begin = time.perf_counter()
            found = evaluate(model, text, self.batch_size, self.context, self.stride, self.max_tokens, progress)
        seconds = time.perf_counter() - begin
        _print_table(model, text, found, seconds)
        facts = {"path": data.path, "documents": text.documents, "text_bytes": text.text_bytes}
        return Result(output=asdict(found) | facts, model=model, timing={"load_s": model.load_seconds})


def _print_table(model: Any, text: Any, found: Any, seconds: float) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    caption = f"{text.documents:,} documents, {text.text_bytes:,} bytes; {found.tokens / seconds:,.0f} tokens/s"
    table = Table(title=Text(in_words(model)), caption=caption, box=SIMPLE_HEAD)
    for title in ("tokens", "loss (nats)", "perplexity", "bits per byte"):
        table.add_column(title, justify="right")
    bits = "-" if found.bits_per_byte is None else f"{found.bits_per_byte:.4f}"
    table.add_row(f"{found.tokens:,}", f"{found.loss:.4f}", f"{found.perplexity:,.2f}", bits)
    Console(file=sys.stdout).print(table)
