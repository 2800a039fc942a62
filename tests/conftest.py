"""What holds for all tests."""

import gc
import signal
import sys

import pytest


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_not_ignored():
    """A shell ignores SIGINT in what it starts in the background, and what a test starts would inherit that."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_go_with_their_module():
    """JAX keeps every program that it compiled: a worker of the whole suite grew to 14 GB by them."""
    yield
    jax = sys.modules.get("jax")
    if jax is not None:
        jax.clear_caches()
        gc.collect()
