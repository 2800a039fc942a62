"""How long a model takes to load whose experts lie in files, and what the check of the files costs.

    python experiments/expert_residency/loading.py

Medians of storybook_moe on NumPy, in seconds: in memory; with files that are not there yet; with files that are there,
which are all read and checked; and the same taken on trust. Writes loading.json beside this file.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import transformer_lab as lab
from transformer_lab.language_model.resident_experts import Residency
from transformer_lab.tiers.tiers import Tiers

ROUNDS = 15


def seconds(folder=None):
    residency = None if folder is None else Residency(3_000_000, folder)
    begin = time.perf_counter()
    model = lab.load_model("storybook_moe", residency=residency)
    passed = time.perf_counter() - begin
    if residency is not None:
        model.experts.tiers.close()
    return passed


def trusted(folder):
    with mock.patch.object(Tiers, "get", lambda *_: True):
        return seconds(folder)


def main():
    found = {"in memory": [], "written": [], "checked": [], "trusted": []}
    seconds()
    for _ in range(ROUNDS):  # in turn, so that what else the machine does falls on all
        with tempfile.TemporaryDirectory() as folder:
            found["in memory"].append(seconds())
            found["written"].append(seconds(folder))
            found["checked"].append(seconds(folder))
            found["trusted"].append(trusted(folder))
    medians = {name: round(statistics.median(times), 3) for name, times in found.items()}
    (Path(__file__).parent / "loading.json").write_text(json.dumps(medians, indent=2) + "\n")
    print(medians)


if __name__ == "__main__":
    main()
