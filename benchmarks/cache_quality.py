"""What caches that keep less, or in fewer bits, change on a text that the model was not trained on.

    python benchmarks/cache_quality.py TEXT_FILE [--model storybook ...] [--windows 16] [--length 256] [--backend torch]

Windows, spread evenly over the text (the storybook's validation.txt, for the stored result); the first half of each is
a prompt and the rest comes token by token. For each model and policy: KL(uncached || cached) in nats per token with a
95 % interval of blocks (`contracts/statistics.py`), the largest of a token, how often the likeliest token is the same,
what the loss gains, and the bytes of the cache over those of `contiguous`. Writes
benchmarks/results/cache_quality.json.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import transformer_lab as lab
from transformer_lab.cache.contiguous import Contiguous
from transformer_lab.cache.int4 import Int4
from transformer_lab.cache.int8 import Int8
from transformer_lab.cache.sinks import Sinks
from transformer_lab.cache.snapkv import SnapKV
from transformer_lab.cache.window import Window
from transformer_lab.contracts.fed import fed, uncached
from transformer_lab.contracts.statistics import statistics
from transformer_lab.errors import ConfigurationError

POLICIES = {
    "contiguous": Contiguous(),
    "int8": Int8(),
    "int4": Int4(),
    "int4, recent 1": Int4(recent=1),
    "snapkv": SnapKV(),
    "snapkv, budget 64": SnapKV(budget=64),
    "window 68": Window(size=68),
    "sinks 4 + 64": Sinks(sinks=4, recent=64),
}
KEPT = ("tokens", "kl", "kl_interval", "kl_max", "top_1", "top_1_interval", "loss_increase", "loss_increase_interval")


def measured(model: Any, policy: Any, windows: list[list[int]], whole: list[np.ndarray]) -> dict[str, Any]:
    model.engine = type(model.engine)(model.backend, model.config, model.params, policy)
    half = len(windows[0]) // 2
    found = [fed(model, [ids], [half]) for ids in windows]
    targets = [np.asarray(ids[half:]) for ids in windows]
    numbers = statistics([one.logits[0] for one in found], whole, targets)
    return {name: numbers[name] for name in KEPT} | {"bytes": found[0].bytes}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("text", type=Path)
    parser.add_argument("--model", nargs="*", default=["storybook", "storybook_moe"])
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--backend", default="torch")
    options = parser.parse_args()
    path = Path(__file__).parent / "results" / "cache_quality.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    text = options.text.read_text(encoding="utf-8")
    for source in options.model:
        model = lab.load_model(source, backend=options.backend)
        ids, length = model.tokenizer.encode(text), min(options.length, model.config.context_length)
        starts = np.linspace(0, len(ids) - length, options.windows).astype(int)
        windows = [ids[start : start + length] for start in starts]
        whole = [uncached(model, one, length // 2) for one in windows]
        rows: dict[str, Any] = {}
        for name, policy in POLICIES.items():
            try:
                rows[name] = measured(model, policy, windows, whole)
            except ConfigurationError as error:
                print(f"{source}, {name}: {error}")
                continue
            row = rows[name]
            row["of_contiguous"] = row["bytes"] / rows["contiguous"]["bytes"]
            low, high = row["kl_interval"]
            print(
                f"{source:14} {name:18} KL {row['kl']:.3g} ({low:.3g} to {high:.3g}), top-1 {row['top_1']:.4f}, "
                f"loss {row['loss_increase']:+.3g}, bytes {row['of_contiguous']:.2f}",
                flush=True,
            )
        results[source] = {"windows": options.windows, "length": length, "backend": options.backend, "rows": rows}
        path.write_text(json.dumps(results, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
