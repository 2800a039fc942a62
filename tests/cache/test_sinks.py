"""Attention sinks against the rule written out, one query at a time, without a cache; and with mistakes in it."""

import inspect
from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
from cache_models import BACKENDS, CONFIGS, CONTEXT, ROTARY, fed, ids, model, uncached, with_attention
from tolerances import LOGITS_FLOAT32, LOGITS_FLOAT64
from watchful_backends import PoisoningNumpy, ReadOnlyNumpy, StrictBackend

import transformer_lab as lab
from transformer_lab.attention.softmax import SoftmaxAttention
from transformer_lab.block.mixture_of_depths import MixtureOfDepths
from transformer_lab.cache import sinks, window
from transformer_lab.cache.contiguous import Contiguous
from transformer_lab.cache.layer import Fresh
from transformer_lab.cache.sinks import Sinks
from transformer_lab.errors import ConfigurationError
from transformer_lab.model.tokens import tokens_of
from transformer_lab.position.rotary import Rotary
from transformer_lab.position.rotary_scaling import Yarn

FIRST, RECENT = 3, 5
SEEN = FIRST + RECENT  # how many keys a query sees
SMALL = Sinks(FIRST, RECENT)


# --- the rule, slowly -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slow(SoftmaxAttention):
    """Each query with the keys that the rule leaves it, all turned by their positions inside the cache."""

    def __call__(self, ops, params, x, tokens, cache, tap):
        batch, length, _ = x.shape
        qkv = ops.linear(x, params["qkv"]["kernel"], params["qkv"].get("bias"))
        qkv = qkv.reshape(batch, length, -1, self.head_size)
        mixed = np.zeros((batch, length, self.num_heads, self.head_size))
        for b in range(batch):
            for t in range(length):
                kept = [p for p in range(t + 1) if p < FIRST or p > t - RECENT]
                for head in range(self.num_heads):
                    k = self.num_heads + head // (self.num_heads // self.num_kv_heads)
                    # The keys that are there stand at 0, 1, 2, ...
                    query = self.turned_to(qkv[b, t, head], len(kept) - 1)
                    keys = [self.turned_to(qkv[b, p, k], place) for place, p in enumerate(kept)]
                    scores = self.scale * np.array([query @ key for key in keys])
                    scores = scores if self.cap is None else self.cap * np.tanh(scores / self.cap)
                    if hasattr(self.position, "slopes"):
                        scores += self.position.slopes(self.num_heads)[head] * np.arange(len(kept))
                    powers = np.exp(scores - scores.max())
                    learned = np.exp(params["sinks"][head] - scores.max()) if self.sinks else 0.0
                    values = qkv[b, kept, k + self.num_kv_heads]
                    mixed[b, t, head] = powers / (powers.sum() + learned) @ values
        return ops.linear(mixed.reshape(batch, length, -1), params["out"]["kernel"], params["out"].get("bias")), None

    def turned_to(self, x, place):
        """The pairs of x [N], as complex numbers, turned by the angles of this place."""
        if not isinstance(self.position, Rotary):
            return x
        size, x = self.position.size, x.copy()
        pairs = (slice(0, size // 2), slice(size // 2, size))
        if self.position.pairs == "neighbours":
            pairs = (slice(0, size, 2), slice(1, size, 2))
        table = {name: rows[place] for name, rows in self.position.table(CONTEXT).items()}
        turned = (x[pairs[0]] + 1j * x[pairs[1]]) * (table["cos"] + 1j * table["sin"])
        x[pairs[0]], x[pairs[1]] = turned.real, turned.imag
        return x


def slowly(config):
    """The model of this configuration that keeps the rule, without a cache."""
    blocks = [
        replace(block, attention=Slow(**{field.name: getattr(block.attention, field.name) for field in fields(Slow)}))
        for block in config.blocks
    ]
    return model(replace(config, blocks=tuple(blocks)), Contiguous(), precision="float64", ops="manual")


SERVED = {
    "rotary, shared keys": ROTARY,
    "rotary, in part, neighbours, scaled": with_attention(
        ROTARY,
        {"position": Rotary(100.0, 2, "neighbours")},
        {"position": Rotary(50.0, scaling=Yarn(4.0, 16, length=1.2))},
    ),
    "alibi": CONFIGS["alibi"],
    "none": with_attention(ROTARY, {"position": None}),
    "a learned sink and a cap": with_attention(ROTARY, {"sinks": True, "cap": 3.0}),
}


def off(found, expected):
    return float(np.abs(found - expected).max() / expected.std())


# Lengths of prompts, and of what follows token by token.
PROMPTS, AFTER = (2 * SEEN + 5, SEEN - 1, 1), 2 * SEEN + 1


def texts(lengths=PROMPTS, after=AFTER):
    prompts = [ids(seed, length) for seed, length in enumerate(lengths)]
    return prompts, [ids(10 + seed, after) for seed in range(len(lengths))]


_EXPECTED = {}


def expected(name):
    if name not in _EXPECTED:
        _EXPECTED[name] = uncached(slowly(SERVED[name]), *texts())
    return _EXPECTED[name]


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_rule(backend, name):
    built = model(SERVED[name], SMALL, backend, "float64")
    assert off(fed(built, *texts()), expected(name)) < LOGITS_FLOAT64
    plain = model(SERVED[name], Contiguous(), backend, "float64")
    assert off(fed(plain, *texts()), expected(name)) > 0.1


@pytest.mark.parametrize("name", SERVED)
def test_the_rule_in_exact_mode(name):
    """Its float32 is near, and the same bits on all backends and whatever the pieces."""
    found = [fed(model(SERVED[name], SMALL, backend), *texts()) for backend in BACKENDS]
    assert off(found[0], expected(name)) < LOGITS_FLOAT32
    assert (found[0] == found[1]).all() and (found[0] == found[2]).all()


@pytest.mark.parametrize("length", [SEEN - 2, SEEN - 1, SEEN, SEEN + 1, SEEN + 2])
def test_at_the_edge(length):
    """What is seen whole has the bits of a cache that keeps all; the next token has not."""
    built, plain = model(ROTARY, SMALL), model(ROTARY, Contiguous())
    judge = slowly(ROTARY)
    for prompt in (1, length):
        text = ids(length, length)
        once = [text[:prompt]], [text[prompt:]]
        found = fed(built, *once)
        assert (found == fed(plain, *once)).all() == (length <= SEEN)
        assert off(found, uncached(judge, *once)) < LOGITS_FLOAT32


def in_pieces(built, text, cuts):
    """The logits after each piece, by position."""
    sequences, found = built.engine.begin([text[: cuts[0]]], CONTEXT - cuts[0]), {}
    found[cuts[0]] = np.array(sequences.logits[0])
    for first, end in zip(cuts, [*cuts[1:], len(text)], strict=True):
        sequences.rows[0] += text[first:end]
        sequences._run([text[first:end]], [first])
        found[end] = np.array(sequences.logits[0])
    return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_pieces_and_batches_change_no_bit(backend):
    built, text = model(ROTARY, SMALL, backend), ids(5, 29)
    whole = fed(built, [text[:1]], [text[1:]])[0]
    for cuts in ([1, 2, 4, 20], [2, 7, 8, 9, 28], [13, 15, 28], [28]):
        for end, logits in in_pieces(built, text, cuts).items():
            assert (logits == whole[end - 1]).all()
    prompts, after = texts()
    together = fed(built, prompts, after)
    for row, (prompt, more) in enumerate(zip(prompts, after, strict=True)):
        assert (together[row] == fed(built, [prompt], [more])[0]).all()


@dataclass(frozen=True)
class InChunks(Sinks):
    """Prompts come in passes of 4 tokens; rows that have come to their end wait."""

    chunk = 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_wait(backend):
    """The longest prompt ends with a pass of one token, in which the others are padding from position 0 on."""
    lengths = (21, 2, 7, 13)
    built, chunked = (model(ROTARY, policy, backend) for policy in (SMALL, InChunks(FIRST, RECENT)))
    assert (fed(chunked, *texts(lengths)) == fed(built, *texts(lengths))).all()


def test_many_queries_at_once(monkeypatch):
    """Queries go in blocks, each with its own places."""
    from transformer_lab.backends.frameworks import numpy
    from transformer_lab.backends.readings.exact import operations

    built = [model(ROTARY, SMALL, precision=precision) for precision in ("exact", "float64")]
    found = [fed(one, *texts()) for one in built]
    for module in (numpy, operations):
        monkeypatch.setattr(module, "QUERY_BLOCK", 3)
    assert (fed(built[0], *texts()) == found[0]).all()
    assert off(fed(built[1], *texts()), found[1]) < LOGITS_FLOAT64


def test_generations_are_the_same_on_all_backends():
    found = [model(ROTARY, SMALL, name).generate(texts()[0], 20, hash_logits=True) for name in BACKENDS]
    for row in range(len(PROMPTS)):
        assert len({one[row].logits_sha256 for one in found}) == 1
    plain = model(ROTARY, Contiguous()).generate(texts()[0], 20, hash_logits=True)
    assert plain[0].logits_sha256 != found[0][0].logits_sha256


def test_jax_compiles_once_for_each_size():
    built, plain = (model(ROTARY, SMALL, backend, "float64") for backend in ("jax", "numpy"))
    for length in (20, 25, 30):
        found, judge = (one.generate([ids(length, length), ids(1, 14)], 20) for one in (built, plain))
        assert [one.token_ids for one in found] == [one.token_ids for one in judge]
    assert built.engine.greedy.traces() == 1 and built.engine.extend.traces() == 1


def test_what_is_held():
    """The same, however long the text; of a layer with a window what that sees, and it sees all of it."""
    for length in (10, 60):
        sequences = model(ROTARY, SMALL).engine.begin([ids(1, length)], 2)
        for layer in sequences.cache:
            assert layer.keys.shape[2] == FIRST and layer.ring.keys.shape[2] == RECENT + 1
            assert [rows.shape for rows in layer.table] == [(SEEN, 2)] * 2
    windows = with_attention(ROTARY, {"window": 5})
    built, plain = model(windows, SMALL), model(windows, Contiguous())
    assert (fed(built, *texts()) == fed(plain, *texts())).all()
    assert [layer.keys.shape[2] for layer in built.engine.begin(*texts()[:1], 9).cache] == [5 + 1] * 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_taking_back_as_many_as_the_slack(backend):
    for length in (1, 2, SEEN, 20):
        built = model(ROTARY, Sinks(FIRST, RECENT, slack=3), backend)
        prompt, more = ids(1, length), ids(3, 9)
        sequences = built.engine.begin([prompt], 20)
        for token in ids(2, 3):
            sequences.feed([token])
        del sequences.rows[0][length:]
        for place, logits in enumerate(fed(model(ROTARY, SMALL, backend), [prompt], [more])[0, 1:]):
            sequences.feed([more[place]])
            assert (sequences.logits[0] == logits).all()


@pytest.mark.parametrize("kind", [ReadOnlyNumpy, PoisoningNumpy, StrictBackend])
def test_watchful_backends_see_nothing_wrong(kind):
    for name in ("rotary, shared keys", "alibi"):
        built = model(SERVED[name], SMALL, kind(precision="float64"))
        assert off(fed(built, *texts()), expected(name)) < LOGITS_FLOAT64


@pytest.mark.parametrize("position", ["rotary", "none"])
def test_a_block_that_chooses_tokens(position):
    """It counts those that it chose: as long as these are few all is there, then a row of a batch is the row alone."""
    first = (ROTARY if position == "rotary" else SERVED["none"]).blocks[0]
    chooser = MixtureOfDepths(first.attention, first.ffn, first.norm, capacity=0.5)
    config = replace(ROTARY, blocks=(chooser,))
    prompts, after = texts((40, SEEN - 4, 1), 4)
    whole = fed(model(config, Contiguous()), prompts, after)
    built = model(config, SMALL)
    sequences = built.engine.begin(prompts, 4)
    count = np.sum(built.backend.to_numpy(sequences.cache[0].chosen) > 0, axis=1)
    assert count[0] > SEEN and count[1] > 0
    found = fed(built, prompts, after)
    assert (found[1:] == whole[1:]).all() and (found[0] != whole[0]).any()
    assert (fed(model(config, Sinks(FIRST, 61)), prompts, after) == whole).all()
    for row, (prompt, more) in enumerate(zip(prompts, after, strict=True)):
        assert (found[row] == fed(built, [prompt], [more])[0]).all()


def test_it_is_measured():
    reports = [
        lab.verify_cache(model(ROTARY, policy, precision="float32"), texts=[ids(1, 60)], prefill=0.5).to_dict()
        for policy in (Sinks(4, 56), SMALL)
    ]
    assert [report["status"] for report in reports] == ["measured"] * 2
    assert reports[0]["numbers"]["kl"] < 1e-6 < reports[1]["numbers"]["kl"]
    assert reports[1]["bytes"]["cache"] < 0.5 * reports[1]["bytes"]["contiguous"]


def test_what_is_refused():
    for given in ({"sinks": 0}, {"recent": 2.5}, {"slack": True}):
        with pytest.raises(ConfigurationError, match=f"cache.{next(iter(given))}"):
            Sinks(**given)
    with pytest.raises(ConfigurationError, match="position is Learned, which is added to the embedding"):
        model(CONFIGS["learned"], SMALL)
    ops = model(ROTARY, SMALL).backend
    key, query = ops.zeros((1, 2, 1, 4)), ops.zeros((1, 4, 1, 4))
    tokens = tokens_of(ops, ops.asarray(np.zeros((1, 1), int)), ops.asarray(np.zeros(1, int)))
    with pytest.raises(ConfigurationError, match="does not tell a cache how"):
        SMALL.layer(ops, ROTARY.blocks[0].attention, 1, 9).update(ops, Fresh(query, key, key), tokens)
    assert SMALL.contract == "lossy"


# --- mistakes ---------------------------------------------------------------------------------------------------------

SINKS_AT = "numbers(sinks)[:, None, :] + shift"
NEARER = "tokens.positions - shift[..., 0]"
TURNS = "min(self.sinks + self.recent, capacity)"
MISTAKES = {
    "sinks fall out": [(SINKS_AT, SINKS_AT + " * NOWHERE")],
    "sinks are counted twice": [("(places >= sinks) & ", "")],
    "sinks at their true positions": [
        (SINKS_AT, "numbers(sinks)[:, None, :] + 0 * shift"),
        (NEARER, "tokens.positions"),
    ],
    "the query is not clipped": [(NEARER, "tokens.positions"), (TURNS, "capacity")],
    "the query is clipped one too early": [(TURNS, f"{TURNS} - 1")],
    "one position too far": [("(sinks + recent - 1)", "(sinks + recent)"), (TURNS, "capacity")],
    "one recent key too many": [("places > at - recent", "places >= at - recent")],
    "one recent key too few": [("places > at - recent", "places > at - recent + 1")],
    "a sink less": [("place of this pass\n", "place of this pass\n        came = xp.where(slots == 2, -1, came)\n")],
    "the ring is too small": [("min(self.recent + self.slack", "min(self.recent - 1")],
    "padding displaces": [("slots <= last_place(ops, tokens)[:, None]", "slots >= 0")],
    "the first row's count for all": [
        ("at = (tokens.start[:, None]", "at = (tokens.start[:1, None] + 0 * tokens.start[:, None]")
    ],
    "the first row's sinks for all": [("came = slots - tokens.start[:, None]", "came = slots - tokens.start[0]")],
    "sinks are met by the old query": [("_wider(ops, first, in_front=True)", "_wider(ops, first)")],
    "values in another order": [("xp.concat(list(pair), axis=2))", "xp.concat(list(pair)[::-1], axis=2))")],
}


def with_mistake(*changes):
    source = inspect.getsource(sinks)
    for old, new in changes:
        assert source.count(old) == 1
        source = source.replace(old, new)
    names = {"__name__": sinks.__name__}
    exec(compile(source, sinks.__file__, "exec", dont_inherit=True), names)
    return names["Sinks"]


def worst(kind):
    """Of rotary positions and ALiBi, of prompts at once and with rows that wait: how far from the rule."""
    chunked = type("InChunks", (kind,), {"chunk": 4})
    found = []
    for name in ("rotary, shared keys", "alibi"):
        for policy in (kind(FIRST, RECENT), chunked(FIRST, RECENT)):
            try:
                found.append(off(fed(model(SERVED[name], policy, precision="float64"), *texts()), expected(name)))
            except (IndexError, ValueError, RuntimeWarning):  # a position that is not there, a query that sees nothing
                found.append(np.inf)
    return max(found)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_noticed(mistake):
    assert not worst(with_mistake(*MISTAKES[mistake])) < 1e-3


def test_padding_of_one_token_would_be_noticed(monkeypatch):
    monkeypatch.setattr(window, "_or_kept", lambda ops, new, old, slot, tokens: new)
    assert not worst(Sinks) < 1e-3


def test_without_a_mistake_none_is_noticed():
    assert worst(with_mistake((NEARER, NEARER))) < LOGITS_FLOAT64


def test_more_sinks_than_a_text_has_tokens_take_no_more_room():
    built, plain = model(ROTARY, Sinks(sinks=10**8)), model(ROTARY, Contiguous())
    prompts, after = [ids(1, 20), ids(2, 9)], [ids(3, 6), ids(4, 6)]
    assert (fed(built, prompts, after) == fed(plain, prompts, after)).all()
