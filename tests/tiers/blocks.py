"""Small blocks for the tests of the tiers: what is under a key follows from its number."""

import hashlib

import numpy as np

TOKENS = 4


def key(number):
    return hashlib.sha256(str(number).encode()).digest()


def tokens(number, other=False):
    return [number * 10 + step + 1000 * other for step in range(TOKENS)]


def arrays(number, other=False):
    noise = np.random.default_rng([number, int(other)])
    return {name: noise.standard_normal((TOKENS, 4)).astype(np.float32) for name in ("keys", "values")}


BYTES = 2 * TOKENS * 4 * 4


def same(found, wanted):
    return found.keys() == wanted.keys() and all(found[name].tobytes() == wanted[name].tobytes() for name in wanted)
