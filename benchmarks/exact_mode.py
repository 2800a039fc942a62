"""What exact mode costs against float32: one forward pass of GPT-2 124M with random weights, on each backend.

    python benchmarks/exact_mode.py [--tokens 200] [--rounds 5]

One process; float32 (fused) and exact take turns on the same ids. The hash of the exact logits is also taken on one
thread (not on JAX, which fixes its threads when the process starts) and as the second row of a batch of two.
Writes benchmarks/results/exact_mode.json, or exact_mode_1000.json for --tokens 1000 and so on.
"""

import argparse
import hashlib
import json
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

import transformer_lab as lab


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows = {}
    for backend in ("numpy", "torch", "jax"):
        models = {p: lab.load_model("gpt2", backend, p, weights="random") for p in ("float32", "exact")}
        ids = np.random.default_rng(0).integers(0, models["exact"].config.vocab_size, options.tokens)
        first = time.perf_counter()
        digest = sha256(models["exact"].logits(ids)[0])
        first = time.perf_counter() - first
        with threadpool_limits(1):
            digests = {digest, sha256(models["exact"].logits(ids)[0])}
        digests.add(sha256(models["exact"].logits(np.stack([ids[::-1], ids]))[1]))
        found = models["exact"].backend.certificate
        certificate = {"roundings": found.roundings, "doubtful": found.doubtful}
        models["float32"].logits(ids)
        seconds: dict[str, list[float]] = {"float32": [], "exact": []}
        for _ in range(options.rounds):
            for precision, model in models.items():
                begin = time.perf_counter()
                model.logits(ids)
                seconds[precision].append(time.perf_counter() - begin)
        ratios = [e / f for e, f in zip(seconds["exact"], seconds["float32"], strict=True)]
        rows[backend] = {
            "float32_s": round(statistics.median(seconds["float32"]), 3),
            "exact_s": round(statistics.median(seconds["exact"]), 3),
            "ratio": round(statistics.median(ratios), 2),
            "first_exact_call_s": round(first, 1),
            "logits_sha256": digest,
            "one_hash": len(digests) == 1,
            **certificate,
        }
        print(backend, rows[backend], flush=True)
        del models
    result = {
        "command": f"python benchmarks/exact_mode.py --tokens {options.tokens} --rounds {options.rounds}",
        "machine": f"{platform.machine()}, {platform.system()}, python {platform.python_version()}",
        "packages": {name: version(name) for name in ("numpy", "torch", "jax")},
        "rows": rows,
    }
    name = "exact_mode" if options.tokens == 200 else f"exact_mode_{options.tokens}"
    path = Path(__file__).parent / "results" / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")


def sha256(logits: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(logits, "<f4").tobytes()).hexdigest()


if __name__ == "__main__":
    main()
