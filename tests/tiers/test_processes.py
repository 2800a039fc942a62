"""Processes that are killed at any moment, and two that use one folder at the same time."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.tiers.blocks import FILE, arrays, key, right, tokens
from transformer_lab.tiers.tiers import Tiers

WRITES = """
import itertools, os, sys
from pathlib import Path
from tests.tiers.blocks import *
from transformer_lab.tiers.tiers import Tiers
print("loaded", flush=True)
for folder in sys.stdin:
    if not os.fork():
        tiers = Tiers(2 * BYTES, Path(folder.strip()), 40 * FILE)
        print(os.getpid(), flush=True)
        for number in itertools.count():
            tiers.put(key(number % 100), tokens(number % 100), arrays(number % 100))
            tiers.get(key(number * 7 % 100), tokens(number * 7 % 100))
    os.wait()
    print("gone", flush=True)
"""


def killed_at(moments, folder):
    """A process is forked for each moment, and is killed so many seconds after it began to write."""
    server = subprocess.Popen(
        [sys.executable, "-c", WRITES],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        start_new_session=True,
    )
    with server:
        try:
            assert server.stdout.readline() == "loaded\n"
            for moment in moments:
                server.stdin.write(f"{folder}\n")
                child = int(server.stdout.readline())
                time.sleep(moment)
                os.kill(child, signal.SIGKILL)
                assert server.stdout.readline() == "gone\n"
                found_right(folder)
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # also a child that was left when something failed


def found_right(folder):
    with Tiers(0, folder, 40 * FILE) as tiers:
        found = 0
        for number in (*range(100), 500):
            got = tiers.get(key(number), tokens(number))
            assert got is None or right(got, number)
            found += got is not None
        ledger = tiers.ledger
        assert ledger.cold.damaged == ledger.orphans_removed == 0 and tiers.check() == [] and tiers._cold.off is None
        assert found == len(list(folder.glob("*.block"))) and not list(folder.glob(".*.transformer-lab"))
        tiers.put(key(500), tokens(500), arrays(500))
        tiers.flush()
        assert right(tiers.get(key(500), tokens(500)), 500)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_thirty_moments(tmp_path):
    noise = random.Random(0)
    killed_at([noise.uniform(0, 0.1) for _ in range(30)], tmp_path)


@pytest.mark.full
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_two_hundred_moments(tmp_path):
    noise = random.Random(1)
    killed_at([noise.uniform(0, 0.15) for _ in range(200)], tmp_path)


SHARES = """
import random, sys
from pathlib import Path
from tests.tiers.blocks import *
from transformer_lab.tiers.tiers import Tiers
noise, hits = random.Random(int(sys.argv[2])), 0
tiers = Tiers(2 * BYTES, Path(sys.argv[1]), 12 * FILE)
for _ in range(600):
    number, what = noise.randrange(20), noise.random()
    if what < 0.5:
        tiers.put(key(number), tokens(number), arrays(number))
    else:
        found = tiers.get(key(number), tokens(number))
        assert found is None or right(found, number)
        hits += found is not None
    if what < 0.05:
        tiers.flush()
        assert tiers.check() == [], tiers.check()
tiers.close()
cold = tiers.ledger.cold
assert tiers.check() == [] and tiers._cold.off is None and cold.damaged == 0, (tiers.check(), tiers._cold.off, cold)
assert hits > 50 and cold.others.blocks, (hits, cold)
"""


def test_two_processes_use_one_folder_at_once(tmp_path):
    children = [
        subprocess.Popen([sys.executable, "-c", SHARES, str(tmp_path), str(seed)], stderr=subprocess.PIPE, text=True)
        for seed in range(2)
    ]
    for child in children:
        _, said = child.communicate(timeout=60)
        assert child.returncode == 0, said
    with Tiers(0, tmp_path, 12 * FILE) as tiers:
        found = [number for number in range(20) if right(tiers.get(key(number), tokens(number)), number)]
        assert len(found) == len(list(tmp_path.glob("*.block"))) >= 10 and tiers.ledger.orphans_adopted == 0
