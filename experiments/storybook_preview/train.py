"""Trains the small model in resources/models/storybook from the storybook text: a preview, for some minutes of one CPU.

    python experiments/storybook_preview/train.py STORYBOOK_FOLDER OUTPUT_FOLDER [MINUTES]

It uses the same forward pass and `value_and_grad` as everything else. The text (train.txt, validation.txt; documents
separated by lines of <|endoftext|>) is read where it lies.
"""

import json
import math
import sys
import time
from pathlib import Path

import numpy as np

import transformer_lab as lab
from transformer_lab import checkpoints
from transformer_lab.config import component
from transformer_lab.ffn.dense import Dense
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.decoder import forward
from transformer_lab.model.init import initialise
from transformer_lab.model.parameters import flatten, nest

VOCAB, CONTEXT, BATCH, SEED = 2048, 256, 16, 0
PEAK_RATE, WARM_UP, DECAY, BETAS, CLIP = 3e-3, 100, 0.1, (0.9, 0.95), 1.0


def token_stream(tokenizer, path: Path) -> np.ndarray:
    """The ids of a file, with the end-of-text id between documents."""
    end = tokenizer.end_of_text_id
    ids: list[int] = [end]
    for document in path.read_text(encoding="utf-8").split("\n<|endoftext|>\n"):
        ids += [*tokenizer.encode(document), end]
    return np.array(ids, np.int64)


def mean_loss(ops, config, params, ids):
    """Mean next-token cross-entropy of ids [B, T + 1]."""
    logits, _ = forward(ops, config, params, ids[:, :-1], ops.asarray(np.zeros(ids.shape[0], np.int64)))
    return ops.xp.mean(ops.cross_entropy(logits, ids[:, 1:]))


def main() -> None:
    folder, output = Path(sys.argv[1]), Path(sys.argv[2])
    seconds = 60 * float(sys.argv[3] if len(sys.argv) > 3 else 15)
    tokenizer = lab.train_tokenizer(folder / "train.txt", VOCAB)
    train, validation = (token_stream(tokenizer, folder / name) for name in ("train.txt", "validation.txt"))
    size = (folder / "validation.txt").stat().st_size
    config = ModelConfig(
        VOCAB, CONTEXT, hidden_size=160, num_layers=4, num_heads=5, ffn=Dense(640), end_of_text_id=0, begin_of_text_id=0
    )
    ops = component("backend", "torch", precision="float32")
    weights = {name: ops.asarray(array) for name, array in initialise(config, SEED)}
    first = {name: ops.xp.zeros_like(x) for name, x in weights.items()}
    second = {name: ops.xp.zeros_like(x) for name, x in weights.items()}
    step_gradients = ops.value_and_grad(lambda params, ids: mean_loss(ops, config, params, ids))
    evaluate = ops.compile(lambda params, ids: mean_loss(ops, config, params, ids))
    draw = np.random.default_rng(SEED)
    begin, step, curve = time.time(), 0, []
    while (done := (time.time() - begin) / seconds) < 1:
        starts = draw.integers(0, len(train) - CONTEXT - 1, BATCH)
        batch = ops.asarray(np.stack([train[i : i + CONTEXT + 1] for i in starts]))
        loss, gradients = step_gradients(nest(weights), batch)
        gradients = dict(flatten(gradients))
        norm = math.sqrt(sum(float(ops.xp.sum(g * g)) for g in gradients.values()))
        rate = PEAK_RATE * min((step + 1) / WARM_UP, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        step += 1
        for name, gradient in gradients.items():  # AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101)
            gradient = gradient * min(1.0, CLIP / (norm + 1e-6))
            first[name] = BETAS[0] * first[name] + (1 - BETAS[0]) * gradient
            second[name] = BETAS[1] * second[name] + (1 - BETAS[1]) * gradient * gradient
            change = first[name] / (1 - BETAS[0] ** step)
            change = change / (ops.xp.sqrt(second[name] / (1 - BETAS[1] ** step)) + 1e-8)
            if weights[name].ndim == 2:
                change = change + DECAY * weights[name]
            weights[name] = weights[name] - rate * change
        if step % 100 == 0:
            curve.append((step, float(loss)))
            print(f"step {step}  loss {float(loss):.3f}  {step * BATCH * CONTEXT / (time.time() - begin):.0f} tokens/s")
            sys.stdout.flush()
    windows = np.lib.stride_tricks.sliding_window_view(validation, CONTEXT + 1)[::CONTEXT]
    losses = [
        float(evaluate(nest(weights), ops.asarray(windows[i : i + BATCH]))) for i in range(0, len(windows), BATCH)
    ]
    bits = np.mean(losses) / math.log(2) * len(validation) / size
    arrays = {name: ops.to_numpy(x) for name, x in weights.items()}
    checkpoints.save_folder(output, config, nest(arrays), dtype="bfloat16")
    tokenizer.save(output)
    report = {"steps": step, "tokens": step * BATCH * CONTEXT, "bits_per_byte": bits, "loss_curve": curve}
    (output / "training.json").write_text(json.dumps(report) + "\n")
    print(f"{step} steps, {bits:.3f} bits per byte on validation.txt")


if __name__ == "__main__":
    main()
