"""Mistakes that the tiers must not have: each check holds as they are, and fails as soon as its mistake is planted."""

import hashlib
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.tiers.blocks import BYTES, FILE, Gate, arrays, block, file_of, key, right, tokens
from transformer_lab.left_over import temporary
from transformer_lab.tiers import block_file
from transformer_lab.tiers import cold as cold_module
from transformer_lab.tiers import key as key_module
from transformer_lab.tiers import tiers as tiers_module
from transformer_lab.tiers.block import Block
from transformer_lab.tiers.cold import Cold
from transformer_lab.tiers.eviction import LeastRecentlyUsed
from transformer_lab.tiers.ledger import INERT_LOOKUPS, Amount, Ledger
from transformer_lab.tiers.tiers import Tiers
from transformer_lab.tiers.write_queue import WriteQueue


class KilledError(BaseException):
    """Takes the place of a kill: nothing catches it."""


def opened(folder):
    return Cold(folder, 9 * FILE, LeastRecentlyUsed(), Ledger())


def put(tiers, *numbers):
    for number in numbers:
        tiers.put(key(number), tokens(number), arrays(number))
    tiers.flush()


# What must hold.


def a_kill_leaves_no_row_without_a_file(folder):
    cold = opened(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cold_module, "write_block", killed)
        with pytest.raises(KilledError):
            cold.put(key(0), block(0))
    cold.close()
    again = opened(folder)
    assert again._counts.vanished == 0 and again._ledger.orphans_removed == 0 and again.keys() == set()


def killed(*_):
    raise KilledError


def a_changed_header_is_a_miss(folder):
    cold = opened(folder)
    cold.put(key(0), block(0))
    path = file_of(folder, 0)
    path.write_bytes(path.read_bytes().replace(b"values", b"valuez"))
    assert cold.get(key(0), tuple(tokens(0))) is None


def a_changed_payload_is_a_miss(folder):
    cold = opened(folder)
    cold.put(key(0), block(0))
    path = file_of(folder, 0)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    found = cold.get(key(0), tuple(tokens(0)))
    assert found is None and cold._counts.damaged == 1


def other_tokens_are_a_miss(folder):
    with Tiers(BYTES, folder, 9 * FILE) as tiers:
        put(tiers, 0, 1)
        for number in (0, 1):
            assert tiers.get(key(number), tokens(number, True)) is None
        assert tiers.ledger.warm.collisions == 1 and tiers.ledger.cold.collisions == 2


def the_laws_hold(folder):
    with Tiers(2 * BYTES, folder, 3 * FILE) as tiers:
        put(tiers, *range(6))
        for number in (5, 3, 0, 3):
            tiers.get(key(number), tokens(number))
        tiers.flush()
        assert tiers.check() == [] and tiers.ledger.promotions == 1


def what_was_replaced_is_counted_as_gone(folder):
    with Tiers(9 * BYTES, folder, 9 * FILE) as tiers:
        for other in (False, True):
            tiers.put(key(0), tokens(0, other), arrays(0, other))
            tiers.flush()
        assert tiers.check() == [] and tiers.ledger.warm.resident.blocks == tiers.ledger.cold.resident.blocks == 1


def passes_are_in_the_key(_):
    assert key_module.next_key(b"", [1, 2], [2]) != key_module.next_key(b"", [1, 2], [1, 1])


def weights_are_in_the_key(_):
    one = key_module.Provenance("w", "c", "b", "o", "p")
    assert key_module.first_key(one) != key_module.first_key(replace(one, weights="v"))


def the_callers_arrays_are_the_callers(folder):
    with Tiers(9 * BYTES, folder, 9 * FILE) as tiers:
        given = arrays(0)
        tiers.put(key(0), tokens(0), given)
        given["keys"][:] = 0
        assert right(tiers.get(key(0), tokens(0)), 0)
    with Tiers(0, folder, 9 * FILE) as tiers:
        assert right(tiers.get(key(0), tokens(0)), 0)


def a_temporary_file_is_no_block(folder):
    folder.mkdir(exist_ok=True)
    with temporary(file_of(folder, 0), lambda place: place.touch()) as place:
        with open(place, "wb") as file:
            block_file.write_block(file, block_file.header_of(key(0), block(0)), block(0))
        cold = opened(folder)
        assert cold.keys() == set() and cold._ledger.orphans_adopted == 0 and place.exists()
        cold.close()


def the_alarm_rings(folder):
    with Tiers(BYTES, folder, 3 * FILE) as tiers:
        put(tiers, *range(70))
        for _ in range(INERT_LOOKUPS):
            tiers.get(key(999), tokens(999))
        assert tiers.ledger.inert() == ["warm", "cold"]


def the_queue_answers_while_it_writes(folder):
    gate = Gate(cold_module.write_file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cold_module, "write_file", gate)
        tiers = Tiers(0, folder, 9 * FILE)
        tiers.put(key(0), tokens(0), arrays(0))
        assert gate.came.wait(20)
        found = tiers.get(key(0), tokens(0))
        gate.opened.set()
        tiers.close()
        assert right(found, 0) and tiers.ledger.hit_rate == 1 and tiers.check() == []


# How it could be wrong.


def row_before_file(patch):
    def put(self, key, block):
        header = block_file.header_of(key, block)
        size = block_file.file_size(header, block)
        self._step(lambda index: self._enter(index, key, block, size))
        cold_module.write_file(self._path(key), lambda file: cold_module.write_block(file, header, block))
        return "written"

    patch.setattr(Cold, "put", put)


def written_in_place(patch):
    def write_file(path, write):
        with open(path, "wb") as file:
            write(file)

    patch.setattr(cold_module, "write_file", write_file)


def checksum_of_the_payload_alone(patch):
    patch.setattr(block_file, "hashlib", SimpleNamespace(sha256=lambda _: hashlib.sha256()))


def checksum_not_looked_at(patch):
    def read_block(path, key, largest):
        with open(path, "rb") as file:
            front = file.read(44)
            header = file.read(int.from_bytes(front[8:12], "little"))
            block = block_file._empty(json.loads(header), key, path.stat().st_size - 44 - len(header))
            for array in block.arrays.values():
                file.readinto(block_file._bytes_of(array))
        return block

    patch.setattr(cold_module, "read_block", read_block)


def hash_alone(patch):
    class All(tuple):
        __hash__ = tuple.__hash__

        def __eq__(self, other):
            return True

        def __ne__(self, other):
            return False

    patch.setattr(tiers_module, "as_tokens", All)


def evicted_and_still_counted(patch):
    patch.setattr(Amount, "take", lambda *_: None)


def evicted_file_still_counted(patch):
    real = Amount.change

    def change(self, blocks, tokens, size):
        if (blocks, tokens) != (-1, -4) or size == -BYTES:  # the bytes of a file are more
            real(self, blocks, tokens, size)

    patch.setattr(Amount, "change", change)


def promotion_counted_twice(patch):
    real = Tiers._promote

    def promote(self, key, block):
        real(self, key, block)
        self.ledger.promotions += 1

    patch.setattr(Tiers, "_promote", promote)


def promoted_though_it_is_there(patch):
    def get(self, key, tokens):
        self._warm._counts.looked_up(None)
        return self._warm._blocks.get(key), "queue"

    patch.setattr(Tiers, "_look", get)


def key_without_passes(patch):
    real = key_module.next_key
    patch.setattr(key_module, "next_key", lambda before, ids, passes: real(before, ids, []))


def key_without_weights(patch):
    real = key_module.first_key
    patch.setattr(key_module, "first_key", lambda provenance: real(replace(provenance, weights="")))


def shared_arrays(patch):
    patch.setattr(tiers_module, "owned", lambda ids, given: Block(tuple(ids), given))


def temporary_file_indexed(patch):
    real = Cold._path

    def path(self, key):
        began = self._folder.glob(f".{key.hex()[:40]}*.transformer-lab")
        return next(began, real(self, key))

    patch.setattr(Cold, "_path", path)
    patch.setattr(Cold, "_files", lambda self: {key(0)})


def silent_alarm(patch):
    patch.setattr(Ledger, "inert", lambda self: [])


def alarm_that_takes_a_write_for_a_hit(patch):
    real = WriteQueue.remove

    def remove(self, key, block, reason):
        real(self, key, block, reason)
        self.counts_of_cold.hits.add(block)

    patch.setattr(WriteQueue, "remove", remove)
    made = Tiers.__init__

    def init(self, *arguments):
        made(self, *arguments)
        self._queue.counts_of_cold = self.ledger.cold

    patch.setattr(Tiers, "__init__", init)


def queue_that_forgets_first(patch):
    real = WriteQueue.first

    def first(self):
        key, block = real(self)
        self.remove(key, block, "written")
        return key, block

    patch.setattr(WriteQueue, "first", first)


def queue_that_does_not_count(patch):
    patch.setattr(WriteQueue, "get", lambda self, key, _: self._block(key))


MISTAKES = {
    row_before_file: a_kill_leaves_no_row_without_a_file,
    written_in_place: a_kill_leaves_no_row_without_a_file,
    checksum_of_the_payload_alone: a_changed_header_is_a_miss,
    checksum_not_looked_at: a_changed_payload_is_a_miss,
    hash_alone: other_tokens_are_a_miss,
    evicted_and_still_counted: what_was_replaced_is_counted_as_gone,
    evicted_file_still_counted: what_was_replaced_is_counted_as_gone,
    promotion_counted_twice: the_laws_hold,
    promoted_though_it_is_there: the_laws_hold,
    key_without_passes: passes_are_in_the_key,
    key_without_weights: weights_are_in_the_key,
    shared_arrays: the_callers_arrays_are_the_callers,
    temporary_file_indexed: a_temporary_file_is_no_block,
    silent_alarm: the_alarm_rings,
    alarm_that_takes_a_write_for_a_hit: the_alarm_rings,
    queue_that_forgets_first: the_queue_answers_while_it_writes,
    queue_that_does_not_count: the_queue_answers_while_it_writes,
}


@pytest.mark.parametrize("check", dict.fromkeys(MISTAKES.values()), ids=lambda check: check.__name__)
def test_what_must_hold(tmp_path, check):
    check(tmp_path)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_planted_mistake_is_noticed(tmp_path, monkeypatch, mistake):
    mistake(monkeypatch)
    with pytest.raises(AssertionError):
        MISTAKES[mistake](tmp_path)
