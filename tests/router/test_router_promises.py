"""What a router declares of itself, and what every one promises: held against what it does, for each that there is."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from derivatives import apart, central_differences
from tolerances import FINITE_DIFFERENCE, OPERATION

from transformer_lab.backends.plain.experts import DISPATCHES
from transformer_lab.backends.plain.manual import identity
from transformer_lab.config import component, names
from transformer_lab.ffn.experts import Experts
from transformer_lab.ffn.moe import MixtureOfExperts
from transformer_lab.model.parameters import flatten, nest
from transformer_lab.model.tokens import tokens_of
from transformer_lab.router.expert_choice import ExpertChoice
from transformer_lab.router.hash import Hash
from transformer_lab.router.mixtral import Mixtral
from transformer_lab.router.router import Router
from transformer_lab.router.table import Table

BACKENDS = ("numpy", "torch", "jax")
B, T, D, E = 3, 12, 8, 6
LENGTHS = (12, 7, 2)  # the last has fewer places than experts
DRAW = np.random.default_rng(4)
X, IDS = DRAW.standard_normal((B, T, D)), DRAW.integers(0, 20, (B, T))
FIELDS = {"hash": {"experts": E, "k": 2}, "table": {"vocab_size": 20, "k": 2}, "base": {}, "switch": {}, "gshard": {}}
FIELDS |= {"deepseek_v3": {"k": 2, "n_groups": 2}, "remoe": {}, "threshold": {}, "expert_choice": {}}
BALANCERS = {"deepseek_v3": "sign_bias", "deepseek_v4": "sign_bias", "threshold": "threshold"}


@cache
def layer(name):
    """(the layer, its parameters in float64): narrow experts, so that no layout can be told by its sizes."""
    router = component("router", name, **FIELDS.get(name, {"k": 2}))
    balancer = component("balancer", BALANCERS[name]) if name in BALANCERS else None
    ffn = MixtureOfExperts(router, Experts(E, 3, bias=True), balancer=balancer)
    draw = np.random.default_rng(5)
    arrays = {own: draw.standard_normal(shape) for own, shape in ffn.shapes(D).items()}
    if name == "table":
        arrays["router.table"] = np.array([draw.permutation(E)[:2] for _ in range(20)], float)
    if name == "threshold":
        arrays["balancer.threshold"] = np.linspace(0.0, 0.4, E)
    return ffn, arrays


def run(ffn, arrays, x=X, ids=IDS, lengths=None, backend="numpy", precision="float64", dispatch="fused"):
    """(what comes out, {tap: array})."""
    ops, seen = component("backend", backend, precision=precision, ops={"dispatch": dispatch}), {}
    with ops.scope():
        params = nest({name: ops.place(name, np.ascontiguousarray(array)) for name, array in arrays.items()})
        lengths = None if lengths is None else ops.asarray(np.asarray(lengths))
        tokens = tokens_of(ops, ops.asarray(ids), ops.asarray(np.zeros(len(x), int)), lengths)
        out = ffn(ops, params, ops.asarray(x), lambda name, value: seen.setdefault(name, value), tokens)
        return np.array(ops.to_numpy(out)), {name: np.array(ops.to_numpy(value)) for name, value in seen.items()}


def routes(taps):
    """[B, T, E]: the weight of each expert of each token, and NaN where it has none."""
    ids, weights = taps["router.expert_ids"], taps["router.weights"]
    found = np.full((*ids.shape[:2], E), np.nan)
    np.put_along_axis(found, ids, np.where(taps.get("router.kept", np.ones(ids.shape, bool)), weights, np.nan), -1)
    return found


def same(found, expected):
    """The same experts, with the same weights but for rounding."""
    assert (np.isnan(found) == np.isnan(expected)).all()
    np.testing.assert_allclose(found, expected, rtol=0, atol=OPERATION["float64"] * 10)


# --- the future -------------------------------------------------------------------------------------------------------


def past_hangs_on_the_future(name):
    """Whether other tokens behind a place change the routes before it; of a few texts, since it may be chance."""
    ffn, arrays = layer(name)
    for seed in range(4):
        draw = np.random.default_rng(seed)
        x, ids = X.copy(), IDS.copy()
        x[:, 6:], ids[:, 6:] = 2.0 * draw.standard_normal((B, 6, D)), draw.integers(0, 20, (B, 6))
        one, other = (routes(run(ffn, arrays, *given)[1])[:, :6] for given in ((X, IDS), (x, ids)))
        if (np.isnan(one) != np.isnan(other)).any() or np.nanmax(np.abs(one - other)) > 1e-9:
            return True
    return False


def judge_causality(name):
    router = layer(name)[0].router
    assert past_hangs_on_the_future(name) == (not router.causal)
    assert router.causal or router.decoding  # what is otherwise in decoding is said


@pytest.mark.parametrize("name", names("router"))
def test_whether_a_router_sees_the_future_is_as_declared(name):
    judge_causality(name)


@pytest.mark.parametrize("name", names("router"))
def test_a_wrong_declaration_is_noticed(name, monkeypatch):
    kind = type(layer(name)[0].router)
    monkeypatch.setattr(kind, "causal", not kind.causal)
    with pytest.raises(AssertionError):
        judge_causality(name)


@pytest.mark.parametrize("name", names("router"))
def test_tokens_that_come_alone_have_the_same_experts_where_it_is_causal(name):
    """Over a cache a layer is given one token at a time."""
    ffn, arrays = layer(name)
    whole = routes(run(ffn, arrays)[1])
    alone = [routes(run(ffn, arrays, X[:, t : t + 1], IDS[:, t : t + 1])[1]) for t in range(T)]
    if ffn.router.causal:
        same(np.concatenate(alone, axis=1), whole)
    else:  # each takes its best, as it says
        assert (np.isnan(np.concatenate(alone, axis=1)) != np.isnan(whole)).any()
        assert (~np.isnan(alone)).sum(-1).max() == (~np.isnan(alone)).sum(-1).min() == 2


# --- padding ----------------------------------------------------------------------------------------------------------


def judge_padding(name, backend):
    ffn, arrays = layer(name)
    found = routes(run(ffn, arrays, lengths=LENGTHS, backend=backend)[1])
    other = X.copy()
    for row, length in enumerate(LENGTHS):
        other[row, length:] = 50.0
    again = routes(run(ffn, arrays, other, lengths=LENGTHS, backend=backend)[1])
    for row, length in enumerate(LENGTHS):
        one = slice(row, row + 1)
        expected = routes(run(ffn, arrays, X[one, :length], IDS[one, :length])[1])
        same(found[one, :length], expected)
        same(again[one, :length], expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", names("router"))
def test_padding_changes_no_route(name, backend):
    """However far rows are padded: a backend that compiles pads them to other lengths than one that does not."""
    judge_padding(name, backend)


@pytest.mark.parametrize("places", [lambda *_: 4, lambda self, count, experts: max(1, round(2 * count / experts))])
def test_experts_that_choose_by_another_length_are_noticed(places, monkeypatch):
    monkeypatch.setattr(ExpertChoice, "_places", places)
    with pytest.raises(AssertionError):
        judge_choice("numpy")


def test_padding_that_is_chosen_is_noticed(monkeypatch):
    right = ExpertChoice.kept
    monkeypatch.setattr(
        ExpertChoice,
        "kept",
        lambda self, ops, logits, ids, state, tokens: right(self, ops, logits, ids, state, tokens._replace(real=None)),
    )
    with pytest.raises(AssertionError):
        judge_padding("expert_choice", "numpy")


# --- loops ------------------------------------------------------------------------------------------------------------


def choice_by_hand(logits, lengths, factor):
    """Zhou et al. 2022, section 3.2, an expert at a time: [B, T, E], and where there are fewer places, a token."""
    kept = np.zeros(logits.shape, bool)
    for row, length in enumerate(lengths):
        scores = np.exp(logits[row, :length])
        scores /= scores.sum(-1, keepdims=True)
        if length * factor < E:
            for token in range(length):
                kept[row, token, sorted(range(E), key=lambda e: -scores[token, e])[: round(factor)]] = True
            continue
        for expert in range(E):
            room = int(np.ceil(factor * length / E))
            kept[row, sorted(range(length), key=lambda t: -scores[t, expert])[:room], expert] = True
    return kept


def judge_choice(backend):
    ffn, arrays = layer("expert_choice")
    for lengths in (LENGTHS, (5, 3, 1), (12, 12, 12)):
        taps = run(ffn, arrays, lengths=lengths, backend=backend)[1]
        kept = choice_by_hand(X @ arrays["router.gate"], lengths, 2.0)
        assert (taps["router.kept"] == kept).all()
        weights = np.where(kept, np.exp(taps["router.logits"]), 0.0)
        weights /= np.exp(taps["router.logits"]).sum(-1, keepdims=True)
        np.testing.assert_allclose(taps["router.weights"], weights, rtol=0, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_experts_choose_as_a_loop_over_experts_does(backend):
    judge_choice(backend)


def test_of_equal_scores_the_lower_number_and_the_earlier_token_come_first():
    for backend in BACKENDS:
        for name in ("switch", "gshard", "gpt_oss", "deepseek_v3", "deepseek_v4", "noisy_top_k", "base"):
            ffn, arrays = layer(name)
            zeros = {
                own: array * 0.0 if own.startswith(("router", "balancer")) else array for own, array in arrays.items()
            }
            taps = run(ffn, zeros, backend=backend, precision="float32")[1]
            assert (taps["router.expert_ids"] == np.arange(ffn.router.k)).all(), name
        ffn, arrays = layer("expert_choice")
        zeros = arrays | {"router.gate": 0.0 * arrays["router.gate"]}
        kept = run(ffn, zeros, backend=backend, precision="float32")[1]["router.kept"]
        assert (kept == (np.arange(T) < 4)[None, :, None]).all()


def test_a_hash_is_whole_numbers_by_hand():
    """((a id + b) mod p) mod the experts that are left, each further one stepped over those that are taken."""
    for seed, k in ((0, 1), (7, 3)):
        ids = np.array([[0, 1, 5, 32748, 32749, 49_999_999]])
        found = Hash(k, E, seed).choose(component("backend", "jax"), {}, None, {}, _Ids(ids))
        draw = np.random.default_rng(seed)
        pairs = [(int(draw.integers(1, 32749)), int(draw.integers(0, 32749))) for _ in range(k)]
        for token, row in zip(ids[0].tolist(), np.asarray(found)[0].tolist(), strict=True):
            left, expected = list(range(E)), []
            for a, b in pairs:
                expected.append(left.pop((a * (token % 32749) + b) % 32749 % len(left)))
            assert row == expected


class _Ids:
    def __init__(self, ids):
        import jax.numpy as jnp

        self.ids = jnp.asarray(ids, jnp.int32)


# --- dispatch and gradients -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["remoe", "expert_choice", "threshold", "gshard", "base"])
def test_what_is_dropped_is_dropped_in_every_dispatch_with_the_same_bits(name):
    ffn, arrays = layer(name)
    expected = run(ffn, arrays, lengths=LENGTHS, precision="exact", dispatch="loop")[0]
    for dispatch in DISPATCHES:
        found = run(ffn, arrays, lengths=LENGTHS, precision="exact", dispatch=dispatch)[0]
        assert (found == expected).all(), dispatch
    assert (run(ffn, arrays, lengths=LENGTHS, backend="torch", precision="exact")[0] == expected).all()


def loss(ops, ffn, tree, x, ids):
    tokens = tokens_of(ops, ids, ops.asarray(np.zeros(B, int)))
    return ops.xp.sum(ffn(ops, tree, x, identity, tokens) ** 2)


def judge_gradients(name, backend="numpy"):
    """Of all parameters that are learned, by central differences in float64; the gate's is there."""
    ffn, arrays = layer(name)
    learned = {own: array for own, array in arrays.items() if not own.startswith("balancer") and own != "router.table"}
    fixed = {own: array for own, array in arrays.items() if own not in learned}
    ops, plain = component("backend", backend, precision="float64"), component("backend", "numpy", precision="float64")

    def value(flat):
        return loss(plain, ffn, nest(flat | fixed), X, IDS)

    with ops.scope():
        kept, x, ids = ({own: ops.asarray(array) for own, array in fixed.items()}, ops.asarray(X), ops.asarray(IDS))
        both = ops.value_and_grad(lambda flat: loss(ops, ffn, nest({**flat, **kept}), x, ids))
        _, found = both({own: ops.asarray(array) for own, array in learned.items()})
        found = {own: np.array(ops.to_numpy(array)) for own, array in flatten(found)}
    expected = central_differences(value, learned, places=40)
    assert apart(found, expected) < FINITE_DIFFERENCE
    if "router.gate" in learned:
        assert np.nanmax(np.abs(expected["router.gate"])) > 1e-3


@pytest.mark.parametrize("name", names("router"))
def test_gradients_are_those_of_central_differences(name):
    judge_gradients(name)


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("name", ["remoe", "expert_choice", "threshold", "base", "deepseek_v4"])
def test_frameworks_agree_with_them(name, backend):
    judge_gradients(name, backend)


def test_a_router_without_a_gradient_is_noticed(monkeypatch):
    """Weights that are taken as they stand: the gate learns nothing."""
    right = Mixtral.weigh

    def as_they_stand(self, ops, params, logits, ids):
        weights = right(self, ops, params, logits, ids)
        return getattr(weights, "value", weights)

    monkeypatch.setattr(Mixtral, "weigh", as_they_stand)
    with pytest.raises(AssertionError):
        judge_gradients("mixtral")


def test_every_choice_of_a_router_is_here():
    for name in names("router"):
        assert isinstance(layer(name)[0].router, Router)
    assert isinstance(layer("table")[0].router, Table)
    assert replace(layer("hash")[0].router, seed=1) != layer("hash")[0].router
