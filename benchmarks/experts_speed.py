"""Speed of experts: a Mixtral-shaped block beside transformers', what more experts cost, and a step of training.

    python benchmarks/experts_speed.py [--rounds 7] [participant ...]

block: width 512, 8 experts of 1024, 2 for each token, 512 tokens, float32; transformers' MixtralSparseMoeBlock with
each of its ways on a CPU (batched_mm, which copies kernels for every token, for one token alone). decode: one token;
prefill: 512 tokens, with 8 and with 64 such experts, random rows each time. 8 of them are 50 MB, of which a cache of
32 MB holds more than half: wide decode has experts of 1024 x 2048, where 8 are 200 MB and both sizes exceed it. What 64
cost beside 8 is asked of one process that holds both and calls them in turn, so that a neighbour's noise meets both;
what is told of a round is the median of its calls.
training: a decoder of 4 layers, width 256, 8 experts of 512, 2 for each token, context 256, batch 8, vocabulary 4096,
with balance loss; "plain" is the same in torch.nn modules, a loop over experts. One process per participant, asked in
turn, each time with a call before that is not timed, for others used the caches and the threads in between; medians
over the rounds, ratios within a round (above 1: faster than the fastest of transformers', or than plain). Writes
benchmarks/results/experts_speed.json.
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

WIDTH, SIZE, SLOTS, TOKENS = 512, 1024, 2, 512
LAYERS, TRAINED_WIDTH, TRAINED_SIZE, HEADS, CONTEXT, BATCH, VOCABULARY = 4, 256, 512, 4, 256, 8, 4096
WAYS = ("eager", "grouped_mm", "batched_mm")
PEERS = tuple(f"transformers {way}" for way in WAYS)
PARTICIPANTS = (*PEERS, "plain", "numpy", "torch", "jax")
# kind: (numbers of experts, tokens, how often in one round, how many times as wide)
FORWARD = {
    "block": ((8,), TOKENS, 5, 1),
    "decode": ((8, 64), 1, 200, 1),
    "wide decode": ((8, 64), 1, 100, 2),
    "prefill": ((8, 64), TOKENS, 5, 1),
}
KINDS = (*FORWARD, "training")


def of_transformers(way, experts, wide):
    import torch
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = MixtralConfig(
        hidden_size=wide * WIDTH, intermediate_size=wide * SIZE, num_local_experts=experts, num_experts_per_tok=SLOTS
    )
    config._experts_implementation = way
    block = MixtralSparseMoeBlock(config).eval()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.02)

    def run(x):
        with torch.no_grad():
            return block(torch.from_numpy(x))

    return run


def of_ours(backend, experts, wide):
    from transformer_lab.backends.plain.manual import identity
    from transformer_lab.config import component
    from transformer_lab.ffn.experts import Experts
    from transformer_lab.ffn.moe import MixtureOfExperts
    from transformer_lab.model.parameters import nest
    from transformer_lab.model.tokens import Tokens
    from transformer_lab.router.mixtral import Mixtral

    ops, draw = component("backend", backend), np.random.default_rng(0)
    ffn = MixtureOfExperts(Mixtral(SLOTS), Experts(experts, wide * SIZE))
    shapes = ffn.shapes(wide * WIDTH).items()
    params = nest({name: ops.place(name, 0.02 * draw.standard_normal(shape, np.float32)) for name, shape in shapes})
    run = ops.compile(lambda params, x: ffn(ops, params, x, identity, Tokens(None, None, None)))
    return lambda x: ops.wait(run(params, ops.asarray(x)))


def plain_training():
    import torch
    from torch import nn
    from torch.nn import functional

    class Mixture(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Linear(TRAINED_WIDTH, 8, bias=False)
            self.ups, self.gates = (
                nn.ModuleList(nn.Linear(TRAINED_WIDTH, TRAINED_SIZE, bias=False) for _ in range(8)) for _ in range(2)
            )
            self.downs = nn.ModuleList(nn.Linear(TRAINED_SIZE, TRAINED_WIDTH, bias=False) for _ in range(8))

        def forward(self, x):
            rows = x.reshape(-1, x.shape[-1])
            logits = self.gate(rows)
            best, ids = logits.topk(SLOTS, dim=-1)
            weights = best.softmax(-1)
            y = torch.zeros_like(rows)
            for expert in range(8):
                row, slot = torch.where(ids == expert)
                own = rows[row]
                out = self.downs[expert](functional.silu(self.gates[expert](own)) * self.ups[expert](own))
                y = y.index_add(0, row, out * weights[row, slot, None])
            load = functional.one_hot(ids, 8).float().mean((0, 1))
            self.balance = 8 * (load * logits.softmax(-1).mean(0)).sum()
            return y.reshape(x.shape)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm_1, self.norm_2 = nn.LayerNorm(TRAINED_WIDTH), nn.LayerNorm(TRAINED_WIDTH)
            self.qkv, self.out = nn.Linear(TRAINED_WIDTH, 3 * TRAINED_WIDTH), nn.Linear(TRAINED_WIDTH, TRAINED_WIDTH)
            self.ffn = Mixture()

        def forward(self, x):
            batch, length, _ = x.shape
            qkv = self.qkv(self.norm_1(x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            mixed = functional.scaled_dot_product_attention(*qkv, is_causal=True)
            x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, TRAINED_WIDTH))
            return x + self.ffn(self.norm_2(x))

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Embedding(VOCABULARY, TRAINED_WIDTH)
            self.position = nn.Embedding(CONTEXT, TRAINED_WIDTH)
            self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
            self.norm = nn.LayerNorm(TRAINED_WIDTH)

        def forward(self, ids):
            x = self.token(ids) + self.position.weight[: ids.shape[1]]
            for block in self.blocks:
                x = block(x)
            return self.norm(x) @ self.token.weight.T

    model = Decoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)

    def step(ids):
        ids = torch.from_numpy(ids)
        optimizer.zero_grad()
        logits = model(ids[:, :-1])
        loss = functional.cross_entropy(logits.reshape(-1, VOCABULARY), ids[:, 1:].reshape(-1))
        (loss + 0.01 * sum(block.ffn.balance for block in model.blocks)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


def our_training(backend):
    from transformer_lab.attention.softmax import SoftmaxAttention
    from transformer_lab.block.sequential import Sequential
    from transformer_lab.config import component
    from transformer_lab.ffn.experts import Experts
    from transformer_lab.ffn.moe import MixtureOfExperts
    from transformer_lab.model.config import ModelConfig
    from transformer_lab.model.init import initialise
    from transformer_lab.norm.layer_norm import LayerNorm
    from transformer_lab.position.learned import Learned
    from transformer_lab.router.mixtral import Mixtral
    from transformer_lab.training.optimizer import AdamW
    from transformer_lab.training.step import TrainingStep

    ops = component("backend", backend)
    ffn = MixtureOfExperts(Mixtral(SLOTS), Experts(8, TRAINED_SIZE), balance_loss=0.01)
    block = Sequential(SoftmaxAttention(HEADS, TRAINED_WIDTH // HEADS), ffn, LayerNorm())
    config = ModelConfig(VOCABULARY, CONTEXT, TRAINED_WIDTH, (block,) * LAYERS, LayerNorm(), Learned())
    training = TrainingStep(ops, config, dict(initialise(config, 0)), AdamW())
    weights = np.ones((1, BATCH, CONTEXT), np.float32)
    return lambda ids: training.run(ids[None], weights, 1, 1.0)[0]


def work(name):
    """The child: a line of input is the kind that is wanted; the answer is {kind: seconds for one}."""
    print("{}", flush=True)  # ready
    made, draw = {}, np.random.default_rng(0)
    for line in sys.stdin:
        kind = line.strip()
        theirs, training = name.startswith("transformers"), kind == "training"
        if (theirs and training) or (name == "plain" and not training) or ("batched" in name and "decode" not in kind):
            print("{}", flush=True)
            continue
        if training:
            runs = {kind: made.get(kind) or (plain_training() if name == "plain" else our_training(name))}
            inputs = [draw.integers(0, VOCABULARY, (BATCH, CONTEXT + 1)) for _ in range(3)]
        else:
            numbers, tokens, repeats, wide = FORWARD[kind]
            way, runs = name.partition(" ")[2], {}
            for experts in numbers:
                own = kind if len(numbers) == 1 else f"{kind} {experts}"
                make = of_transformers if way else of_ours
                runs[own] = made.get((experts, wide)) or make(way or name, experts, wide)
                made[experts, wide] = runs[own]
            inputs = [draw.standard_normal((1, tokens, wide * WIDTH), np.float32) for _ in range(repeats)]
        made |= runs
        seconds = {own: [] for own in runs}
        for one in (inputs[0], *inputs):
            for own, run in runs.items():
                begin = time.perf_counter()
                run(one)
                seconds[own].append(time.perf_counter() - begin)
        print(json.dumps({own: statistics.median(all_of[1:]) for own, all_of in seconds.items()}), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--work")
    parser.add_argument("participants", nargs="*", default=PARTICIPANTS)
    options = parser.parse_args()
    if options.work:
        work(options.work)
        return
    kinds = options.kinds.split(",")
    with Participants({name: [sys.executable, __file__, "--work", name] for name in options.participants}) as people:
        found = {}
        for number in range(options.rounds + 1):  # the first round compiles and warms up
            for kind in kinds:
                for name, answer in people.ask(kind):
                    for own, seconds in answer.items() if number else ():
                        found.setdefault(own, {}).setdefault(name, []).append(seconds)
            print(f"round {number} of {options.rounds}", file=sys.stderr, flush=True)
    rows = {}
    for kind, by_name in found.items():
        peers = [by_name[name] for name in (("plain",) if kind == "training" else PEERS) if by_name.get(name)]
        best = min(peers, key=statistics.median) if peers else None
        for name, seconds in by_name.items():
            row = rows.setdefault(kind, {})[name] = {
                "ms": round(1e3 * statistics.median(seconds), 3),
                "min": round(1e3 * min(seconds), 3),
                "max": round(1e3 * max(seconds), 3),
            }
            if best is not None:
                ratios = [b / s for b, s in zip(best, seconds, strict=True)]
                row["ratio"] = round(statistics.median(ratios), 2)
            print(f"{kind:14} {name:24} {row}")
    for longer in [own for own in found if own.endswith(" 64")]:
        for name, seconds in found[longer].items():
            pairs = zip(seconds, found[longer.removesuffix(" 64") + " 8"][name], strict=True)
            rows[longer][name]["times that of 8"] = round(statistics.median(a / b for a, b in pairs), 2)
            print(f"{longer:14} {name:24} {rows[longer][name]['times that of 8']} times the time of 8 experts")
    result = {
        "command": f"python benchmarks/experts_speed.py --rounds {options.rounds}",
        "unit": "milliseconds; ratio: to the fastest of transformers' ways, in training to plain torch",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, python {platform.python_version()}",
        "packages": {name: version(name) for name in ("numpy", "torch", "jax", "transformers")},
        "rows": rows,
        "lost": people.lost,
    }
    if set(kinds) == set(KINDS):
        path = Path(__file__).parent / "results" / "experts_speed.json"
        path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
