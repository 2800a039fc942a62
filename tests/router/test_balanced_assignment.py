"""BASE layers: as balanced as can be, with nearly the largest sum of scores that there is, which scipy knows."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from tolerances import OPERATION

from transformer_lab.config import component
from transformer_lab.errors import ConfigurationError
from transformer_lab.ffn.experts import Experts
from transformer_lab.ffn.moe import MixtureOfExperts
from transformer_lab.model.parameters import nest
from transformer_lab.model.tokens import tokens_of
from transformer_lab.router import balanced as step
from transformer_lab.router.balanced import balanced
from transformer_lab.router.base import Base

BACKENDS = ("numpy", "torch", "jax")
SIZES = (
    (1, 4, 0),
    (5, 8, 1),
    (64, 1, 0),
    (64, 8, 0),
    (96, 8, 3),
    (250, 16, 2),
)  # tokens, experts, how unlike these are
SLACK = 0.01  # of a token's score, in standard deviations: what a fixed number of steps leaves


def scores(tokens, experts, unlike):
    draw = np.random.default_rng(tokens)
    return (draw.standard_normal((tokens, experts)) + unlike * draw.standard_normal(experts)).astype(np.float32)


def judge(h, real=None, backend="numpy"):
    """The assignment, after a look at how good it is: full experts, none too full, and the sum."""
    ops = component("backend", backend)
    with ops.scope():
        given = None if real is None else ops.asarray(real.astype(int)) > 0
        found = ops.compile(lambda h, real: balanced(ops, h, real))(ops.asarray(h), given)
        ids = np.array(ops.to_numpy(found))
    real = np.ones(len(h), bool) if real is None else real
    tokens, experts = int(real.sum()), h.shape[1]
    room = -(-tokens // experts)
    assert np.bincount(ids[real], minlength=experts).max() <= room
    seats = np.repeat(h[real], room, axis=1)
    best = seats[linear_sum_assignment(seats, maximize=True)].sum()
    lost = (best - np.take_along_axis(h, ids[:, None], 1)[real].sum()) / tokens / h.std()
    assert -1e-5 < lost < SLACK
    return ids


@pytest.mark.parametrize("size", SIZES)
def test_the_sum_of_scores_is_nearly_the_largest(size):
    found = [judge(scores(*size), backend=backend) for backend in BACKENDS]
    assert (found[0] == found[1]).all()
    assert (found[0] == found[2]).all()


def test_padding_takes_no_place():
    h = scores(90, 8, 2)
    real = np.arange(90) % 3 > 0
    for backend in BACKENDS:
        ids = judge(h, real, backend)
        assert (ids[~real] == h[~real].argmax(-1)).all()
        assert (ids[real] == judge(h[real], backend=backend)).all()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("STEPS", 0),  # the best first, whatever others lose
        ("_row", lambda ops, x, place: -x[int(place)]),  # prices the wrong way
        ("UNIT", 1.0),
    ],
)
def test_a_worse_assignment_is_noticed(name, wrong, monkeypatch):
    monkeypatch.setattr(step, name, wrong)
    with pytest.raises(AssertionError):
        judge(scores(96, 8, 3))


def test_scores_beyond_all_bounds_overflow_nowhere():
    h = np.where(np.random.default_rng(0).random((40, 5)) < 0.5, 1e30, -1e30).astype(np.float32)
    found = []
    for backend in BACKENDS:
        ops = component("backend", backend)
        with ops.scope():
            found.append(np.array(ops.to_numpy(balanced(ops, ops.asarray(h), None))))
        assert (np.bincount(found[-1]) == 8).all()
    assert (found[0] == found[1]).all()
    assert (found[0] == found[2]).all()


# --- the layer --------------------------------------------------------------------------------------------------------

FFN = MixtureOfExperts(Base(), Experts(4, 6, "relu", gated=False))
DRAW = np.random.default_rng(3)
X, NOISE = DRAW.standard_normal((3, 12, 8)), DRAW.random((3, 12, 4))
PARAMS = {name: DRAW.standard_normal(shape) for name, shape in FFN.shapes(8).items()}


def run(x, noise=None, backend="numpy", lengths=None):
    """(out, ids, weights) in float64."""
    ops, seen = component("backend", backend, precision="float64"), {}
    with ops.scope():
        lengths = None if lengths is None else ops.asarray(np.asarray(lengths))
        tokens = tokens_of(ops, ops.asarray(np.zeros(x.shape[:2], int)), ops.asarray(np.zeros(len(x), int)), lengths)
        tokens = tokens._replace(noise=None if noise is None else ops.asarray(noise))
        params = nest({name: ops.asarray(array) for name, array in PARAMS.items()})
        out = FFN(ops, params, ops.asarray(x), lambda name, value: seen.setdefault(name, value), tokens)
        return tuple(np.array(ops.to_numpy(a)) for a in (out, seen["router.expert_ids"], seen["router.weights"]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_are_given_out_in_training_and_choose_in_use(backend):
    """What comes out is the formula of the paper, a token at a time."""
    h = X @ PARAMS["router.gate"]
    for noise in (None, NOISE):
        out, ids, weights = run(X, noise, backend)
        loads = np.bincount(ids.ravel(), minlength=4)
        if noise is None:
            assert (ids[..., 0] == h.argmax(-1)).all()
            assert loads.max() > 9  # so that it can be seen which of the two was done
        else:
            assert (loads == 9).all()
        for place in np.ndindex(3, 12):
            expert = ids[place][0]
            gate = 1.0 / (1.0 + np.exp(-h[place][expert]))
            inner = np.maximum(X[place] @ PARAMS["experts.up.kernel"][expert], 0.0)
            right = gate * (inner @ PARAMS["experts.down.kernel"][expert])
            np.testing.assert_allclose(weights[place], gate, rtol=OPERATION["float64"])
            np.testing.assert_allclose(out[place], right, rtol=0, atol=1e-12)


def test_equal_tokens_are_shuffled_and_padding_is_not_given_out():
    same = np.broadcast_to(X[:1, :1], X.shape)
    seen = {run(same, np.random.default_rng(seed).random(NOISE.shape))[1].tobytes() for seed in range(3)}
    assert len(seen) == 3
    real = np.arange(12) < np.array([[12], [8], [4]])
    ids = run(X, NOISE, lengths=[12, 8, 4])[1][..., 0]
    assert (np.bincount(ids[real], minlength=4) == 6).all()


def test_two_experts_for_a_token_are_refused():
    with pytest.raises(ConfigurationError, match=r"ffn\.router\.k is 2; a BASE layer gives each token 1 expert"):
        Base(2)
