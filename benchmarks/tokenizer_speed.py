"""Speed of the byte-level BPE by hand beside the `tokenizers` library and tiktoken, on English text.

    python benchmarks/tokenizer_speed.py --text story.txt          (or STORYBOOK_TEXT=story.txt)

Every round asks every encoder once, in turn, on the same text, in one process; the ratios are medians of the ratios
within a round, so that a machine that slows down meanwhile does not favour anyone. The ids are compared first. "cold"
is a new encoder with an empty word cache, "warm" the same encoder on the same text again. The library encodes one text
on one core; its batch interface would use more cores, but cutting the text may change ids.
Training reads the same documents on both sides, and the merges are compared.
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tiktoken
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from transformer_lab.tokenizers import END_OF_TEXT, ByteBPE, load_tokenizer, train_tokenizer
from transformer_lab.tokenizers.gpt2_split import GPT2_SPLIT

RESULTS = Path(__file__).parent / "results" / "tokenizer_speed.json"


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def spread(values: list[float]) -> dict[str, float]:
    return {name: round(of(values), 3) for name, of in (("median", statistics.median), ("min", min), ("max", max))}


def compare_encoders(text: str, rounds: int) -> dict[str, Any]:
    ours = load_tokenizer("gpt2")
    library = load_tokenizer("gpt2", kind="huggingface")
    assert isinstance(ours, ByteBPE)
    definition = ours.definition
    theirs = tiktoken.Encoding(
        "gpt2",
        pat_str=GPT2_SPLIT,
        mergeable_ranks={ours.decode_bytes([i]): i for i in range(50256)},
        special_tokens={END_OF_TEXT: 50256},
    )
    ids = ours.encode(text)
    if not ids == theirs.encode_ordinary(text) == library.encode(text):
        message = "The encoders disagree about the ids; their speed is of no interest."
        raise SystemExit(message)

    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        fresh = ByteBPE(definition)
        for name, work in {
            "ours, cold": lambda fresh=fresh: fresh.encode(text),
            "ours, warm": lambda fresh=fresh: fresh.encode(text),
            "tiktoken": lambda: theirs.encode_ordinary(text),
            "tokenizers, one text": lambda: library.encode(text),
            "ours, decode": lambda: ours.decode(ids),
            "tiktoken, decode": lambda: theirs.decode(ids),
        }.items():
            times.setdefault(name, []).append(seconds(work)[0])

    megabytes = len(text.encode()) / 1e6

    def ratio(slow: str, fast: str) -> float:
        return round(statistics.median(s / f for s, f in zip(times[slow], times[fast], strict=True)), 2)

    return {
        "megabytes": round(megabytes, 2),
        "token_ids": len(ids),
        "distinct_pieces": len(fresh._cache),
        "rounds": rounds,
        "megabytes_per_second": {name: spread([megabytes / t for t in taken]) for name, taken in times.items()},
        "ratios": {
            "ours cold / tokenizers (goal 2.5)": ratio("tokenizers, one text", "ours, cold"),
            "ours warm / tokenizers": ratio("tokenizers, one text", "ours, warm"),
            "ours cold / tiktoken": ratio("tiktoken", "ours, cold"),
            "ours warm / tiktoken (goal 0.4)": ratio("tiktoken", "ours, warm"),
            "ours decode / tiktoken decode": ratio("tiktoken, decode", "ours, decode"),
        },
    }


def train_with_library(documents: list[str], vocab_size: int) -> list[tuple[str, str]]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def compare_trainers(text: str, vocab_size: int, rounds: int) -> dict[str, Any]:
    documents = text.split(END_OF_TEXT)
    times: dict[str, list[float]] = {"ours": [], "tokenizers": []}
    for _ in range(rounds):
        taken, trained = seconds(lambda: train_tokenizer(text, vocab_size))
        times["ours"].append(taken)
        taken, merges = seconds(lambda: train_with_library(documents, vocab_size))
        times["tokenizers"].append(taken)
        if list(trained.definition.merges) != merges:
            message = "The trainers disagree about the merges."
            raise SystemExit(message)
    return {
        "megabytes": round(len(text.encode()) / 1e6, 2),
        "vocab_size": vocab_size,
        "rounds": rounds,
        "seconds": {name: spread(taken) for name, taken in times.items()},
        "ratios": {
            "tokenizers / ours": round(
                statistics.median(t / o for t, o in zip(times["tokenizers"], times["ours"], strict=True)), 2
            )
        },
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def print_table(title: str, rows: dict[str, Any]) -> None:
    print(f"\n{title}")
    for name, value in rows.items():
        shown = f"{value['median']:8.2f}  ({value['min']:.2f}-{value['max']:.2f})" if isinstance(value, dict) else value
        print(f"  {name:36} {shown if isinstance(shown, str) else f'{shown:8.2f}'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", default=os.environ.get("STORYBOOK_TEXT"), help="English text, or a folder: train.txt")
    parser.add_argument("--megabytes", type=float, default=5.0, help="how much of it the encoders get")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--vocab-size", type=int, default=8192, help="of the training, which gets the whole text")
    parser.add_argument("--training-rounds", type=int, default=3, help="0 leaves training out")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if not arguments.text:
        parser.error("name an English text with --text or STORYBOOK_TEXT")
    file = Path(arguments.text)
    file = file / "train.txt" if file.is_dir() else file
    data = file.read_bytes()
    text = data.decode("utf-8")

    results: dict[str, Any] = {
        "command": "python benchmarks/tokenizer_speed.py --text TEXT "
        f"--megabytes {arguments.megabytes:g} --rounds {arguments.rounds} "
        f"--vocab-size {arguments.vocab_size} --training-rounds {arguments.training_rounds}",
        "text": {"name": file.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()},
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "load_at_start": round(os.getloadavg()[0], 2),
            "python": platform.python_version(),
            "packages": {name: version(name) for name in ("regex", "tokenizers", "tiktoken")},
        },
        "encoding": compare_encoders(text[: int(arguments.megabytes * 1e6)], arguments.rounds),
    }
    print_table("Encoding and decoding, MB/s: median (min-max)", results["encoding"]["megabytes_per_second"])
    print_table("Ratios of speed", results["encoding"]["ratios"])
    if arguments.training_rounds > 0:
        results["training"] = compare_trainers(text, arguments.vocab_size, arguments.training_rounds)
        print_table("Training, seconds: median (min-max)", results["training"]["seconds"])
        print_table("Ratios of speed", results["training"]["ratios"])
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    print(f"\nWritten to {arguments.output}")


if __name__ == "__main__":
    main()
