"""`job=routing`: what the routers of a mixture of experts do; a table, result.json and routing.html."""

import sys
from dataclasses import dataclass
from typing import Any

from transformer_lab.config import Settings, names
from transformer_lab.errors import printable
from transformer_lab.jobs.loading import chosen_parts, load_chosen_model, progress_bar
from transformer_lab.jobs.prompts import chosen_prompt
from transformer_lab.jobs.record import Result
from transformer_lab.model.limits import require_choice

PAGE = "routing.html"


@dataclass(frozen=True)
class Routing:
    """default_texts: what is routed if no prompt is given; None is what `comparison/default_prompts.py` offers.

    against: another backend, or None: beside the statistics, the difference of its logits is split (`routes/split.py`).
    against_precision: the precision there; None is the same.
    """

    default_texts: list[str] | None
    against: str | None
    against_precision: str | None

    def run(self, settings: Settings) -> Result:
        from rich.console import Console

        from transformer_lab.routes.console import print_routing, print_split
        from transformer_lab.routes.split import routing_split
        from transformer_lab.routes.study import routing

        if self.against is not None:
            require_choice("job.against", self.against, tuple(names("backend")))
        asked = any(getattr(settings, key) is not None for key in ("prompt", "prompt_file", "prompt_ids", "prompts"))
        texts: Any = chosen_prompt(settings, "") if asked else self.default_texts
        model = load_chosen_model(settings)
        report = routing(model, texts)
        console = Console(file=sys.stdout)
        print_routing(report.to_dict(), console)
        output = report.to_dict()
        if self.against is not None or self.against_precision is not None:
            output["split"] = routing_split(model, self._other(settings), texts).to_dict()
            print_split(output["split"], console)
        assert settings.folder is not None
        page = settings.folder / PAGE
        report.to_html(page)
        print(f"\nThe whole report: {printable(str(page))}")
        return Result(output=output, model=model, timing={"load_s": model.load_seconds})

    def _other(self, settings: Settings) -> Any:
        from transformer_lab.language_model import load_model

        chosen = settings.sections["model"]
        with progress_bar() as progress:
            return load_model(
                str(chosen["source"] or settings.choices["model"]),
                backend=self.against or settings.choices["backend"],
                precision=self.against_precision or settings.sections["precision"]["name"],
                ops=settings.sections["ops"],
                tokenizer=settings.sections["tokenizer"]["name"],
                **chosen_parts(settings),
                revision=chosen["revision"],
                weights=chosen["weights"],
                seed=settings.seed,
                progress=progress,
            )
