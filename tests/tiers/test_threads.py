"""Many threads at once; who waits for whom; and threads in which something goes wrong."""

import random
import threading

import pytest

from tests.tiers.blocks import BYTES, FILE, Gate, arrays, key, right, soon, tokens
from transformer_lab.tiers import cold as cold_module
from transformer_lab.tiers.cold import Cold
from transformer_lab.tiers.eviction import FrequentlyUsed, LeastRecentlyUsed
from transformer_lab.tiers.tiers import Tiers
from transformer_lab.tiers.write_queue import WriteQueue


def in_thread(work):
    """Starts it, and gives what ends it: the result, or the test fails."""
    results = []
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)  # what it raises fails the test
    thread.start()

    def result():
        thread.join(20)
        assert results, "it waits, or it raised"
        return results[0]

    return result


def put(tiers, *numbers):
    for number in numbers:
        tiers.put(key(number), tokens(number), arrays(number))


@pytest.mark.parametrize("policy", [LeastRecentlyUsed, FrequentlyUsed])
def test_eight_threads_find_the_right_blocks_or_none(tmp_path, policy):
    with Tiers(4 * BYTES, tmp_path, 8 * FILE, policy) as tiers:
        ends = [in_thread(lambda seed=seed: busy(tiers, seed)) for seed in range(8)]
        assert soon(lambda: tiers.ledger.lookups > 50)
        for _ in range(20):
            assert tiers.check() == []
        hits = sum(end() for end in ends)
        tiers.flush()
        assert tiers.check() == [] and hits == tiers.ledger.lookups - tiers.ledger.misses > 100
        assert all(tier.hits.blocks for tier in (tiers.ledger.warm, tiers.ledger.cold))
    assert tiers.check() == [] and tiers._cold.off is None


def busy(tiers, seed):
    noise, hits = random.Random(seed), 0
    for _ in range(150):
        number, what = noise.randrange(16), noise.random()
        if what < 0.4:
            put(tiers, number)
        elif what < 0.8:
            found = tiers.get(key(number), tokens(number))
            assert found is None or right(found, number)
            hits += found is not None
        elif what < 0.9:
            tiers.prefetch([(key(number), tokens(number))])
        elif what < 0.95:
            tiers.contains(key(number))
        else:
            tiers.flush()
    return hits


def test_a_hit_in_warm_waits_neither_for_writing_nor_for_reading(tmp_path, monkeypatch):
    with Tiers(0, tmp_path, 99 * FILE) as tiers:
        put(tiers, 7)
    tiers = Tiers(2 * BYTES, tmp_path, 99 * FILE)
    writing, reading = Gate(cold_module.write_file), Gate(cold_module.read_block)
    monkeypatch.setattr(cold_module, "write_file", writing)
    monkeypatch.setattr(cold_module, "read_block", reading)
    put(tiers, 0, 1, 2)
    late = in_thread(lambda: tiers.get(key(7), tokens(7)))
    assert writing.came.wait(20) and reading.came.wait(20)
    assert in_thread(lambda: tiers.get(key(2), tokens(2)))().tier == "warm"
    assert in_thread(lambda: tiers.get(key(0), tokens(0)))().tier == "queue"
    assert in_thread(tiers.check)() == []
    put(tiers, 3)
    reading.opened.set()  # reading waits for no writing either
    assert right(late(), 7)
    writing.opened.set()
    tiers.close()
    assert tiers.check() == []


def test_who_asks_for_a_block_that_is_being_read_waits_for_it_and_no_second_time_is_it_read(tmp_path, monkeypatch):
    with Tiers(0, tmp_path, 99 * FILE) as tiers:
        put(tiers, 7)
    tiers = Tiers(2 * BYTES, tmp_path, 99 * FILE)
    reads = []
    gate = Gate(lambda *arguments: reads.append(arguments) or real(*arguments))
    real = cold_module.read_block
    monkeypatch.setattr(cold_module, "read_block", gate)
    tiers.prefetch([(key(7), tokens(7))])
    assert gate.came.wait(20)
    asked = [in_thread(lambda: tiers.get(key(7), tokens(7))) for _ in range(3)]
    gate.opened.set()
    assert [end().tier for end in asked] == ["warm"] * 3 and len(reads) == 1
    tiers.close()
    assert tiers.check() == []


def test_put_waits_while_the_queue_is_full_and_close_comes_back(tmp_path, monkeypatch):
    gate = Gate(cold_module.write_file)
    monkeypatch.setattr(cold_module, "write_file", gate)
    monkeypatch.setattr(WriteQueue, "full", property(lambda queue: len(queue) >= 3))
    tiers = Tiers(0, tmp_path, 99 * FILE)
    put(tiers, 0, 1, 2)
    waits = in_thread(lambda: put(tiers, 3))
    assert gate.came.wait(20) and not tiers.contains(key(3))
    flushed = in_thread(tiers.flush)
    gate.opened.set()
    waits()
    flushed()
    tiers.close()
    with Tiers(0, tmp_path, 99 * FILE) as again:
        assert all(right(again.get(key(number), tokens(number)), number) for number in range(4))


class Unexpected(BaseException):
    """Not even an Exception."""


@pytest.mark.parametrize("error", [RuntimeError("odd"), MemoryError(), Unexpected("very odd")])
def test_whatever_happens_in_the_writer_the_run_goes_on(tmp_path, monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(cold_module, "write_file", fails)
    tiers = Tiers(2 * BYTES, tmp_path, 99 * FILE)
    with pytest.warns(RuntimeWarning, match=f"switched off: {error or type(error).__name__}") as said:
        in_thread(lambda: put(tiers, *range(300)))()  # more than the queue holds
        in_thread(tiers.flush)()
    assert right(tiers.get(key(299), tokens(299)), 299) and tiers.get(key(0), tokens(0)) is None
    tiers.close()
    assert len(said) == 1 and tiers.check() == [] and tiers.ledger.queue.evicted["off"].blocks > 0


@pytest.mark.parametrize("method", ["get", "put"])
def test_nor_does_a_mistake_of_ours_in_the_tier_of_files_end_it(tmp_path, monkeypatch, method):
    with Tiers(0, tmp_path, 99 * FILE) as tiers:
        put(tiers, 7)

    def fails(*_):
        message = "a mistake"
        raise KeyError(message)

    tiers = Tiers(BYTES, tmp_path, 99 * FILE)
    monkeypatch.setattr(Cold, method, fails)
    if method == "get":
        tiers.prefetch([(key(7), tokens(7))])
    else:
        put(tiers, 0, 1)
    assert soon(lambda: tiers._cold.off)
    with pytest.warns(RuntimeWarning, match="a mistake"):
        put(tiers, 3)
    tiers.close()
    assert tiers.check() == []


def test_closed_while_others_work(tmp_path):
    tiers = Tiers(2 * BYTES, tmp_path, 99 * FILE)

    def until_closed(seed):
        noise = random.Random(seed)
        while True:
            number = noise.randrange(20)
            try:
                put(tiers, number)
                found = tiers.get(key(number), tokens(number))
            except ValueError as error:
                return "closed" in str(error)
            assert found is None or right(found, number)

    ends = [in_thread(lambda seed=seed: until_closed(seed)) for seed in range(4)]
    assert soon(lambda: tiers.ledger.lookups > 40)
    closers = [in_thread(tiers.close) for _ in range(2)]
    assert all(end() for end in ends)
    assert [end() for end in closers] == [None, None]
    assert tiers.check() == [] and tiers.ledger.queue.resident.blocks == tiers.ledger.warm.resident.blocks == 0


def test_tiers_that_are_closed_from_their_writers_own_thread_write_what_is_left(tmp_path, monkeypatch):
    """A garbage collector runs in whatever thread there is, and it closes the tiers of a forgotten model."""
    tiers = Tiers(0, tmp_path, 99 * FILE)
    gate = Gate(Cold.put)

    def collect_and_put(*arguments):
        outcome = gate(*arguments)
        tiers.close()
        return outcome

    monkeypatch.setattr(Cold, "put", collect_and_put)
    put(tiers, 1, 2, 3)
    gate.opened.set()
    assert soon(lambda: not tiers._threads[0].is_alive())
    in_thread(tiers.close)()
    assert tiers.off is None
    with Tiers(0, tmp_path, 99 * FILE) as again:
        assert all(right(again.get(key(number), tokens(number)), number) for number in (1, 2, 3))
