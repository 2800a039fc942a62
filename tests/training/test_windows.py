"""Windows and batches: every target once, documents kept apart, and batches that only seed and step decide."""

from itertools import pairwise

import numpy as np
import pytest

from transformer_lab.errors import ConfigurationError, InputFileError
from transformer_lab.training import windows as module
from transformer_lab.training.token_file import TokenFile, TokenFileWriter
from transformer_lab.training.windows import Batches, Windows

END = 0
DOCUMENTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15], [16, 17], [18, 19, 20, 21, 22, 23, 24, 25, 26]]
IDS = [END, *(token for document in DOCUMENTS for token in [*document, END])]


def make(path, documents) -> TokenFile:
    writer = TokenFileWriter(path, vocab_size=100_000, end_of_text_id=END)
    for document in documents:
        writer.begin_document()
        writer.add(document, len(document))
    writer.close()
    return TokenFile(path, "corpus.txt")


@pytest.fixture
def token_file(tmp_path):
    return make(tmp_path / "small.tokens", DOCUMENTS)


def pairs(ids, weights) -> list[tuple[int, int]]:
    """(input, target) of everything that counts, sorted."""
    return sorted((int(i), int(t)) for i, t in zip(ids[:, :-1][weights > 0], ids[:, 1:][weights > 0], strict=True))


EVERY_PAIR = sorted(pairwise(IDS))


@pytest.mark.parametrize("cross_documents", [True, False])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 10, 31, 32, 33, 100])
@pytest.mark.parametrize("offset", [0, 1, 13, 31, 32, 1000])
def test_every_target_is_in_one_window(token_file, length, cross_documents, offset):
    windows = Windows(token_file, length, cross_documents, offset)
    ids, weights = windows.take(range(len(windows)))
    assert ids.shape == (len(windows), length + 1) and ids.dtype == np.int64
    assert weights.shape == (len(windows), length) and weights.dtype == np.float32
    assert pairs(ids, weights) == EVERY_PAIR
    assert np.all(ids[:, 1:][weights == 0] == END)
    # Padding is only ever behind.
    assert np.all(np.diff(weights, axis=1) <= 0) and np.all(weights[:, 0] == 1)
    if cross_documents:
        assert np.sum(weights.sum(axis=1) < length) <= 1


def test_windows_stand_in_order(token_file):
    windows = Windows(token_file, 4)
    ids, _ = windows.take([0, 2])
    assert ids.tolist() == [IDS[0:5], IDS[8:13]]
    ids, _ = Windows(token_file, 4, offset=len(IDS) - 3).take([0])
    assert ids.tolist() == [[*IDS[-3:], *IDS[1:3]]]


@pytest.mark.parametrize("block", [1, 2, 4, 1024])
def test_no_window_sees_two_documents(token_file, block, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", block)
    windows = Windows(token_file, 3, cross_documents=False)
    ids, weights = windows.take(range(len(windows)))
    expected = []
    for document in DOCUMENTS:
        whole = [END, *document, END]
        expected += [whole[i : i + 4] for i in range(0, len(whole) - 1, 3)]
    assert [row[: int(weight.sum()) + 1].tolist() for row, weight in zip(ids, weights, strict=True)] == expected
    crossing, counts = Windows(token_file, 3).take(range(len(Windows(token_file, 3))))
    assert any(END in row[1:-1][count[:-1] > 0] for row, count in zip(crossing, counts, strict=True))


def test_many_documents_in_several_blocks(tmp_path):
    draw = np.random.default_rng(1)
    documents = [draw.integers(1, 90_000, draw.integers(1, 12)).tolist() for _ in range(3000)]
    token_file = make(tmp_path / "many.tokens", documents)
    windows = Windows(token_file, 5, cross_documents=False)
    ids, weights = windows.take(range(len(windows)))
    whole = [END, *(token for document in documents for token in [*document, END])]
    assert pairs(ids, weights) == sorted(pairwise(whole))
    assert len(windows) == sum(-(-(len(document) + 1) // 5) for document in documents)


@pytest.mark.parametrize("cross_documents", [True, False])
def test_every_target_is_in_every_epoch_once(token_file, cross_documents):
    count = len(Windows(token_file, 4, cross_documents))
    batches = Batches(token_file, 4, count, seed=3, cross_documents=cross_documents)
    assert batches.tokens_per_epoch == len(IDS) - 1
    epochs = [batches.at(step) for step in range(4)]
    for step, (ids, weights) in enumerate(epochs):
        assert pairs(ids, weights) == EVERY_PAIR
        assert batches.epoch(step) == step
    # Each epoch has another order, and with cross_documents other cuts too.
    assert not np.array_equal(epochs[0][0], epochs[1][0])
    cuts = [{tuple(row) for row in ids.tolist()} for ids, _ in epochs]
    assert (len({frozenset(cut) for cut in cuts}) == 1) == (not cross_documents)


@pytest.mark.parametrize("cross_documents", [True, False])
def test_batches_depend_on_seed_and_step_alone(token_file, cross_documents):
    one, same, other = (Batches(token_file, 4, 5, seed, cross_documents) for seed in (1, 1, 2))
    forward = [one.at(step) for step in range(30)]
    for step in reversed(range(30)):
        ids, weights = same.at(step)
        assert ids.shape == (5, 5) and np.array_equal(ids, forward[step][0])
        assert np.array_equal(weights, forward[step][1])
    assert any(not np.array_equal(other.at(step)[0], forward[step][0]) for step in range(3))


def test_batches_larger_than_an_epoch(token_file):
    batches = Batches(token_file, 8, 11, seed=0)  # 4 windows in an epoch
    ids, weights = batches.at(7)
    assert ids.shape == (11, 9) and batches.epoch(7) == 7 * 11 / 4
    ids, weights = (np.concatenate(parts) for parts in zip(*(batches.at(step) for step in range(4)), strict=True))
    assert pairs(ids, weights) == sorted(EVERY_PAIR * 11)


def test_what_does_not_fit_is_refused(token_file):
    with pytest.raises(InputFileError, match=r"corpus\.txt has 32 tokens, too few for one window of 33"):
        Batches(token_file, 33, 1, seed=0)
    assert Batches(token_file, 33, 1, seed=0, cross_documents=False).at(0)[0].shape == (1, 34)
    with pytest.raises(ConfigurationError, match="batch size"):
        Batches(token_file, 4, 0, seed=0)
    with pytest.raises(ConfigurationError, match="length of the windows"):
        Windows(token_file, 0)
    with pytest.raises(IndexError):
        Windows(token_file, 4).take([8])
