"""The tier of files: damaged and foreign files are misses and never wrong blocks, the index is made again."""

import io
import os
import sqlite3
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.tiers.blocks import FILE, arrays, block, file_of, key, same, tokens
from transformer_lab.tiers import cold as cold_module
from transformer_lab.tiers.block import owned
from transformer_lab.tiers.block_file import header_of, write_block
from transformer_lab.tiers.cold import Cold
from transformer_lab.tiers.eviction import FrequentlyUsed, LeastRecentlyUsed
from transformer_lab.tiers.ledger import Ledger


def opened(folder, budget=100 * FILE, policy=LeastRecentlyUsed):
    return Cold(folder, budget, policy(), Ledger())


def filled(folder, count=3):
    cold = opened(folder)
    for number in range(count):
        assert cold.put(key(number), block(number)) == "written"
    return cold


def got(cold, number, other=False):
    return cold.get(key(number), tuple(tokens(number, other)))


def right(cold, number):
    found = got(cold, number)
    return found is not None and same(found.arrays, arrays(number))


def lawful(cold):
    return [law for law in cold._ledger.check() if "write-backs" not in law] == []


def test_what_was_put_is_found_after_a_restart(tmp_path):
    filled(tmp_path).close()
    cold = opened(tmp_path)
    assert all(right(cold, number) for number in range(3)) and cold.contains(key(1)) and not cold.contains(key(7))
    assert lawful(cold) and cold._counts.others.blocks == 3
    assert cold.put(key(1), block(1)) == "kept" and cold._counts.put.blocks == 0


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b"", lambda b: b[:60]])
def test_damage_is_a_miss_is_counted_and_goes(tmp_path, change):
    cold = filled(tmp_path, 1)
    path = file_of(tmp_path, 0)
    path.write_bytes(change(path.read_bytes()))
    assert got(cold, 0) is None and not path.exists() and cold.off is None
    assert cold._counts.damaged == 1 and cold._counts.evicted["damage"].blocks == 1
    assert cold.put(key(0), block(0)) == "written" and right(cold, 0) and lawful(cold)


def test_a_file_that_is_gone_is_a_miss_is_counted_and_is_written_again(tmp_path):
    cold = filled(tmp_path)
    file_of(tmp_path, 0).unlink()
    file_of(tmp_path, 1).unlink()
    assert got(cold, 0) is None and cold._counts.vanished == 1
    assert cold.put(key(1), block(1)) == "written" and right(cold, 1) and lawful(cold)
    file_of(tmp_path, 2).unlink()
    cold.close()
    again = opened(tmp_path)
    assert again.keys() == {key(1)} and again._counts.vanished == 1 and lawful(again)


def test_another_blocks_file_under_a_key_is_damage_and_other_tokens_are_a_collision(tmp_path):
    cold = filled(tmp_path)
    assert got(cold, 1, other=True) is None and cold._counts.collisions == 1 and right(cold, 1)
    file_of(tmp_path, 0).write_bytes(file_of(tmp_path, 1).read_bytes())
    assert got(cold, 0) is None and cold._counts.damaged == 1
    assert cold.put(key(1), block(1, other=True)) == "written" and got(cold, 1) is None
    assert same(got(cold, 1, other=True).arrays, arrays(1, other=True))
    assert cold._counts.evicted["collision"].blocks == 1 and lawful(cold)


def test_junk_is_left_alone_and_orphans_are_adopted_or_removed(tmp_path):
    filled(tmp_path).close()
    (tmp_path / "index.sqlite").unlink()
    file_of(tmp_path, 2).write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "notes.block").write_text("mine")
    (tmp_path / f"{key(5).hex().upper()}.block").write_text("mine")
    (tmp_path / f".{key(1).hex()}.block.elsewhere.0123456789ab.transformer-lab").write_bytes(b"being written")
    file_of(tmp_path, 7).mkdir()
    os.mkfifo(file_of(tmp_path, 8))
    with open(file_of(tmp_path, 9), "wb") as sparse:
        sparse.truncate(1 << 40)
    before = {path.name for path in tmp_path.iterdir()}
    cold = opened(tmp_path)
    assert cold.keys() == {key(0), key(1)} and cold.off is None and lawful(cold)
    assert (cold._ledger.orphans_adopted, cold._ledger.orphans_removed) == (2, 3)
    removed = {file_of(tmp_path, number).name for number in (2, 8, 9)}
    assert {path.name for path in tmp_path.iterdir()} == before - removed | {"index.sqlite"}
    assert cold.put(key(7), block(7)) == "off"  # a folder is in the way of a file


def test_orphans_beyond_the_budget_go(tmp_path):
    filled(tmp_path, 5).close()
    (tmp_path / "index.sqlite").unlink()
    cold = opened(tmp_path, 2 * FILE)
    assert len(cold.keys()) == len(list(tmp_path.glob("*.block"))) == 2 and lawful(cold)


def test_the_folder_stays_where_it_was_when_the_working_folder_changes(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    cold = opened(Path("blocks"))
    monkeypatch.chdir("elsewhere")
    assert cold.put(key(1), block(1)) == "written" and right(cold, 1)
    assert file_of(tmp_path / "blocks", 1).is_file() and not os.listdir(".")


@pytest.mark.parametrize("content", [b"no index at all, " * 500, b"", b"SQLite format 3\0" + b"x" * 5000])
def test_a_corrupt_index_is_made_again(tmp_path, content):
    filled(tmp_path).close()
    (tmp_path / "index.sqlite").write_bytes(content)
    cold = opened(tmp_path)
    assert len(cold.keys()) == 3 and cold.off is None and cold._ledger.orphans_adopted == 3 and right(cold, 0)


def test_an_index_of_another_form_is_made_again_and_one_from_the_future_is_left_alone(tmp_path):
    filled(tmp_path).close()
    path = tmp_path / "index.sqlite"
    path.unlink()
    with sqlite3.connect(path) as index:
        index.execute("CREATE TABLE blocks (key BLOB PRIMARY KEY, something INTEGER)")
    index.close()
    cold = opened(tmp_path)
    assert len(cold.keys()) == 3 and cold.off is None
    cold.close()
    with sqlite3.connect(path) as index:
        index.execute("PRAGMA user_version=99")
    index.close()
    before = path.read_bytes()
    late = opened(tmp_path)
    assert "later version" in late.off and got(late, 0) is None and not late.contains(key(0)) and late.keys() == set()
    assert file_of(tmp_path, 0).exists() and path.read_bytes() == before


def remove(path):
    path.unlink()


def overwrite(path):
    with open(path, "r+b") as file:
        file.write(b"y" * path.stat().st_size)


def empty(path):
    os.truncate(path, 0)


@pytest.mark.parametrize("harm", [remove, overwrite, empty])
@pytest.mark.parametrize("first", ["get", "put"])
def test_an_index_that_is_damaged_while_running_is_made_again_once(tmp_path, harm, first):
    cold = filled(tmp_path)
    harm(tmp_path / "index.sqlite")
    if first == "put":
        assert cold.put(key(9), block(9)) == "written"
    assert all(right(cold, number) for number in range(3)) and cold.off is None and lawful(cold)
    harm(tmp_path / "index.sqlite")
    assert got(cold, 0) is None and cold.put(key(4), block(4)) == "off"
    assert "switched off" in cold.off and lawful(cold)


def test_no_junk_gets_into_a_row(tmp_path):
    """A row whose bytes are a text, or whose key is, was met in the middle of a run, as an error of Python's."""
    filled(tmp_path).close()
    rows = sqlite3.connect(tmp_path / "index.sqlite")
    for change in ("bytes='x'", "tokens=NULL", "key='text'", "used=1.5"):
        with pytest.raises(sqlite3.IntegrityError):
            rows.execute(f"UPDATE blocks SET {change}")
    rows.close()


def test_two_owners_of_one_folder_see_each_others_blocks(tmp_path):
    one, two = opened(tmp_path), opened(tmp_path, 2 * FILE)
    one.put(key(0), block(0))
    assert right(two, 0)
    for number in range(4):
        two.put(key(number), block(number))
    assert one.keys() == two.keys() == {key(2), key(3)}
    assert right(one, 3) and got(one, 0) is None and lawful(one) and lawful(two)


def test_a_block_that_another_process_wrote_meanwhile_is_counted_once(tmp_path, monkeypatch):
    one, two = opened(tmp_path), opened(tmp_path)
    real = cold_module.write_file

    def slow(path, write):
        monkeypatch.setattr(cold_module, "write_file", real)
        assert two.put(key(0), block(0)) == "written"
        real(path, write)

    monkeypatch.setattr(cold_module, "write_file", slow)
    assert one.put(key(0), block(0)) == "written"
    assert one.keys() == two.keys() == {key(0)} and right(one, 0) and right(two, 0) and lawful(one) and lawful(two)
    assert one._counts.resident.blocks == two._counts.resident.blocks == 1


def test_a_damaged_file_that_was_replaced_meanwhile_stays(tmp_path, monkeypatch):
    one, two = filled(tmp_path, 1), opened(tmp_path)
    real = cold_module.read_block

    def slow(*arguments):
        monkeypatch.setattr(cold_module, "read_block", real)
        two.put(key(0), owned(tokens(0, True), {"keys": np.ones(99)}))  # of another size
        raise cold_module.DamagedError

    monkeypatch.setattr(cold_module, "read_block", slow)
    assert got(one, 0) is None and one._counts.damaged == 0 and got(two, 0, True) is not None


@pytest.mark.parametrize("policy", [LeastRecentlyUsed, FrequentlyUsed])
def test_the_policy_holds_here_and_after_a_restart(tmp_path, policy):
    cold = opened(tmp_path, 3 * FILE, policy)
    for number in range(3):
        cold.put(key(number), block(number))
    for number in (0, 0, 1, 2):
        assert right(cold, number)
    cold.close()
    cold = opened(tmp_path, 3 * FILE, policy)
    cold.put(key(3), block(3))
    gone = 0 if policy is LeastRecentlyUsed else 1
    assert cold.keys() == {key(number) for number in range(4)} - {key(gone)}
    assert len(list(tmp_path.glob("*.block"))) == 3 and cold._counts.evicted["budget"].blocks == 1 and lawful(cold)


def test_the_budget_is_that_of_whole_files(tmp_path):
    size = len(_file(0))
    cold = opened(tmp_path, size)
    assert cold.put(key(0), block(0)) == "written" and cold._counts.resident.bytes == size
    assert cold.put(key(1), owned(tokens(1), {"keys": np.ones(size)})) == "too large" and right(cold, 0)
    cold.close()
    assert opened(tmp_path, size - 1).keys() == set()


def _file(number):
    file = io.BytesIO()
    write_block(file, header_of(key(number), block(number)), block(number))
    return file.getvalue()


def test_bfloat16_without_its_package_is_a_miss_and_stays(tmp_path, monkeypatch):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    cold = opened(tmp_path)
    half = owned(tokens(0), {"keys": np.arange(3).astype(ml_dtypes.bfloat16)})
    cold.put(key(0), half)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ml_dtypes", None)
        assert got(cold, 0) is None and cold.off is None
        (tmp_path / "index.sqlite").unlink()
        assert opened(tmp_path).keys() == set() and file_of(tmp_path, 0).exists()
    assert same(got(opened(tmp_path), 0).arrays, half.arrays)
