"""What bfloat16 and int8 change: a trained model on text it was not trained on, against float32.

    python benchmarks/precision_quality.py TEXT_FILE [--model storybook] [--windows 32]

Windows of a whole context, spread evenly over the text (the storybook's validation.txt, for the stored result). For
each backend and precision: the mean divergence KL(float32 || precision) in nats per token, and how often the likeliest
token is the same. Writes benchmarks/results/precision_quality.json.
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from scipy.special import log_softmax

import transformer_lab as lab

CASES = [(name, precision) for name in ("torch", "jax") for precision in ("float32", "bfloat16", "int8")]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("text", type=Path)
    parser.add_argument("--model", default="storybook")
    parser.add_argument("--windows", type=int, default=32)
    options = parser.parse_args()
    reference = lab.load_model(options.model)
    ids = reference.tokenizer.encode(options.text.read_text(encoding="utf-8"))
    length = reference.config.context_length
    starts = np.linspace(0, len(ids) - length, options.windows).astype(int)
    windows = [np.array(ids[start : start + length]) for start in starts]
    expected = [log_softmax(reference.logits(window)[0].astype(np.float64), axis=-1) for window in windows]
    rows = {}
    for name, precision in CASES:
        model = lab.load_model(options.model, backend=name, precision=precision)
        divergences, agreements = [], []
        for window, judge in zip(windows, expected, strict=True):
            found = log_softmax(model.logits(window)[0].astype(np.float64), axis=-1)
            divergences.append((np.exp(judge) * (judge - found)).sum(axis=-1).mean())
            agreements.append((found.argmax(axis=-1) == judge.argmax(axis=-1)).mean())
        rows[f"{name} {precision}"] = {
            "kl_nats_per_token": float(np.mean(divergences)),
            "top_1_agreement": round(float(np.mean(agreements)), 5),
            "linear": model.backend.ops["linear"],
        }
        print(f"{name:6}{precision:10}", rows[f"{name} {precision}"], flush=True)
    result = {
        "command": f"python benchmarks/precision_quality.py {options.text.name} --model {options.model} "
        f"--windows {options.windows}",
        "model_sha256": reference.weights_sha256(),
        "tokens": options.windows * length,
        "packages": {name: version(name) for name in ("numpy", "torch", "jax")},
        "rows": rows,
    }
    path = Path(__file__).parent / "results" / "precision_quality.json"
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
