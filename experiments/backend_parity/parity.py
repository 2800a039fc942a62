"""What float32, bfloat16, int8 and exact cost and give on each backend, with the embedded model.

    python experiments/backend_parity/parity.py TEXT_FILE [--windows 4] [--rounds 5]

Each window of the text, as long as the context, is a prompt of `lab.compare`. Then all loaded models take turns at a
forward pass over one window, and at 64 greedy tokens after 32. Writes parity.json and the plots beside this file.
"""

import argparse
import json
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import transformer_lab as lab
from transformer_lab.charts.line_chart import line_chart
from transformer_lab.config import component

HERE = Path(__file__).parent
BACKENDS = ("numpy", "torch", "jax")
PRECISIONS = ("float32", "bfloat16", "int8", "exact")
PROMPT, NEW = 32, 64


def offered() -> list[tuple[str, str]]:
    """(backend, precision) for all that there is."""
    classes = {name: type(component("backend", name)) for name in BACKENDS}
    return [(name, precision) for precision in PRECISIONS for name in BACKENDS if precision in classes[name].precisions]


def compared(windows: list[list[int]], runs: list[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """{participant: what the report says}. One comparison for each precision."""
    found: dict[str, dict[str, Any]] = {}
    for precision in PRECISIONS:
        backends = [backend for backend, wanted in runs if wanted == precision]
        report = lab.compare("storybook", windows, backends, precision, exact=False, new_tokens=0)
        print(precision, report.verdict, flush=True)
        content = report.to_dict()
        for row in content["logits"]:
            taps = [tap for tap in content["taps"] if tap["participant"] == row["participant"]]
            last = next(tap for tap in taps if tap["tap"] == "logits")
            found[row["participant"]] = {
                "kl_from_truth": row["kl_from_truth"],
                "top_1": row["top_1"],
                "rms_error_of_logits": last["rms"],
                "snr_db_of_logits": last["snr_db"],
                "snr_db_by_block": [tap["snr_db"] for tap in taps if tap["tap"].endswith("resid_post")],
            }
    return found


def timed(windows: list[list[int]], runs: list[tuple[str, str]], rounds: int) -> dict[str, dict[str, float]]:
    """{participant: median seconds of a forward pass, and greedy tokens per second}, taking turns."""
    models = {f"{backend} {precision}": lab.load_model("storybook", backend, precision) for backend, precision in runs}
    forward: dict[str, list[float]] = {name: [] for name in models}
    decode: dict[str, list[float]] = {name: [] for name in models}
    for round_number in range(rounds + 1):  # the first one, which compiles, does not count
        for name, model in models.items():
            begin = time.perf_counter()
            model.logits(windows[0])
            seconds = time.perf_counter() - begin
            speed = model.generate(windows[0][:PROMPT], max_new_tokens=NEW).timing.decode_tokens_per_s
            if round_number:
                forward[name].append(seconds)
                decode[name].append(speed)
    return {
        name: {
            "forward_s": round(statistics.median(forward[name]), 4),
            "decode_tokens_per_s": round(statistics.median(decode[name]), 1),
        }
        for name in models
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("text", type=Path)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    model = lab.load_model("storybook")
    length = model.config.context_length
    ids = model.tokenizer.encode(options.text.read_text(encoding="utf-8")[: options.windows * length * 12])
    windows = [ids[first : first + length] for first in range(0, options.windows * length, length)]
    runs = offered()
    rows = compared(windows, runs)
    for name, cost in timed(windows, runs, options.rounds).items():
        rows[name] |= cost
        print(name, {key: value for key, value in rows[name].items() if key != "snr_db_by_block"}, flush=True)
    result = {
        "command": f"python experiments/backend_parity/parity.py {options.text.name} --windows {options.windows} "
        f"--rounds {options.rounds}",
        "model_sha256": model.weights_sha256(),
        "machine": f"{platform.machine()}, {platform.system()}, python {platform.python_version()}",
        "packages": {name: version(name) for name in ("numpy", "torch", "jax")},
        "rows": rows,
    }
    (HERE / "parity.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    depth = {name: list(enumerate(row["snr_db_by_block"], start=1)) for name, row in rows.items()}
    chart = line_chart(depth, "Signal to noise after each block", "block", "dB", marked=list(depth))
    (HERE / "signal_to_noise.svg").write_text(chart, encoding="utf-8")
    cost = {name: [(row["forward_s"] * 1000.0, row["rms_error_of_logits"])] for name, row in rows.items()}
    chart = line_chart(
        cost, "What an error costs", "ms for one window", "RMS error of the logits", marked=list(cost), logarithmic=True
    )
    (HERE / "cost_and_error.svg").write_text(chart, encoding="utf-8")


if __name__ == "__main__":
    main()
