"""A mixture of depths against a loop over tokens after the paper, and mistakes that would be noticed."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from small_models import small_model
from tolerances import OPERATION
from watchful_backends import PoisoningNumpy, ReadOnlyNumpy, StrictBackend

import transformer_lab as lab
from transformer_lab.attention.softmax import SoftmaxAttention
from transformer_lab.backends.plain.manual import identity
from transformer_lab.block import mixture_of_depths
from transformer_lab.block.mixture_of_depths import MixtureOfDepths
from transformer_lab.block.parallel import Parallel
from transformer_lab.block.sequential import Sequential
from transformer_lab.cache.contiguous import Contiguous
from transformer_lab.comparison.judging.training_loss import parameter_gradients
from transformer_lab.config import component
from transformer_lab.errors import ConfigurationError
from transformer_lab.ffn.dense import Dense
from transformer_lab.language_model import assemble
from transformer_lab.model.causality import TokensCompete
from transformer_lab.model.decoder import forward
from transformer_lab.model.parameters import nest, shapes
from transformer_lab.model.tokens import tokens_of
from transformer_lab.norm.rms_norm import RMSNorm
from transformer_lab.position.rotary import Rotary
from transformer_lab.router.room import room

BACKENDS = ("numpy", "torch", "jax")
B, T, D, H, N, C = 3, 11, 12, 2, 6, 16
LENGTHS = np.array([11, 7, 1])
ATTENTION = SoftmaxAttention(H, N, 1, Rotary(50.0), qkv_bias=False, out_bias=False)
BLOCK = MixtureOfDepths(ATTENTION, Dense(20, "silu", gated=True, bias=False), RMSNorm(1e-5), capacity=0.3)
PARALLEL = replace(BLOCK, inner=Parallel(None, None, None))
WINDOW = replace(BLOCK, attention=replace(ATTENTION, window=2), capacity=0.6)
CASES = {"sequential": BLOCK, "parallel": PARALLEL, "window": WINDOW, "all of them": replace(BLOCK, capacity=1.0)}


def drawn(block, seed=0):
    """Parameters, a stream in which the second token of the first row is the third once more, and its real tokens."""
    draw = np.random.default_rng(seed)
    arrays = {name: draw.normal(size=shape) * 0.5 for name, shape in block.shapes(D).items()}
    x = draw.normal(size=(B, T, D))
    x[0, 2] = x[0, 1]
    return arrays, x


# --- the paper, token by token ----------------------------------------------------------------------------------------


def best(scores, capacity):
    """The numbers of the ceil(capacity * T) best of T scores, of equal ones the first."""
    places = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
    return sorted(places[: math.ceil(round(capacity * len(scores), 9))])


def positive(scores, capacity):
    return [place for place, score in enumerate(scores) if 1.0 / (1.0 + math.exp(-score)) > 0.5]


def turned(vector, position):
    half = N // 2
    angles = position * 50.0 ** (-np.arange(half) / half)
    first, second = vector[:half], vector[half:]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin])


def normal(vector, weight):
    return vector / np.sqrt(np.mean(vector**2) + 1e-5) * weight


def paper(block, arrays, x, lengths, rule=best):
    """x [B, T, D] -> [B, T, D], equation 1 with f as a loop over the tokens that are chosen."""
    y = x.copy()
    for row, length in enumerate(lengths):
        scores = x[row, :length] @ arrays["router.gate"][:, 0]
        chosen = rule(scores, block.capacity)
        keys, values = [], []
        for place in chosen:
            token = x[row, place]
            given = normal(token, arrays["norm_1.weight"])
            qkv = (given @ arrays["attn.qkv.kernel"]).reshape(H + 2, N)
            keys.append(turned(qkv[H], place))
            values.append(qkv[H + 1])
            window = block.attention.window or len(keys)
            seen = slice(max(len(keys) - window, 0), len(keys))
            heads = []
            for head in range(H):
                weights = np.array([turned(qkv[head], place) @ key for key in keys[seen]]) / math.sqrt(N)
                weights = np.exp(weights - weights.max())
                heads.append((weights / weights.sum()) @ np.array(values[seen]))
            attended = np.concatenate(heads) @ arrays["attn.out.kernel"]
            parallel = isinstance(block.inner, Parallel)
            middle = given if parallel else normal(token + attended, arrays["norm_2.weight"])
            gate = middle @ arrays["ffn.gate.kernel"]
            network = (gate / (1 + np.exp(-gate)) * (middle @ arrays["ffn.up.kernel"])) @ arrays["ffn.down.kernel"]
            y[row, place] = token + scores[place] * (attended + network)
    return y


def computed(block, arrays, x, lengths, backend="numpy", pieces=None, call=None):
    """Ours, [B, T, D], and the tap router.chosen. pieces: (start, end) of each, over a cache; None: as a whole."""
    ops = component("backend", backend, precision="float64") if isinstance(backend, str) else backend
    table = {name: ops.asarray(part) for name, part in block.attention.position.table(C).items()}
    found, seen = [], []

    def look(name, value):
        if name == "router.chosen":
            seen.append(np.array(ops.to_numpy(value)))
        return value

    with ops.scope():
        params = nest({name: ops.asarray(array) for name, array in arrays.items()})
        config = small_model(9, C, D, 1, H, block.ffn)
        cache = None if pieces is None else Contiguous().allocate(ops, replace(config, blocks=(block,)), len(x), C)[0]
        for start, end in pieces or [(0, T)]:
            ids = ops.asarray(np.zeros((len(x), end - start), int))
            here = ops.asarray(np.clip(np.array(lengths) - start, 0, end - start))
            tokens = tokens_of(ops, ids, ops.asarray(np.full(len(x), start)), here)
            angles = tuple(ops.embed(table[name], tokens.positions) for name in ("cos", "sin"))
            tokens = tokens._replace(angles=angles)
            run = call or type(block).__call__
            out, cache = run(block, ops, params, ops.asarray(x[:, start:end]), tokens, cache, look)
            found.append(np.array(ops.to_numpy(out)))
    return np.concatenate(found, axis=1), np.concatenate(seen, axis=1)


def judge(block, pieces=None, backend="numpy", call=None):
    arrays, x = drawn(block)
    found, chosen = computed(block, arrays, x, LENGTHS, backend, pieces, call)
    rule = best if pieces is None else positive
    right = paper(block, arrays, x, LENGTHS, rule)
    for row, length in enumerate(LENGTHS):
        scores = x[row, :length] @ arrays["router.gate"][:, 0]
        np.testing.assert_array_equal(np.flatnonzero(chosen[row]), rule(scores, block.capacity))
    np.testing.assert_allclose(found, right, rtol=0, atol=OPERATION["float64"] * np.abs(right).max())


IN_PIECES = {
    "at once": [(0, T)],
    "in two": [(0, 6), (6, T)],
    "one by one": [(place, place + 1) for place in range(T)],
    "the last ones by themselves": [(0, 8), (8, 9), (9, 10), (10, 11)],
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("title", CASES)
def test_a_whole_sequence_is_that_of_the_paper(title, backend):
    judge(CASES[title], backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pieces", IN_PIECES)
def test_over_a_cache_each_token_is_chosen_by_itself(pieces, backend):
    """Of the first row too, which has 11 tokens: the others' padding is written over by nothing, and seen by nobody."""
    for block in (BLOCK, PARALLEL, WINDOW):
        judge(block, IN_PIECES[pieces], backend)


@pytest.mark.parametrize("kind", [ReadOnlyNumpy, PoisoningNumpy, StrictBackend])
def test_watchful_backends_see_nothing_wrong(kind):
    ops = kind(precision="float64")
    judge(BLOCK, backend=ops)
    judge(BLOCK, IN_PIECES["in two"], backend=ops)


def test_the_cases_show_what_they_are_there_for():
    arrays, x = drawn(BLOCK)
    scores = x @ arrays["router.gate"][:, 0]
    assert scores[0, 1] == scores[0, 2]
    assert best(scores[0], 0.3) != positive(scores[0], 0.3) and 0 < len(positive(scores[0], 0.3)) < T


def test_of_a_whole_sequence_the_chosen_tokens_alone_are_computed():
    shapes_seen = []

    class Watching(Dense):
        def __call__(self, ops, params, x, tap):
            shapes_seen.append(x.shape)
            return super().__call__(ops, params, x, tap)

    block = replace(BLOCK, ffn=Watching(20, "silu", gated=True, bias=False))
    judge(block)
    judge(block, IN_PIECES["at once"])
    assert shapes_seen == [(B, 4, D), (B, T, D)]  # over a cache how many they are is not known before


def test_room_is_counted_in_the_numbers_that_were_written():
    block = replace(BLOCK, capacity=0.07)
    assert room(block.capacity, 100) == 7 and math.ceil(0.07 * 100) == 8
    assert [room(0.125, length) for length in (0, 1, 8, 9, 16, 17)] == [0, 1, 1, 2, 2, 3]


# --- what would be noticed --------------------------------------------------------------------------------------------


def gate_is(function):
    """What is added is multiplied by function(score)."""

    def call(self, ops, params, x, tokens, cache, tap):
        seen = {}

        def look(name, value):
            seen[name] = tap(name, value)
            return seen[name]

        _, cache = MixtureOfDepths.__call__(self, ops, params, x, tokens, cache, look)
        return x + function(seen["router.scores"])[..., None] * seen["inner.out"], cache

    return call


def seeing_all(self, ops, params, x, tokens, cache, tap):
    """Chosen tokens attend to those that are not chosen, too."""
    seen = {}

    def look(name, value):
        seen[name] = tap(name, value)
        return seen[name]

    MixtureOfDepths.__call__(self, ops, params, x, tokens, cache, look)
    out, layer = self._block(ops, params, x, tokens, cache and cache.layer, identity)
    cache = cache and cache._replace(layer=layer)
    gate = np.where(seen["router.chosen"], seen["router.scores"], 0.0)
    return x + gate[..., None] * (out - x), cache


def patched(name, function):
    """A method becomes function(what it was)."""
    return lambda monkeypatch: monkeypatch.setattr(MixtureOfDepths, name, function(getattr(MixtureOfDepths, name)))


def without_padding(right):
    return lambda self, ops, scores, tokens: right(self, ops, scores, tokens._replace(real=None))


def counted_with_padding(right):
    def choose(self, ops, scores, tokens):
        scores = np.where(tokens.real, scores, -np.inf)
        return right(self, ops, scores, tokens._replace(real=None)) & tokens.real

    return choose


def last_of_equal(right):
    def choose(self, ops, scores, tokens):
        return right(self, ops, scores[:, ::-1], tokens._replace(real=tokens.real[:, ::-1]))[:, ::-1]

    return choose


def new_positions(right):
    """Rotary angles of the first tokens in place of the chosen ones'."""

    def inside(self, ops, tokens, chosen, order, before):
        angles = tuple(part[:, : order.shape[1]] for part in tokens.angles)
        return right(self, ops, tokens, chosen, order, before)._replace(angles=angles)

    return inside


def other_room(change):
    return lambda monkeypatch: monkeypatch.setattr(mixture_of_depths, "room", lambda *given: change(room(*given)))


MUTATIONS = {
    "gate forgotten": (None, gate_is(np.ones_like)),
    "gate squashed": (None, gate_is(lambda scores: 1.0 / (1.0 + np.exp(-scores)))),
    "chosen tokens see the others": (None, seeing_all),
    "k one too large": (other_room(lambda count: count + 1), None),
    "k one too small": (other_room(lambda count: max(count - 1, 0)), None),
    "padding chosen": (patched("_best", without_padding), None),
    "padding counted": (patched("_best", counted_with_padding), None),
    "positions of the places": (patched("_inside", new_positions), None),
}
CACHED = {
    "gate forgotten": MUTATIONS["gate forgotten"],
    "chosen tokens see the others": (None, seeing_all),
    "padding chosen": (patched("_positive", without_padding), None),
    "a piece forgets the one before": (
        patched("_inside", lambda right: lambda self, ops, tokens, chosen, order, before: right(
            self, ops, tokens, chosen, order, 0 * before)), None,
    ),
    "places as if all were chosen": (
        patched("_inside", lambda right: lambda self, ops, tokens, chosen, order, before: right(
            self, ops, tokens, chosen, order, tokens.start)), None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("title", MUTATIONS)
def test_mistakes_are_noticed(title, monkeypatch):
    plant, call = MUTATIONS[title]
    if plant:
        plant(monkeypatch)
    with pytest.raises(AssertionError):
        judge(BLOCK, call=call)


@pytest.mark.parametrize("title", CACHED)
def test_mistakes_over_a_cache_are_noticed(title, monkeypatch):
    plant, call = CACHED[title]
    if plant:
        plant(monkeypatch)
    with pytest.raises(AssertionError):
        judge(BLOCK, IN_PIECES["in two"], call=call)


def test_of_equal_scores_the_first_is_taken(monkeypatch):
    """Where one of two equal tokens has a place."""
    arrays, x = drawn(BLOCK)
    scores = (x @ arrays["router.gate"][:, 0])[0]
    between = sum(scores > scores[1]) + 1
    block = replace(BLOCK, capacity=between / T)
    judge(block)
    patched("_best", last_of_equal)(monkeypatch)
    with pytest.raises(AssertionError):
        judge(block)


@pytest.mark.parametrize("pieces", [None, IN_PIECES["one by one"]], ids=["whole", "cached"])
def test_a_token_that_is_not_chosen_is_seen_by_nobody(pieces):
    """It may be anything that leaves its score as it is; one that is chosen may not."""
    arrays, x = drawn(BLOCK)
    gate = arrays["router.gate"][:, 0]
    before, chosen = computed(BLOCK, arrays, x, LENGTHS, pieces=pieces)
    aside = np.random.default_rng(1).normal(size=D) * 50.0
    aside -= gate * (gate @ aside) / (gate @ gate)
    for place in (np.flatnonzero(~chosen[0])[1], np.flatnonzero(chosen[0])[0]):
        moved = x.copy()
        moved[0, place] += aside
        after, again = computed(BLOCK, arrays, moved, LENGTHS, pieces=pieces)
        np.testing.assert_array_equal(again, chosen)
        others = np.arange(T) != place
        assert (after[0, others].tobytes() == before[0, others].tobytes()) == (not chosen[0, place])


# --- whole models -----------------------------------------------------------------------------------------------------

SIZES = {"vocab_size": 31, "context_length": 24, "hidden_size": 16, "num_layers": 3, "num_heads": 4}
LLAMA = {"position": "rotary", "norm": "rms_norm", "attention_bias": False, "tied_head": False, "num_kv_heads": 2}


def alternating(capacity=0.3, selection_loss=0.1, **more):
    """Every other block, as the paper has it."""
    config = small_model(**SIZES, **more, ffn=Dense(24))
    around = [MixtureOfDepths(b.attention, b.ffn, b.norm, capacity, selection_loss, b) for b in config.blocks]
    return replace(config, blocks=(around[0], config.blocks[1], around[2]))


MODELS = {"gpt2-like": alternating(), "llama-like": alternating(**LLAMA)}
IDS = np.random.default_rng(3).integers(0, 31, (3, 13))


def model(config, backend="numpy", precision="float64"):
    draw = np.random.default_rng(2)
    arrays = {name: draw.normal(size=shape) * 0.3 for name, shape in shapes(config).items()}
    arrays = {name: (array + name.endswith(".weight")).astype(np.float32) for name, array in arrays.items()}
    return assemble(config, arrays, component("backend", backend, precision=precision))


@pytest.mark.parametrize("title", MODELS)
def test_exact_mode_has_the_same_bits_on_three_backends(title):
    config, found = MODELS[title], {}
    for backend in BACKENDS:
        exact = model(config, backend, "exact")
        with pytest.warns(TokensCompete):
            texts = exact.generate(IDS[:, :5].tolist(), max_new_tokens=8)
        with pytest.warns(TokensCompete):
            alone = exact.generate(IDS[1, :5].tolist(), max_new_tokens=8)
        assert alone.logits_sha256 == texts[1].logits_sha256
        gradients = parameter_gradients(exact, IDS[:2, :9])
        logits = exact.logits(IDS)
        assert logits[1].tobytes() == exact.logits(IDS[1]).tobytes()
        found[backend] = [logits, *gradients.values(), *(np.array([row.logits_sha256]) for row in texts)]
    for backend in ("torch", "jax"):
        for one, other in zip(found["numpy"], found[backend], strict=True):
            assert (one == other).all()


def logits_over_a_cache(built, ids):
    """Of the last token, [V], on NumPy, of the whole text fed at once."""
    cache = Contiguous().allocate(built.backend, built.config, 1, len(ids))
    return forward(built.backend, built.config, built.params, np.array([ids]), np.zeros(1, int), cache)[0][0, -1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_text_is_generated_by_the_rule_of_each_token(backend):
    built, plain = model(MODELS["llama-like"], backend), model(MODELS["llama-like"])
    prompts = [IDS[0].tolist(), IDS[1, :4].tolist()]
    with pytest.warns(TokensCompete, match=r"of one pass \(MixtureOfDepths in 2 of 3 layers\)"):
        found = built.generate(prompts, max_new_tokens=9)
    other = 0
    for prompt, row in zip(prompts, found, strict=True):
        ids = list(prompt)
        for token in row.token_ids:
            assert token == logits_over_a_cache(plain, ids).argmax()
            other += token != plain.logits(ids)[0, -1].argmax()
            ids.append(token)
    assert other > 0  # as a whole it would be another text


def test_a_forced_choice_beyond_the_room_leaves_the_first_ones():
    built = model(MODELS["gpt2-like"])
    name = "blocks.0.router.chosen"
    forced = np.ones((1, 13), bool)
    out = built.record(IDS[0], ["blocks.0.inner.out"], patches={name: forced})["blocks.0.inner.out"]
    np.testing.assert_array_equal(np.abs(out).max(axis=-1)[0] > 0, np.arange(13) < 4)


def test_a_folder_of_ones_own_holds_it(tmp_path):
    inner = Sequential(None, None, None, "around", 0.5)
    for number, block in enumerate((Parallel(None, None, None, True), inner)):
        built = lab.load_model(
            "storybook", weights="random", block=partial(MixtureOfDepths, capacity=0.5, inner=block), position="rotary"
        )
        built.save(tmp_path / str(number))
        again = lab.load_model(tmp_path / str(number))
        assert again.config == built.config and again.config.blocks[0].inner == block
        assert again.logits([3, 4, 5]).tobytes() == built.logits([3, 4, 5]).tobytes()


def test_a_comparison_knows_it_without_being_told(tmp_path):
    model(MODELS["llama-like"]).save(tmp_path)
    report = lab.compare(tmp_path, [IDS[0].tolist()], ["numpy", "torch"], new_tokens=2, sweeps=["batch", "cached"])
    assert report.status == "not judged" and "MixtureOfDepths in 2 of 3 layers" in report.verdict
    assert "Identical in exact mode on numpy and torch, gradients too" in report.verdict
    assert {row["tap"] for row in report.table} >= {f"blocks.0.{name}" for name in MixtureOfDepths.taps}


def test_another_choice_on_one_backend_is_a_defect(tmp_path, monkeypatch):
    """Of the scores that it shows itself: so there is no doubt."""

    def other_on_torch(right):
        return lambda self, ops, scores, tokens: right(self, ops, -scores if ops.name == "torch" else scores, tokens)

    patched("_best", other_on_torch)(monkeypatch)
    model(MODELS["llama-like"]).save(tmp_path)
    report = lab.compare(tmp_path, [IDS[0].tolist()], ["numpy", "torch"], new_tokens=0, exact=False, gradients=False)
    assert report.status == "defect" and report.first_divergence.tap == "blocks.0.router.chosen"


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: replace(BLOCK, capacity=0.0), r"block\.capacity is 0\.0; it must be a share"),
        (lambda: replace(BLOCK, capacity=1.5), r"block\.capacity is 1\.5"),
        (lambda: replace(BLOCK, capacity=True), r"block\.capacity is true"),
        (lambda: replace(BLOCK, capacity=float("nan")), r"block\.capacity is nan"),
        (lambda: replace(BLOCK, selection_loss=-1.0), r"block\.selection_loss is -1\.0"),
        (lambda: replace(BLOCK, ffn=component("ffn", "moe")), "ffn is MixtureOfExperts, which adds to the loss"),
    ],
)
def test_what_cannot_be_is_refused(build, words):
    with pytest.raises(ConfigurationError, match=words):
        build()
