"""Experts: four ways to dispatch with one result, exact bits, capacity, padding, and what a layer may not be given."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from tolerances import OPERATION

import transformer_lab as lab
from transformer_lab.backends.plain.experts import DISPATCHES
from transformer_lab.backends.plain.manual import identity
from transformer_lab.config import component
from transformer_lab.ffn.capacity import Capacity
from transformer_lab.ffn.clamped import Clamped
from transformer_lab.ffn.dense import Dense
from transformer_lab.ffn.experts import Experts
from transformer_lab.ffn.moe import MixtureOfExperts
from transformer_lab.ffn.soft_moe import SoftMixture
from transformer_lab.model.parameters import nest
from transformer_lab.model.tokens import tokens_of
from transformer_lab.router.mixtral import Mixtral
from transformer_lab.router.remoe import ReMoE

BACKENDS = ("numpy", "torch", "jax")
KINDS = {
    "silu": Experts(5, 12),
    "gelu": Experts(5, 12, "gelu_tanh", gated=False, bias=True),
    "clamped": Experts(5, 12, limit=0.5, bias=True),
    "narrow": Experts(5, 3),
}
WIDTH = 8


def arrays(ffn, seed=0):
    draw = np.random.default_rng(seed)
    return {name: 0.5 * draw.standard_normal(shape) for name, shape in ffn.shapes(WIDTH).items()}


def run(ffn, x, lengths=None, backend="numpy", precision="float64", dispatch="loop", tap=identity, params=None):
    ops = component("backend", backend, precision=precision, ops={"dispatch": dispatch})
    with ops.scope():
        given = arrays(ffn) if params is None else params
        placed = nest({name: ops.place(name, array) for name, array in given.items()})
        ids = ops.asarray(np.zeros(x.shape[:2], int))
        lengths = None if lengths is None else ops.asarray(np.asarray(lengths))
        tokens = tokens_of(ops, ids, ops.asarray(np.zeros(len(x), int)), lengths)
        return np.array(ops.to_numpy(ffn(ops, placed, ops.asarray(x), tap, tokens)))


def slow(ffn, params, x, kept=None):
    """Token by token and slot by slot, in float64."""
    experts, y = ffn.experts, np.zeros_like(x)
    sigmoid = lambda z: 1.0 / (1.0 + np.exp(-z))  # noqa: E731
    act = {
        "silu": lambda z: z * sigmoid(z),
        "gelu_tanh": lambda z: 0.5 * z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
    }
    for row, token in np.ndindex(x.shape[:2]):
        logits = x[row, token] @ params["router.gate"]
        ids = np.argsort(-logits, kind="stable")[: ffn.router.k]
        weights = np.exp(logits[ids] - logits[ids].max())
        weights /= weights.sum()
        for slot, expert in enumerate(ids):
            if kept is not None and not kept[row, token, slot]:
                continue

            def product(name, z, expert=expert):
                z = z @ params[f"experts.{name}.kernel"][expert]
                return z + params[f"experts.{name}.bias"][expert] if experts.bias else z

            up = product("up", x[row, token])
            if not experts.gated:
                inner = act[experts.activation](up)
            elif experts.limit is None:
                inner = act[experts.activation](product("gate", x[row, token])) * up
            else:
                gate = np.minimum(product("gate", x[row, token]), experts.limit)
                inner = gate * sigmoid(1.702 * gate) * (np.clip(up, -experts.limit, experts.limit) + 1)
            y[row, token] += weights[slot] * product("down", inner)
    return y


X = np.random.default_rng(7).standard_normal((3, 9, WIDTH))


@pytest.mark.parametrize("dispatch", DISPATCHES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_dispatch_is_what_a_slow_loop_gives(backend, kind, dispatch):
    ffn = MixtureOfExperts(Mixtral(2), KINDS[kind])
    for x in (X, X[:1, :2]):  # many rows, and so few that each goes by itself
        found = run(ffn, x, backend=backend, dispatch=dispatch)
        expected = slow(ffn, arrays(ffn), x)
        np.testing.assert_allclose(found, expected, rtol=0, atol=OPERATION["float64"] * np.abs(expected).max())


def test_the_slow_loop_finds_what_is_wrong():
    """k + 1 experts, gate and up swapped, the clamp behind the product: none of them is within the tolerance."""
    for kind, wrong in (
        ("silu", lambda ffn, own: (replace(ffn, router=Mixtral(3)), own)),
        ("silu", lambda ffn, own: (ffn, _swapped(own))),
        ("clamped", lambda ffn, own: (replace(ffn, experts=replace(ffn.experts, limit=0.51)), own)),
    ):
        ffn = MixtureOfExperts(Mixtral(2), KINDS[kind])
        other, own = wrong(ffn, arrays(ffn))
        found, expected = run(other, X, params=own), slow(ffn, arrays(ffn), X)
        assert np.abs(found - expected).max() > 1e-3 * np.abs(expected).max()


def _swapped(own):
    return own | {"experts.up.kernel": own["experts.gate.kernel"], "experts.gate.kernel": own["experts.up.kernel"]}


@pytest.mark.parametrize("kind", KINDS)
def test_exact_bits_hang_on_no_dispatch_and_no_backend(kind):
    ffn = MixtureOfExperts(Mixtral(2), KINDS[kind], Dense(6), shared_gate=True, capacity=Capacity(0.8))
    expected = run(ffn, X, [9, 4, 1], precision="exact")
    for backend in BACKENDS:
        for dispatch in DISPATCHES if backend != "jax" else ("loop", "one_hot"):
            found = run(ffn, X, [9, 4, 1], backend, "exact", dispatch)
            assert found.tobytes() == expected.tobytes(), (backend, dispatch)


def kept_by_hand(ids, weights, real, experts, capacity):
    kept = np.zeros(ids.shape, bool)
    rows, length, slots = ids.shape
    every = [[(row, token) for token in range(length)] for row in range(rows)]
    for scope in every if capacity.scope == "sequence" else [list(itertools.chain(*every))]:
        places = [place for place in scope if real[place]]
        room, load = math.ceil(capacity.factor * slots * len(places) / experts), [0] * experts
        if capacity.order == "priority":
            places = sorted(places, key=lambda place: -weights[place][0])
        order = itertools.product(places, range(slots))
        if capacity.order != "token":
            order = ((place, slot) for slot in range(slots) for place in places)
        for place, slot in order:
            if load[ids[place][slot]] < room:
                load[ids[place][slot]] += 1
                kept[place][slot] = True
    return kept


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scope", ["sequence", "batch"])
@pytest.mark.parametrize("order", ["token", "choice", "priority"])
def test_capacity_is_given_out_in_its_order_and_padding_takes_none(order, scope, backend):
    ops, draw = component("backend", backend), np.random.default_rng(0)
    for factor in (0.5, 1.0, 1.25):
        ids = np.stack([[draw.permutation(4)[:2] for _ in range(11)] for _ in range(3)])
        weights = -np.sort(-draw.random((3, 11, 2)).astype(np.float32), axis=-1)
        lengths = np.array([11, 7, 1])
        capacity = Capacity(factor, order, scope)
        place = ops.asarray(ids[..., 0])
        tokens = tokens_of(ops, place, ops.asarray(np.zeros(3, int)), ops.asarray(lengths))
        found = ops.to_numpy(capacity.kept(ops, ops.asarray(ids), None, ops.asarray(weights), 4, tokens))
        real = np.arange(11) < lengths[:, None]
        assert (found == kept_by_hand(ids, weights, real, 4, capacity)).all()
        assert max(((ids == expert) & found).sum() for expert in range(4)) <= capacity.most(3, 11, 2, 4)
        takes_padding = kept_by_hand(ids, weights, np.ones_like(real), 4, capacity)
        assert factor > 0.5 or (takes_padding[real] != found[real]).any()  # the wrong rule would be seen


@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_what_is_dropped_is_not_computed_and_padding_changes_nothing(dispatch):
    ffn, seen = MixtureOfExperts(Mixtral(2), KINDS["silu"], capacity=Capacity(0.6)), {}
    found = run(ffn, X, [9, 6, 2], dispatch=dispatch, tap=lambda name, x: seen.setdefault(name, x))
    kept = np.asarray(seen["router.kept"])
    assert 0 < kept.sum() < 2 * (9 + 6 + 2)
    assert not kept[1, 6:].any()
    np.testing.assert_allclose(found, slow(ffn, arrays(ffn), X, kept), rtol=0, atol=1e-13)
    assert not np.asarray(seen["experts.out"])[~kept].any()
    other = X.copy()
    other[1, 6:], other[2, 2:] = 100.0, -100.0
    again = run(ffn, other, [9, 6, 2], dispatch=dispatch)
    for row, length in enumerate([9, 6, 2]):
        np.testing.assert_allclose(again[row, :length], found[row, :length], rtol=0, atol=1e-13)


def test_whether_the_future_is_seen_is_as_declared():
    """Other tokens at the end: with each order of capacity, by token alone nothing before them changes."""
    other = X.copy()
    other[:, 6:] = np.random.default_rng(8).standard_normal((3, 3, WIDTH))
    ffn = MixtureOfExperts(Mixtral(2), KINDS["silu"])
    for order, sees in (("token", False), ("choice", True), ("priority", True)):
        seen = []
        capacity = Capacity(0.6, order)
        for x in (X, other):
            taps = {}
            run(replace(ffn, capacity=capacity), x, tap=lambda name, value, taps=taps: taps.setdefault(name, value))
            seen.append(np.asarray(taps["router.kept"])[:, :6])
        assert (seen[0] != seen[1]).any() == sees
        assert ("sees the future" in capacity.causality) == sees


def test_a_soft_mixture_is_its_einsum_and_knows_no_padding():
    ffn = SoftMixture(KINDS["silu"], 2)
    own = arrays(ffn)
    for row, length in enumerate([9, 6, 2]):
        x = X[row, :length]
        logits = x @ own["router.gate"]
        dispatch = np.exp(logits) / np.exp(logits).sum(0)
        combine = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        made = []
        for slot, mixed in enumerate(dispatch.T @ x):
            gate, up = (mixed @ own[f"experts.{name}.kernel"][slot // 2] for name in ("gate", "up"))
            made.append((gate / (1 + np.exp(-gate)) * up) @ own["experts.down.kernel"][slot // 2])
        for backend in BACKENDS:
            found = run(ffn, X, [9, 6, 2], backend)
            np.testing.assert_allclose(found[row, :length], combine @ np.stack(made), rtol=0, atol=1e-12)


def test_stacked_kernels_are_placed_one_by_one_and_recovered():
    kernel = np.random.default_rng(0).standard_normal((3, 32, 16)).astype(np.float32)
    for backend, precision in itertools.product(BACKENDS, ("float32", "exact", "bfloat16", "int8")):
        if backend == "numpy" and precision in ("bfloat16", "int8"):
            continue
        ops = component("backend", backend, precision=precision)
        found = ops.recover("experts.up.kernel", ops.place("experts.up.kernel", kernel))
        assert found.shape == kernel.shape
        one = ops.recover("up.kernel", ops.place("up.kernel", kernel[1]))
        assert (found[1] == one).all()


SILU = KINDS["silu"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MixtureOfExperts(Mixtral(6), SILU), r"ffn\.router\.k is 6, and ffn.experts.count is 5"),
        (lambda: MixtureOfExperts(Mixtral(0), SILU), r"ffn\.router\.k is 0; it must be a whole number from 1"),
        (lambda: Experts(0, 4), r"ffn\.experts\.count is 0; it must be a whole number from 1"),
        (lambda: Experts(2, 4, "swish"), r"ffn\.experts\.activation is .*swish.*; choose one of"),
        (lambda: Experts(2, 4, gated=False, limit=1.0), r"ffn\.experts\.limit belongs to gated experts"),
        (lambda: Experts(2, 4, sharpness=0.0), r"ffn\.experts\.sharpness is 0\.0; it must be a positive number"),
        (lambda: Clamped(4, limit=0.0), r"ffn\.limit is 0\.0; it must be a positive number"),
        (lambda: Capacity(order="best"), r"ffn\.capacity\.order is .*; choose one of token, choice, priority"),
        (lambda: Capacity(factor=-1.0), r"ffn\.capacity\.factor is -1\.0; it must be a positive number"),
        (
            lambda: MixtureOfExperts(Mixtral(2), SILU, shared_gate=True),
            r"ffn\.shared_gate is true, and there is",
        ),
        (
            lambda: MixtureOfExperts(Mixtral(2), SILU, balance_loss=-1.0),
            r"ffn\.balance_loss is -1\.0; it must",
        ),
        (
            lambda: MixtureOfExperts(Mixtral(2), SILU, balance_scope="world"),
            r"ffn\.balance_scope is .*; choose",
        ),
        (
            lambda: MixtureOfExperts(ReMoE(), SILU, capacity=Capacity()),
            r"ffn\.capacity is for routers that choose",
        ),
        (lambda: component("backend", "numpy", ops={"dispatch": "fast"}), r"dispatch=fast is not known; choose one of"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(lab.ConfigurationError, match=message):
        make()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_of_experts_generates_over_a_cache_what_it_generates_without(backend):
    options = {"weights": "random", "ffn": "moe", "backend": backend, "precision": "exact", "seed": 3}
    tokens = [
        lab.load_model("storybook", cache=cache, **options).generate([5, 6, 7], max_new_tokens=4).token_ids
        for cache in ("contiguous", "none")
    ]
    assert tokens[0] == tokens[1]


def test_tokens_that_compete_are_named_when_text_is_generated():
    model = lab.load_model("storybook", weights="random", ffn="expert_choice")
    with pytest.warns(UserWarning, match=r"among the tokens of one pass \(ExpertChoice in 6 of 6 layers\)"):
        model.generate([5, 6], max_new_tokens=2)
    options = {"weights": "random", "ffn": "expert_choice"}
    report = lab.compare("storybook", [5, 6, 7], ["numpy"], new_tokens=4, exact=False, options=options)
    assert report.status == "not judged"  # and no defect
    assert "Not judged: what generate gives. Places are given out" in report.verdict


def test_a_folder_of_ones_own_holds_experts(tmp_path):
    ffn = MixtureOfExperts(Mixtral(2), Experts(4, 16), Dense(8), capacity=Capacity(1.0), balance_loss=0.01)
    model = lab.load_model("storybook", weights="random", ffn=ffn, balancer="smebu")
    model.save(tmp_path)
    again = lab.load_model(tmp_path)
    assert again.config == model.config
    assert again.logits([3, 4, 5]).tobytes() == model.logits([3, 4, 5]).tobytes()
