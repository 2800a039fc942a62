"""What holds for all tests."""

import signal

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
