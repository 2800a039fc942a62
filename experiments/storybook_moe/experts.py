"""Which tokens go to which expert of storybook_moe: of each expert those that go there most reliably.

    python experiments/storybook_moe/experts.py validation.txt

Windows of 256 tokens from 12 documents; of those that occur at least 40 times, the nine that go most often
to an expert.
"""

import sys
from collections import Counter, defaultdict
from pathlib import Path

import transformer_lab as lab

DOCUMENTS, WINDOW, OFTEN, SHOWN = 12, 256, 40, 9


def main() -> None:
    (path,) = sys.argv[1:]
    model = lab.load_model("storybook_moe")
    assert model.tokenizer is not None
    layers = range(model.config.num_layers)
    taps = [f"blocks.{layer}.ffn.router.expert_ids" for layer in layers]
    here: dict[tuple[int, int], Counter[int]] = defaultdict(Counter)
    everywhere: Counter[int] = Counter()
    for text in Path(path).read_text(encoding="utf-8").split("<|endoftext|>")[:DOCUMENTS]:
        ids = model.tokenizer.encode(text[:20_000])
        for begin in range(0, len(ids) - WINDOW, WINDOW):
            window = ids[begin : begin + WINDOW]
            routes = model.record(window, taps)
            everywhere.update(window)
            for layer in layers:
                for token, experts in zip(window, routes[taps[layer]][0].tolist(), strict=True):
                    for expert in experts:
                        here[layer, expert][token] += 1
    print(f"{everywhere.total():,} tokens")
    for (layer, expert), counts in sorted(here.items()):
        often = {token: count / everywhere[token] for token, count in counts.items() if everywhere[token] >= OFTEN}
        best = sorted(often, key=lambda token: (-often[token], -everywhere[token]))[:SHOWN]
        words = ", ".join(f"{model.tokenizer.decode([token])!r} {often[token]:.0%}" for token in best)
        print(f"layer {layer}, expert {expert}, {counts.total() / everywhere.total():.0%} of the tokens: {words}")


if __name__ == "__main__":
    main()
