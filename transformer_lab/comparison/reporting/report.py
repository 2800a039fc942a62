"""What a comparison found, put together: plain data for the console, for report.json and for report.html."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from transformer_lab.atomic_file import finite, write_json, write_text
from transformer_lab.comparison.judging import logits, metrics
from transformer_lab.comparison.judging.exactness import Exactness
from transformer_lab.comparison.judging.examination import Divergence, Examination
from transformer_lab.comparison.judging.generation.continuations import Continuations
from transformer_lab.comparison.judging.gradients import GradientRow
from transformer_lab.comparison.judging.self_check import SelfCheck
from transformer_lab.comparison.judging.semantics import differences
from transformer_lab.comparison.judging.sweeps import SweepRow
from transformer_lab.comparison.participants.participant import Participant
from transformer_lab.comparison.reporting.verdict import SOUND, verdict
from transformer_lab.environment import environment
from transformer_lab.language_model import LanguageModel
from transformer_lab.model.decoder import tap_names

SCHEMA = 1


@dataclass
class Part:
    """What was found out about one participant. It holds no model: that one may be forgotten."""

    facts: dict[str, Any]
    config: Any
    examination: Examination
    continuations: Continuations | None = None
    gradients: list[GradientRow] = field(default_factory=list)
    sweeps: list[SweepRow] = field(default_factory=list)
    routing: Mapping[str, Any] | None = None
    loss: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, participant: Participant, examination: Examination) -> "Part":
        names = ("name", "kind", "precision", "version", "device")
        facts = {name: getattr(participant, name) for name in names}
        facts["operations"] = getattr(participant, "operations", None)
        return cls(facts, participant.config, examination)


@dataclass(frozen=True)
class Report:
    """verdict: in a sentence. status: "sound", "defect" or "not judged". first_divergence: the first operation above
    its own bound, or None."""

    verdict: str
    status: str
    first_divergence: Divergence | None
    content: Mapping[str, Any]

    @property
    def sound(self) -> bool:
        """Whether everything was judged, and every difference is rounding."""
        return self.status == SOUND

    @property
    def table(self) -> list[dict[str, Any]]:
        """One row for each tap of each participant, in the order of the computation."""
        return list(self.content["taps"])

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; what is not finite is None."""
        return dict(self.content)

    def to_json(self, path: str | PathLike[str]) -> None:
        """Writes report.json. Raises UnavailableError where the disk refuses."""
        write_json(Path(path), self.content)

    def to_html(self, path: str | PathLike[str]) -> None:
        """Writes one self-contained page. Raises UnavailableError where the disk refuses."""
        from transformer_lab.comparison.reporting.page.document import page

        write_text(Path(path), page(self.content))


def report_of(
    model: LanguageModel,
    precision: str,
    texts: Sequence[str | None],
    prompts: Sequence[np.ndarray],
    parts: Sequence[Part],
    exactness: Exactness,
    detached: Sequence[str],
    without_gradient: Sequence[str],
    judge: SelfCheck,
    sound_kl: Mapping[str, float | None],
    seconds: float,
) -> Report:
    """model: the truth's. For detached, without_gradient (there: not_judged) and sound_kl see `verdict`."""
    order = tap_order([part.examination for part in parts], tap_names(model.config))
    semantics = differences({part.facts["name"]: part.config for part in parts})
    examinations = [part.examination for part in parts]
    continued = [part.continuations for part in parts if part.continuations is not None]
    found = verdict(
        examinations,
        exactness,
        order,
        [row for part in parts for row in part.sweeps],
        [row for part in parts for row in part.gradients],
        detached,
        [sentence for part in parts for sentence in part.loss]
        + [sentence for one in continued for sentence in one.wrong],
        semantics,
        [*(f"Not judged: the judge itself is wrong: {one}." for one in judge.wrong), *without_gradient],
        sound_kl,
    )
    first = found.first
    content = {
        "schema": SCHEMA,
        "verdict": {
            "status": found.status,
            "sentence": found.sentence,
            "tap": found.tap,
            "exact_identical": exactness.identical if exactness.differing else None,
        },
        "first_divergence": None if first is None else asdict(first),
        "model": {
            "source": model.source,
            "sha256": model.weights_sha256(),
            "weights": "shaken" if model.folder is None else "pretrained",
            "parameters": model.parameters_count,
            "layers": model.config.num_layers,
            "precision": precision,
        },
        "prompts": [{"text": text, "token_ids": ids.tolist()} for text, ids in zip(texts, prompts, strict=True)],
        "participants": [part.facts for part in parts],
        "semantics": semantics,
        "taps": _tap_rows(examinations, order),
        "exact": _exact_section(exactness, order),
        "logits": [_logits_row(examination) for examination in examinations if examination.logits],
        "text": [_text_row(one) for one in continued],
        "routing": [_routing_row(part.facts["name"], part.routing) for part in parts if part.routing is not None],
        "gradients": [row.to_dict() for part in parts for row in part.gradients],
        "sweeps": [asdict(row) for part in parts for row in part.sweeps],
        "reached": reached(parts, prompts, model, judge),
        "environment": environment(),
        "seconds": seconds,
    }
    return Report(found.sentence, found.status, first, finite(content))


def tap_order(examinations: Sequence[Examination], known: Sequence[str]) -> list[str]:
    """Every tap in the order of the computation, as it was met: a network of one's own may show its own in any."""
    longest = max((found.order for found in examinations), key=len, default=[])
    return [*longest, *(name for name in known if name not in longest)]


def reached(
    parts: Sequence[Part], prompts: Sequence[np.ndarray], model: LanguageModel, judge: SelfCheck
) -> dict[str, Any]:
    """How far the comparison went: what it did not reach, it did not judge."""
    ids = {int(token) for prompt in prompts for token in prompt}
    lengths = [len(prompt) for prompt in prompts]
    return {
        "lengths": lengths,
        "positions": max(lengths),
        "context": model.config.context_length,
        "vocabulary": len(ids) / model.config.vocab_size,
        "largest_value": max((part.examination.largest_value for part in parts), default=0.0),
        "precisions": sorted({part.facts["precision"] for part in parts}),
        "hidden": {part.facts["name"]: part.examination.hidden for part in parts if part.examination.hidden},
        "unbounded": sorted({name for part in parts for name in part.examination.unbounded}),
        "checks": [
            {"participant": part.facts["name"], **asdict(check)}
            for part in parts
            if part.continuations is not None
            for check in part.continuations.checks
        ],
        "judge": judge.sentence,
    }


def _tap_rows(examinations: Sequence[Examination], order: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for tap in order:
        here = []
        for examination in examinations:
            if (finding := examination.taps.get(tap)) is None:
                continue
            total = metrics.merge(finding.total)
            row: dict[str, Any] = {"tap": tap, "participant": examination.participant}
            row |= total.measures()
            row |= {
                "added_max_abs": finding.added.largest,
                "added_rms": finding.added.rms,
                "inherited_max_abs": finding.inherited.largest,
                "inherited_rms": finding.inherited.rms,
                "ratio": None if finding.unjudged else finding.worst.ratio if finding.worst else 0.0,
                "largest_likely": None if finding.unjudged else finding.likelihood.largest,
                "mean_square_likely": None if finding.unjudged else finding.likelihood.mean_square,
                "margin": finding.margin,
                "unjudged": finding.unjudged,
            }
            here.append((examination.precision, row))
        for precision, row in here:
            smallest = min(other["rms"] for same, other in here if same == precision)
            rows.append(row | {"nearest": row["rms"] == smallest and row["unjudged"] is None})
    return rows


def _exact_section(exactness: Exactness, order: Sequence[str]) -> dict[str, Any] | None:
    """Roundings and doubtful ones are those of the first participant: others may round padding, too."""
    if not exactness.differing:
        return None
    first = next(iter(exactness.differing))
    counts, missing, gradients = exactness.certificate[first], exactness.missing, exactness.gradients
    return {
        "identical": exactness.identical,
        "participants": list(exactness.differing),
        "roundings": sum(roundings for roundings, _ in counts.values()),
        "doubtful": sum(doubtful for _, doubtful in counts.values()),
        "taps": [
            {
                "tap": tap,
                # The certificate is that of the forward pass: it does not know which gradient was rounded when.
                "roundings": None if tap in gradients else counts.get(tap, (0, 0))[0],
                "doubtful": None if tap in gradients else counts.get(tap, (0, 0))[1],
                "differing": {name: found.get(tap, 0) for name, found in exactness.differing.items() if name != first},
                "missing": [name for name, found in missing.items() if tap in found],
            }
            for tap in exactness.taps(order)
        ],
    }


def _logits_row(examination: Examination) -> dict[str, Any]:
    all_prompts = logits.merge(examination.logits)
    measures = ("kl_from_truth", "kl_to_truth", "top_1", "top_5", "rank_shift_max", "rank_shift_mean")
    row: dict[str, Any] = {"participant": examination.participant}
    row |= {name: getattr(all_prompts, name) for name in measures}
    return row | {"flips": [asdict(flip) for flip in all_prompts.flips]}


def _routing_row(name: str, split: Mapping[str, Any]) -> dict[str, Any]:
    """`RoutingSplit.to_dict` (`routes/split.py`), of which a is the truth and b the participant."""
    names = ("tokens", "runs", "kl", "certified", "layers", "flips")
    return {"participant": name} | {field: split[field] for field in names}


def _text_row(one: Continuations) -> dict[str, Any]:
    found = asdict(one.agreement) | {name: getattr(one, name) for name in ("distinct", "runs", "sampler", "texts")}
    return {"participant": one.participant} | found | {"token_ids": one.tokens}
