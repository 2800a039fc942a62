"""Reports made by hand, in the form of Report.to_dict(): a sound one of any size, a defect, a hostile and an empty one.

The numbers are drawn, not measured, but related as real ones are: errors grow with depth, ratios are far below 1.
"""

import numpy as np

IN_A_BLOCK = (
    *("norm_1", "attn.q", "attn.k", "attn.v", "attn.scores", "attn.pattern", "attn.out"),
    *("resid_mid", "norm_2", "ffn.pre", "ffn.act", "ffn.out", "resid_post"),
)
HOSTILE = (
    "<script>alert('1')</script>&\"x\" \x00\x1b[31m\u202eevil\u200f \ud800 ]]>--><img src=//x.example/y onerror=z>"
)


def taps_of(layers):
    blocks = (f"blocks.{block}.{tap}" for block in range(layers) for tap in IN_A_BLOCK)
    return ["embed", *blocks, "final_norm", "logits"]


def parameters_of(layers):
    names = ("norm_1.scale", "norm_1.bias", "attn.qkv.kernel", "attn.qkv.bias", "attn.out.kernel", "attn.out.bias")
    more = ("norm_2.scale", "norm_2.bias", "ffn.up.kernel", "ffn.up.bias", "ffn.down.kernel", "ffn.down.bias")
    inner = (f"blocks.{block}.{name}" for block in range(layers) for name in (*names, *more))
    return ["embed.tokens", "embed.positions", *inner, "final_norm.scale", "final_norm.bias"]


def _errors(noise, depth, scale):
    rms = scale * float((1 + depth) ** 0.5 * noise.uniform(0.7, 1.4))
    return {
        "max_abs": rms * float(noise.uniform(4, 9)),
        "max_rel": float(10 ** noise.uniform(-5, -2)),
        "ulp_max": float(noise.integers(3, 90_000)),
        "ulp_p99": float(noise.integers(1, 40)),
        "rms": rms,
        "snr_db": float(-20 * np.log10(rms) - noise.uniform(0, 6)),
        "cosine": 1.0 - rms * rms,
    }


def sound(layers=4, names=("numpy float32", "torch float32", "jax float32"), prompts=2, flips=3, seed=0):
    """A report without a defect. Every participant has all taps, gradients and three sweeps."""
    noise = np.random.default_rng(seed)
    taps, texts = taps_of(layers), ["Once upon a time", "The king said to his son", "It was", "In the"] * prompts
    rows = []
    for depth, tap in enumerate(taps):
        here = []
        for name in names:
            scale = 1e-7 if "float32" in name else 3e-3
            errors = _errors(noise, depth, scale)
            added, inherited = errors["rms"] * 0.3, errors["rms"] * 0.95 * (depth > 0)
            here.append(
                {"tap": tap, "participant": name, **errors, "added_max_abs": added * 5, "added_rms": added}
                | {"inherited_max_abs": inherited * 5, "inherited_rms": inherited}
                | {"ratio": float(10 ** noise.uniform(-2.2, -0.4)) if tap != "embed" else 0.0, "nearest": False}
                | {"largest_likely": float(noise.uniform(0.2, 4.0)), "mean_square_likely": float(noise.uniform(0, 0.5))}
                | {"margin": None, "unjudged": None}
            )
        min(here, key=lambda row: row["rms"])["nearest"] = True
        rows += here
    largest = max(rows, key=lambda row: row["ratio"])
    sentence = (
        f"Identical in exact mode; float32 differences are rounding (largest {largest['ratio']:.2g} of its bound, at "
        f"{largest['tap']} on {largest['participant']})."
    )
    return {
        "schema": 1,
        "verdict": {"status": "sound", "sentence": sentence, "exact_identical": True},
        "first_divergence": None,
        "model": {"source": "storybook", "sha256": "5f" * 32, "parameters": 6_291_456, "layers": layers}
        | {"precision": "float32"},
        "prompts": [{"text": text, "token_ids": list(range(7, 7 + len(text)))} for text in texts[:prompts]],
        "participants": [
            {"name": name, "kind": "transformers" if name.startswith("transformers") else "backend"}
            | {"precision": name.split()[-1], "version": "2.13.0", "device": "cpu"}
            | {"operations": None if name.startswith("transformers") else {"linear": "packed", "attention": "sdpa"}}
            for name in names
        ],
        "semantics": [],
        "taps": rows,
        "exact": {
            "identical": True,
            "participants": ["numpy exact", "torch exact", "jax exact"],
            "roundings": 40_000 * len(taps),
            "doubtful": 13 * len(taps),
            "taps": [
                {"tap": tap, "roundings": 40_000, "doubtful": 13, "missing": []}
                | {"differing": {"torch exact": 0, "jax exact": 0}}
                for tap in taps
            ],
        },
        "logits": [
            {"participant": name, "kl_from_truth": 2.5e-13 * (1 + i), "kl_to_truth": 2.6e-13 * (1 + i)}
            | {"top_1": 1.0 - 0.0026 * i, "top_5": 0.9991, "rank_shift_max": 4, "rank_shift_mean": 0.0123}
            | {
                "flips": [
                    {"prompt": k % prompts, "position": 3 + k, "truth_token": 262, "token": 257, "margin": 3.1e-7 * k}
                    for k in range(flips * (i > 0))
                ]
            }
            for i, name in enumerate(names)
        ],
        "text": [
            {"participant": name, "first_difference": None if i < 2 else 5, "agreement": 32 if i < 2 else 5}
            | {"tokens": 32, "distinct": 1, "runs": 3, "sampler": None if i else True}
            | {"texts": [f", there was a king who had {'three' if i < 2 else 'two'} sons.\nAnd so"] * prompts}
            for i, name in enumerate(names)
        ],
        "gradients": [
            {"participant": name, "parameter": parameter, **_errors(noise, depth, 1e-8), "ratio": 0.02}
            | {"largest_likely": 0.5, "mean_square_likely": 0.1}
            for name in names
            for depth, parameter in enumerate(parameters_of(layers))
        ],
        "sweeps": [
            {"participant": name, "precision": "float32", "judged_by": "float32", "change": change}
            | {"elements": 123_456, "differing": 4_321 * i, "max_abs": 3e-7 * i}
            | {"logits_max_abs": 2e-6 * i, "ratio": 0.1 * i, "tap": "blocks.0.attn.out" if i else None, "note": None}
            for name in names
            for i, change in enumerate(("1 thread", "batch of 3", "cached, token by token"))
        ],
        "reached": {
            "lengths": [16, 24][:prompts] + [24] * (prompts - 2),
            "positions": 24,
            "context": 1024,
            "vocabulary": 0.0123,
            "largest_value": 12.3456,
            "precisions": sorted({name.split()[-1] for name in names}),
            "hidden": {
                names[-1]: [f"blocks.{block}.attn.{tap}" for block in range(2) for tap in ("scores", "pattern")]
            },
            "unbounded": [],
            "checks": [
                {"participant": name, "check": check, "tried": f"{check} was tried", "wrong": None, "skipped": skipped}
                for name in names
                for check, skipped in (("greedy tokens", None), ("stop strings", "the model has no tokenizer"))
            ],
            "judge": "The judge shares the definition of the decoder with the participants that are ours.",
        },
        "environment": {
            "python": "3.11.7",
            "platform": "Linux-6.1-x86_64-with-glibc2.36",
            "processor": "Some Processor 9000",
            "cores": 2,
            "threads": 2,
            "packages": {"numpy": "2.4.6", "torch": "2.13.0", "jax": "0.10.2"},
            "blas": [{"library": "openblas", "version": "0.3.30", "threads": 2, "architecture": "Zen"}],
            "variables": {"OMP_NUM_THREADS": "2"},
            "command": ["python", "-m", "transformer_lab", "job=compare", "prompt=The king said"],
        },
        "seconds": 12.34,
    }


def routed(participant, layers=12, flips=40):
    """What is told of the routes of a participant: one flip after the other through the layers."""
    kl = {"total": 5.1e-7, "experts": 4.9e-7, "weights": -2.2e-9, "arithmetic": 2.2e-8}
    row = {"tokens": 64, "flips": flips // layers, "own": 1, "reordered": 2, "error": 4e-4, "certified": 0.88}
    row |= {"smallest_margin": 1e-5, "margin_of_flips": 3e-4}
    return {"participant": participant, "tokens": 64, "kl": kl, "certified": 0.8824, "runs": []} | {
        "layers": [{"layer": layer, **row} for layer in range(layers)],
        "flips": [
            {"text": 0, "position": number, "layer": number % layers, "a": [1, 2], "b": [1, 7]}
            | {"margin": 1e-5 * number, "own": number < layers, "certified": False}
            for number in range(flips)
        ],
    }


def large():
    """GPT-2 small with five participants, four prompts, 148 parameters and 40 flips each; its networks are experts."""
    names = ("numpy float32", "torch float32", "jax float32", "torch bfloat16", "transformers float32")
    report = sound(layers=12, names=names, prompts=4, flips=40, seed=1)
    report["routing"] = [routed(name, flips=flips) for name, flips in zip(names, (0, 0, 0, 40), strict=False)]
    return report


def defect():
    """Attention's scale applied twice in block 2 on torch: the ratio of 812 is the first above 1."""
    report = sound(seed=2)
    tap = "blocks.2.attn.scores"
    after = False
    for row in report["taps"]:
        after |= row["tap"] == tap
        if after and row["participant"] == "torch float32":
            row |= {"rms": row["rms"] * 4e5, "max_abs": row["max_abs"] * 4e5, "snr_db": row["snr_db"] - 112}
            row |= {"inherited_rms": row["rms"] * 0.9, "cosine": 0.9712}
            if row["tap"] == tap:
                row |= {"ratio": 812.0, "added_rms": row["rms"], "added_max_abs": row["max_abs"], "inherited_rms": 2e-7}
    report["verdict"] = {
        "status": "defect",
        "sentence": f"A defect: {tap} on torch float32 differs by 812 bounds; nothing before it does.",
        "exact_identical": True,
    }
    report["first_divergence"] = {"participant": "torch float32", "precision": "float32", "tap": tap, "ratio": 812.0}
    report["first_divergence"] |= {"prompt": 1, "position": [0, 3, 2, 1], "value": 0.0213, "expected": 0.1204}
    report["first_divergence"] |= {"bound": 1.22e-4}
    report["semantics"] = [
        {"field": "norm.epsilon", "values": {"numpy float32": "1e-05", "torch float32": "1e-06"}},
    ]
    report["logits"][1] |= {"kl_from_truth": 0.71, "kl_to_truth": 0.83, "top_1": 0.41, "rank_shift_max": 1204}
    report["text"][1] |= {"first_difference": 1, "agreement": 1, "texts": [", the the the of of", None]}
    return report


def unjudged():
    """A participant that shows hidden states and logits alone, beside one in exact mode."""
    report = sound(names=("numpy float32", "numpy exact", "theirs bfloat16"), seed=4)
    reason = "too little is shown before it; show blocks.3.ffn.act, blocks.3.ffn.out, blocks.3.resid_post, final_norm"
    kept = ("embed", "logits")
    report["taps"] = [row for row in report["taps"] if row["participant"] != "theirs bfloat16" or row["tap"] in kept]
    unknown = {"ratio": None, "largest_likely": None, "mean_square_likely": None, "nearest": False, "unjudged": reason}
    for row in report["taps"]:
        if row["participant"] == "theirs bfloat16" and row["tap"] == "logits":
            row |= unknown
        if row["participant"] == "numpy exact":
            row["ratio"] = 0.98 if row["tap"] != "embed" else 0.0
        if row["participant"] == "numpy float32" and row["tap"] == "blocks.1.ffn.act":
            row["margin"] = 12.5
    report["verdict"] |= {"status": "not judged", "sentence": f"Not judged: logits on theirs bfloat16: {reason}."}
    taps = taps_of(4)
    report["reached"]["hidden"] = {"theirs bfloat16": [tap for tap in taps if tap not in kept]}
    report["reached"]["unbounded"] = ["asinh", "erfinv"]
    report["gradients"] = [row for row in report["gradients"] if row["participant"] == "numpy float32"]
    return report


def hostile():
    """Names, texts and paths that somebody else chose, and numbers that are none."""
    report = sound(layers=1, names=(HOSTILE, "b" * 5000 + " float32", "عربي float32"))
    report["verdict"]["sentence"] = report["model"]["source"] = HOSTILE
    report["prompts"][0]["text"] = HOSTILE * 200
    report["prompts"][1] = {"text": None, "token_ids": list(range(100_000))}
    report["semantics"] = [{"field": HOSTILE, "values": {HOSTILE: HOSTILE, "b": None}}]
    for row, value in zip(report["taps"], (np.nan, np.inf, -np.inf, None, 0.0, 1e308, 5e-324), strict=False):
        row |= {"ratio": value, "max_rel": value, "rms": value, "snr_db": value}
    report["taps"][-1]["tap"] = HOSTILE
    for row in report["text"]:
        row["texts"] = [HOSTILE + row["participant"] * 50] * 2
    for row in report["logits"][1]["flips"]:
        row |= {"token": HOSTILE, "truth_token": "\n", "margin": None}
    report["gradients"][0]["parameter"] = report["sweeps"][0]["note"] = report["sweeps"][0]["change"] = HOSTILE
    report["environment"]["variables"] = {HOSTILE: HOSTILE}
    report["reached"]["hidden"] = {HOSTILE: [HOSTILE] * 3}
    report["reached"]["unbounded"] = [HOSTILE]
    report["reached"]["checks"][0] |= {"check": HOSTILE, "participant": HOSTILE, "wrong": HOSTILE}
    report["environment"]["command"] = ["python", HOSTILE]
    report["routing"] = [routed(row["name"], layers=1) for row in report["participants"]]
    report["routing"][0]["kl"] = dict.fromkeys(("total", "experts", "weights", "arithmetic"), np.nan)
    report["routing"][1] |= {"certified": None, "flips": report["routing"][1]["flips"] * 500}
    return report


def empty():
    """As little as a report can hold: one participant from a file, with one tap and nothing known of it."""
    keys = ("max_abs", "max_rel", "ulp_max", "ulp_p99", "rms", "snr_db", "cosine", "added_max_abs", "added_rms")
    unknown = dict.fromkeys((*keys, "inherited_max_abs", "inherited_rms", "ratio"))
    return {
        "schema": 1,
        "verdict": {"status": "sound", "sentence": "Nothing to compare.", "exact_identical": None},
        "first_divergence": None,
        "model": {"source": "model", "sha256": None, "parameters": None, "layers": None, "precision": "float32"},
        "prompts": [{"text": None, "token_ids": [1]}],
        "participants": [
            {"name": "dump.npz", "kind": "file", "precision": "float32", "version": None, "device": None}
            | {"operations": None}
        ],
        "taps": [{"tap": "logits", "participant": "dump.npz", **unknown, "nearest": True}],
        "exact": None,
        **dict.fromkeys(("semantics", "logits", "text", "gradients", "sweeps"), ()),
        "environment": {
            **dict.fromkeys(("python", "platform", "processor", "cores", "threads", "command")),
            "packages": {},
            "blas": [],
            "variables": {},
        },
        "seconds": None,
    }


def enormous():
    """More than any page can hold: 40 blocks and 22 participants."""
    return sound(layers=40, names=tuple(f"participant {i} float32" for i in range(22)), prompts=30, flips=20, seed=3)
