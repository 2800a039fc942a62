"""How soon a process that is started again says its first token behind a long prompt that it has seen before.

    python benchmarks/second_start.py [--rounds 5] [participant ...]

GPT-2's shape (124M) with random weights, float32: 900 tokens that are always the same and 16 that are new. Each start
is a process of its own: `cache=prefix` (nothing outlives it), `cache=tiered` in an empty folder (it writes its blocks),
and again over the same folder (it reads them), in turn. Told are the seconds from after loading to the first token,
those of loading, which with tiers hashes the weights, the tokens that were found, and the median of the rounds' ratios.
The files are in the system's page cache, as they are soon after they were written.

llama.cpp, if it is installed (see generation_peers.py), computes with float32 weights of the same shape and keeps keys
and values in float16, its default. Its first start saves the state behind the shared tokens in a file, the next loads
it before the clock of the first token ends; that the state was there is shown by the number of its tokens, by the
cache's last position, and by the token that comes. Each participant takes its turn in each round. Writes
benchmarks/results/second_start.json.
"""

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from generation_peers import CONTEXT, THREADS, VOCABULARY, installed, write_gguf

BACKENDS = ("numpy", "torch", "jax")
LLAMA = "llama.cpp"
SHARED, OWN = 900, 16
# The three starts of a round: nothing kept, kept for the next, found.
STARTS = ("without", "first", "again")
Start = dict[str, Any]


def prompt(seed: int) -> tuple[list[int], list[int]]:
    shared = np.random.default_rng(0).integers(0, 50000, SHARED).tolist()
    return shared, np.random.default_rng(seed).integers(0, 50000, OWN).tolist()


def start_ours(backend: str, start: str, folder: Path, seed: int) -> Start:
    """{"load", "first_token"} in seconds, "found", the tokens that were there already, and "token"."""
    import transformer_lab as lab
    from transformer_lab.config import component

    shared, own = prompt(seed)
    begin = time.perf_counter()
    if start == "without":
        cache = component("cache", "prefix")
    else:
        cache = component("cache", "tiered", cold_folder=str(folder), warm_bytes=0)
    model = lab.load_model("gpt2", backend, weights="random", cache=cache)
    loaded = time.perf_counter()
    sequences = model.engine.begin([[*shared, *own]], 8)
    token = int(sequences.logits[0].argmax())
    first = time.perf_counter()
    found = model.engine.memory.counts.found
    sequences.end()
    return {"load": loaded - begin, "first_token": first - loaded, "found": found, "token": token}


def start_llama(start: str, folder: Path, seed: int) -> Start:
    import llama_cpp as llama

    shared, own = prompt(seed)
    state, room = str(folder / "state.bin").encode(), (llama.llama_token * CONTEXT)()
    begin = time.perf_counter()
    llama.llama_backend_init()
    settings = llama.llama_model_default_params()
    settings.use_mmap = False  # the weights are there once it is loaded, as ours are
    model = llama.llama_model_load_from_file(str(folder.parent / "gpt2.gguf").encode(), settings)
    settings = llama.llama_context_default_params()
    settings.n_ctx, settings.n_batch = CONTEXT, CONTEXT
    settings.n_threads = settings.n_threads_batch = THREADS
    context = llama.llama_init_from_model(model, settings)
    memory = llama.llama_get_memory(context)
    loaded = time.perf_counter()
    count = ctypes.c_size_t(0)
    if start == "again":
        assert llama.llama_state_load_file(context, state, room, CONTEXT, ctypes.byref(count))
        assert list(room[: count.value]) == shared and llama.llama_memory_seq_pos_max(memory, 0) == SHARED - 1
    else:  # in the same two pieces, so that a state that is restored must give the same token
        decode(llama, context, shared)
    if start == "first":
        assert llama.llama_state_save_file(context, state, (llama.llama_token * SHARED)(*shared), SHARED)
    decode(llama, context, own)
    logits = np.ctypeslib.as_array(llama.llama_get_logits_ith(context, -1), shape=(VOCABULARY,))
    token = int(logits.argmax())
    first = time.perf_counter()
    return {"load": loaded - begin, "first_token": first - loaded, "found": count.value, "token": token}


def decode(llama: Any, context: Any, tokens: list[int]) -> None:
    array = (llama.llama_token * len(tokens))(*tokens)  # the batch only points to it
    assert llama.llama_decode(context, llama.llama_batch_get_one(array, len(tokens))) == 0


def started(participant: str, start: str, folder: Path, seed: int) -> Start:
    """Of a process of its own."""
    command = [sys.executable, __file__, "--child", participant, start, str(folder), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{participant}, {start}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def one_round(participant: str, scratch: Path, number: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        seeds = {"first": 1000 + number}  # its own 16 tokens are others, so that only the shared ones can be found
        found = {start: started(participant, start, Path(folder), seeds.get(start, number)) for start in STARTS}
        size = sum(path.stat().st_size for path in Path(folder).iterdir() if path.suffix in (".block", ".bin"))
    if found["again"]["found"] < SHARED - 64 or found["first"]["found"]:
        sys.exit(f"{participant}: the second start found {found['again']['found']} tokens.")
    if found["again"]["token"] != found["without"]["token"]:
        sys.exit(f"{participant}: the first tokens differ.")
    return {**found, "bytes": size}


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    def median(start: str, what: str) -> float:
        return statistics.median(one[start][what] for one in rounds)

    return {
        "medians": {start: {what: median(start, what) for what in ("load", "first_token")} for start in STARTS},
        "sooner": statistics.median(one["without"]["first_token"] / one["again"]["first_token"] for one in rounds),
        "bytes": rounds[0]["bytes"],
        "rounds": rounds,
    }


def versions() -> dict[str, str]:
    found = {}
    for name in ("numpy", "torch", "jax", "llama_cpp_python"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = [*BACKENDS, LLAMA] if installed("llama.cpp f32") else list(BACKENDS)
    parser.add_argument("participants", nargs="*", default=here)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in options.participants}
    with tempfile.TemporaryDirectory() as scratch:
        if LLAMA in rounds:
            write_gguf(f"{scratch}/gpt2.gguf", "f32")
        for number in range(options.rounds):
            for name, found in rounds.items():
                found.append(one_round(name, Path(scratch), number))
                print(number, name, {start: round(found[-1][start]["first_token"], 3) for start in STARTS}, flush=True)
    results = {name: summary(found) for name, found in rounds.items()}
    for name, row in results.items():
        if LLAMA in results:
            pairs = zip(rounds[name], rounds[LLAMA], strict=True)
            of_theirs = [our["again"]["first_token"] / their["again"]["first_token"] for our, their in pairs]
            row["of_llama_cpp"] = statistics.median(of_theirs)
            print(f"{name} needs {row['of_llama_cpp']:.2f} of llama.cpp's time.")
        seconds = {start: round(row["medians"][start]["first_token"], 3) for start in STARTS}
        print(f"{name}: {row['sooner']:.2f} x sooner; {seconds}")
    written = {
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": versions(),
        "shared_tokens": SHARED,
        "own_tokens": OWN,
        "results": results,
    }
    path = Path(__file__).parent / "results" / "second_start.json"
    path.write_text(json.dumps(written, indent=1) + "\n")
    print(path)


def child(participant: str, start: str, folder: str, seed: str) -> None:
    where = Path(folder), int(seed)
    print(json.dumps(start_llama(start, *where) if participant == LLAMA else start_ours(participant, start, *where)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
