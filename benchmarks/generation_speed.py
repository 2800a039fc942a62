"""Generation speed of GPT-2 124M with random weights, greedy, against transformers on torch (eager, float32).

    python benchmarks/generation_speed.py [--rounds 5] [--new-tokens 64] [participant ...]

One process per participant, all loaded, asked in turn; a round asks each one every case. The figures are medians over
the rounds, the ratios medians of the ratios within a round. Decoding: rows * (n - 1) / (time of n tokens - time of 1).
Writes benchmarks/results/generation_speed.json and prints a table. The peers are in generation_peers.py; those that are
not installed are left out, and one that dies is named and loses its row alone. "stream" reads each weight matrix once
per token and does nothing else.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from generation_peers import PEERS, installed
from participants import Participants

# name -> (prompt tokens, rows, whether decoding is measured)
CASES = {"p32": (32, 1, True), "p768": (768, 1, True), "p32 x 8": (32, 8, True), "p512 first": (512, 1, False)}
OURS = ("numpy", "torch", "jax", "torch bfloat16", "torch int8")


def load_ours(name):
    import transformer_lab as lab

    backend, _, precision = name.partition(" ")
    model = lab.load_model("gpt2", backend=backend, precision=precision or "float32", weights="random")
    model.end_of_text_ids = ()
    return lambda prompts, count: model.generate(prompts, max_new_tokens=count)


def work(name, new_tokens):
    """The child: loads, and answers the name of a case with its times until its input ends."""
    draw = np.random.default_rng(0)
    begin = time.perf_counter()
    if name in PEERS:
        _, loader, argument = PEERS[name]
        generate = loader(argument)
    else:
        generate = load_ours(name)
    load = time.perf_counter() - begin
    prompts = {case: draw.integers(0, 50257, (rows, length)).tolist() for case, (length, rows, _) in CASES.items()}
    print(json.dumps({"load_s": load}), flush=True)
    for line in sys.stdin:
        case = line.strip()
        times = []
        for count in (1, new_tokens) if CASES[case][2] else (1,):
            begin = time.perf_counter()
            generate(prompts[case], count)
            times.append(time.perf_counter() - begin)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"times": times, "peak_mb": peak}), flush=True)


def figure(case, times, new_tokens):
    """Tokens per second, or milliseconds to the first token."""
    _, rows, decodes = CASES[case]
    return rows * (new_tokens - 1) / (times[1] - times[0]) if decodes else times[0] * 1000


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--work")
    parser.add_argument("participants", nargs="*", default=[*OURS, *filter(installed, PEERS)])
    options = parser.parse_args()
    if options.work:
        work(options.work, options.new_tokens)
        return
    command = [sys.executable, __file__, "--new-tokens", str(options.new_tokens), "--work"]
    with Participants({name: [*command, name] for name in options.participants}, {"HF_HUB_OFFLINE": "1"}) as people:
        loads = {name: person.first["load_s"] for name, person in people.alive.items()}
        found = {name: {case: [] for case in CASES} for name in people.alive}
        peak = {}
        for number in range(options.rounds + 1):  # the first round compiles and warms up
            for case in CASES:
                for name, answer in people.ask(case):
                    peak[name] = answer["peak_mb"]
                    if number:
                        found[name][case].append(figure(case, answer["times"], options.new_tokens))
            print(f"round {number} of {options.rounds}", file=sys.stderr, flush=True)
        found = {name: found[name] for name in people.alive}
    base = found.get("transformers")
    rows = {
        name: {"load_s": round(loads[name], 2), "peak_mb": round(peak[name])} | summary(cases, base)
        for name, cases in found.items()
    }
    result = {
        "command": "python " + " ".join(["benchmarks/generation_speed.py", *sys.argv[1:]]),
        "unit": "tokens/s of all rows; 'first': milliseconds to the first token; ratio: speed relative to transformers",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {processor()}, python {platform.python_version()}",
        "packages": {name: version(name) for name in ("numpy", "torch", "jax", "transformers")},
        "rows": rows,
        "lost": people.lost,
    }
    path = Path(__file__).parent / "results" / "generation_speed.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{'':16}" + "".join(f"{case:>20}" for case in CASES) + f"{'load s':>10}{'peak MB':>10}")
    for name, row in rows.items():
        cells = "".join(
            f"{row[case]['median']:>12.1f} ({row[case].get('ratio', 0):.2f})"[:20].rjust(20) for case in CASES
        )
        print(f"{name:16}{cells}{row['load_s']:>10.2f}{row['peak_mb']:>10}")
    for name, how in people.lost.items():
        print(f"{name:16}  lost: it {how}")


def summary(cases, base):
    """Medians over the rounds of case -> figures, and medians of the ratios to `base`, if there is one, in a round."""
    rows = {}
    for case, values in cases.items():
        rows[case] = {"median": round(statistics.median(values), 1)}
        rows[case] |= {"min": round(min(values), 1), "max": round(max(values), 1)}
        if base:
            ratios = [b / v if "first" in case else v / b for v, b in zip(values, base[case], strict=True)]
            rows[case]["ratio"] = round(statistics.median(ratios), 2)
    return rows


def processor():
    """The processor's name, family and model, where Linux tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "cpu family", "model")
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    return ", ".join(f"{key.strip()} {value.strip()}" for key, value in facts.items() if key.strip() in wanted)


if __name__ == "__main__":
    main()
