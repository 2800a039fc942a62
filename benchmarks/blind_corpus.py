"""How much of a blind corpus is found: bugs that somebody chose who does not know the judge (tests/comparison/corpus/).

    python benchmarks/blind_corpus.py [--only CLASS] [--setting default|all]

Each bug is tried with default settings (no prompt is given, no sweep; gradients and generation are on by themselves)
and with all of them: the bug's own prompts, every sweep, and float64 where its text says so. Bugs in the shared
definition take part beside transformers, which is what one would do. A bug is placed if the verdict names the place
that its author expected. Rows are written as they come, so a run that is stopped can go on.

Writes benchmarks/results/blind_corpus.json.
"""

import argparse
import json
import sys
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "comparison")]

from corpus import ALL  # noqa: E402
from corpus.form import Bug  # noqa: E402

import transformer_lab as lab  # noqa: E402
from transformer_lab.comparison.judging.sweeps import SWEEPS  # noqa: E402

RESULT = Path(__file__).parent / "results" / "blind_corpus.json"
# What a place in words is called in a verdict.
WORDS = {
    "generation": ("decoding", "batch", "row", "generate", "token", "cache", "call"),
    "sampler": ("sampler", "draw", "rules", "penalty", "generator"),
    "log-probabilities": ("log-probabilit", "log probabilit"),
    "stopping": ("stop", "end token", "ends"),
    "loss": ("loss",),
}


def arguments(bug: Bug, given: dict[str, Any], setting: str) -> dict[str, Any]:
    kept = {name: given[name] for name in ("source", "backends", "precision", "exact", "participants") if name in given}
    if setting == "default":
        return kept
    return kept | {"prompts": given["prompts"], "sweeps": [name for name in SWEEPS if name != "precision"]}


def placed(bug: Bug, report: Any) -> bool:
    verdict = report.to_dict()["verdict"]
    said = verdict["sentence"]
    if bug.place in WORDS:
        return any(word in said.lower() for word in WORDS[bug.place])
    if "gradient" in bug.place or bug.kind == "gradients_and_loss":
        wanted = bug.place.replace("gradient through ", "").replace("gradient of ", "").split(";")[0].strip()
        return "gradient" in said and (wanted.strip("*.") in said or "gradients" in said)
    taps = [
        verdict["tap"],
        *(row["tap"] for row in report.to_dict()["sweeps"] if row["ratio"] and not row["ratio"] <= 1),
    ]
    return any(tap is not None and fnmatch(tap, bug.place) for tap in taps) or any(
        fnmatch(word.strip(".;,"), bug.place) for word in said.split()
    )


def look(bug: Bug, setting: str) -> dict[str, Any]:
    begin = time.perf_counter()
    row: dict[str, Any] = {
        "bug": bug.name,
        "class": bug.kind,
        "place": bug.place,
        "needs": bug.needs,
        "setting": setting,
    }
    if setting == "default" and "precision=float64" in bug.needs:  # it is planted into a float64 backend alone
        return row | {"found": False, "placed": False, "status": "not tried", "said": bug.needs}
    try:
        with bug.plant() as given:
            report = lab.compare(**arguments(bug, given, setting))
    except Exception as error:  # a bug may also end in an error, which is an alarm of a kind, but not ours
        return row | {
            "found": False,
            "placed": False,
            "status": "error",
            "said": f"{type(error).__name__}: {error}"[:300],
        }
    found = report.status == "defect"
    return row | {
        "found": found,
        "placed": found and placed(bug, report),
        "status": report.status,
        "said": report.verdict[:400],
        "seconds": round(time.perf_counter() - begin, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default=None)
    parser.add_argument("--setting", default=None, choices=["default", "all"])
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args()
    rows = json.loads(RESULT.read_text())["rows"] if RESULT.exists() and not options.again else []
    done = {(row["bug"], row["setting"]) for row in rows}
    for setting in [options.setting] if options.setting else ["default", "all"]:
        for bug in ALL:
            if (bug.name, setting) in done or (options.only and bug.kind != options.only):
                continue
            row = look(bug, setting)
            rows.append(row)
            print(
                {True: "found  ", False: "MISSED "}[row["found"]],
                {True: "placed ", False: "       "}[row["placed"]],
                row,
                flush=True,
            )
            RESULT.write_text(json.dumps(summary(rows), indent=2) + "\n")
    print(json.dumps(summary(rows)["rates"], indent=1))


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    rates: dict[str, Any] = {}
    for setting in ("default", "all"):
        # With all settings a bug is found if either run finds it.
        names = {row["bug"] for row in rows if row["setting"] == setting}
        for kind in [*sorted({row["class"] for row in rows}), "all classes"]:
            here = [row for row in rows if row["bug"] in names and kind in (row["class"], "all classes")]
            if setting == "default":
                here = [row for row in here if row["setting"] == "default"]
            bugs = {row["bug"] for row in here}
            if bugs:
                found = {row["bug"] for row in here if row["found"]}
                rates.setdefault(setting, {})[kind] = {
                    "bugs": len(bugs),
                    "found": len(found),
                    "placed": len({row["bug"] for row in here if row["placed"]}),
                }
    return {"command": "python benchmarks/blind_corpus.py", "rates": rates, "rows": rows}


if __name__ == "__main__":
    main()
