"""`job=verify_cache`: does the chosen cache keep what it promises? A table, and the numbers in result.json."""

import sys
from dataclasses import dataclass
from typing import Any

from transformer_lab.config import Settings
from transformer_lab.jobs.loading import load_chosen_model, progress_bar
from transformer_lab.jobs.prompts import chosen_prompt
from transformer_lab.jobs.record import Result

EXIT_CODES = {"holds": 0, "measured": 0, "broken": 5, "not judged": 6}  # by the status of a report


@dataclass(frozen=True)
class VerifyCache:
    """default_texts: what is fed if no prompt is given; None is what `comparison/default_prompts.py` offers. prefill,
    most_kl: as `lab.verify_cache` has them. exit_zero: whatever was found, the exit code is 0."""

    default_texts: list[str] | None
    prefill: float
    most_kl: float | None
    exit_zero: bool = False

    def run(self, settings: Settings) -> Result:
        from rich.console import Console

        from transformer_lab.contracts.console import print_contract
        from transformer_lab.contracts.study import verify_cache

        asked = any(getattr(settings, key) is not None for key in ("prompt", "prompt_file", "prompt_ids", "prompts"))
        texts: Any = chosen_prompt(settings, "") if asked else self.default_texts
        model = load_chosen_model(settings)
        with progress_bar() as progress:
            report = verify_cache(model, None, texts, self.prefill, self.most_kl, progress)
        print_contract(report.to_dict(), Console(file=sys.stdout))
        return Result(
            output=report.to_dict(),
            model=model,
            timing={"load_s": model.load_seconds},
            exit_code=0 if self.exit_zero else EXIT_CODES[report.status],
        )
