"""metrics.jsonl: whole lines or none, whatever kills the process; going on from a step; what is damaged is named."""

import errno
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from transformer_lab.errors import InputFileError, UnavailableError
from transformer_lab.training.metrics_file import FILE_NAME, MetricsFile, read


def steps(path):
    return [line["step"] for line in read(path)]


def test_lines_come_back_as_they_were_written(tmp_path):
    with MetricsFile(tmp_path) as metrics:
        metrics.write(1, loss=0.1 + 0.2, tokens=2**60, note='ü"\n', nothing=None)
        metrics.write(2, loss=np.float32(0.5), tokens=np.int64(7))
    assert read(tmp_path / FILE_NAME) == [
        {"step": 1, "loss": 0.1 + 0.2, "tokens": 2**60, "note": 'ü"\n', "nothing": None},
        {"step": 2, "loss": 0.5, "tokens": 7},
    ]


def test_what_is_not_finite_becomes_null(tmp_path):
    with MetricsFile(tmp_path) as metrics:
        metrics.write(1, a=float("nan"), b=float("inf"), c=np.float32("-inf"), d=np.float64("nan"))
    text = (tmp_path / FILE_NAME).read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"step": 1, "a": None, "b": None, "c": None, "d": None}


def test_a_line_can_be_read_before_the_file_is_closed(tmp_path):
    with MetricsFile(tmp_path) as metrics:
        for step in range(3):
            metrics.write(step, loss=1.0)
            assert steps(metrics.path) == list(range(step + 1))


def test_killed_after_any_line_the_file_has_all_of_them(tmp_path):
    program = (
        "import os, signal, sys, pathlib; from transformer_lab.training.metrics_file import MetricsFile\n"
        "metrics = MetricsFile(pathlib.Path(sys.argv[1]))\n"
        "for step in range(50): metrics.write(step, loss=1 / (step + 1))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, tmp_path]).returncode == -signal.SIGKILL
    assert steps(tmp_path / FILE_NAME) == list(range(50))


@pytest.mark.parametrize("lost", range(1, 21))
def test_a_torn_line_is_left_out_and_cut_off(tmp_path, lost):
    with MetricsFile(tmp_path) as metrics:
        for step in range(3):
            metrics.write(step, loss=1.0)
    content = metrics.path.read_bytes()
    assert lost < len(content) / 3
    metrics.path.write_bytes(content[:-lost])
    assert steps(metrics.path) == [0, 1]
    with MetricsFile(tmp_path) as metrics:
        metrics.write(9, loss=2.0)
    assert steps(metrics.path) == [0, 1, 9]


@pytest.mark.parametrize("torn", [b"", b'{"step": 7, "lo', b"\0\0\0\0"])
def test_resuming_keeps_the_lines_up_to_the_step(tmp_path, torn):
    with MetricsFile(tmp_path) as metrics:
        for step in range(6):
            metrics.write(step, loss=float(step))
            metrics.write(step, validation_loss=float("nan"))
    metrics.path.write_bytes(metrics.path.read_bytes() + torn)
    with MetricsFile(tmp_path) as metrics:
        metrics.resume(3)
        metrics.write(4, loss=40.0)
    assert steps(metrics.path) == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    assert read(metrics.path)[-1] == {"step": 4, "loss": 40.0}
    assert os.listdir(tmp_path) == [FILE_NAME]


def test_resuming_from_the_beginning_and_beyond_the_end(tmp_path):
    with MetricsFile(tmp_path) as metrics:
        metrics.resume(10)
        assert read(metrics.path) == []
        metrics.write(1, loss=1.0)
        metrics.resume(10)
        assert steps(metrics.path) == [1]
        metrics.resume(0)
        assert steps(metrics.path) == []


def test_resuming_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    with MetricsFile(tmp_path) as metrics:
        for step in range(3):
            metrics.write(step, loss=1.0)

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(UnavailableError, match=r"metrics\.jsonl cannot be written: No space left on device\."):
            metrics.resume(1)
        assert steps(metrics.path) == [0, 1, 2]
        assert os.listdir(tmp_path) == [FILE_NAME]
        metrics.write(3, loss=1.0)  # it is still open
    assert steps(metrics.path) == [0, 1, 2, 3]


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no limit of file sizes on this system")
def test_a_full_disk_is_said_and_leaves_whole_lines(tmp_path):
    """A limit on the file's size cuts a line in its middle, as a full disk does."""
    program = (
        "import resource, signal, sys, pathlib; from transformer_lab.training.metrics_file import MetricsFile\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "metrics = MetricsFile(pathlib.Path(sys.argv[1]))\n"
        "try:\n  for step in range(100): metrics.write(step, loss=1.0)\n"
        "except Exception as error: print(step, type(error).__name__, error)\n"
    )
    said = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True).stdout
    failed, kind, message = said.split(maxsplit=2)
    assert kind == "UnavailableError" and "metrics.jsonl cannot be written: File too large." in message
    content = (tmp_path / FILE_NAME).read_bytes()
    assert content.endswith(b"}\n") and 0 < 1000 - len(content) < 30
    assert steps(tmp_path / FILE_NAME) == list(range(int(failed)))


def test_a_torn_line_longer_than_a_block_is_cut_off(tmp_path):
    (tmp_path / FILE_NAME).write_bytes(b'{"step": 1}\n{"step": 2, "text": "' + b"x" * 200_000)
    MetricsFile(tmp_path).close()
    assert (tmp_path / FILE_NAME).read_bytes() == b'{"step": 1}\n'


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(UnavailableError, match=r"cannot be written: No such file or directory\."):
        MetricsFile(tmp_path / "nowhere")
    with pytest.raises(InputFileError, match=r"cannot be read: No such file or directory\."):
        read(tmp_path / FILE_NAME)


@pytest.mark.parametrize("line", [b"{", b"[1]", b"{}", b'{"step": "1"}', b'{"step": true}', b"\xff", b"", b"[" * 9999])
def test_a_damaged_line_is_named(tmp_path, line):
    (tmp_path / FILE_NAME).write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    with pytest.raises(InputFileError, match="line 2 is not a JSON object"):
        read(tmp_path / FILE_NAME)
