"""Training speed: one step of a 6-layer decoder against the same model written plainly in torch, eager.

    python benchmarks/training_speed.py [--rounds 5] [--steps 3] [participant ...]

Width 384, 6 heads, context 256, batch 16, vocabulary 4096; forward, backward, clipping and AdamW in float32. "plain" is
torch.nn modules (Linear, LayerNorm, scaled_dot_product_attention) with torch's own cross entropy, clipping and AdamW.
One process per participant, all loaded, asked in turn; medians over the rounds, ratios within a round. "growth" is the
peak memory less what the process held before the first step, weights and moments included, so that it is what a step
needs beside them; "peak" is the whole process. Writes benchmarks/results/training_speed.json.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from participants import Participants
from start import held_bytes

VOCABULARY, CONTEXT, WIDTH, LAYERS, HEADS, BATCH = 4096, 256, 384, 6, 6, 16
PARTICIPANTS = ("plain", "torch", "jax", "numpy", "torch bfloat16")


def plain():
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, x):
            batch, length, _ = x.shape
            qkv = self.qkv(self.norm_1(x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            mixed = functional.scaled_dot_product_attention(*qkv, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
            return x + self.down(functional.gelu(self.up(self.norm_2(x)), approximate="tanh"))

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.position = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
            self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
            self.norm = nn.LayerNorm(WIDTH)

        def forward(self, ids):
            x = self.token(ids) + self.position.weight[: ids.shape[1]]
            for block in self.blocks:
                x = block(x)
            return self.norm(x) @ self.token.weight.T

    torch.manual_seed(0)
    model = Decoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)

    def step(ids, number):
        ids = torch.from_numpy(ids)
        optimizer.zero_grad()
        logits = model(ids[:, :-1])
        loss = functional.cross_entropy(logits.reshape(-1, VOCABULARY), ids[:, 1:].reshape(-1))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


def ours(name):
    from transformer_lab.attention.softmax import SoftmaxAttention
    from transformer_lab.block.sequential import Sequential
    from transformer_lab.config import component
    from transformer_lab.ffn.dense import Dense
    from transformer_lab.model.config import ModelConfig
    from transformer_lab.model.init import initialise
    from transformer_lab.norm.layer_norm import LayerNorm
    from transformer_lab.position.learned import Learned
    from transformer_lab.training.optimizer import AdamW
    from transformer_lab.training.step import TrainingStep

    backend, _, precision = name.partition(" ")
    ops = component("backend", backend, precision=precision or "float32")
    block = Sequential(SoftmaxAttention(HEADS, WIDTH // HEADS), Dense(4 * WIDTH), LayerNorm())
    config = ModelConfig(VOCABULARY, CONTEXT, WIDTH, (block,) * LAYERS, LayerNorm(), Learned())
    training = TrainingStep(ops, config, dict(initialise(config, 0)), AdamW())
    weights = np.ones((1, BATCH, CONTEXT), np.float32)
    return lambda ids, number: training.run(ids[None], weights, number, 1.0)[0]


def work(name, steps):
    """The child: a line of input is a request for so many steps."""
    step = plain() if name == "plain" else ours(name)
    draw = np.random.default_rng(0)
    before, number = held_bytes("VmRSS"), 0
    print("{}", flush=True)  # ready
    for _ in sys.stdin:
        begin = time.perf_counter()
        for _ in range(steps):
            number += 1
            loss = step(draw.integers(0, VOCABULARY, (BATCH, CONTEXT + 1)), number)
        seconds = time.perf_counter() - begin
        peak = held_bytes("VmHWM")
        answer = {
            "tokens_per_s": steps * BATCH * CONTEXT / seconds,
            "peak": peak,
            "growth": peak - before,
            "loss": loss,
        }
        print(json.dumps(answer), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--work")
    parser.add_argument("participants", nargs="*", default=PARTICIPANTS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.steps)
        return
    command = [sys.executable, __file__, "--steps", str(options.steps), "--work"]
    with Participants({name: [*command, name] for name in options.participants}) as people:
        found = {name: [] for name in people.alive}
        for number in range(options.rounds + 1):  # the first round compiles and warms up
            for name, answer in people.ask("steps"):
                if number:
                    found[name].append(answer)
            print(f"round {number} of {options.rounds}", file=sys.stderr, flush=True)
        found = {name: found[name] for name in people.alive}
    rows = {}
    for name, answers in found.items():
        speeds = [answer["tokens_per_s"] for answer in answers]
        pairs = zip(answers, found.get("plain", answers), strict=True)
        rows[name] = {
            "tokens_per_s": round(statistics.median(speeds)),
            "min": round(min(speeds)),
            "max": round(max(speeds)),
            "ratio": round(statistics.median(a["tokens_per_s"] / b["tokens_per_s"] for a, b in pairs), 2),
            "peak_mb": round(answers[-1]["peak"] / 1e6),
            "growth_mb": round(answers[-1]["growth"] / 1e6),
        }
        print(f"{name:16}", rows[name])
    result = {
        "command": f"python benchmarks/training_speed.py --rounds {options.rounds} --steps {options.steps}",
        "unit": "tokens/s of a whole step; ratio: to plain torch",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, python {platform.python_version()}",
        "packages": {name: version(name) for name in ("numpy", "torch", "jax")},
        "rows": rows,
        "lost": people.lost,
    }
    path = Path(__file__).parent / "results" / "training_speed.json"
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
