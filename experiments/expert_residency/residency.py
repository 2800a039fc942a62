"""Speed and misses of a mixture of experts against the budget of memory for its experts.

    python experiments/expert_residency/residency.py [one model]

Two models: the embedded storybook_moe, whose router was trained (28 MB of experts, 8 in each of 4 layers, 2 of a
token), and one with random weights whose experts matter to a memory (1.8 GB, 16 in each of 12 layers, 2 of a token).
Greedy decoding of 96 tokens behind a prompt of 16, after a first text that fills the memory; budgets from a tenth to
all, with and without guesses of the next layer's experts, and as a model that is in memory as a whole; all in turn,
medians of three rounds. Every text must be the same. Writes residency.json and two plots beside this file.
"""

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import transformer_lab as lab
from transformer_lab.charts.line_chart import line_chart
from transformer_lab.ffn.experts import Experts
from transformer_lab.ffn.moe import MixtureOfExperts
from transformer_lab.language_model.resident_experts import Residency
from transformer_lab.router.mixtral import Mixtral

HERE = Path(__file__).parent
ROUNDS, PROMPT, TOKENS = 3, 16, 96
LARGE = MixtureOfExperts(Mixtral(2), Experts(16, 1024, activation="silu", gated=True))
MODELS = {
    "storybook_moe": (("storybook_moe", {}), 96 * 294_912, ("numpy", "torch"), (0.1, 0.25, 0.5, 0.75, 1.0)),
    "random, 1.8 GB": (
        ("gpt2", {"weights": "random", "ffn": LARGE}),
        12 * 16 * 3 * 768 * 1024 * 4,
        ("numpy",),
        (0.25, 0.5, 1.0),
    ),
}


def decoded(model, prompt):
    """(token ids, seconds for a token, misses for a token)."""
    sequences = model.engine.begin([prompt], TOKENS)
    counts = None if model.experts is None else model.experts.counts
    before = _not_there(counts)
    begin, ids = time.perf_counter(), []
    for _ in range(TOKENS):
        ids.append(int(sequences.logits[0].argmax()))
        sequences.feed([ids[-1]])
    seconds = (time.perf_counter() - begin) / TOKENS
    sequences.end()
    return ids, seconds, (_not_there(counts) - before) / TOKENS


def _not_there(counts):
    """Kernels that were needed and not in memory, also those that were on their way."""
    return 0 if counts is None else counts.misses + counts.awaited


def measured(backend, source, options, total, shares, folder):
    models = {"in memory": lab.load_model(source, backend, **options)}
    for share in shares:
        for guesses in (False, True):
            residency = Residency(int(total * share), folder, prefetch=guesses)
            models[share, guesses] = lab.load_model(source, backend, residency=residency, **options)
            models[share, guesses].experts.tiers.flush()
    vocabulary = models["in memory"].config.vocab_size
    rows = {name: {"seconds": [], "misses": []} for name in models}
    for number in range(ROUNDS + 1):
        prompt = np.random.default_rng(number).integers(0, vocabulary, PROMPT).tolist()
        texts = set()
        for name, model in models.items():
            ids, seconds, misses = decoded(model, prompt)
            texts.add(tuple(ids))
            if number:  # the first one fills the memory
                rows[name]["seconds"].append(seconds)
                rows[name]["misses"].append(misses)
        if len(texts) != 1:
            sys.exit("The texts differ.")
    found = {}
    for name, row in rows.items():
        model = models[name]
        told = {"tokens_per_s": 1 / statistics.median(row["seconds"]), "misses_per_token": np.mean(row["misses"])}
        if model.experts is not None:
            counts = model.experts.counts
            told |= {
                "guessed": counts.prefetched,
                "guessed_right": counts.guessed_right,
                "most_resident_bytes": counts.most_resident_bytes,
            }
        found[name if isinstance(name, str) else f"{name[0]}, {'guesses' if name[1] else 'no guesses'}"] = told
    return found


def main():
    path, results = HERE / "residency.json", {}
    if sys.argv[1:] and path.exists():  # one model alone: the others' results stay
        results = json.loads(path.read_text(encoding="utf-8"))["results"]
    for title, ((source, options), total, backends, shares) in MODELS.items():
        if sys.argv[1:] and title != sys.argv[1]:
            continue
        for backend in backends:
            with tempfile.TemporaryDirectory() as folder:
                results[f"{title}, {backend}"] = measured(backend, source, options, total, shares, folder)
            print(title, backend, json.dumps(results[f"{title}, {backend}"], indent=1), flush=True)
    machine = {"cpu": platform.machine(), "cores": os.cpu_count()}
    written = {"machine": machine, "tokens": TOKENS, "rounds": ROUNDS, "results": results}
    path.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    plots = (("speed.svg", "tokens_per_s", "of the speed in memory"), ("misses.svg", "misses_per_token", ""))
    for file, key, unit in plots:
        lines = {}
        for name, rows in results.items():
            whole = rows["in memory"]["tokens_per_s"] if unit else 1.0
            for guesses in ("no guesses", "guesses"):
                found = {float(kind.split(",")[0]): row for kind, row in rows.items() if kind.endswith(f", {guesses}")}
                points = [(share, row[key] / whole) for share, row in found.items()]
                lines[f"{name}, {guesses}"] = points
        what = "Decoding with experts in files" if unit else "Kernels that had to be read"
        chart = line_chart(lines, what, "share of the experts that fits", unit or "for a token", marked=list(lines))
        (HERE / file).write_text(chart, encoding="utf-8")


if __name__ == "__main__":
    main()
