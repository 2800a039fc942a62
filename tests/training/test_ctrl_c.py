"""Ctrl-C while a run trains: asked for once, it waits for the step under way; twice, it does not."""

import os
import signal

import pytest

from transformer_lab.training.loop import _interrupts

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")


def press():
    os.kill(os.getpid(), signal.SIGINT)


def test_once_and_twice():
    with pytest.raises(KeyboardInterrupt), _interrupts() as pressed:
        assert not pressed()
        press()
        assert pressed()
        press()
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_where_it_is_ignored_it_stays_ignored():
    """So does a shell with what it starts in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with _interrupts() as pressed:
            press()
            assert not pressed() and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
