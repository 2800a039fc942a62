"""What a policy of a cache costs: decoding over each of them, beside the contiguous one.

    python benchmarks/cache_speed.py [--rounds 7] [--caches contiguous,paged,...] [backend ...]

GPT-2's shape (124M) with random weights, float32. One process per backend holds one model and all policies, which it
asks in turn, token by token, so that a neighbour's noise meets all of them: 24 tokens behind a context of 256 and of
1,000, alone and, behind 256, in a batch of 4 rows of unequal lengths. Told are medians in milliseconds for a token,
ratios of medians within a round to the contiguous cache's (above 1 is slower), medians of those over the rounds, and
the bytes that each cache held. Writes benchmarks/results/cache_speed.json.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from participants import Participants

BACKENDS = ("numpy", "torch", "jax")
CACHES = ("contiguous", "growing", "paged", "prefix", "int8")
TOKENS = 24
KINDS = {"context 256": (256,), "context 1000": (1000,), "4 rows": (256, 200, 230, 190)}


def work(backend, caches):
    """The child: a line of input is the kind that is wanted; the answer is {cache: {seconds for one token, bytes}}."""
    import transformer_lab as lab
    from transformer_lab.config import component
    from transformer_lab.contracts.fed import held_bytes
    from transformer_lab.generation.engine import Engine

    model = lab.load_model("gpt2", backend, weights="random")
    engines = {name: Engine(model.backend, model.config, model.params, component("cache", name)) for name in caches}
    draw = np.random.default_rng(0)
    print("{}", flush=True)  # ready
    for line in sys.stdin:
        lengths = KINDS[line.strip()]
        found = {}
        rows = [draw.integers(0, 50000, length).tolist() for length in lengths]
        under_way = {name: engine.begin(rows, TOKENS) for name, engine in engines.items()}
        seconds = {name: [] for name in engines}
        for token in draw.integers(0, 50000, TOKENS - 1).tolist():
            for name, sequences in under_way.items():
                begin = time.perf_counter()
                sequences.feed([token] * len(rows))
                seconds[name].append(time.perf_counter() - begin)
        for name, sequences in under_way.items():
            held = engines[name].policy.arrays(sequences.cache)
            found[name] = {"seconds": statistics.median(seconds[name][2:]), "bytes": held_bytes(model.backend, held)}
            sequences.end()
        print(json.dumps(found), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--caches", default=",".join(CACHES))
    parser.add_argument("--work")
    parser.add_argument("backends", nargs="*", default=BACKENDS)
    options = parser.parse_args()
    caches = options.caches.split(",")
    if options.work:
        work(options.work, caches)
        return
    command = [sys.executable, __file__, "--caches", options.caches, "--work"]
    found = {}
    with Participants({name: [*command, name] for name in options.backends}) as people:
        for number in range(options.rounds + 1):  # the first round compiles and warms up
            for kind in KINDS:
                for backend, answer in people.ask(kind):
                    if number:
                        found.setdefault(kind, {}).setdefault(backend, []).append(answer)
            print(f"round {number} of {options.rounds}", file=sys.stderr, flush=True)
    rows = {}
    for kind, by_backend in found.items():
        for backend, answers in by_backend.items():
            for name in caches:
                ratios = [answer[name]["seconds"] / answer[caches[0]]["seconds"] for answer in answers]
                row = rows.setdefault(kind, {}).setdefault(backend, {})[name] = {
                    "ms": round(1e3 * statistics.median(answer[name]["seconds"] for answer in answers), 2),
                    "ratio": round(statistics.median(ratios), 3),
                    "min": round(min(ratios), 3),
                    "max": round(max(ratios), 3),
                    "bytes": answers[-1][name]["bytes"],
                }
                print(f"{kind:13} {backend:6} {name:11} {row}")
    result = {
        "command": f"python benchmarks/cache_speed.py --rounds {options.rounds}",
        "unit": "milliseconds for a token; ratio: to the first cache within a round",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, python {platform.python_version()}",
        "packages": {name: version(name) for name in ("numpy", "torch", "jax")},
        "rows": rows,
        "lost": people.lost,
    }
    if caches == list(CACHES) and len(rows) == len(KINDS) and not people.lost:
        path = Path(__file__).parent / "results" / "cache_speed.json"
        path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
