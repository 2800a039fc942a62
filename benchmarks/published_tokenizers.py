"""Loading and encoding with published tokenizers, by hand beside the `tokenizers` library.

    python benchmarks/published_tokenizers.py --folder FOLDER --text story.txt

FOLDER holds one folder per tokenizer, each with its tokenizer.json; CONTRIBUTING.md says where there are some. The ids
of both are compared first. Every round asks both in turn, and the ratios are medians of the ratios within a round, so
that a machine that slows down meanwhile does not favour anyone.

Loading is timed in a new process each time, after the imports: "load" until there is a tokenizer, "first ids" until it
has given the ids of a first text, which is when ours makes what only encoding needs. "cold" is a tokenizer that has
encoded nothing but that text, "warm" the same one on the same text again. The library remembers pieces too.

The texts: "english" is the beginning of TEXT; "mixed" is English, the Python code of this package, and words of many
scripts from a seeded generator, a third each, in turns of some hundred characters.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import tokenizers

import transformer_lab
from transformer_lab.tokenizers import BPE, load_tokenizer

RESULTS = Path(__file__).parent / "results" / "published_tokenizers.json"
# One word of it is no token of any vocabulary, and it is longer than what is remembered as one piece.
FIRST_TEXT = "It was the best of times, it was the wyrstest of times; " * 3
TURN = 400  # characters of one kind in the mixed text
WORDS = """
Füße naïve straße größer garçon œuvre niño mañana łódź žluťoučký kůň ığdır Ελλάδα θάλασσα Привет мир революция київ
今天天气 中华人民共和国 北京 東京タワー こんにちは ありがとう 한국어 안녕하세요 مرحبا العالم سلام שלום
हिन्दी नमस्ते বাংলা தமிழ் สวัสดี ประเทศไทย tiếng Việt ქართული հայերեն አማርኛ
🙂 👍🏽 👨‍👩‍👧‍👦 ½ € ∑ → 3.14 1 234 567 «citation» „Zitat“
"""


def load_ours(folder: Path) -> BPE:
    tokenizer = load_tokenizer(folder)
    assert isinstance(tokenizer, BPE)
    return tokenizer


def load_library(folder: Path) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def library_ids(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def loading_of(whose: str, folder: Path) -> dict[str, float]:
    """Seconds in this process, which has loaded nothing yet."""
    if whose == "ours":
        load, ours = seconds(lambda: load_ours(folder))
        first, _ = seconds(lambda: ours.encode(FIRST_TEXT))
    else:
        load, library = seconds(lambda: load_library(folder))
        first, _ = seconds(lambda: library_ids(library, FIRST_TEXT))
    return {"load": load, "first ids": load + first}


def compare_loading(folder: Path, rounds: int) -> dict[str, Any]:
    times: dict[str, list[float]] = {}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as new_process:
        for _ in range(rounds):
            for whose in ("ours", "tokenizers"):
                for until, taken in new_process.apply(loading_of, (whose, folder)).items():
                    times.setdefault(f"{whose}, {until}", []).append(taken)
    return {
        "seconds": {name: spread(taken) for name, taken in times.items()},
        "times the library's": {
            until: median_ratio(times[f"ours, {until}"], times[f"tokenizers, {until}"])
            for until in ("load", "first ids")
        },
    }


def compare_encoding(folder: Path, texts: dict[str, str], rounds: int) -> dict[str, Any]:
    ours, library = load_ours(folder), load_library(folder)
    for name, text in texts.items():
        if ours.encode(text) != library_ids(library, text):
            message = f"{folder.name}: the ids of the {name} text differ; the speed is of no interest."
            raise SystemExit(message)
    del ours
    compared = {}
    for name, text in texts.items():
        megabytes = len(text.encode()) / 1e6
        times: dict[str, list[float]] = {}
        for _ in range(rounds):
            fresh = load_ours(folder)
            fresh.encode(FIRST_TEXT)
            for whose, work in {
                "ours, cold": lambda fresh=fresh, text=text: fresh.encode(text),
                "ours, warm": lambda fresh=fresh, text=text: fresh.encode(text),
                "tokenizers": lambda text=text: library_ids(library, text),
            }.items():
                times.setdefault(whose, []).append(seconds(work)[0])
        compared[name] = {
            "megabytes_per_second": {whose: spread([megabytes / t for t in taken]) for whose, taken in times.items()},
            "times as fast as the library": {
                state: median_ratio(times["tokenizers"], times[f"ours, {state}"]) for state in ("cold", "warm")
            },
        }
    return compared


def spread(values: list[float]) -> dict[str, float]:
    return {name: round(of(values), 3) for name, of in (("median", statistics.median), ("min", min), ("max", max))}


def median_ratio(dividends: list[float], divisors: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(dividends, divisors, strict=True)), 2)


def mixed_text(english: str, characters: int) -> str:
    """A third each of English, of Python and of words of many scripts, in turns."""
    package = Path(transformer_lab.__file__).parent
    code = "".join(file.read_text(encoding="utf-8") for file in sorted(package.rglob("*.py")))
    chooser = random.Random(0)
    words = WORDS.split()
    scripts = " ".join(chooser.choice(words) + chooser.choice(["", "", ",", ".", "!", "\n"]) for _ in range(characters))
    starts = range(0, characters // 3, TURN)
    return "".join(chain.from_iterable((kind[s : s + TURN] for kind in (english, code, scripts)) for s in starts))


def machine() -> dict[str, Any]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return {
        "processor": next(names, platform.processor()),
        "cores": os.cpu_count(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("regex", "tokenizers")},
    }


def described(folder: Path) -> dict[str, Any]:
    data = (folder / "tokenizer.json").read_bytes()
    definition = load_ours(folder).definition
    return {
        "megabytes": round(len(data) / 1e6, 1),
        "sha256": hashlib.sha256(data).hexdigest(),
        "tokens": definition.size,
        "merges": len(definition.merges),
    }


def print_row(name: str, result: dict[str, Any]) -> None:
    loading, encoding = result["loading"], result["encoding"]
    shown = [f"{loading['seconds']['ours, load']['median']:.2f} s", *loading["times the library's"].values()]
    for text in encoding.values():
        shown += text["times as fast as the library"].values()
    print(f"{name:14}" + "".join(f"{value:>9}" for value in shown), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=os.environ.get("PUBLISHED_TOKENIZERS"), help="of the tokenizers")
    parser.add_argument("--text", default=os.environ.get("STORYBOOK_TEXT"), help="English text, or a folder: train.txt")
    parser.add_argument("--megacharacters", type=float, default=1.0, help="of each of the two texts, in millions")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if not arguments.folder or not arguments.text:
        parser.error("name a folder of tokenizers with --folder and an English text with --text")
    folders = sorted(file.parent for file in Path(arguments.folder).glob("*/tokenizer.json"))
    if not folders:
        parser.error(f"{arguments.folder} holds no folders with a tokenizer.json")
    file = Path(arguments.text)
    file = file / "train.txt" if file.is_dir() else file
    data = file.read_bytes()
    characters = int(arguments.megacharacters * 1e6)
    english = data.decode("utf-8")[:characters]
    texts = {"english": english, "mixed": mixed_text(english, characters)}

    results: dict[str, Any] = {
        "command": "python benchmarks/published_tokenizers.py --folder FOLDER --text TEXT "
        f"--megacharacters {arguments.megacharacters:g} --rounds {arguments.rounds}",
        "text": {"name": file.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()},
        "megabytes": {name: round(len(text.encode()) / 1e6, 2) for name, text in texts.items()},
        "rounds": arguments.rounds,
        "machine": machine(),
        "tokenizers": {},
    }
    print("                 load: ours, times the library's   speed: times the library's, cold and warm")
    print(f"{'':14}" + "".join(f"{title:>9}" for title in ("", "load", "first", *["english", "", "mixed", ""])))
    for folder in folders:
        result = {
            "file": described(folder),
            "loading": compare_loading(folder, arguments.rounds),
            "encoding": compare_encoding(folder, texts, arguments.rounds),
        }
        results["tokenizers"][folder.name] = result
        print_row(folder.name, result)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    print(f"\nWritten to {arguments.output}")


if __name__ == "__main__":
    main()
