"""A GPT-2 that somebody wrote in plain torch. It takes part in a comparison as a function from ids to arrays.

python examples/outside_participant/my_stack.py            # a sound one
python examples/outside_participant/my_stack.py --bug      # with the other GELU
python examples/outside_participant/my_stack.py --dump ids_and_taps.npz 3 14 15 92
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn.functional import gelu, layer_norm


def my_stack(folder, approximate="tanh"):
    """A GPT-2 folder of Hugging Face -> a function from token ids [T] to {tap name: array}."""
    settings = json.loads((Path(folder) / "config.json").read_text())
    weights = {name: tensor.float() for name, tensor in load_file(Path(folder) / "model.safetensors").items()}
    heads, epsilon = settings["n_head"], settings["layer_norm_epsilon"]

    def linear(x, name):
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def norm(x, name):
        return layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], epsilon)

    def run(token_ids):
        ids = torch.as_tensor(token_ids)
        length = len(ids)
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)  # keys that lie in the future
        x = weights["transformer.wte.weight"][ids] + weights["transformer.wpe.weight"][:length]  # [T, D]
        taps = {"embed": x}
        for layer in range(settings["n_layer"]):
            theirs, ours = f"transformer.h.{layer}", f"blocks.{layer}"
            qkv = linear(norm(x, f"{theirs}.ln_1"), f"{theirs}.attn.c_attn")  # [T, 3 D]
            q, k, v = qkv.view(length, 3, heads, -1).permute(1, 2, 0, 3)  # [H, T, N] each
            scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(hidden, -torch.inf)  # [H, T, T]
            mixed = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)  # [T, D]
            x = x + linear(mixed, f"{theirs}.attn.c_proj")
            taps |= {f"{ours}.attn.scores": scores, f"{ours}.resid_mid": x}
            pre = linear(norm(x, f"{theirs}.ln_2"), f"{theirs}.mlp.c_fc")  # [T, F]
            act = gelu(pre, approximate=approximate)
            x = x + linear(act, f"{theirs}.mlp.c_proj")
            taps |= {f"{ours}.ffn.pre": pre, f"{ours}.ffn.act": act, f"{ours}.resid_post": x}
        taps["logits"] = norm(x, "transformer.ln_f") @ weights["transformer.wte.weight"].T  # [T, V]
        return taps

    return run


def main():
    import transformer_lab as lab
    from transformer_lab.comparison.participants.participant import Function

    parser = argparse.ArgumentParser()
    parser.add_argument("--bug", action="store_true", help="the GELU with erf instead of the one with tanh")
    parser.add_argument("--dump", nargs="+", metavar=("FILE", "ID"), help="only write a dump, for these token ids")
    arguments = parser.parse_args()
    model = lab.load_model("storybook")
    run = my_stack(model.folder, "none" if arguments.bug else "tanh")
    if arguments.dump:
        file, *ids = arguments.dump
        ids = np.array(ids, np.int64)
        np.savez(file, token_ids=ids, **run(ids))  # any program can write such a file; nothing of the lab is needed
        return
    prompts = ["Once upon a time", "The king said to his son"]
    report = lab.compare("storybook", prompts, participants=[Function("my stack", run, config=model.config)])
    print(report.to_dict()["verdict"]["sentence"])


if __name__ == "__main__":
    main()
