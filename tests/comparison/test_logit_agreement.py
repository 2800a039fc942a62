"""The agreement of logits against SciPy's divergence, mpmath, sorting with torch, and rows counted by hand."""

import math
import tracemalloc
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import kl_div, rel_entr, softmax
from tolerances import DIVERGENCE_OF_NOISE, MEASURE

from transformer_lab.comparison.judging import logits as logit_agreement
from transformer_lab.comparison.judging.logits import Flip, LogitAgreement, agreement_of, merge


def rows(seed, noise, positions=30, vocabulary=40):
    generator = np.random.default_rng(seed)
    truth = 3 * generator.standard_normal((positions, vocabulary))
    return (truth + noise * generator.standard_normal(truth.shape)).astype(np.float32), truth


@pytest.mark.parametrize("noise", [0.01, 1.0, 10.0])
def test_divergences_are_scipys(noise):
    logits, truth = rows(0, noise)
    found, q, p = agreement_of(logits, truth), softmax(logits.astype(np.float64), axis=1), softmax(truth, axis=1)
    assert found.kl_from_truth == pytest.approx(rel_entr(p, q).sum(axis=1).mean(), rel=MEASURE, abs=MEASURE)
    assert found.kl_to_truth == pytest.approx(kl_div(q, p).sum(axis=1).mean(), rel=MEASURE, abs=MEASURE)
    assert found.kl_from_truth != pytest.approx(found.kl_to_truth, rel=1e-6), "the two ways differ"


def test_divergences_of_almost_equal_logits():
    """float32's noise: about 1e-13 nats, where a sum of terms of both signs in float64 is mostly rounding."""
    logits, truth = rows(1, 1e-7, positions=3)
    with mpmath.workdps(60):
        expected = mpmath.mpf(0)
        for row, true in zip(logits.astype(np.float64), truth, strict=True):
            q, p = ([mpmath.exp(mpmath.mpf(float(x))) for x in array] for array in (row, true))
            p, q = ([x / mpmath.fsum(array) for x in array] for array in (p, q))
            expected += mpmath.fsum(a * mpmath.log(a / b) for a, b in zip(p, q, strict=True)) / len(truth)
        expected = float(expected)
    assert 1e-16 < expected < 1e-12
    assert agreement_of(logits, truth).kl_from_truth == pytest.approx(expected, rel=DIVERGENCE_OF_NOISE, abs=0)
    plain = rel_entr(softmax(truth, axis=1), softmax(logits.astype(np.float64), axis=1)).sum(axis=1).mean()
    assert plain != pytest.approx(expected, rel=DIVERGENCE_OF_NOISE, abs=0), "the plain sum is not good enough here"


def test_divergences_at_the_ends():
    def both(logits, truth):
        found = agreement_of(np.array([logits]), np.array([truth]))
        return found.kl_from_truth, found.kl_to_truth

    inf = math.inf
    assert both([0.0, 0.0, -inf], [0.0, 0.0, -inf]) == (0.0, 0.0)
    assert both([0.0, 0.0, -inf], [0.0, -inf, -inf]) == (pytest.approx(math.log(2)), inf)
    assert both([0.0, -2000.0, -inf], [0.0, -2000.0, -2000.0]) == (0.0, 0.0), "probabilities that are 0 in float64"
    assert both([0.0, 800.0], [800.0, 0.0]) == (pytest.approx(800.0), pytest.approx(800.0))
    assert both([0.0, 1.0], [1000.0, 1001.0]) == (pytest.approx(0.0, abs=MEASURE),) * 2, "a shift changes nothing"
    assert all(map(math.isnan, both([0.0, math.nan], [0.0, 1.0])))
    assert all(map(math.isnan, both([0.0, inf], [0.0, 1.0])))


@pytest.mark.parametrize("noise", [0.1, 1.0, 5.0])
def test_ranks_and_best_tokens_are_torchs(noise):
    logits, truth = rows(2, noise)
    found = agreement_of(logits, truth)
    order = torch.sort(torch.from_numpy(logits), dim=1, descending=True, stable=True).indices
    true_order = torch.sort(torch.from_numpy(truth), dim=1, descending=True, stable=True).indices
    ranks = [order[i].tolist().index(int(true_order[i, 0])) for i in range(len(truth))]
    assert found.positions == len(truth)
    assert (found.rank_shift_max, found.rank_shift_mean) == (max(ranks), pytest.approx(np.mean(ranks)))
    assert found.top_1 == pytest.approx(float((order[:, 0] == true_order[:, 0]).double().mean()))
    common = [len({*order[i, :5].tolist()} & {*true_order[i, :5].tolist()}) / 5 for i in range(len(truth))]
    assert found.top_5 == pytest.approx(np.mean(common))
    assert found.rank_shift_max > 0 and found.top_1 < 1 and found.top_5 < 1
    for flip in found.flips:
        best, token = int(true_order[flip.position, 0]), int(order[flip.position, 0])
        assert (flip.truth_token, flip.token) == (best, token) and best != token
        assert flip.margin == truth[flip.position, best] - truth[flip.position, token] > 0
    assert [flip.position for flip in found.flips] == np.flatnonzero(ranks).tolist()


def test_a_row_by_hand():
    truth = np.array([[0.0, 5.0, 4.0, 1.0, 2.0, 3.0, -1.0], [7.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    logits = np.array([[0.0, 3.0, 4.0, 9.0, 2.0, 3.5, -1.0], [7.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    found = agreement_of(logits, truth, prompt=4)
    assert found.flips == (Flip(prompt=4, position=0, truth_token=1, token=3, margin=4.0),)
    assert (found.top_1, found.top_5) == (0.5, 1.0)  # {1, 2, 5, 4, 3} both times, and ties to the lower id
    assert (found.rank_shift_max, found.rank_shift_mean) == (3, 1.5)
    short = agreement_of(np.array([[1.0, 2.0]]), np.array([[2.0, 1.0]]))
    assert (short.top_1, short.top_5, short.rank_shift_max) == (0.0, 1.0, 1)


def test_ties_go_to_the_lower_id():
    tied, other = np.array([[1.0, 1.0, 0.0]]), np.array([[0.5, 1.0, 0.0]])
    assert agreement_of(tied, other).flips == (Flip(0, 0, 1, 0, 0.5),)
    assert agreement_of(other, tied).flips == (Flip(0, 0, 0, 1, 0.0),)
    assert agreement_of(tied, tied) == LogitAgreement(1, best_in_common=1.0)


def test_broken_logits_are_not_taken_for_agreement():
    truth = np.array([[0.0, 1.0, 2.0]])
    found = agreement_of(np.full((1, 3), np.nan), truth)
    assert math.isnan(found.kl_from_truth) and math.isnan(found.kl_to_truth)
    assert (found.top_1, found.rank_shift_max) == (0.0, 2)
    assert found.flips == (Flip(0, 0, 2, 0, 2.0),)
    agreement_of(truth, np.full((1, 3), np.nan))
    agreement_of(truth, np.full((1, 3), -np.inf))


@given(st.lists(st.integers(0, 12), max_size=4), st.integers(0, 99))
def test_merging_prompts_is_the_mean_over_all_positions(lengths, seed):
    logits, truth = rows(seed, 2.0, positions=sum(lengths), vocabulary=9)
    ends = np.cumsum([0, *lengths])
    spans = [slice(*pair) for pair in pairwise(ends)]
    merged = merge([agreement_of(logits[span], truth[span], prompt) for prompt, span in enumerate(spans)])
    whole = agreement_of(logits, truth)
    assert merged.positions == whole.positions == sum(lengths)
    assert (merged.rank_shift_max, merged.rank_shifts) == (whole.rank_shift_max, whole.rank_shifts)
    for name in ("kl_from_truth", "kl_to_truth", "top_1", "top_5", "rank_shift_mean"):
        assert getattr(merged, name) == pytest.approx(getattr(whole, name), rel=MEASURE, nan_ok=True)
    assert [flip.position + ends[flip.prompt] for flip in merged.flips] == [flip.position for flip in whole.flips]


def test_pieces_change_nothing(monkeypatch):
    logits, truth = rows(3, 2.0)
    whole = agreement_of(logits, truth)
    for piece in (1, 40, 130):  # rows of 40: one, one, and three at a time
        monkeypatch.setattr(logit_agreement, "PIECE", piece)
        found = agreement_of(logits, truth)
        assert found.flips == whole.flips and found.rank_shifts == whole.rank_shifts
        assert found.kl_from_truth == pytest.approx(whole.kl_from_truth, rel=MEASURE)


def test_a_large_vocabulary_takes_little_memory():
    """GPT-2's, with a few hundred positions; what is needed beside the arrays does not grow with these."""
    logits = np.random.default_rng(0).standard_normal((200, 50257), np.float32)
    tracemalloc.start()
    agreement_of(logits, logits)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200e6


def test_shapes_that_do_not_fit_are_refused():
    for wrong in (np.zeros((2, 3)), np.zeros((2, 4, 1)), np.zeros(4)):
        with pytest.raises(ValueError, match="shape"):
            agreement_of(wrong, np.zeros((2, 4)))
    assert math.isnan(agreement_of(np.zeros((0, 4)), np.zeros((0, 4))).top_1)
