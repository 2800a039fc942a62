"""How good is the microscope? Detection and localisation of the injected bugs, beside three common ways to compare.

    python benchmarks/microscope.py [--seeds 17]

The corpus is that of the test suite (tests/comparison/injected_bugs.py), and so are the random sound models
(tests/comparison/test_sound_models.py), on which every way is asked for false alarms. The other ways see the logits of
the backend with the bug beside those of the same backend without it, or beside another backend's where there is no bug:

- assert_close: torch.testing.assert_close with its defaults for float32 (rtol 1.3e-6, atol 1e-5);
- cosine: of the logits at each position, an alarm below 0.9999;
- text: 24 greedy tokens are not the same; of three prompts of unequal lengths where the bug needs a batch.

Writes benchmarks/results/microscope.json.
"""

import argparse
import json
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "comparison")]

from injected_bugs import BUGS, GPT2_SHAPE, LLAMA_SHAPE, Bug, planted  # noqa: E402
from reference_models import save_gpt2, save_llama  # noqa: E402
from test_sound_models import SHAPES, arrays_of  # noqa: E402

import transformer_lab as lab  # noqa: E402
from transformer_lab.comparison.judging.examination import examine  # noqa: E402
from transformer_lab.comparison.participants.own_model import OwnModel  # noqa: E402
from transformer_lab.config import component  # noqa: E402
from transformer_lab.language_model import assemble  # noqa: E402

SMALLEST_COSINE = 0.9999
NEW_TOKENS = 24


def alarms(found: np.ndarray, other: np.ndarray) -> dict[str, bool]:
    """What assert_close and the cosine say about two arrays of logits [T, V]."""
    try:
        torch.testing.assert_close(torch.from_numpy(found), torch.from_numpy(other))
        close = True
    except AssertionError:
        close = False
    a, b = found.astype(np.float64), other.astype(np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    with np.errstate(invalid="ignore"):
        cosine = np.sum(a * b, axis=-1) / norms
    return {"assert_close": not close, "cosine": not bool(np.all(cosine >= SMALLEST_COSINE))}


def greedy(model: Any, prompts: list[list[int]]) -> list[list[int]] | None:
    try:
        return [found.token_ids for found in model.generate(prompts, max_new_tokens=NEW_TOKENS)]
    except lab.LabError:  # logits that are not finite
        return None


def look(bug: Bug, folder: str, precision: str) -> tuple[bool, bool]:
    """Whether the report sees the bug in this precision, and puts it at the right operation."""
    ids = np.random.default_rng(3).integers(0, 101, bug.length).tolist()
    sampler = bug.place == "sampler"
    with planted(bug):
        report = lab.compare(
            folder,
            ids,
            [bug.backend_object(precision)],
            exact=False,
            gradients=False,
            sweeps=[bug.sweep] if bug.sweep else [],
            new_tokens=NEW_TOKENS if sampler else 0,
            runs=1,
        )
    if report.sound:
        return False, False
    if sampler:
        return True, "sampler" in report.verdict
    first = report.first_divergence
    tap = first.tap if first else next(row["tap"] for row in report.to_dict()["sweeps"])
    return True, tap.split(".", 2)[-1] == bug.place or tap == bug.place


def others(bug: Bug, folder: str) -> dict[str, bool]:
    """What the other ways say, in float32."""
    ids = np.random.default_rng(3).integers(0, 101, bug.length).tolist()
    sound = lab.load_model(folder, component("backend", bug.backend, precision="float32", ops=bug.ops))
    with planted(bug) as ops:
        wrong = lab.load_model(folder, ops)
        found = alarms(wrong.logits(ids)[0], sound.logits(ids)[0])
        prompts = [ids, ids[:9], ids[:-5]] if bug.sweep in ("batch", "unequal") else [ids]
        return found | {"text": greedy(wrong, prompts) != greedy(sound, prompts)}


def false_alarms(seeds: int) -> dict[str, Any]:
    """On sound models: the report against the truth, the others between two backends."""
    counts = {"report": 0, "implausible": 0, "assert_close": 0, "cosine": 0}
    models = pairs = 0
    for config in SHAPES.values():
        truth = OwnModel(
            assemble(config, arrays_of(config, 0), component("backend", "numpy", precision="float64", ops="manual"))
        )
        participants = [
            OwnModel(
                assemble(config, arrays_of(config, 0), component("backend", backend, precision="float32", ops=ops))
            )
            for backend in ("numpy", "torch", "jax")
            for ops in ("fused", "manual")
        ]
        for seed in range(seeds):
            ids = np.random.default_rng(seed).integers(0, config.vocab_size, config.context_length)
            truth.model.replace_weights(arrays_of(config, seed))
            logits = []
            for participant in participants:
                participant.model.replace_weights(arrays_of(config, seed))
                found = examine(participant, truth, [ids])
                counts["report"] += found.first_divergence() is not None
                counts["implausible"] += found.first_implausible() is not None
                logits.append(participant.model.logits(ids)[0])
                models += 1
            for one in logits[1:]:
                said = alarms(one, logits[0])
                counts["assert_close"] += said["assert_close"]
                counts["cosine"] += said["cosine"]
                pairs += 1
    return {"models": models, "pairs": pairs, **counts}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=17)
    options = parser.parse_args()
    folders = {"gpt2": tempfile.mkdtemp(), "llama": tempfile.mkdtemp()}
    save_gpt2(folders["gpt2"], **GPT2_SHAPE)
    save_llama(folders["llama"], **LLAMA_SHAPE)
    rows = []
    for bug in BUGS:
        folder = folders[bug.family]
        found, placed = look(bug, folder, "float32")
        row = {"bug": bug.name, "backend": bug.backend, "ops": bug.ops, "place": bug.place}
        row |= {"found": found, "placed": placed, **others(bug, folder)}
        rows.append(row)
        print({True: "found  ", False: "MISSED "}[found], row, flush=True)
    sound = false_alarms(options.seeds)
    ways = ("found", "placed", "assert_close", "cosine", "text")
    rates = {way: round(sum(bool(row[way]) for row in rows) / len(rows), 3) for way in ways}
    print(f"{len(rows)} bugs: {rates}; false alarms on sound models: {sound}")
    result = {
        "command": f"python benchmarks/microscope.py --seeds {options.seeds}",
        "machine": f"{platform.machine()}, {platform.system()}, python {platform.python_version()}",
        "packages": {name: version(name) for name in ("numpy", "torch", "jax")},
        "bugs": len(rows),
        "rates": rates,
        "false_alarms": sound,
        "rows": rows,
    }
    path = Path(__file__).parent / "results" / "microscope.json"
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
