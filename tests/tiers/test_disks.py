"""Disks that are full, read-only or gone: real ones where that can be had, in processes of their own."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.tiers.blocks import BYTES, FILE, arrays, key, right, tokens
from transformer_lab.tiers import cold as cold_module
from transformer_lab.tiers.tiers import Tiers

BEGIN = """
import os, resource, signal, sys, warnings
from pathlib import Path
import numpy as np
from tests.tiers.blocks import *
from transformer_lab.tiers.tiers import Tiers

folder = Path(sys.argv[1])
warnings.simplefilter("always")


def goes_on(tiers, reason):
    with warnings.catch_warnings(record=True) as said:
        for number in range(20):
            tiers.put(key(number), tokens(number), {"keys": np.full(25_000, number)})
            tiers.flush()
        assert tiers.get(key(19), tokens(19)) is not None and tiers.get(key(0), tokens(0)) is None
        tiers.close()
    assert [str(one.message) for one in said] == [tiers._cold.off], said
    assert reason in tiers._cold.off and tiers.check() == [], (tiers._cold.off, tiers.check())
    assert not [path for path in folder.glob("*.transformer-lab")]

"""


def child(code, *arguments):
    done = subprocess.run([sys.executable, "-c", BEGIN + code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_full_disk(tmp_path):
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("this user may not mount a small file system")
    try:
        child('goes_on(Tiers(300_000, folder, 10**9), "No space left on device")', tmp_path)
        child(
            """
tiers = Tiers(0, folder, 10**9)  # what was written before is right, and still there
found = [number for number in range(20) if tiers.get(key(number), tokens(number))]
assert len(found) >= 3, found
assert all((tiers.get(key(n), tokens(n)).arrays["keys"] == n).all() for n in found)
""",
            tmp_path,
        )
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_file_that_may_grow_no_further(tmp_path):
    child(
        """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
goes_on(Tiers(300_000, folder, 10**9), "File too large")
""",
        tmp_path,
    )


READ_ONLY = """
if os.geteuid() == 0:
    try:
        os.setegid(65534)
        os.seteuid(65534)
    except OSError:
        print("root")
        sys.exit(0)
"""


@pytest.fixture
def open_folder():
    """One that everybody may enter and write to; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)
        folder = Path(root) / "cold"
        folder.mkdir()
        folder.chmod(0o777)
        yield folder


@pytest.mark.parametrize("when", ["before", "while it runs"])
def test_a_folder_that_is_read_only(open_folder, when):
    folder = open_folder
    change = "os.seteuid(0); folder.chmod(0o555); os.seteuid(65534)" if os.geteuid() == 0 else "folder.chmod(0o555)"
    starts = "tiers = Tiers(300_000, folder, 10**9)"
    steps = [change, starts] if when == "before" else [starts, change]
    code = (
        READ_ONLY
        + "\n".join(steps)
        + """
assert not os.access(folder, os.W_OK, effective_ids=True)
goes_on(tiers, "")
"""
    )
    if when == "before":  # the warning comes with the first line then
        code = code.replace(starts, "with warnings.catch_warnings(record=True) as first:\n    " + starts)
        code = code.replace(
            'goes_on(tiers, "")',
            'assert "switched off" in str(first[0].message)\ntiers.put(key(1), tokens(1), arrays(1)); tiers.close()',
        )
    if child(code, folder) == "root\n":
        pytest.skip("this process is root, for whom nothing is read-only, and can become nobody else")


def test_a_folder_that_vanishes_while_it_runs(tmp_path):
    for first in ("put", "get", "prefetch"):
        folder = tmp_path / first
        tiers = Tiers(BYTES, folder, 99 * FILE)
        for number in range(3):
            tiers.put(key(number), tokens(number), arrays(number))
        tiers.flush()
        shutil.rmtree(folder)
        with pytest.warns(RuntimeWarning, match="switched off") as said:
            if first == "prefetch":
                tiers.prefetch([(key(0), tokens(0))])
            if first == "get":
                assert tiers.get(key(0), tokens(0)) is None
            for number in range(3, 6):
                tiers.put(key(number), tokens(number), arrays(number))
            tiers.flush()
            assert right(tiers.get(key(5), tokens(5)), 5) and tiers.get(key(0), tokens(0)) is None
        tiers.close()
        assert len(said) == 1 and tiers.check() == [] and not folder.exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES])
def test_a_disk_that_refuses(tmp_path, monkeypatch, code):
    def refuses(*_):
        raise OSError(code, os.strerror(code))

    tiers = Tiers(0, tmp_path, 99 * FILE)
    monkeypatch.setattr(cold_module, "write_file", refuses)
    with pytest.warns(RuntimeWarning, match=os.strerror(code)):
        tiers.put(key(0), tokens(0), arrays(0))
        tiers.flush()
    assert tiers.get(key(0), tokens(0)) is None
    tiers.close()
    assert tiers.check() == []


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(RuntimeWarning, match="switched off"):
        tiers = Tiers(BYTES, tmp_path / "file", FILE)
    tiers.put(key(0), tokens(0), arrays(0))
    assert right(tiers.get(key(0), tokens(0)), 0)
    tiers.close()


def test_an_owner_who_cannot_go_on_without_it_asks_for_the_reason(tmp_path):
    """And hears no warning, which would be an error here."""
    (tmp_path / "file").write_text("in the way")
    tiers = Tiers(0, tmp_path / "file", FILE, warns=False)
    tiers.put(key(0), tokens(0), arrays(0))
    assert tiers.reason and tiers.reason in tiers.off and "run goes on" not in tiers.reason
    tiers.close()
    with Tiers(0, tmp_path / "folder", FILE) as there:
        assert there.reason is None and there.off is None
