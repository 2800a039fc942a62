"""A dense model and the mixture of experts that is made of it: the same function, until it is trained."""

import json

import numpy as np
import pytest
from small_models import small_model
from tolerances import LOGITS_FLOAT32, LOGITS_FLOAT64

import transformer_lab as lab
from transformer_lab.config import component
from transformer_lab.ffn.dense import Dense
from transformer_lab.ffn.packed import Packed
from transformer_lab.language_model import assemble, with_parts
from transformer_lab.model.init import initialise
from transformer_lab.model.parameters import flatten, shapes
from transformer_lab.router.mixtral import Mixtral
from transformer_lab.router.olmoe import OLMoE
from transformer_lab.training.optimizer import AdamW
from transformer_lab.training.step import TrainingStep

IDS = np.random.default_rng(0).integers(0, 97, (2, 12))
GATED = {"position": "rotary", "norm": "rms_norm", "attention_bias": False}


def dense(kind="gated", backend="numpy", precision="float64"):
    ffn = Dense(20, "silu", gated=True, bias=False) if kind == "gated" else Dense(24)
    config = small_model(97, 16, 16, 3, 2, ffn, **(GATED if kind == "gated" else {}))
    rng = np.random.default_rng(1)
    arrays = {name: rng.standard_normal(shape).astype(np.float32) * 0.2 for name, shape in shapes(config).items()}
    return assemble(config, arrays, component("backend", backend, precision=precision, ops="fused"))


def apart(one, other):
    return np.abs(one.logits(IDS) - other.logits(IDS)).max() / other.logits(IDS).std()


@pytest.mark.parametrize("kind", ["gated", "plain with biases"])
@pytest.mark.parametrize(("backend", "precision"), [("numpy", "float64"), ("torch", "float32"), ("jax", "float64")])
@pytest.mark.parametrize(("experts", "k", "layers"), [(4, 2, None), (5, 5, [2, 0])])
def test_it_computes_what_the_dense_model_does(kind, backend, precision, experts, k, layers):
    pytest.importorskip(backend)
    before = dense(kind, backend, precision)
    after = lab.upcycled(before, experts, Mixtral(k), layers)
    sparse = [hasattr(block.ffn, "experts") for block in after.config.blocks]
    assert sparse == [layers is None or layer in layers for layer in range(3)]
    assert after.parameters_count > before.parameters_count
    assert apart(after, before) < (LOGITS_FLOAT64 if precision == "float64" else LOGITS_FLOAT32)
    ids = after.record(IDS, "blocks.0.ffn.router.expert_ids")["blocks.0.ffn.router.expert_ids"]
    assert len(np.unique(ids)) == experts, "the router spreads the tokens"
    assert apart(lab.upcycled(before, experts, OLMoE(1), layers), before) > 0.01, "weights that do not sum to 1"


def trained(config, arrays, backend):
    """The parameters after three steps that the text alone decides."""
    step = TrainingStep(backend, config, arrays, AdamW(1e-2, weight_decay=0.0))
    for number in (1, 2, 3):
        step.run(IDS[None], np.ones((1, 2, 11), np.float32), number, 1.0)
    return step.trees()["params"]


def test_training_makes_experts_differ_and_moves_the_router():
    pytest.importorskip("torch")
    model = lab.upcycled(dense(backend="torch", precision="float32"), 4, balance_loss=0.0)
    arrays = {
        name: model.backend.recover(name, parameter)
        for name, parameter in flatten(model.params)
        if name in shapes(model.config)
    }
    experts, gate = "blocks.1.ffn.experts.up.kernel", "blocks.1.ffn.router.gate"
    assert all(np.array_equal(arrays[experts][0], one) for one in arrays[experts])
    found = trained(model.config, arrays, model.backend)
    assert all(not np.array_equal(found[experts][0], one) for one in found[experts][1:])
    assert not np.array_equal(found[gate], arrays[gate])
    # one expert for a token is refused, if its weight is always 1: the gate would never move
    with pytest.raises(lab.ConfigurationError, match="would learn nothing"):
        trained(with_parts(model.config, router=Mixtral(1)), arrays, model.backend)


def test_llama_becomes_mixtral(tmp_path):
    lab.upcycled(dense(), 4).save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "mixtral"
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    with torch.no_grad():
        expected = theirs(torch.as_tensor(IDS)).logits.numpy()
    assert np.abs(dense().logits(IDS) - expected).max() < LOGITS_FLOAT32 * expected.std()


def test_what_cannot_be_upcycled():
    model = dense()
    with pytest.raises(lab.ConfigurationError, match="learn nothing"):
        lab.upcycled(model, 4, Mixtral(1))
    with pytest.raises(lab.ConfigurationError, match=r"ffn\.experts\.count is 3"):
        lab.upcycled(model, 3, Mixtral(4))
    for layers in ([3], [-1]):
        with pytest.raises(lab.ConfigurationError, match="no such layer"):
            lab.upcycled(model, layers=layers)
    with pytest.raises(lab.ConfigurationError, match="MixtureOfExperts, not Dense"):
        lab.upcycled(lab.upcycled(model))
    config = small_model(97, 16, 16, 1, 2, Packed(20, "silu"), **GATED)
    packed = assemble(config, dict(initialise(config)), component("backend", "numpy", precision="float32", ops="fused"))
    with pytest.raises(lab.ConfigurationError, match="Packed, not Dense"):
        lab.upcycled(packed)
