"""Temporary files and folders: theirs who live stay, those of the dead go, and nobody else's are touched."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from transformer_lab import left_over
from transformer_lab.atomic_file import write_file, write_text
from transformer_lab.atomic_folder import new_folder, remove_folder
from transformer_lab.errors import UnavailableError
from transformer_lab.left_over import locked, remove_left_over, temporary, temporary_folder, temporary_name

pytestmark = pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir])
def test_what_a_living_process_holds_stays(tmp_path, make):
    with temporary(tmp_path / "a.txt", make) as place:
        remove_left_over(tmp_path)
        assert names(tmp_path) == [place.name]
        os.utime(place, (1, 1))  # however old
        remove_left_over(tmp_path)
        assert names(tmp_path) == [place.name]
    assert names(tmp_path) == []


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir])
def test_what_nobody_holds_goes(tmp_path, make):
    place = temporary_name(tmp_path / "a.txt")
    make(place)
    if place.is_dir():
        (place / "inside").mkdir()
        (place / "inside" / "file").write_text("half")
    remove_left_over(tmp_path)
    assert names(tmp_path) == []


def test_a_process_that_is_killed_lets_go(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from transformer_lab.left_over import temporary\n"
        "with temporary(Path(sys.argv[1]) / 'a', Path.mkdir) as place: print(place.name, flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True)
    name = process.stdout.readline().strip()
    remove_left_over(tmp_path)
    assert names(tmp_path) == [name]
    process.kill()
    process.communicate()
    remove_left_over(tmp_path)
    assert names(tmp_path) == []


def test_of_another_machine_only_what_is_a_day_old_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(left_over, "_machine", lambda: "elsewhere")
    place = temporary_name(tmp_path / "folder")
    monkeypatch.undo()
    place.mkdir()
    (place / "growing").write_text("more and more")
    remove_left_over(tmp_path)
    assert names(tmp_path) == [place.name]
    os.utime(place, (1, 1))  # a folder does not notice that a file in it grows
    remove_left_over(tmp_path)
    assert names(tmp_path) == [place.name]
    os.utime(place / "growing", (1, 1))
    remove_left_over(tmp_path)
    assert names(tmp_path) == []


def test_where_there_are_no_locks_only_what_is_a_day_old_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(left_over, "fcntl", None)
    with temporary(tmp_path / "a", Path.touch) as place:
        remove_left_over(tmp_path)
        assert names(tmp_path) == [place.name]
    left = temporary_name(tmp_path / "b")
    left.touch()
    os.utime(left, (1, time.time() - 90_000))
    remove_left_over(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "name",
    [".a.tmp", "a.vm.0123456789ab.transformer-lab", ".a.vm.0123.transformer-lab", ".a.0123456789ab.transformer-lab"],
)
def test_what_is_not_called_so_is_not_ours(tmp_path, name):
    (tmp_path / name).touch()
    os.utime(tmp_path / name, (1, 1))
    remove_left_over(tmp_path)
    assert names(tmp_path) == [name]


def test_pipes_and_links_of_such_a_name_do_no_harm(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    os.mkfifo(temporary_name(tmp_path / "folder" / "pipe"))
    temporary_name(tmp_path / "folder" / "link").symlink_to(tmp_path / "kept")
    temporary_name(tmp_path / "folder" / "other").symlink_to(tmp_path / "kept" / "file")
    remove_left_over(tmp_path / "folder")
    assert (tmp_path / "kept" / "file").read_text() == "mine"


def test_taken_for_left_over_before_it_is_locked(tmp_path, monkeypatch):
    """Another process cleans up just between the making and the lock."""
    real, made = left_over._lock, []

    def late(path):
        made.append(path)
        if len(made) == 1:
            os.rmdir(path)
        return real(path)

    monkeypatch.setattr(left_over, "_lock", late)
    with temporary(tmp_path / "a", Path.mkdir) as place:
        assert place.is_dir() and place != made[0]
    assert names(tmp_path) == []


def test_many_at_once_do_not_disturb_each_other(tmp_path):
    wrong = []

    def write(number):
        try:
            for turn in range(30):
                write_text(tmp_path / f"{number % 3}", f"{number} {turn}\n" * 100)
                with new_folder(tmp_path / f"folder {number} {turn}") as place:
                    (place / "file").touch()
                remove_folder(tmp_path / f"folder {number} {turn}")
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert names(tmp_path) == ["0", "1", "2"]
    assert all(len(set((tmp_path / name).read_text().splitlines())) == 1 for name in names(tmp_path))


def test_a_lock_is_one_process_s(tmp_path):
    with locked(tmp_path), pytest.raises(BlockingIOError), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_temporary_folder_is_for_its_user(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    temporary_name(tmp_path / "of a killed process").mkdir()
    with temporary_folder() as folder:
        assert names(tmp_path) == [folder.name]
        assert oct(folder.stat().st_mode & 0o777) == "0o700"
    assert names(tmp_path) == []


def test_long_names_have_room(tmp_path):
    write_text(tmp_path / ("ü" * 120), "text")
    with new_folder(tmp_path / ("x" * 250)):
        pass
    assert len(names(tmp_path)) == 2


def test_a_folder_appears_when_it_is_whole(tmp_path):
    with new_folder(tmp_path / "a") as place:
        (place / "file").write_text("1")
        assert not (tmp_path / "a").exists()
    assert names(tmp_path) == ["a"]
    with pytest.raises(KeyError), new_folder(tmp_path / "b") as place:
        (place / "file").write_text("2")
        raise KeyError
    assert names(tmp_path) == ["a"]
    with pytest.raises(OSError, match="not empty"), new_folder(tmp_path / "a"):
        pass
    assert (tmp_path / "a" / "file").read_text() == "1" and names(tmp_path) == ["a"]


def test_a_folder_loses_its_name_before_its_files(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("1")
    remove_folder(tmp_path / "none")

    def killed(*arguments, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_folder(tmp_path / "a")
    assert "a" not in names(tmp_path) and len(names(tmp_path)) == 1
    remove_left_over(tmp_path)
    assert names(tmp_path) == []


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    write_text(tmp_path / "a", "before")

    def fails(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_file(tmp_path / "a", fails)
    assert (tmp_path / "a").read_text() == "before" and names(tmp_path) == ["a"]
    with pytest.raises(UnavailableError, match="nowhere/a cannot be written: No such file"):
        write_text(tmp_path / "nowhere" / "a", "text")
