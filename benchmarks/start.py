"""From nothing to the first token: imports, loading GPT-2 124M from a folder, the first token, and the memory.

    python benchmarks/start.py [--rounds 5]

A fresh process for each start, asked in turn: transformers (eager, float32) and our three backends read the same
safetensors file (random weights, in a temporary folder, in the page cache), answer a prompt of 32 tokens with one token
and then with 32. JAX's compilation cache is warm from a round that is not counted. "growth" is the peak of the process
less what it held after the imports, in units of the size of the weights in float32. transformers maps the file and
reads it when it is first used; the others have read it when loading is over.
Writes benchmarks/results/start.json.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from participants import Died, measured

PARTICIPANTS = ("transformers", "numpy", "torch", "jax")
PROMPT = list(range(100, 132))


def held_bytes(field: str) -> int:
    """VmRSS (now) or VmHWM (the peak) of this process. Linux only."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    message = f"/proc/self/status has no {field}"
    raise OSError(message)


def start_transformers(folder: str) -> tuple:
    import torch
    import transformers

    def load():
        return transformers.GPT2LMHeadModel.from_pretrained(folder).eval()

    def generate(model, count: int) -> None:
        with torch.inference_mode():
            model.generate(torch.tensor([PROMPT]), max_new_tokens=count, min_new_tokens=count, do_sample=False)

    # its modules are imported lazily: what a model needs counts as imports, not as growth
    return load, generate, transformers.GPT2LMHeadModel


def start_ours(name: str, folder: str) -> tuple:
    import transformer_lab as lab
    from transformer_lab.config import component

    backend = component("backend", name)  # imports the framework

    def load():
        model = lab.load_model(folder, backend)
        model.end_of_text_ids = ()
        return model

    return load, lambda model, count: model.generate(PROMPT, max_new_tokens=count), lab.load_model


def child(name: str, folder: str) -> None:
    begin = time.perf_counter()
    load, generate, _ = start_transformers(folder) if name == "transformers" else start_ours(name, folder)
    imported, before = time.perf_counter(), held_bytes("VmRSS")
    model = load()
    loaded = time.perf_counter()
    generate(model, 1)
    first = time.perf_counter()
    generate(model, 32)
    growth = held_bytes("VmHWM") - before
    print(
        json.dumps(
            {
                "import_s": imported - begin,
                "load_s": loaded - imported,
                "first_token_s": first - loaded,
                "growth_bytes": growth,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", nargs=2)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in PARTICIPANTS}
    lost: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        import torch
        import transformers

        torch.manual_seed(0)
        config = transformers.GPT2Config(eos_token_id=None, bos_token_id=None, pad_token_id=0)
        transformers.GPT2LMHeadModel(config).save_pretrained(folder)
        weights = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
        for number in range(options.rounds + 1):
            for name in list(found):
                try:
                    answer = measured([sys.executable, __file__, "--child", name, folder])
                except Died as death:
                    lost[name] = str(death)
                    del found[name]
                    print(f"lost: {name} {death}", file=sys.stderr, flush=True)
                    continue
                if number:
                    found[name].append(answer)
            print(f"round {number} of {options.rounds}", file=sys.stderr, flush=True)
    rows = {}
    for name, answers in found.items():
        rows[name] = {key: round(statistics.median(a[key] for a in answers), 2) for key in answers[0]}
        rows[name]["growth"] = round(rows[name].pop("growth_bytes") / weights, 2)
        if "transformers" in found:
            pairs = zip(answers, found["transformers"], strict=True)
            ready = [(a["import_s"] + a["load_s"]) / (b["import_s"] + b["load_s"]) for a, b in pairs]
            rows[name]["ready_ratio"] = round(statistics.median(ready), 2)
        print(f"{name:14}", rows[name])
    result = {
        "command": f"python benchmarks/start.py --rounds {options.rounds}",
        "unit": "seconds; growth: peak memory after the imports / bytes of the weights; "
        "ready_ratio: imports and loading, to transformers",
        "machine": f"{platform.machine()}, {platform.system()}, python {platform.python_version()}",
        "weights_bytes": weights,
        "packages": {name: version(name) for name in ("numpy", "torch", "jax", "transformers")},
        "rows": rows,
        "lost": lost,
    }
    path = Path(__file__).parent / "results" / "start.json"
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
