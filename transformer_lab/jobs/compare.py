"""`job=compare`: one model on several backends beside the truth; a table, report.json and report.html."""

import sys
from dataclasses import dataclass
from typing import Any, ClassVar

from transformer_lab.config import Settings, available_backends
from transformer_lab.errors import ConfigurationError, printable
from transformer_lab.jobs.loading import chosen_parts, progress_bar
from transformer_lab.jobs.prompts import chosen_prompt
from transformer_lab.jobs.record import Result

OUTSIDE = "transformers"
EXIT_CODES = {"sound": 0, "defect": 5, "not judged": 6}  # by the status of a report


@dataclass(frozen=True)
class Compare:
    """participants: names under conf/backend, and "transformers"; None is every backend that is installed.

    dump: a file or folder of activations, or None. default_prompts: what is compared if no prompt is given; None is
    what `comparison/default_prompts.py` offers. exit_zero: whatever was found, the exit code is 0. The others are those
    of `comparison.study.compare`.
    """

    unused: ClassVar[tuple[str, ...]] = ("cache", "residency")

    participants: list[str] | None
    dump: str | None
    default_prompts: list[str] | None
    exact: bool
    gradients: bool
    sweeps: list[str]
    new_tokens: int
    runs: int
    exit_zero: bool = False

    def run(self, settings: Settings) -> Result:
        from rich.console import Console

        from transformer_lab.comparison.reporting.console import print_report
        from transformer_lab.comparison.study import compare

        asked = any(getattr(settings, key) is not None for key in ("prompt", "prompt_file", "prompt_ids", "prompts"))
        prompts: Any = chosen_prompt(settings, "") if asked else self.default_prompts
        source = str(settings.sections["model"]["source"] or settings.choices["model"])
        wanted = self.participants
        if wanted is None:
            wanted = [name for name, installed in available_backends().items() if installed]
        if not wanted and self.dump is None:
            message = "job.participants is empty; name at least one backend, as in job.participants=[numpy,torch]."
            raise ConfigurationError(message)
        precision = settings.sections["precision"]["name"]
        model = settings.sections["model"]
        with progress_bar() as progress:
            report = compare(
                source,
                prompts,
                [name for name in wanted if name != OUTSIDE],
                precision,
                ops=settings.sections["ops"],
                participants=self._outside(source, model["revision"], wanted, precision),
                exact=self.exact,
                gradients=self.gradients,
                sweeps=self.sweeps,
                new_tokens=self.new_tokens,
                runs=self.runs,
                options={name: model[name] for name in ("revision", "weights")}
                | {"seed": settings.seed, **chosen_parts(settings)},
                progress=progress,
            )
        assert settings.folder is not None
        report.to_json(settings.folder / "report.json")
        report.to_html(settings.folder / "report.html")
        print_report(report.to_dict(), Console(file=sys.stdout), settings.folder / "report.html")
        first = report.to_dict()["first_divergence"]
        return Result(
            output={
                "status": report.status,
                "verdict": report.verdict,
                "sound": report.sound,
                "first_divergence": first,
            }
            | {name: printable(str(settings.folder / f"report.{name}")) for name in ("json", "html")},
            exit_code=0 if self.exit_zero else EXIT_CODES[report.status],
        )

    def _outside(self, source: str, revision: str | None, wanted: list[str], precision: str) -> list[Any]:
        found: list[Any] = []
        if OUTSIDE in wanted:
            from transformer_lab.comparison.participants.transformers import PRECISIONS, Transformers
            from transformer_lab.sources import model_folder

            folder = model_folder(source, revision)
            found.append(Transformers(folder, precision if precision in PRECISIONS else "float32"))
        if self.dump is not None:
            from transformer_lab.comparison.participants.dumped import Dumped

            found.append(Dumped(self.dump))
        return found
