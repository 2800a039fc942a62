"""On JAX a row at a time is multiplied with its expert's kernel in pieces: the product and its gradients."""

import numpy as np
import pytest
from tolerances import OPERATION

from transformer_lab.backends.frameworks import jax as jax_backend
from transformer_lab.config import component
from transformer_lab.ffn.dispatch import gather, loop
from transformer_lab.ffn.experts import Experts
from transformer_lab.model.parameters import nest

EXPERTS = Experts(3, 10, bias=True)


def found(way, precision="float64"):
    """The product and gradients of all parameters and rows: four rows, two of one expert, none of the last."""
    ops, draw = component("backend", "jax", precision=precision), np.random.default_rng(0)
    shapes = EXPERTS.shapes(22).items()
    params = nest({name: ops.place(name, draw.standard_normal(shape)) for name, shape in shapes})
    with ops.scope():
        x, ids = ops.asarray(draw.standard_normal((4, 22))), ops.asarray(np.array([1, 0, 1, 0]))
        weights = ops.asarray(draw.standard_normal((4, 22)))

        def run(given):
            return ops.xp.sum(way(ops, EXPERTS, given["params"], given["x"], ids, None) * weights)

        value, gradients = ops.compile(ops.value_and_grad(run))({"params": params, "x": x})
        return [np.asarray(leaf) for leaf in jax_backend.jax.tree.leaves((value, gradients))]


@pytest.mark.parametrize("piece", [1, 17, 45, 1 << 18])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_pieces_are_the_whole(monkeypatch, piece, precision):
    """Halves are 5 and 11 wide: pieces of one row, of three and one of 22, of nine and four, and all at once."""
    monkeypatch.setattr(jax_backend, "PIECE", piece)
    for one, other in zip(found(gather, precision), found(loop, precision), strict=True):
        assert np.abs(one - other).max() <= OPERATION[precision] * max(1.0, np.abs(other).max())


def test_a_piece_that_is_left_out_is_noticed(monkeypatch):
    monkeypatch.setattr(jax_backend, "PIECE", 45)
    right = jax_backend.jax.lax.fori_loop
    monkeypatch.setattr(
        jax_backend.jax.lax, "fori_loop", lambda first, last, step, start: right(first, last - 1, step, start)
    )
    assert np.abs(found(gather)[0] - found(loop)[0]).max() > 1e-3
