"""Small blocks for the tests of the tiers: what is under a key follows from its number."""

import hashlib
import threading
import time

import numpy as np

from transformer_lab.tiers.block import owned
from transformer_lab.tiers.block_file import file_size, header_of

TOKENS = 4
BYTES = 2 * TOKENS * 4 * 4


def key(number):
    return hashlib.sha256(str(number).encode()).digest()


def tokens(number, other=False):
    return [number * 10 + step + 1000 * other for step in range(TOKENS)]


def arrays(number, other=False):
    noise = np.random.default_rng([number, int(other)])
    return {name: noise.standard_normal((TOKENS, 4)).astype(np.float32) for name in ("keys", "values")}


def block(number, other=False):
    return owned(tokens(number, other), arrays(number, other))


def same(found, wanted):
    return found.keys() == wanted.keys() and all(found[name].tobytes() == wanted[name].tobytes() for name in wanted)


def right(found, number, other=False):
    """Whether something was found, and it is this block's arrays."""
    return found is not None and same(found.arrays, arrays(number, other))


def file_of(folder, number):
    return folder / f"{key(number).hex()}.block"


FILE = file_size(header_of(key(9999), block(9999)), block(9999))  # at least the bytes of each file of these tests


def soon(condition):
    """Whether it becomes true; for what another thread is about to do."""
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)
    return condition()


class Gate:
    """Stands before a function: whoever comes waits until it is opened."""

    def __init__(self, function):
        self.function, self.came, self.opened = function, threading.Event(), threading.Event()

    def __call__(self, *arguments):
        self.came.set()
        assert self.opened.wait(20)
        return self.function(*arguments)
