"""Continuations beside each other, and the second sampler against the first: equal, and able to find its faults."""

import inspect
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_lab.comparison.judging.generation.continuations import TextAgreement, distinct, text_agreement
from transformer_lab.comparison.judging.generation.second_sampler import resampled, sampler_agrees
from transformer_lab.generation import sampling as first_sampler
from transformer_lab.generation.sampling import Sampling
from transformer_lab.language_model import load_model

RULES = (
    {},
    {"top_k": 1},
    {"top_k": 6},
    {"top_k": 10_000},
    {"top_p": 0.6},
    {"top_p": 0.95},
    {"top_p": 1.0},
    {"min_p": 0.0},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 12, "top_p": 0.8, "min_p": 0.05},
    {"repetition_penalty": 1.4},
    {"repetition_penalty": 0.7, "top_p": 0.9},
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 2.0},
    {"temperature": 0.3, "min_p": 0.02},
    {"temperature": 2.5, "top_k": 5},
    {name: np.float32(0.9) for name in ("temperature", "top_p", "repetition_penalty")} | {"min_p": np.float32(0.1)},
)


def random_rows(seed, count=25, vocabulary=40):
    return (3 * np.random.default_rng(seed).standard_normal((count, vocabulary))).astype(np.float32)


def generated(logits, sampling, seed, prompt, sampler=first_sampler):
    """What a generation does with these rows: generation/continuation.py and generation/generate.py."""
    noise, history = np.random.default_rng(seed), list(prompt)
    for row in logits:
        history.append(sampler.choose(row, sampling, history, noise))
    return history[len(prompt) :]


def with_one_change(right, wrong):
    """The first sampler with one line of its source replaced."""
    source = inspect.getsource(first_sampler)
    assert source.count(right) == 1
    module = types.ModuleType("wrong_sampler")
    module.__dict__["__name__"] = first_sampler.__name__  # where the dataclass looks for its module
    exec(source.replace(right, wrong), module.__dict__)
    return module


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_both_samplers_choose_the_same(rule):
    sampling = Sampling(**{"temperature": 1.0} | rule)
    for seed in range(20):
        logits, prompt = random_rows(seed), [3, 3, 7]
        tokens = generated(logits, sampling, seed, prompt)
        assert resampled(logits, tokens, sampling, seed, prompt) == tokens, "and none is undecided"
        assert sampler_agrees(tokens, logits, sampling, seed, prompt) == (True, None)
        tokens[-1] = (tokens[-1] + 1) % logits.shape[1]
        assert sampler_agrees(tokens, logits, sampling, seed, prompt) == (False, len(tokens) - 1)


@pytest.mark.parametrize("rule", [{}, {"top_p": 0.9, "repetition_penalty": 1.3}], ids=str)
def test_the_tokens_of_a_model(rule):
    """The seed and the history are those of `generate`, also in a batch. Exact mode gives its logits once more."""
    model = load_model("storybook", precision="exact")
    sampling = Sampling(0.9, **rule)
    done = model.generate(["The king", "She was not"], max_new_tokens=6, seed=4, temperature=0.9, **rule)
    for one in done:
        prompt, tokens = one.prompt_token_ids, one.token_ids
        rows = model.logits([*prompt, *tokens])[0, len(prompt) - 1 : -1]
        assert one.finish_reason == "length"
        assert resampled(rows, tokens, sampling, 4, prompt) == tokens
        assert resampled(rows, tokens, sampling, 5, prompt) != tokens


def test_a_large_vocabulary():
    for rule in ({}, {"top_k": 50}, {"top_p": 0.95}, {"min_p": 0.01}):
        sampling, logits = Sampling(0.8, **rule), random_rows(0, 4, 20_000)
        tokens = generated(logits, sampling, 1, [])
        assert resampled(logits, tokens, sampling, 1) == tokens


@settings(deadline=None, max_examples=200)
@given(
    st.integers(0, 2**31),
    st.integers(1, 30),
    st.sampled_from([0.0, 0.1, 0.7, 1.0, 3.0, 1e-3, 1e-300, 1e300]),
    st.none() | st.integers(1, 35),
    st.none() | st.floats(0, 1, exclude_min=True) | st.sampled_from([0.25, 0.5]),
    st.none() | st.floats(0, 1) | st.sampled_from([0.5, 1.0]),
    st.none() | st.sampled_from([0.5, 1.0, 1.3, 2.0]),
    st.sampled_from([None, 1.0, 2.0, 1e-20]),
)
def test_where_the_second_decides_it_is_right(seed, vocabulary, temperature, top_k, top_p, min_p, penalty, grid):
    """Ties, flat rows, masked tokens, and thresholds that are met exactly: undecided at most, never an alarm."""
    logits = random_rows(seed, 5, vocabulary)
    if grid:
        logits = (np.round(logits / 3) * grid).astype(np.float32)
    logits[0, 1:] = -np.inf
    logits[1] = 0.5
    sampling = Sampling(temperature, top_k, top_p, min_p, penalty)
    tokens = generated(logits, sampling, seed, [0])
    expected = resampled(logits, tokens, sampling, seed, [0])
    assert all(right in (None, token) for token, right in zip(tokens, expected, strict=True))
    assert expected[0] == tokens[0] == 0, "one candidate alone is always decided"


FAULTS = {
    "top-p keeps one token too few": (
        {"top_p": 0.8},
        "before < sampling.top_p",
        "before + probabilities < sampling.top_p",
    ),
    "top-p keeps one token too many": (
        {"top_p": 0.8},
        "before < sampling.top_p",
        "before - np.append(probabilities[0], probabilities[:-1]) < sampling.top_p",
    ),
    "min-p without the likeliest": ({"min_p": 0.05}, "sampling.min_p * probabilities.max()", "sampling.min_p"),
    "min-p the wrong way round": ({"min_p": 0.2}, "probabilities >= sampling.min_p", "probabilities <= sampling.min_p"),
    "temperature applied twice": (
        {"temperature": 0.8},
        "wide /= sampling.temperature",
        "wide /= sampling.temperature**2",
    ),
    "temperature not applied": ({"temperature": 0.8}, "wide /= sampling.temperature", "wide /= 1.0"),
    "top-k keeps one too few": ({"top_k": 5}, "largest(wide, sampling.top_k)", "largest(wide, sampling.top_k - 1)"),
    "top-k keeps one too many": ({"top_k": 5}, "largest(wide, sampling.top_k)", "largest(wide, sampling.top_k + 1)"),
    "penalty upside down": (
        {"repetition_penalty": 1.3},
        "np.where(values > 0, values / penalty, values * penalty)",
        "np.where(values > 0, values * penalty, values / penalty)",
    ),
    "penalty for the last token only": (
        {"repetition_penalty": 1.3},
        "np.asarray(history, np.int64)",
        "np.asarray(history[-1:], np.int64)",
    ),
    "penalty once per occurrence": (
        {"repetition_penalty": 1.3},
        "result[seen] = np.where(values > 0, values / penalty, values * penalty)",
        "[result.__setitem__(t, result[t] / penalty if result[t] > 0 else result[t] * penalty) for t in history]",
    ),
    "two numbers drawn per token": ({}, "drawn = generator.random() *", "drawn = generator.random(2)[0] *"),
    "the draw in float32": ({}, "drawn = generator.random() *", "drawn = generator.random(dtype=np.float32) *"),
    "greedy takes the higher of equals": (
        {"temperature": 0.0},
        "return int(np.argmax(logits))",
        "return len(logits) - 1 - int(np.argmax(logits[::-1]))",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_sampler_is_found(fault):
    rule, right, wrong = FAULTS[fault]
    sampling = Sampling(**{"temperature": 1.0} | rule)
    broken = with_one_change(right, wrong)
    found = []
    for seed in range(5):
        logits = np.round(random_rows(seed, 40, 30), 1)  # a few equal ones among them
        logits[3, [5, 6]] = 20.0
        assert sampler_agrees(generated(logits, sampling, seed, [1]), logits, sampling, seed, [1])[0] is True
        found.append(
            sampler_agrees(generated(logits, sampling, seed, [1], broken), logits, sampling, seed, [1])[0] is False
        )
    assert all(found), f"{fault}: 40 tokens are enough to see it, each time"


def test_what_rounding_leaves_open_is_undecided():
    flat = np.zeros((1, 6), np.float32)
    # Half of six equal candidates: whether three of them reach 0.5 is for rounding, and the fourth is at stake.
    at_stake = [seed for seed in range(20) if np.random.default_rng(seed).random() > 0.8]
    assert at_stake and all(resampled(flat, [0], Sampling(1.0, top_p=0.5), seed) == [None] for seed in at_stake)
    assert sampler_agrees([0], flat, Sampling(1.0, top_p=0.5), at_stake[0]) == (None, None)
    # Half of four is half: a quarter has no rounding.
    for seed in at_stake:
        assert resampled(flat[:, :4], [0], Sampling(1.0, top_p=0.5), seed) == [1]
    # 1e-20 and 2e-20 are equally likely in float64: which of them a rank prefers is open. By id there is no question.
    close = np.array([[1e-20, 2e-20]], np.float32)
    assert resampled(close, [0], Sampling(1.0, top_p=0.9), 0) == [None]
    assert None not in resampled(close, [0], Sampling(1.0), 0)
    # exp(-log 2) is one half up to rounding; equals of the likeliest are never at a threshold
    half = np.array([[0.0, -np.log(2.0)]])
    last = next(seed for seed in range(20) if np.random.default_rng(seed).random() > 0.7)
    assert resampled(half, [0], Sampling(1.0, min_p=0.5), last) == [None]
    assert resampled(np.zeros((1, 2)), [1], Sampling(1.0, min_p=1.0), last) == [1]


def test_a_draw_at_the_edge_of_two_candidates_is_undecided():
    drawn = np.random.default_rng(0).random()
    for shift, expected in ((0, None), (1e-14, None), (-1e-14, None), (1e-10, 0), (-1e-10, 1)):
        first = drawn + shift  # the probability of token 0
        logits = np.array([[0.0, np.log((1 - first) / first)]])
        assert resampled(logits, [0], Sampling(1.0), 0) == [expected]


def test_logits_that_allow_no_choice_are_undecided():
    for row in ([np.nan, 1.0], [np.inf, 1.0], [-np.inf, -np.inf]):
        assert resampled(np.array([row]), [0], Sampling(1.0), 0) == [None]
    assert resampled(np.array([[np.nan, 1.0]]), [1], Sampling(), 0) == [None]
    # the number of such a row is drawn all the same
    logits = random_rows(0, 3)
    tokens = generated(logits, Sampling(1.0), 5, [])
    logits[0, 0] = np.nan
    assert resampled(logits, tokens, Sampling(1.0), 5) == [None, *tokens[1:]]


@settings(deadline=None, max_examples=100)
@given(
    st.integers(0, 2**31),
    st.sampled_from([1e-6, 1e-3, 0.03, 1.0, 1e6]),
    st.sampled_from([rule for rule in RULES if rule != {"min_p": 1.0}]),
)
def test_beside_noise_what_is_decided_is_right(seed, noise, rule):
    """From other logits, each as far off as the noise allows, the same token is drawn or the choice is open."""
    sampling = Sampling(**{"temperature": 1.0} | rule)
    logits, prompt = random_rows(seed, 8, 12), [3, 3, 7]
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], logits.shape)
    tokens = generated(logits + noise * signs, sampling, seed, prompt)
    expected = resampled(logits, tokens, sampling, seed, prompt, noise)
    assert all(right in (None, token) for token, right in zip(tokens, expected, strict=True))
    if noise == 1e-6:
        assert expected.count(None) <= 1
    if noise == 1e6:
        assert set(expected) <= {None, *([tokens[0]] if len(set(tokens)) == 1 else [])}


def test_the_history_is_the_participants_own():
    """After a token that differs the next logits belong to that token, so the next choices are judged by them."""
    sampling = Sampling(repetition_penalty=10.0)
    logits = np.float32([[5, 4, 1], [5, 4, 1]])
    assert resampled(logits, [1, 0], sampling, 0) == [0, 0]
    assert resampled(logits, [0, 1], sampling, 0) == [0, 1]
    assert resampled(logits, [0, 1], sampling, 0, prompt_ids=[0]) == [1, 1]


def test_continuations_by_hand():
    truth = [[5, 6, 7, 8], [1, 2, 3]]
    assert text_agreement(truth, truth) == TextAgreement(None, 7, 7)
    assert text_agreement([[5, 6, 0, 8], [1, 2, 3]], truth) == TextAgreement(2, 5, 7)
    assert text_agreement([[5, 6, 0, 8], [0, 2, 3]], truth) == TextAgreement(0, 2, 7)
    assert text_agreement([[5, 6, 7], [1, 2, 3]], truth) == TextAgreement(3, 6, 7), "ended too early"
    assert text_agreement([[5, 6, 7, 8], [1, 2, 3, 4]], truth) == TextAgreement(3, 7, 7), "and too late"
    assert text_agreement([[], []], [[], []]) == TextAgreement(None, 0, 0)
    with pytest.raises(ValueError):
        text_agreement([[1]], truth)


def test_distinct_continuations():
    assert distinct([[1, 2], (1, 2), np.array([1, 2])]) == 1
    assert distinct([[1, 2], [1], [2, 1], [1, 2]]) == 3
    assert distinct([]) == 0


@given(st.lists(st.integers(0, 2), max_size=6), st.lists(st.integers(0, 2), max_size=6))
def test_agreement_is_the_common_prefix(first, second):
    found = text_agreement([first], [second])
    assert first[: found.agreement] == second[: found.agreement]
    if found.first_difference is None:
        assert first == second
    else:
        assert found.first_difference == found.agreement
        assert first[: found.agreement + 1] != second[: found.agreement + 1]
