"""The rules of sampling against transformers' processors of logits, ties, the draw itself, and options out of range."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers.generation import logits_process

from transformer_lab.errors import ConfigurationError
from transformer_lab.generation.sampling import Sampling, candidates, choose, largest, log_probability, penalise

VOCABULARY = 50


def random_logits(seed, size=VOCABULARY):
    return (np.random.default_rng(seed).standard_normal(size) * 3).astype(np.float32)


def ours(logits, sampling):
    """{id: probability} of what can be drawn."""
    ids, weights = candidates(logits, sampling)
    return dict(zip(ids.tolist(), (weights / weights.sum()).tolist(), strict=True))


def theirs(logits, sampling, history=(0,)):
    scores = torch.from_numpy(logits.astype(np.float64))[None]
    processors = [
        sampling.repetition_penalty and logits_process.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty),
        logits_process.TemperatureLogitsWarper(sampling.temperature),
        sampling.top_k and logits_process.TopKLogitsWarper(sampling.top_k),
        sampling.top_p and logits_process.TopPLogitsWarper(sampling.top_p),
        sampling.min_p and logits_process.MinPLogitsWarper(sampling.min_p),
    ]
    for processor in processors:
        if processor:
            scores = processor(torch.tensor([list(history)]), scores)
    probabilities = scores.softmax(-1)[0].numpy()
    return {int(i): float(probabilities[i]) for i in np.flatnonzero(probabilities)}


RULES = [
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 2.5},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": VOCABULARY},
    {"top_k": VOCABULARY + 10},
    {"top_p": 1e-6},
    {"top_p": 0.5},
    {"top_p": 0.93},
    {"top_p": 1.0},
    {"min_p": 0.0},
    {"min_p": 0.02},
    {"min_p": 0.4},
    {"min_p": 1.0},
    {"temperature": 1.7, "top_k": 20, "top_p": 0.8, "min_p": 0.05},
    {"temperature": 0.5, "top_k": 5, "top_p": 0.99},
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_same_tokens_survive_with_the_same_probabilities(rule):
    sampling = Sampling(**{"temperature": 1.0} | rule)
    for seed in range(20):
        logits = random_logits(seed)
        expected, found = theirs(logits, sampling), ours(logits, sampling)
        assert found.keys() == expected.keys()
        assert found == pytest.approx(expected, rel=1e-9)


def test_a_large_vocabulary():
    """Where the nucleus is a small part of the vocabulary, most of which is never sorted."""
    logits = random_logits(0, 20_000)
    for top_p in (0.1, 0.9, 0.999, 1 - 1e-9):
        sampling = Sampling(1.0, top_p=top_p)
        assert ours(logits, sampling).keys() == theirs(logits, sampling).keys()


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3, 4.0])
def test_repetition_penalty(penalty):
    history = [3, 3, 7, 41, 0]
    for seed in range(5):
        logits = random_logits(seed)
        before = logits.copy()
        expected = logits_process.RepetitionPenaltyLogitsProcessor(penalty)(
            torch.tensor([history]), torch.from_numpy(logits)[None]
        )
        np.testing.assert_allclose(penalise(logits, history, penalty), expected[0], rtol=1e-6)
        np.testing.assert_array_equal(logits, before)
    logits = np.array([1.0, 0.9, -5.0], np.float32)
    assert choose(logits, Sampling(repetition_penalty=2.0), [0], np.random.default_rng(0)) == 1


def test_ties_go_to_the_lower_id():
    logits = np.array([1, 5, 5, 0, 5, 5, 1], np.float32)
    assert choose(logits, Sampling(), [], np.random.default_rng(0)) == 1
    assert sorted(ours(logits, Sampling(1.0, top_k=2))) == [1, 2]
    assert sorted(ours(logits, Sampling(1.0, top_p=0.4))) == [1, 2]
    assert largest(logits.astype(np.float64), 5).tolist() == [1, 2, 4, 5, 0]
    flat = np.zeros(9, np.float32)
    assert sorted(ours(flat, Sampling(1.0, top_k=3))) == [0, 1, 2]
    assert sorted(ours(flat, Sampling(1.0, min_p=1.0))) == list(range(9))
    assert ours(flat, Sampling(1.0, top_p=1e-12)) == {0: 1.0}


@pytest.mark.parametrize("rule", [{}, {"top_k": 6}, {"top_p": 0.8}, {"min_p": 0.05}], ids=str)
def test_tokens_are_drawn_as_often_as_their_probabilities_say(rule):
    sampling, logits, draws = Sampling(1.2, **rule), random_logits(1, 12), 4000
    generator = np.random.default_rng(5)
    counts = np.bincount([choose(logits, sampling, [], generator) for _ in range(draws)], minlength=12)
    expected = theirs(logits, sampling)
    assert set(np.flatnonzero(counts)) <= expected.keys()
    ids = [token for token in expected if expected[token] * draws >= 5]
    observed = [*counts[ids], draws - counts[ids].sum()]
    predicted = [*(expected[token] * draws for token in ids), draws * (1 - sum(expected[token] for token in ids))]
    if predicted[-1] < 1:
        observed, predicted = observed[:-1], np.array(predicted[:-1]) * sum(observed[:-1]) / sum(predicted[:-1])
    assert chisquare(observed, predicted).pvalue > 1e-4  # the seed is fixed: this cannot flake
    shifted = np.roll(predicted, 1)
    assert chisquare(observed, shifted).pvalue < 1e-6, "and it can fail"


def test_rules_that_change_nothing_draw_the_same_tokens():
    """One uniform number for each token, over the same order of tokens."""
    plain = Sampling(1.0)
    for rule in ({"top_p": 1.0}, {"top_k": VOCABULARY}, {"top_k": 10**9}, {"min_p": 0.0}, {"repetition_penalty": 1.0}):
        first, second = np.random.default_rng(3), np.random.default_rng(3)
        for seed in range(50):
            logits = random_logits(seed)
            assert choose(logits, plain, [1], first) == choose(logits, Sampling(1.0, **rule), [1], second)


def test_extreme_but_allowed_values():
    logits = random_logits(0)
    best, generator = int(logits.argmax()), np.random.default_rng(0)
    for temperature in (1e-3, 1e-40, 1e-300, 5e-324):
        assert choose(logits, Sampling(temperature), [], generator) == best
    assert 0 <= choose(logits, Sampling(1e300), [], generator) < VOCABULARY
    assert choose(logits, Sampling(0.0, repetition_penalty=1e-200), [4], generator) in (4, best)
    wide = np.array([0, 3e38, -3e38], np.float32)
    assert choose(wide, Sampling(1.0), [], generator) == 1
    assert choose(np.zeros(1, np.float32), Sampling(1.0, 1, 0.5, 1.0, 2.0), [0], generator) == 0


def test_log_probability():
    logits = random_logits(2) * 20
    expected = torch.from_numpy(logits).double().log_softmax(-1)
    for token in range(VOCABULARY):
        assert log_probability(logits, token) == pytest.approx(float(expected[token]), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("temperature", value) for value in (-0.1, math.nan, math.inf, None, "1", True)),
        *(("top_k", value) for value in (0, -3, 2.0, "5", True, math.nan)),
        *(("top_p", value) for value in (0, 0.0, -0.5, 1.0001, math.nan, "0.9", True)),
        *(("min_p", value) for value in (-0.1, 1.5, math.nan, "0.1", False)),
        *(("repetition_penalty", value) for value in (0, 0.0, -1, math.nan, math.inf, "2", True)),
    ],
    ids=repr,
)
def test_values_out_of_range_are_refused_by_name(option, value):
    with pytest.raises(ConfigurationError, match=rf"^{option} is .*; it must be a "):
        Sampling(**{option: value})


def test_numpy_numbers_are_numbers():
    Sampling(np.float32(0.5), np.int64(3), np.float64(0.5), np.float32(0.1), np.int32(2))
