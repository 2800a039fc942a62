"""Greedy decoding: the same on all backends, cached as uncached, in a batch as alone; lengths, ends, and the hash."""

import hashlib
import json

import numpy as np
import pytest
from reference_models import BACKENDS, OPS, deviations, random_ids
from scipy.special import log_softmax
from tolerances import LOGITS_FLOAT32

import transformer_lab as lab
from transformer_lab.cache.none import NoCache
from transformer_lab.generation.engine import Engine

PROMPT = random_ids(9, 280).tolist()


def single_pass(model, prompt, token_ids):
    """The logits from which each token was chosen, from one uncached pass: [T, V]."""
    rows = model.logits([*prompt, *token_ids][: model.config.context_length])[0]
    return rows[len(prompt) - 1 : len(prompt) - 1 + len(token_ids)]


def assert_greedy(model, prompt, generation):
    rows = single_pass(model, prompt, generation.token_ids)
    assert generation.token_ids == rows.argmax(-1).tolist()
    expected = log_softmax(rows.astype(np.float64), -1).max(-1)
    np.testing.assert_allclose(generation.logprobs, expected, rtol=0, atol=LOGITS_FLOAT32 * rows.std())


@pytest.fixture(scope="module")
def expected(models):
    """64 tokens of PROMPT, by the slow and obvious way."""
    model, ids = models("numpy", "manual"), list(PROMPT)
    for _ in range(64):
        ids.append(int(model.logits(ids)[0, -1].argmax()))
    return ids[len(PROMPT) :]


@pytest.mark.parametrize("ops", OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_64_tokens_are_the_same_everywhere(models, expected, backend, ops):
    model = models(backend, ops)
    generation = model.generate(PROMPT)
    assert generation.token_ids == expected and len(set(expected)) > 10
    assert generation.finish_reason == "length" and generation.prompt_token_ids == PROMPT
    assert generation.text == model.tokenizer.decode(expected)
    assert_greedy(model, PROMPT, generation)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_a_cache(folder, expected, backend):
    model = lab.load_model(folder, backend, cache=NoCache())
    generation = model.generate(PROMPT, 20)
    assert generation.token_ids == expected[:20]
    assert_greedy(model, PROMPT, generation)


@pytest.mark.parametrize("backend", BACKENDS)
def test_cached_logits_are_those_of_one_pass(models, backend):
    """Every row of logits that decoding sees, and not only its largest element."""
    model = models(backend)
    ids = random_ids(128, 280, 3).tolist()
    sequences = model.engine.begin([ids[:60], ids[:100]], 28)
    rows = [np.array(sequences.logits)]
    for step in range(27):
        sequences.feed([ids[60 + step], ids[100 + step]])
        rows.append(np.array(sequences.logits))
    cached, once = np.stack(rows, axis=1), model.logits(ids)[0]
    assert deviations(cached[0], once[59:87]) < LOGITS_FLOAT32
    assert deviations(cached[1], once[99:127]) < LOGITS_FLOAT32


def test_a_stale_cache_would_be_seen(models):
    """The check above fails if one position of the cache is not written."""
    model = models("numpy", "manual")
    ids = random_ids(30, 280, 3).tolist()
    sequences = model.engine.begin([ids[:20]], 10)
    for layer in sequences.cache:
        layer.keys.values[:, :, 7] = 0
    sequences.feed([ids[20]])
    assert deviations(np.array(sequences.logits), model.logits(ids[:21])[:, -1]) > 0.01


@pytest.mark.parametrize("backend", BACKENDS)
def test_lengths_around_the_buckets_and_a_full_context(models, backend):
    model = models(backend)
    for length, new in ((1, 3), (62, 1), (63, 1), (63, 2), (64, 64), (65, 63), (127, 1)):
        prompt = random_ids(length, 280, length).tolist()
        generation = model.generate(prompt, new)
        assert len(generation.token_ids) == len(generation.logprobs) == new
        assert_greedy(model, prompt, generation)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_of_a_batch_is_the_same_alone(models, backend):
    model = models(backend)
    prompts = [random_ids(length, 280, length).tolist() for length in (3, 63, 64, 30)]
    together = model.generate(prompts, 40)
    for prompt, generation in zip(prompts, together, strict=True):
        alone = model.generate(prompt, 40)
        assert generation.token_ids == alone.token_ids and generation.text == alone.text
        np.testing.assert_allclose(generation.logprobs, alone.logprobs, rtol=0, atol=1e-4)
        assert_greedy(model, prompt, generation)
    sampled = {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2}
    together = model.generate(prompts[:2], 12, seed=[5, 6], **sampled)
    for prompt, seed, generation in zip(prompts, (5, 6), together, strict=False):
        assert generation.token_ids == model.generate(prompt, 12, seed=seed, **sampled).token_ids


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("hash_logits", [False, True])  # token by token, and on JAX many at a time
def test_an_end_token_in_the_middle_of_a_batch(folder, models, expected, backend, hash_logits):
    model = models(backend)
    for place in (0, 1, 9, 21):  # on JAX the 10th of a call of 16, and in the second call
        end = expected[place]
        first = expected.index(end)
        model.end_of_text_ids = (end, 279)
        try:
            other = random_ids(4, 280, 11).tolist()
            ended, going_on = model.generate([PROMPT, other], 30, hash_logits=hash_logits)
        finally:
            model.end_of_text_ids = ()
        assert ended.finish_reason == "end_of_text"
        assert ended.token_ids == expected[:first] and len(ended.logprobs) == first
        assert ended.text == model.tokenizer.decode(expected[:first])
        free = model.generate(other, 30).token_ids
        stops = [index for index, token in enumerate(free) if token in (end, 279)]
        assert going_on.token_ids == free[: stops[0] if stops else 30]


def engine_rows(model, prompt, token_ids):
    """The logit rows that lead to token_ids, in a batch of one."""
    sequences = Engine(model.backend, model.config, model.params, model.engine.policy).begin([prompt], len(token_ids))
    rows = [np.array(sequences.logits[0])]
    for token in token_ids[:-1]:
        sequences.feed([token])
        rows.append(np.array(sequences.logits[0]))
    return rows


def sha256(rows):
    return hashlib.sha256(b"".join(np.asarray(row, "<f4").tobytes() for row in rows)).hexdigest()


@pytest.mark.parametrize("backend", BACKENDS)
def test_hash_of_the_logits(models, expected, backend):
    """Over rows computed again in the same way: another batch or length may differ in the last bit of float32."""
    model = models(backend)
    generation = model.generate(PROMPT, 20, hash_logits=True)
    assert generation.token_ids == expected[:20]
    rows = engine_rows(model, PROMPT, generation.token_ids)
    assert deviations(np.stack(rows), single_pass(model, PROMPT, generation.token_ids)) < LOGITS_FLOAT32
    assert generation.logits_sha256 == sha256(rows)
    assert generation.logits_sha256 != sha256(rows[:-1])
    assert model.generate(PROMPT, 20).logits_sha256 is None
    model.end_of_text_ids = (expected[19],)
    ended = model.generate(PROMPT, 40, hash_logits=True)
    model.end_of_text_ids = ()
    assert ended.token_ids == expected[: expected.index(expected[19])]
    assert ended.logits_sha256 == sha256(rows[: len(ended.token_ids) + 1])  # with the row that chose the end token
    # The raw rows, whatever the sampling does to them.
    sampled = model.generate(PROMPT, 8, temperature=1.5, top_k=3, repetition_penalty=2.0, hash_logits=True)
    assert sampled.logits_sha256 == sha256(engine_rows(model, PROMPT, sampled.token_ids))


def test_hash_in_float64_is_over_float32(folder):
    model = lab.load_model(folder, "numpy", precision="float64")
    generation = model.generate(PROMPT, 5, hash_logits=True)
    rows = engine_rows(model, PROMPT, generation.token_ids)
    assert rows[0].dtype == np.float64 and generation.logits_sha256 == sha256(rows)


def test_several_end_tokens_of_a_config(tmp_path, folder, expected):
    fields = json.loads((folder / "config.json").read_text())
    ends = [278, expected[30], expected[12]]
    (tmp_path / "config.json").write_text(json.dumps(fields | {"eos_token_id": ends}))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    model = lab.load_model(tmp_path)
    assert model.end_of_text_ids == tuple(ends)
    first = min(expected.index(token) for token in ends if token in expected)
    generation = model.generate(PROMPT, 64)
    assert generation.finish_reason == "end_of_text" and generation.token_ids == expected[:first]


def test_jax_decodes_with_one_trace_for_each_size_of_the_cache(folder):
    model = lab.load_model(folder, "jax")
    for length, new in ((5, 40), (9, 20), (30, 30)):
        model.generate(list(range(length)), new)
    assert model.engine.greedy.traces() == 1 and model.engine.extend.traces() == 1
    model.generate(list(range(70)), 20)
    assert model.engine.greedy.traces() == 2 and model.engine.extend.traces() == 2


def test_timing(models):
    timing = models("numpy").generate(PROMPT, 20).timing
    assert timing.compile_s == 0 and timing.first_token_s > 0
    assert timing.prefill_tokens_per_s > 0 and timing.decode_tokens_per_s > 0
    assert models("numpy").generate(PROMPT, 1).timing.decode_tokens_per_s is None
