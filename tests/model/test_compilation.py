"""What compilers see of the decoder: one graph, and no float64 in a float32 run; and what watchful arrays see."""

import jax
import numpy as np
import pytest
import torch
from watchful_backends import PoisoningNumpy, ReadOnlyNumpy, StrictBackend

import transformer_lab as lab
from transformer_lab.model.decoder import forward

IDS = np.random.default_rng(0).integers(0, 2048, (2, 12))


def test_jax_in_float32_holds_no_float64():
    model = lab.load_model("storybook", backend="jax")
    lab.load_model("storybook", backend="jax", precision="float64").logits(IDS)  # beside it, in one process
    ops, ids = model.backend, model.backend.asarray(IDS)
    start = ops.asarray(np.zeros(2, np.int64))
    program = jax.make_jaxpr(lambda params: forward(ops, model.config, params, ids, start)[0])(model.params)
    assert "f32[" in str(program)
    assert "f64[" not in str(program)
    assert "i64[" not in str(program)
    assert not jax.config.jax_enable_x64


@pytest.mark.parametrize("ops_choice", ["manual", {"linear": "torch"}])
def test_torch_traces_the_decoder_as_one_graph(ops_choice):
    model = lab.load_model("storybook", backend="torch", ops=ops_choice)
    ops = model.backend
    ids, start = ops.asarray(IDS), ops.asarray(np.zeros(2, np.int64))

    def run(params, ids, start):
        return forward(ops, model.config, params, ids, start)[0]

    with torch.inference_mode():
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")(model.params, ids, start)
        torch.testing.assert_close(compiled, run(model.params, ids, start), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "backend",
    [ReadOnlyNumpy(), PoisoningNumpy(), PoisoningNumpy(ops="fused"), StrictBackend()],
    ids=["read-only", "poisoning", "poisoning, fused", "strict"],
)
def test_the_watchful_backends_run_the_whole_model(backend):
    expected = lab.load_model("storybook", precision="float64")
    model = lab.load_model("storybook", backend=backend)
    truth = expected.logits(IDS)
    assert np.abs(model.logits(IDS) - truth).max() < 1e-5 * truth.std()
    prompts = [[5, 6, 7], [9] * 8]
    found = [row.token_ids for row in model.generate(prompts, max_new_tokens=10)]
    assert found == [row.token_ids for row in expected.generate(prompts, max_new_tokens=10)]


def test_exact_mode_writes_into_nothing_that_it_was_given():
    watchful = lab.load_model("storybook", backend=ReadOnlyNumpy("exact", "fused"))
    expected = lab.load_model("storybook", precision="exact")
    assert watchful.logits(IDS).tobytes() == expected.logits(IDS).tobytes()
    prompts = [[5, 6, 7], [9] * 8]
    found = [row.logits_sha256 for row in watchful.generate(prompts, max_new_tokens=5)]
    assert found == [row.logits_sha256 for row in expected.generate(prompts, max_new_tokens=5)]
