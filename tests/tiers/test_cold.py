"""Files that are damaged, foreign or half there are misses and never wrong blocks; a tier that cannot write is off."""

import random
import sqlite3

import numpy as np
import pytest

from tests.tiers.blocks import BYTES, arrays, key, same, tokens
from transformer_lab.tiers import block_file
from transformer_lab.tiers import cold as cold_module
from transformer_lab.tiers.block import owned
from transformer_lab.tiers.cold import Cold
from transformer_lab.tiers.ledger import Ledger


def opened(folder, budget=100 * BYTES):
    return Cold(folder, budget, Ledger())


def filled(folder, count=3):
    cold = opened(folder)
    for number in range(count):
        assert cold.put(key(number), owned(tokens(number), arrays(number)))
    return cold


def file_of(folder, number):
    return folder / f"{key(number).hex()}.block"


def test_what_was_put_is_found_after_a_restart(tmp_path):
    filled(tmp_path).close()
    cold = opened(tmp_path)
    for number in range(3):
        assert same(cold.get(key(number), tokens(number)).arrays, arrays(number))
    assert cold._ledger.check() == [] and cold._counts.others.blocks == 3


def test_every_flipped_bit_of_the_front_and_header_and_some_of_the_payload_are_misses(tmp_path):
    cold = filled(tmp_path, 1)
    path = file_of(tmp_path, 0)
    whole = path.read_bytes()
    header = 44 + int.from_bytes(whole[8:12], "little")
    noise = random.Random(0)
    for at in [*range(header), *noise.sample(range(header, len(whole)), 30)]:
        broken = bytearray(whole)
        broken[at] ^= 1 << noise.randrange(8)
        path.write_bytes(broken)
        with pytest.raises(block_file.DamagedError):
            block_file.read_block(path)
    assert cold.get(key(0), tokens(0)) is None and not path.exists()
    assert cold._counts.damaged == 1 and cold._ledger.check() == []


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b"", lambda b: b[:20]])
def test_files_of_another_length_are_misses(tmp_path, change):
    cold = filled(tmp_path, 1)
    path = file_of(tmp_path, 0)
    path.write_bytes(change(path.read_bytes()))
    assert cold.get(key(0), tokens(0)) is None and cold._counts.evicted["damage"].blocks == 1
    assert cold.put(key(0), owned(tokens(0), arrays(0)))
    assert cold._ledger.check() == []


def test_another_blocks_file_under_a_key_is_damage_and_other_tokens_are_a_collision(tmp_path):
    cold = filled(tmp_path)
    assert cold.get(key(1), tokens(2)) is None and cold._counts.collisions == 1
    file_of(tmp_path, 0).write_bytes(file_of(tmp_path, 1).read_bytes())
    assert cold.get(key(0), tokens(1)) is None and cold._counts.damaged == 1


def test_junk_is_left_alone_and_orphans_are_adopted_or_removed(tmp_path):
    filled(tmp_path).close()
    (tmp_path / "index.sqlite").unlink()
    file_of(tmp_path, 2).write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / f".{key(1).hex()}.block.elsewhere.0123456789ab.transformer-lab").write_bytes(b"being written")
    file_of(tmp_path, 7).mkdir()
    cold = opened(tmp_path)
    assert sorted(cold.keys()) == sorted([key(0), key(1)]) and (tmp_path / "notes.txt").exists()
    assert (cold._ledger.orphans_adopted, cold._ledger.orphans_removed) == (2, 1) and cold.off is None


def test_a_corrupt_index_is_made_again_and_one_from_the_future_is_left_alone(tmp_path):
    filled(tmp_path).close()
    (tmp_path / "index.sqlite").write_bytes(b"no index at all, " * 500)
    cold = opened(tmp_path)
    assert len(cold.keys()) == 3 and cold.off is None
    cold.close()
    with sqlite3.connect(tmp_path / "index.sqlite") as index:
        index.execute("PRAGMA user_version=99")
    index.close()
    late = opened(tmp_path)
    assert "later version" in late.off and late.get(key(0), tokens(0)) is None and file_of(tmp_path, 0).exists()


def test_a_full_disk_switches_the_tier_off(tmp_path, monkeypatch):
    cold = filled(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cold_module, "write_file", full)
    assert not cold.put(key(9), owned(tokens(9), arrays(9)))
    assert "No space left" in cold.off and cold.get(key(0), tokens(0)) is None and cold._ledger.check() == []


def test_two_owners_of_one_folder_see_each_others_blocks(tmp_path):
    one, two = opened(tmp_path), opened(tmp_path)
    one.put(key(0), owned(tokens(0), arrays(0)))
    assert same(two.get(key(0), tokens(0)).arrays, arrays(0))
    assert one._ledger.check() == two._ledger.check() == []


def test_the_budget_holds(tmp_path):
    cold = opened(tmp_path, 2 * BYTES)
    for number in range(5):
        cold.put(key(number), owned(tokens(number), arrays(number)))
    assert sorted(cold.keys()) == sorted([key(3), key(4)]) and len(list(tmp_path.glob("*.block"))) == 2


def test_a_checksum_of_the_payload_alone_would_be_noticed(tmp_path, monkeypatch):
    cold = filled(tmp_path, 1)
    path = file_of(tmp_path, 0)
    changed = path.read_bytes().replace(b"values", b"valuez")
    path.write_bytes(changed)
    assert cold.get(key(0), tokens(0)) is None

    class Blind:
        def digest(self):
            return changed[12:44]

    monkeypatch.setattr(block_file.hashlib, "sha256", lambda *_: Blind())
    assert "valuez" in block_file.read_block(_again(path, changed))[1].arrays


def _again(path, content):
    path.write_bytes(content)
    return path


def test_blocks_are_read_only(tmp_path):
    with pytest.raises(ValueError, match="read-only"):
        filled(tmp_path).get(key(0), tokens(0)).arrays["keys"][0, 0] = np.float32(1)


def test_a_row_that_was_written_before_its_file_is_a_miss_and_seen(tmp_path, monkeypatch):
    cold = opened(tmp_path)
    monkeypatch.setattr(cold_module, "write_file", lambda *_: None)  # killed between the row and the file
    cold.put(key(0), owned(tokens(0), arrays(0)))
    assert cold.get(key(0), tokens(0)) is None
    assert cold._counts.vanished == 1 and cold._ledger.check() == []
