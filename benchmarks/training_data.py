"""A corpus of 20 MB and one of 2 GB, tokenised and read in batches: speed, and whether memory grows with the corpus.

    python benchmarks/training_data.py [--large-mb 2000] [--folder FOLDER]

Each corpus is generated, one file of many short documents; a last one is a single document of --large-mb / 10. A fresh
process tokenises it with the embedded model's tokenizer into an empty cache, and reads 200 batches of 16 windows of 256
tokens in shuffled order, and as many where no window sees two documents. "peak" is the process's VmHWM, pages of
memory maps included; "after imports" is the same before anything was read. The text repeats its words, so the
tokenizer's cache of pieces is as large for all; with real text it grows to at most some 30 MB.
Everything generated is deleted. Writes benchmarks/results/training_data.json.
"""

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "training_data.json"
BATCHES, BATCH_SIZE, LENGTH = 200, 16, 256
SYLLABLES = ["ba", "do", "fen", "gri", "hal", "ki", "lo", "mar", "ne", "os", "pel", "qui", "ru", "sta", "tim", "vo"]


def write_corpus(file: Path, megabytes: float, separator: str, seed: int = 1) -> int:
    """Stories of made-up words, in paragraphs; the number of bytes."""
    draw = random.Random(seed)
    words = ["".join(draw.choices(SYLLABLES, k=draw.choice([1, 2, 2, 3]))) for _ in range(8_000)]
    sentences = []
    for _ in range(40_000):
        chosen = draw.choices(words, k=draw.randint(4, 14))
        chosen[len(chosen) // 2] += ","
        sentences.append(" ".join(chosen).capitalize() + draw.choice([". ", "! ", ".\n", '." ']))
    written = 0
    with file.open("w", encoding="ascii", newline="") as stream:
        while written < megabytes * 1e6:
            text = "".join(draw.choices(sentences, k=draw.randint(4, 40))).strip() + "\n" + separator
            written += stream.write(text)
    return written


def peak_bytes() -> int:
    """VmHWM of this process. Linux only."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    message = "/proc/self/status has no VmHWM"
    raise OSError(message)


def measure(file: str) -> dict[str, float]:
    """In a process of its own, with an empty cache folder."""
    from transformer_lab import load_tokenizer
    from transformer_lab.training.data import TextData
    from transformer_lab.training.windows import Batches

    tokenizer = load_tokenizer("storybook")
    after_imports = peak_bytes()
    start = time.perf_counter()
    training, validation = TextData(path=file).prepare(tokenizer)
    tokenised = time.perf_counter()
    tokenising_peak = peak_bytes()
    TextData(path=file).prepare(tokenizer)
    again = time.perf_counter()
    result: dict[str, float] = {
        "tokens": training.count + validation.count,
        "documents": training.documents + validation.documents,
        "seconds_to_tokenise": tokenised - start,
        "seconds_when_cached": again - tokenised,
    }
    for name, cross in (("crossing", True), ("within_documents", False)):
        begin = time.perf_counter()
        batches = Batches(training, LENGTH, BATCH_SIZE, seed=0, cross_documents=cross)
        result[f"seconds_to_first_batch_{name}"] = -begin + (batches.at(0), time.perf_counter())[1]
        begin = time.perf_counter()
        for step in range(BATCHES):
            batches.at(step)
        result[f"milliseconds_per_batch_{name}"] = (time.perf_counter() - begin) * 1000 / BATCHES
    result["megabytes_per_second"] = os.path.getsize(file) / 1e6 / result["seconds_to_tokenise"]
    result["after_imports_mb"] = after_imports / 1e6
    result["peak_tokenising_mb"] = tokenising_peak / 1e6
    result["peak_mb"] = peak_bytes() / 1e6
    return {name: round(value, 3) for name, value in result.items()}


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small-mb", type=float, default=20)
    parser.add_argument("--large-mb", type=float, default=2000)
    parser.add_argument("--folder", type=Path, help="where the corpora lie meanwhile; it needs twice --large-mb")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return

    results: dict[str, object] = {
        "command": f"python benchmarks/training_data.py --large-mb {arguments.large_mb:g}",
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "load_at_start": round(os.getloadavg()[0], 2),
            "python": platform.python_version(),
        },
        "batches": f"{BATCHES} of {BATCH_SIZE} windows of {LENGTH} tokens",
    }
    separator = "<|endoftext|>\n"
    corpora = {
        "small": (arguments.small_mb, separator),
        "large": (arguments.large_mb, separator),
        "one_document": (arguments.large_mb / 10, ""),
    }
    peaks = {}
    for name, (megabytes, between) in corpora.items():
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            if shutil.disk_usage(folder).free < megabytes * 2e6:
                parser.error(f"{folder} has not enough free space for {megabytes:g} MB of text and its tokens")
            file = Path(folder, "corpus.txt")
            size = write_corpus(file, megabytes, between)
            command = [sys.executable, __file__, "--measure", str(file)]
            environment = os.environ | {"XDG_CACHE_HOME": folder}
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            measured = json.loads(done.stdout)
        peaks[name] = measured["peak_mb"]
        results[name] = {"bytes": size, **measured}
        print(f"\n{name}: {size / 1e6:,.0f} MB")
        for key, value in measured.items():
            print(f"  {key:44} {value:14,.3f}")
    results["peak_large_over_small"] = round(peaks["large"] / peaks["small"], 4)
    results["peak_one_document_over_small"] = round(peaks["one_document"] / peaks["small"], 4)
    print(f"\npeak memory, large over small: {results['peak_large_over_small']} (goal: at most 1.10)")
    print(f"peak memory, one document over small: {results['peak_one_document_over_small']}")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    print(f"Written to {arguments.output}")


if __name__ == "__main__":
    main()
