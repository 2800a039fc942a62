"""What it costs that files survive a power cut: a checkpoint and a result.json, with syncing and without.

    python benchmarks/durable_writing.py [--rounds 30] [--folder DIR]

Written in turn, by the functions that runs use, into a folder on the disk to be measured (DIR, or the current one): a
result.json, a checkpoint of a tiny model, and one of the shape of storybook, each with its moments. Without syncing,
os.fsync does nothing. Before each, what is still to be written to the disk is waited for. Medians, smallest and largest
of the rounds, and how often fsync is called. Writes benchmarks/results/durable_writing.json.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import transformer_lab as lab
from transformer_lab.environment import environment
from transformer_lab.ffn.dense import Dense
from transformer_lab.jobs import record
from transformer_lab.model.config import ModelConfig
from transformer_lab.model.init import initialise
from transformer_lab.training import checkpoint

TINY = ModelConfig(512, 64, 32, 2, 4, Dense(128))
RECORD = {"schema": 1, "environment": environment(), "output": {"token_ids": list(range(64)), "text": "the king " * 32}}
Work = Callable[[Path], object]


def of_checkpoint(config: ModelConfig) -> Work:
    """Writes a checkpoint of random weights, and as many moments, with a tokenizer's files."""
    tokenizer = lab.load_model("storybook").tokenizer
    params = dict(initialise(config, 0))
    trees = {"params": params, "first": params, "second": params}
    return lambda folder: checkpoint.save(folder, 100, config, trees, {"identity": {}}, tokenizer)


def works() -> dict[str, Work]:
    return {
        "result.json": lambda folder: record.write(folder, RECORD),
        "checkpoint, tiny": of_checkpoint(TINY),
        "checkpoint, storybook": of_checkpoint(lab.load_model("storybook").config),
    }


def timed(work: Work, parent: Path, sync: bool) -> tuple[float, int, int]:
    """(seconds, calls of fsync, bytes on the disk) of one write into a new folder."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    os.sync()
    with mock.patch("os.fsync", wraps=os.fsync if sync else lambda handle: None) as fsync:
        begin = time.perf_counter()
        work(folder)
        seconds = time.perf_counter() - begin
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    shutil.rmtree(folder)
    return seconds, fsync.call_count, size


def summary(seconds: list[float]) -> dict[str, float]:
    milliseconds = [1000 * second for second in seconds]
    return {
        "median_ms": round(statistics.median(milliseconds), 3),
        "smallest_ms": round(min(milliseconds), 3),
        "largest_ms": round(max(milliseconds), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--folder", type=Path, default=Path())
    options = parser.parse_args()
    rows, load = {}, round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        for name, work in works().items():
            timed(work, Path(scratch), sync=True)  # not counted
            rounds = [[timed(work, Path(scratch), sync) for sync in (True, False)] for _ in range(options.rounds)]
            synced, plain = zip(*rounds, strict=True)
            rows[name] = {
                "bytes": synced[0][2],
                "fsync_calls": synced[0][1],
                "synced": summary([seconds for seconds, _, _ in synced]),
                "not_synced": summary([seconds for seconds, _, _ in plain]),
            }
            print(name, json.dumps(rows[name]))
    found = {
        "command": f"python benchmarks/durable_writing.py --rounds {options.rounds}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}",
        "python": platform.python_version(),
        "load_at_start": load,
        "rows": rows,
    }
    place = Path(__file__).parent / "results" / "durable_writing.json"
    place.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
