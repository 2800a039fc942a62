"""How long a comparison takes: storybook on three backends and in exact mode, whole processes with their imports.

    python benchmarks/comparison_speed.py [--rounds 3]

Cases, interleaved, each in a fresh process: four short prompts and the default ones without gradients; the defaults,
gradients and all; and the same with a feed-forward network of one's own (`SoftmaxGate` of the test suite, random
weights). The first round, with an empty folder for JAX's compilation cache, is told apart ("first_s"); "median_s" is of
the others. "peak_mb" is the largest memory of the process. Writes benchmarks/results/comparison_speed.json.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from participants import Died, measured

SHORT = (
    "In the harbour the boats were",
    "Two and two",
    "Once upon a time there was a mouse who lived under the floor",
    "The lighthouse",
)
CASES = {
    "short prompts, no gradients": {"prompts": SHORT, "gradients": False},
    "default prompts, no gradients": {"gradients": False},
    "defaults": {},
    "defaults, own network": {"own": True},
}


def child(case: str) -> None:
    begin = time.perf_counter()
    import transformer_lab as lab

    chosen = dict(CASES[case])
    if chosen.pop("own", False):
        sys.path.append(str(Path(__file__).parent.parent / "tests" / "comparison"))
        from components import SoftmaxGate

        chosen["options"] = {"ffn": SoftmaxGate(), "weights": "random"}
    report = lab.compare("storybook", list(chosen.pop("prompts", ())) or None, **chosen)
    print(
        json.dumps(
            {
                "status": report.status,
                "s": time.perf_counter() - begin,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child")
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    found: dict[str, list[dict]] = {case: [] for case in CASES}
    lost: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds + 1):
            for place, case in enumerate(CASES):
                if case in lost:
                    continue
                # A folder for each case: what one compiles would help another.
                cache = {
                    "JAX_COMPILATION_CACHE_DIR": f"{folder}/{place}",
                    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                }
                command = [sys.executable, __file__, "--child", case]
                try:
                    found[case].append(measured(command, cache))
                except Died as death:
                    lost[case] = str(death)
                    del found[case]
                    print(f"lost: {case} {death}", file=sys.stderr, flush=True)
                else:
                    print(number, case, found[case][-1], flush=True)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}, python {platform.python_version()}"
    result = {
        "command": f"python benchmarks/comparison_speed.py --rounds {options.rounds}",
        "machine": machine,
        "packages": {name: version(name) for name in ("numpy", "torch", "jax")},
        "cases": {
            case: {
                "status": rows[0]["status"],
                "first_s": round(rows[0]["s"], 1),
                "median_s": round(statistics.median(row["s"] for row in rows[1:]), 1),
                "peak_mb": round(max(row["peak_mb"] for row in rows)),
            }
            for case, rows in found.items()
        },
        "lost": lost,
    }
    for case, row in result["cases"].items():
        print(f"{case}: {row}")
    path = Path(__file__).parent / "results" / "comparison_speed.json"
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
