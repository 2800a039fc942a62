"""SnapKV against the paper's algorithm, written out one head and one query at a time; and with mistakes in it."""

import inspect
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from cache_models import BACKENDS, CONFIGS, ROTARY, fed, ids, model, uncached
from tolerances import OPERATION
from watchful_backends import PoisoningNumpy, ReadOnlyNumpy, StrictBackend

import transformer_lab as lab
from transformer_lab.block.mixture_of_depths import MixtureOfDepths
from transformer_lab.cache import snapkv
from transformer_lab.cache.contiguous import Contiguous
from transformer_lab.cache.layer import Fresh
from transformer_lab.cache.snapkv import SnapKV
from transformer_lab.cache.window import RingLayer
from transformer_lab.config import component
from transformer_lab.errors import ConfigurationError
from transformer_lab.model.tokens import tokens_of

B, H, K, N = 3, 4, 2, 8
GROUP, SCALE = H // K, 0.7
RULE = {"observed": 4, "budget": 9, "pooling": 3}


# --- the algorithm, slowly --------------------------------------------------------------------------------------------


def softmax(x):
    powers = np.exp(x - max(x))
    return powers / sum(powers)


def chosen(queries, keys, first, rule, cap=None):
    """Which of one head's keys stay: queries [G][T] are the pass's, whose first is the token `first` of keys [n]."""
    n, observing = len(keys), min(rule["observed"], len(queries[0]))
    if n <= rule["budget"]:
        return list(range(n))
    past, side = n - observing, rule["pooling"] // 2
    mean = np.zeros(past)
    for head in queries:
        attended = np.zeros(n)
        for t in range(len(head) - observing, len(head)):
            scores = np.array([SCALE * np.dot(head[t], key) for key in keys[: first + t + 1]])
            scores = scores if cap is None else cap * np.tanh(scores / cap)
            attended[: first + t + 1] += softmax(scores)
        for s in range(past):
            mean[s] += max(attended[r] for r in range(max(0, s - side), min(past, s + side + 1))) / len(queries)
    best = sorted(range(past), key=lambda s: (-mean[s], s))[: rule["budget"] - observing]
    return sorted(best) + list(range(past, n))


class Slowly:
    """One row. heads: of each key/value head the keys and values that are there."""

    def __init__(self, rule):
        self.rule = rule
        self.heads = [([], []) for _ in range(K)]

    def attended(self, query, key, value, several):
        """query [H, T, N], key and value [K, T, N], without padding -> what attention gives, [H, T, N]."""
        out = np.zeros(query.shape)
        for k, (keys, values) in enumerate(self.heads):
            first = len(keys)
            keys += list(key[k])
            values += list(value[k])
            queries = query[k * GROUP : (k + 1) * GROUP]
            for g in range(GROUP):
                for t in range(query.shape[1]):
                    weights = softmax(np.array([SCALE * np.dot(queries[g, t], x) for x in keys[: first + t + 1]]))
                    out[k * GROUP + g, t] = sum(w * x for w, x in zip(weights, values, strict=False))
            if several and query.shape[1]:
                stay = chosen(queries, keys, first, self.rule)
                self.heads[k] = [keys[s] for s in stay], [values[s] for s in stay]
        return out


# --- a layer beside it ------------------------------------------------------------------------------------------------

# Of each pass how many tokens the rows bring.
ONE_PROMPT = [[20, 6, 13], *[[1, 1, 1]] * 5]
IN_PASSES = [[7, 3, 1], [7, 2, 0], [3, 0, 0], [0, 0, 4], [0, 1, 0], *[[1, 1, 1]] * 2, [4, 2, 12], *[[1, 1, 1]] * 3]
PASSES = {"one prompt": ONE_PROMPT, "in passes": IN_PASSES}


def passes(lengths, seed=0):
    """(query [B, H, T, N], key and value [B, K, T, N], how many are real) of each pass."""
    draw = np.random.default_rng(seed)
    for counts in lengths:
        width = max(counts)
        query = 1.5 * draw.standard_normal((B, H, width, N))
        key, value = (draw.standard_normal((B, K, width, N)) for _ in range(2))
        yield query, key, value, counts


def beside(policy, backend, lengths, rule=RULE, seed=0):
    """The largest difference from the slow way: of what attention gives, and of all that is kept."""
    ops = component("backend", backend, precision="float64", ops="manual") if isinstance(backend, str) else backend
    attention = SimpleNamespace(num_kv_heads=K, head_size=N, window=None, position=None)
    rows, at, worst = [Slowly(rule) for _ in range(B)], np.zeros(B, int), 0.0
    after = sum(1 for counts in lengths if max(counts) == 1)
    with ops.scope():
        layer = policy.layer(ops, attention, B, 64, rule["budget"] + after)
        for query, key, value, counts in passes(lengths, seed):
            start = np.where(np.array(counts) > 0, at, 0)  # a row that waits is padding from position 0 on
            width = query.shape[2]
            tokens = tokens_of(ops, *map(ops.asarray, (np.zeros((B, width), int), start, np.array(counts))))
            q, k, v = map(ops.asarray, (query, key, value))
            layer, seen = layer.update(ops, Fresh(q, k, v, SCALE), tokens)
            found = ops.attention(q, seen.keys, seen.values, tokens.start, SCALE, places=seen.places)
            found = np.array(ops.to_numpy(found), np.float64)
            at += counts
            held = [np.array(ops.to_numpy(array), np.float64) for array in (layer.keys, layer.values)]
            dropped = ops.to_numpy(layer.dropped)
            for b, (row, count) in enumerate(zip(rows, counts, strict=True)):
                expected = row.attended(query[b, :, :count], key[b, :, :count], value[b, :, :count], width > 1)
                worst = max(worst, np.abs(found[b, :, :count] - expected).max(initial=0.0))
                for k, head in enumerate(row.heads):
                    if at[b] - dropped[b] != len(head[0]):
                        return math.inf
                    for array, numbers in zip(held, head, strict=True):
                        worst = max(worst, np.abs(array[b, k, : len(numbers)] - numbers).max())
    return worst


@pytest.mark.parametrize("lengths", PASSES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_paper(backend, lengths):
    for seed in range(3):
        assert beside(SnapKV(**RULE), backend, PASSES[lengths], seed=seed) < 10 * OPERATION["float64"]


@pytest.mark.parametrize("rule", [(1, 2, 1), (1, 9, 5), (8, 9, 3), (4, 9, 13), (30, 31, 3), (3, 19, 7)])
def test_other_rules(rule):
    rule = dict(zip(("observed", "budget", "pooling"), rule, strict=True))
    for lengths in PASSES.values():
        assert beside(SnapKV(**rule), "numpy", lengths, rule=rule) < 10 * OPERATION["float64"]


def test_equal_scores_leave_the_earlier():
    """Queries of nothing attend to all keys alike."""
    keys = list(np.random.default_rng(0).standard_normal((20, N)))
    assert chosen(np.zeros((GROUP, 20, N)), keys, 0, RULE) == [0, 1, 2, 3, 4, 16, 17, 18, 19]
    for backend in BACKENDS:
        ops = component("backend", backend, precision="float64")
        attention = SimpleNamespace(num_kv_heads=K, head_size=N, window=None, position=None)
        with ops.scope():
            layer = SnapKV(**RULE).layer(ops, attention, 1, 20)
            key = ops.asarray(np.broadcast_to(np.array(keys), (1, K, 20, N)).copy())
            tokens = tokens_of(ops, ops.asarray(np.zeros((1, 20), int)), ops.asarray(np.zeros(1, int)))
            layer, _ = layer.update(ops, Fresh(ops.zeros((1, H, 20, N)), key, key), tokens)
            assert (ops.to_numpy(layer.keys)[0, 1, :9] == np.array(keys)[[0, 1, 2, 3, 4, 16, 17, 18, 19]]).all()


def test_a_cap_counts():
    rule, lengths = RULE | {"pooling": 1}, ONE_PROMPT[:1]
    query, key, _, _ = next(passes(lengths))
    sets = {cap: chosen(9.0 * query[0, :GROUP], list(key[0, 0]), 0, rule, cap) for cap in (None, 0.5)}
    assert sets[None] != sets[0.5]
    ops = component("backend", "numpy", precision="float64")
    attention = SimpleNamespace(num_kv_heads=K, head_size=N, window=None, position=None)
    layer = SnapKV(**rule).layer(ops, attention, 1, 20)
    tokens = tokens_of(ops, np.zeros((1, 20), int), np.zeros(1, int))
    layer, _ = layer.update(ops, Fresh(9.0 * query[:1], key[:1], key[:1], SCALE, 0.5), tokens)
    assert (layer.keys[0, 0, :9] == key[0, 0][sets[0.5]]).all()


# --- models -----------------------------------------------------------------------------------------------------------

SMALL = SnapKV(observed=4, budget=12, pooling=3)


WHOLE = [("numpy", name) for name in CONFIGS if name != "alibi"]
WHOLE += [(backend, "two windows and none") for backend in BACKENDS[1:]]  # its layers turn keys and share them


@pytest.mark.parametrize(("backend", "name"), WHOLE)
def test_a_prompt_within_the_budget_is_whole(backend, name):
    built = model(CONFIGS[name], SMALL, backend)
    prompts, after = [ids(1, 12), ids(2, 3), ids(3, 1)], [ids(4, 5), ids(5, 5), ids(6, 5)]
    plain = model(CONFIGS[name], Contiguous())
    assert (fed(built, prompts, after) == fed(plain, prompts, after)).all()
    longer = [ids(1, 30), *prompts[1:]]
    if name != "sinks and a cap":  # where all layers have a window
        assert (fed(built, longer, after) != uncached(plain, longer, after))[0, 1:].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_of_a_batch_is_the_row_alone(backend):
    built = model(ROTARY, SMALL, backend)
    prompts, after = [ids(1, 30), ids(2, 3), ids(7, 1)], [ids(seed, 4) for seed in (4, 5, 6)]
    together = fed(built, prompts, after)
    for row, (prompt, more) in enumerate(zip(prompts, after, strict=True)):
        assert (together[row] == fed(built, [prompt], [more])[0]).all()


def test_the_same_bits_on_all_backends():
    texts = []
    for backend in BACKENDS:
        built = model(ROTARY, SMALL, backend)
        texts.append(built.generate([ids(1, 40), ids(2, 20)], 12, hash_logits=True))
    for row in range(2):
        assert len({one[row].logits_sha256 for one in texts}) == 1
        assert len({tuple(one[row].token_ids) for one in texts}) == 1
    other = model(ROTARY, Contiguous()).generate(ids(1, 40), 12, hash_logits=True)
    assert other.logits_sha256 != texts[0][0].logits_sha256


def test_jax_compiles_once_for_each_size():
    built, plain = (model(ROTARY, SMALL, backend, "float64") for backend in ("jax", "numpy"))
    for length in (20, 25, 30):
        prompts = [ids(length, length), ids(1, 14)]
        found, expected = built.generate(prompts, 20), plain.generate(prompts, 20)
        assert [one.token_ids for one in found] == [one.token_ids for one in expected]
    assert built.engine.greedy.traces() == 1 and built.engine.extend.traces() == 1


def test_what_is_held():
    """The budget and the tokens after the prompt, of layers without a window."""
    sequences = model(CONFIGS["two windows and none"], SMALL).engine.begin([ids(1, 40), ids(2, 3)], 8)
    assert [layer[0].shape[2] for layer in sequences.cache] == [5 + 1, 12 + 8, 9 + 1]
    assert isinstance(sequences.cache[0], RingLayer)
    assert sequences.cache[1].dropped.tolist() == [40 - 12, 0]


def test_what_came_one_by_one_can_be_taken_back():
    for backend in BACKENDS:
        built = model(ROTARY, SMALL, backend)
        prompt, more = ids(1, 30), ids(3, 6)
        sequences = built.engine.begin([prompt], 8)
        for token in ids(2, 5):
            sequences.feed([token])
        del sequences.rows[0][30:]
        found = []
        for token in more:
            sequences.feed([token])
            found.append(np.array(sequences.logits[0]))
        assert (np.stack(found) == fed(built, [prompt], [more])[0, 1:]).all()


@pytest.mark.parametrize("kind", [ReadOnlyNumpy, PoisoningNumpy, StrictBackend])
def test_watchful_backends_see_nothing_wrong(kind):
    for lengths in PASSES.values():
        assert beside(SnapKV(**RULE), kind(precision="float64"), lengths) < 10 * OPERATION["float64"]


def depths(policy, precision="exact"):
    """A block that some tokens pass by between two that all go through."""
    first = ROTARY.blocks[0]
    chooser = MixtureOfDepths(first.attention, first.ffn, first.norm, capacity=0.5)
    return model(replace(ROTARY, blocks=(first, chooser, first)), policy, precision=precision)


def test_a_block_that_chooses_tokens():
    """It keeps a budget of those that it chose: within it all, beyond it a row of a batch is still the row alone."""
    prompts, after = [ids(1, 40), ids(2, 9), ids(3, 1)], [ids(4, 6), ids(5, 6), ids(6, 6)]
    whole = fed(depths(Contiguous()), prompts, after)
    assert (fed(depths(SnapKV(observed=4, budget=40, pooling=3)), prompts, after) == whole).all()
    built = depths(SMALL)
    sequences = built.engine.begin(prompts, 6)
    chosen_ones = np.sum(built.backend.to_numpy(sequences.cache[1].chosen) > 0, axis=1)
    assert (sequences.cache[1].layer.dropped == np.maximum(chosen_ones - 12, 0)).all() and chosen_ones[0] > 12
    together = fed(built, prompts, after)
    assert (together != whole).any()
    for row, (prompt, more) in enumerate(zip(prompts, after, strict=True)):
        assert (together[row] == fed(built, [prompt], [more])[0]).all()


def test_it_is_measured():
    """By job=verify_cache, as the other computation that it is."""
    text = ids(1, 50)
    reports = [
        lab.verify_cache(model(ROTARY, policy, precision="float32"), texts=[text], prefill=0.8)
        for policy in (SnapKV(observed=4, budget=40, pooling=3), SMALL)
    ]
    whole, small = (report.to_dict() for report in reports)
    assert reports[1].status == "measured" and whole["numbers"]["kl"] < 1e-6 < small["numbers"]["kl"]
    assert small["bytes"]["cache"] < 0.5 * small["bytes"]["contiguous"]


def test_what_is_refused():
    for fields in ({"observed": 0}, {"budget": 2.5}, {"pooling": True}, {"pooling": 4}):
        with pytest.raises(ConfigurationError, match=f"cache.{next(iter(fields))}"):
            SnapKV(**fields)
    with pytest.raises(ConfigurationError, match="no key would be left to choose"):
        SnapKV(observed=32, budget=32)
    with pytest.raises(ConfigurationError, match="Alibi, which needs to know where each key stood"):
        model(CONFIGS["alibi"], SMALL)
    assert SMALL.contract == "lossy"


# --- mistakes ---------------------------------------------------------------------------------------------------------

SOFTMAX = "ops.softmax(xp.where(visible[:, None, ...], scores, -xp.inf))"
KEPT = "((self.keys, seen.keys), (self.values, seen.values))"
MISTAKES = {
    "the observed window is evicted": ("xp.where(past, score, xp.inf)", "xp.where(past, score, 0.0)"),
    "softmax over queries": (
        SOFTMAX,
        "xp.matrix_transpose(ops.softmax(xp.matrix_transpose(xp.where(visible[:, None, ...], scores, -1e9))))",
    ),
    "no causal mask": (
        "(before[:, None] + xp.clip(numbers, 0, None))",
        "(before[:, None] + brought[:, None] + 0 * numbers - 1)",
    ),
    "no pooling": ("for first in range(width):", "for first in ():"),
    "pooled over the window": ("xp.where(past[:, :, None, :], attended, 0.0)", "attended"),
    "heads are averaged before they are pooled": (
        "xp.sum(_pooled(ops, xp.where(past[:, :, None, :], attended, 0.0), pooling), axis=2)",
        "_pooled(ops, xp.sum(xp.where(past[:, :, None, :], attended, 0.0), axis=2), pooling)",
    ),
    "padding is attended to": (
        "slots <= (before[:, None] + xp.clip(numbers, 0, None))[..., None]",
        "slots < (before[:, None] + fresh.key.shape[2] + 0 * numbers)[..., None]",
    ),
    "padding observes": (
        "numbers = brought[:, None] - observed",
        "numbers = 0 * brought[:, None] + fresh.query.shape[2] - observed",
    ),
    "padding is kept": ("recent = xp.clip(brought, None, observed)", "recent = 0 * brought"),
    "one set for all heads": (
        "return xp.sort(index, axis=-1)",
        "return xp.broadcast_to(xp.sort(index, axis=-1)[:, :1, :], index.shape)",
    ),
    "values by other indices": (KEPT, KEPT.replace("seen.values)", "xp.roll(seen.values, 1, axis=2))")),
    "the smallest": ("ops.top_k(score,", "ops.top_k(xp.where(past, -0.01 * score, score),"),
    "out of order": ("return xp.sort(index, axis=-1)", "return index"),
    "decoded ones overwrite": (
        "slot = xp.where(brought > 0, before, slots - 1)",
        "slot = xp.where(brought > 0, before, slots - 1) % 9",
    ),
    "the scale is forgotten": (" * fresh.scale", ""),
    "a row that waits is written over": ("first = xp.where(brought > 0, before, slots)", "first = before * 1"),
    "a row that waits is cut": ("count = xp.where(brought > 0, before + brought, 0)", "count = before + brought + 9"),
    "dropped but once": ("dropped=self.dropped + more", "dropped=more"),
}


def with_mistake(old, new):
    source = inspect.getsource(snapkv)
    assert source.count(old) == 1
    names = {"__name__": snapkv.__name__}
    exec(compile(source.replace(old, new), snapkv.__file__, "exec", dont_inherit=True), names)
    return names["SnapKV"](**RULE)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_noticed(mistake):
    policy = with_mistake(*MISTAKES[mistake])
    found = []
    for lengths in PASSES.values():
        try:
            found.append(beside(policy, "numpy", lengths))
        except (ValueError, RuntimeWarning):  # slots that are not there, a query that sees nothing
            found.append(math.inf)
    assert not max(found) < 1e-3


def test_without_a_mistake_none_is_noticed():
    assert beside(with_mistake("recent = xp.clip(", "recent = xp.clip("), "numpy", ONE_PROMPT) < 1e-12
