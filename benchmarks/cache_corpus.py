"""How much of a blind corpus of cache bugs is noticed: 67 bugs and 8 sound changes, chosen by somebody who had not read
the tests (tests/cache/corpus/bugs.json: the file, the text before and after, what goes wrong, where the like was seen).

    python benchmarks/cache_corpus.py [--only NAME ...] [--commit COMMIT]

Each change is made in a copy of the project, and two judges look at it: `verify`, which is `lab.verify_cache` of every
policy on NumPy, as a user would ask it, and `tests`, those of caches, tiers, experts in files and generation, up to the
first that fails. A judge that hangs has noticed. What no longer applies to the code is counted and left out. Rows are
written as they come, so a run that is stopped can go on. Writes benchmarks/results/cache_corpus.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUGS = ROOT / "tests" / "cache" / "corpus" / "bugs.json"
RESULT = Path(__file__).parent / "results" / "cache_corpus.json"
TESTS = {
    "cache": "tests/cache",
    "tiers": "tests/tiers",
    "language_model": "tests/language_model/test_resident_experts.py",
    "generation": "tests/generation",
}
SECONDS = {"verify": 600, "tests": 1500}
VERIFY = """
import sys
import transformer_lab as lab
from transformer_lab.config import component, names
model, texts, said = lab.load_model("storybook_moe"), [list(range(5, 53)), list(range(90, 120))], []
for name in names("cache"):
    small = {"block": 8} if name in ("paged", "prefix", "tiered") else {}
    for more in ({}, {"below": "int8"}) if name == "tiered" else ({},):
        if name != "none":
            status = lab.verify_cache(model, component("cache", name, **small, **more), texts).status
            said += [name] if status not in ("holds", "measured") else []
print(said)
sys.exit(bool(said))
"""


def judged(judge: str, command: list[str], folder: str) -> dict[str, Any]:
    """{"noticed", "by", "seconds"}: by which test, or what was said."""
    begin = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS[judge]
        )
        noticed = done.returncode != 0
        lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR", "["))]
        by = (lines or (done.stderr or done.stdout).splitlines() or [""])[-1 if judge == "verify" else 0]
    except subprocess.TimeoutExpired:
        noticed, by = True, "it hangs"
    return {"noticed": noticed, "by": by[:200] if noticed else None, "seconds": round(time.perf_counter() - begin)}


def tried(bug: dict[str, Any], folder: str) -> dict[str, Any]:
    path = Path(folder) / bug["file"]
    text = path.read_text(encoding="utf-8")
    if text.count(bug["before"]) != 1:
        return {"applies": False}
    path.write_text(text.replace(bug["before"], bug["after"]), encoding="utf-8")
    try:
        part = bug["file"].split("/")[1]
        first = sorted(TESTS, key=lambda name: name != part)
        own = f"{TESTS[part]}/test_{path.stem}.py"  # the tests of this very file come first, so that it takes less time
        tests = [test for test in (own, *(TESTS[name] for name in first)) if (Path(folder) / test).exists()]
        pytest = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-n", "0", *tests]
        found = {
            "verify": judged("verify", [sys.executable, "-c", VERIFY], folder),
            "tests": judged("tests", pytest, folder),
        }
    finally:
        path.write_text(text, encoding="utf-8")
    return {"applies": True, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--commit", default="HEAD")
    options = parser.parse_args()
    bugs = json.loads(BUGS.read_text(encoding="utf-8"))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", options.commit], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    rows: dict[str, Any] = {}
    if RESULT.exists():
        stored = json.loads(RESULT.read_text())
        rows = stored["rows"] if stored["commit"] == commit else {}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "-q", str(ROOT), folder], check=True)
        subprocess.run(["git", "checkout", "-q", commit], cwd=folder, check=True)
        for bug in bugs:
            if bug["name"] in (options.only or [bug["name"]]) and bug["name"] not in rows:
                rows[bug["name"]] = tried(bug, folder)
                print(bug["name"], rows[bug["name"]], flush=True)
                RESULT.write_text(json.dumps(summary(commit, rows), indent=1) + "\n")
    print(json.dumps({name: value for name, value in summary(commit, rows).items() if name != "rows"}))


def summary(commit: str, rows: dict[str, Any]) -> dict[str, Any]:
    def counted(sound: bool) -> dict[str, int]:
        some = [row for name, row in rows.items() if name.startswith("sound_") == sound and row["applies"]]
        by_judge = {judge: sum(row[judge]["noticed"] for row in some) for judge in ("verify", "tests")}
        return {"tried": len(some), **by_judge}

    gone = sum(not row["applies"] for row in rows.values())
    return {"commit": commit, "bugs": counted(False), "sound": counted(True), "no_longer_apply": gone, "rows": rows}


if __name__ == "__main__":
    main()
