"""How soon a process that is started again says its first token behind a long prompt that it has seen before.

    python benchmarks/second_start.py [--rounds 5] [backend ...]

GPT-2's shape (124M) with random weights, float32: 900 tokens that are always the same and 16 that are new. Each start
is a process of its own: `cache=prefix` (nothing outlives it), `cache=tiered` in an empty folder (it writes its blocks),
and again over the same folder (it reads them), in turn. Told are the seconds from after loading to the first token,
those of loading, which with tiers hashes the weights, the tokens that were found, and the median of the rounds' ratios.
The files are in the system's page cache, as they are soon after they were written. Writes
benchmarks/results/second_start.json.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

BACKENDS = ("numpy", "torch", "jax")
SHARED, OWN = 900, 16


def work(backend, cache, folder, seed):
    """One start: {"load", "first_token", "found", "token"}."""
    import numpy as np

    import transformer_lab as lab
    from transformer_lab.config import component

    begin = time.perf_counter()
    more = {"cold_folder": folder, "warm_bytes": 0} if cache == "tiered" else {}
    model = lab.load_model("gpt2", backend, weights="random", cache=component("cache", cache, **more))
    loaded = time.perf_counter()
    shared = np.random.default_rng(0).integers(0, 50000, SHARED).tolist()
    own = np.random.default_rng(seed).integers(0, 50000, OWN).tolist()
    sequences = model.engine.begin([[*shared, *own]], 8)
    token = int(sequences.logits[0].argmax())
    first = time.perf_counter()
    found = model.engine.memory.counts.found
    sequences.end()
    print(json.dumps({"load": loaded - begin, "first_token": first - loaded, "found": found, "token": token}))


def started(backend, cache, folder, seed):
    command = [sys.executable, __file__, "--child", backend, cache, str(folder), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backends", nargs="*", default=list(BACKENDS))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    results = {}
    for backend in arguments.backends:
        rounds = []
        for number in range(arguments.rounds):
            with tempfile.TemporaryDirectory() as folder:
                one = {"prefix": started(backend, "prefix", folder, number)}
                one["tiered, first"] = started(backend, "tiered", folder, 1000 + number)
                one["tiered, again"] = started(backend, "tiered", folder, number)
                one["bytes"] = sum(path.stat().st_size for path in Path(folder).glob("*.block"))
            if one["tiered, again"]["found"] < SHARED - 64 or one["tiered, first"]["found"]:
                sys.exit(f"The second start found {one['tiered, again']['found']} tokens.")
            if one["tiered, again"]["token"] != one["prefix"]["token"]:
                sys.exit("The first tokens differ.")
            rounds.append(one)
            print(backend, number, {kind: v["first_token"] for kind, v in one.items() if kind != "bytes"}, flush=True)
        medians = {
            kind: {what: statistics.median(one[kind][what] for one in rounds) for what in ("load", "first_token")}
            for kind in ("prefix", "tiered, first", "tiered, again")
        }
        sooner = statistics.median(one["prefix"]["first_token"] / one["tiered, again"]["first_token"] for one in rounds)
        results[backend] = {"medians": medians, "sooner": sooner, "bytes": rounds[0]["bytes"], "rounds": rounds}
        print(f"{backend}: {sooner:.2f} x sooner; {json.dumps(medians)}", flush=True)
    written = {
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {name: version(name) for name in ("numpy", "torch", "jax")},
        "shared_tokens": SHARED,
        "own_tokens": OWN,
        "results": results,
    }
    path = Path(__file__).parent / "results" / "second_start.json"
    path.write_text(json.dumps(written, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        work(*sys.argv[2:5], int(sys.argv[5]))
    else:
        main()
