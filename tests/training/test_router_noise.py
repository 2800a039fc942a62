"""What routers are given at random: in training alone, the same on every backend, and the same when a run goes on."""

from dataclasses import replace

import numpy as np
import pytest
from small_models import small_model
from test_expert_training import BACKENDS, PARTLY, close
from tolerances import LOSS_CURVE

from transformer_lab.config import component
from transformer_lab.errors import ConfigurationError
from transformer_lab.ffn.dense import Dense
from transformer_lab.ffn.experts import Experts
from transformer_lab.ffn.moe import MixtureOfExperts
from transformer_lab.language_model import assemble
from transformer_lab.model.init import initialise
from transformer_lab.model.parameters import shapes
from transformer_lab.router.base import Base
from transformer_lab.router.deepseek_v3 import DeepSeekV3
from transformer_lab.router.deepseek_v4 import DeepSeekV4
from transformer_lab.router.gpt_oss import GptOss
from transformer_lab.router.gshard import GShard
from transformer_lab.router.mixtral import Mixtral
from transformer_lab.router.noisy_top_k import NoisyTopK
from transformer_lab.router.olmoe import OLMoE
from transformer_lab.router.switch import Switch
from transformer_lab.router.table import Table
from transformer_lab.training import step as step_module
from transformer_lab.training.optimizer import AdamW
from transformer_lab.training.step import TrainingStep

EXPERTS = Experts(4, 24)
KINDS = {"uniform": GShard(), "normal": NoisyTopK(2, importance_loss=0.0, load_loss=0.0)}  # no losses of a piece


def config(router, other=None):
    """Two layers: the second with `other`, or like the first."""
    made = small_model(61, 12, 32, 2, 4, MixtureOfExperts(router, EXPERTS, balance_loss=0.02))
    if other is None:
        return made
    return replace(made, blocks=(made.blocks[0], replace(made.blocks[1], ffn=other)))


def begun(backend, config, precision="float64", seed=0):
    ops = component("backend", backend, precision=precision)
    arrays = {
        name: (array * (20.0 if name.endswith(".gate") else 1.0)).astype(np.float64 if precision == "float64" else "f4")
        for name, array in initialise(config, 0)
    }
    return TrainingStep(ops, config, arrays, AdamW(), noise_seed=seed)


def run(training, pieces=1, first=1, last=3):
    found, draw = [], np.random.default_rng(5)
    for step in range(1, last + 1):
        ids = draw.integers(0, 61, (8, 13)).reshape(pieces, 8 // pieces, 13)
        if step >= first:
            found.append(training.run(ids, PARTLY.reshape(pieces, 8 // pieces, 12), step, 1.0))
    return np.array(found)


@pytest.mark.parametrize("kind", KINDS)
def test_three_backends_draw_alike_in_any_number_of_pieces(kind):
    one = begun("numpy", config(KINDS[kind]))
    expected = run(one)
    for backend, pieces in (("numpy", 4), ("torch", 1), ("torch", 8), ("jax", 2)):
        training = begun(backend, config(KINDS[kind]))
        np.testing.assert_allclose(run(training, pieces), expected, rtol=0, atol=LOSS_CURVE["float64"])
        close(training.trees()["params"], one.trees()["params"])
        for layer in (0, 1):
            close(training.told[layer], one.told[layer])
    assert np.abs(run(begun("numpy", config(KINDS[kind]), seed=1)) - expected).max() > 1e-6


def test_base_layers_train_alike_on_three_backends():
    """Tokens are given out among those of one piece, so other pieces are another training."""
    found = [begun(backend, config(Base())) for backend in BACKENDS]
    losses = [run(training, 2) for training in found]
    for training, loss in zip(found[1:], losses[1:], strict=True):
        np.testing.assert_allclose(loss, losses[0], rtol=0, atol=LOSS_CURVE["float64"])
        close(training.trees()["params"], found[0].trees()["params"])
    for layer in (0, 1):
        load = found[0].told[layer]["load"]
        assert (load.max() - load.min()) <= 2 * 3  # of two pieces, each with up to 3 places left over
    assert np.abs(run(begun("numpy", config(Base())), 1) - losses[0]).max() > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn(kind):
    """Of each layer and step other numbers, of the distribution that is named; of layers that want none, none."""
    training = begun("numpy", config(KINDS[kind]))
    drawn = [training._noise(step, (2, 40, 50)) for step in (1, 2, 1)]
    assert set(drawn[0]) == {0, 1}
    assert drawn[0][0].shape == (2, 40, 50, 4)
    assert drawn[0][0].dtype == np.float32
    assert all((drawn[0][layer] == drawn[2][layer]).all() for layer in (0, 1))
    different = [
        drawn[0][0],
        drawn[0][1],
        drawn[1][0],
        begun("numpy", config(KINDS[kind]), seed=1)._noise(1, (2, 40, 50))[0],
    ]
    for i, one in enumerate(different):
        mean, deviation = {"normal": (0.0, 1.0), "uniform": (0.5, 12.0**-0.5)}[kind]
        assert abs(one.mean() - mean) < 0.05
        assert abs(one.std() - deviation) < 0.05
        assert (kind == "normal") == (one.min() < 0.0)
        assert all(abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.05 for other in different[:i])
    assert set(begun("numpy", config(KINDS[kind], Dense(24)))._noise(1, (1, 2, 3))) == {0}
    assert begun("numpy", config(OLMoE(2)))._noise(1, (1, 2, 3)) == {}


def test_second_experts_are_left_out_as_often_as_their_weights_say(monkeypatch):
    """The kept slots of a layer, counted by hand from the noise and the weights of the same parameters."""
    training = begun("numpy", config(GShard(), Dense(24)))
    seen, right_weigh, right_kept = [], GShard.weigh, GShard.kept

    def weigh(*given):
        seen.append(right_weigh(*given))
        return seen[-1]

    numbers = []

    def kept(self, ops, logits, ids, state, tokens):
        numbers.append((ids, tokens.noise))
        return right_kept(self, ops, logits, ids, state, tokens)

    monkeypatch.setattr(GShard, "weigh", weigh)
    monkeypatch.setattr(GShard, "kept", kept)
    run(training, last=1)
    noise, (ids, given) = training._noise(1, (1, 8, 12))[0][0], numbers[-1]
    np.testing.assert_array_equal(np.asarray(getattr(given, "value", given)), noise)
    ids, weights = (np.asarray(getattr(array, "value", array)) for array in (ids, seen[-1]))
    second = np.take_along_axis(noise, ids[..., 1:], axis=-1)[..., 0] < 2.0 * weights[..., 1]
    real = PARTLY > 0
    assert training.told[0]["kept"] == real.sum() + (second & real).sum()
    assert 0.02 < 1.0 - (second & real).sum() / real.sum() < 0.98


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_that_goes_on_draws_the_same(backend):
    whole, half = (begun(backend, config(KINDS["normal"], config(GShard()).blocks[0].ffn), "float32") for _ in range(2))
    run(whole, last=4)
    run(half, last=2)
    later = begun(backend, config(KINDS["normal"], config(GShard()).blocks[0].ffn), "float32")
    later.restore(half.trees())
    run(later, first=3, last=4)
    for name, array in whole.trees()["params"].items():
        assert array.tobytes() == later.trees()["params"][name].tobytes(), name


@pytest.mark.parametrize("kind", KINDS)
def test_outside_training_nothing_is_drawn(kind, monkeypatch):
    seen, right = [], MixtureOfExperts.__call__

    def call(self, ops, params, x, tap, tokens):
        seen.append(tokens.noise)
        return right(self, ops, params, x, tap, tokens)

    monkeypatch.setattr(MixtureOfExperts, "__call__", call)
    made = config(KINDS[kind])
    model = assemble(made, dict(initialise(made, 0)), component("backend", "numpy"))
    model.loss([3, 4, 5, 6])
    model.generate([3, 4], max_new_tokens=3)
    model.record([3, 4, 5], "blocks.0.ffn.router.weights")
    assert seen
    assert all(noise is None for noise in seen)
    begun("numpy", made).run(np.ones((1, 2, 13), int), np.ones((1, 2, 12)), 1, 1.0)
    assert seen[-1] is not None


V3 = DeepSeekV3(2, n_groups=2, top_groups=1)
BUSY = [Switch(), Base(), GShard(), NoisyTopK(2), V3, DeepSeekV4(2), Table(2, vocab_size=61), GptOss(2), Mixtral(2)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("router", BUSY, ids=lambda router: type(router).__name__)
def test_everything_of_each_router_is_learned_but_a_table(router, backend):
    made = config(router)
    made = replace(
        made, blocks=tuple(replace(block, ffn=replace(block.ffn, balance_loss=0.0)) for block in made.blocks)
    )
    training = begun(backend, made)
    before = training.trees()["params"]
    run(training, last=2)
    after = training.trees()["params"]
    for name in shapes(made):
        if ".router." in name:
            assert (np.abs(after[name] - before[name]).max() > 1e-6) == (not name.endswith(".table")), name


# --- routers that would learn nothing ---------------------------------------------------------------------------------

IDLE = [
    Mixtral(1),
    GShard(1),
    NoisyTopK(1, importance_loss=0.0, load_loss=0.0),
    DeepSeekV3(1),
    DeepSeekV4(1),
    GptOss(1),
]


@pytest.mark.parametrize("router", IDLE, ids=lambda router: type(router).__name__)
def test_a_router_that_would_learn_nothing_is_not_trained(router, monkeypatch):
    """It is refused for a reason: without the refusal the gate has a gradient of 0. It runs all the same."""
    made = config(OLMoE(2), MixtureOfExperts(router, EXPERTS))
    with pytest.raises(ConfigurationError, match=r"router of layer 1 would learn nothing: .*k=1"):
        begun("torch", made)
    model = assemble(made, dict(initialise(made, 0)), component("backend", "numpy"))
    assert np.isfinite(model.logits([1, 2, 3])).all()
    monkeypatch.setattr(step_module, "require_learning", lambda config: None)
    training = begun("torch", made)
    run(training, last=1)
    gate = "blocks.1.ffn.router.gate"
    assert np.abs(training.trees()["first"][gate]).max() < 1e-12
    assert np.abs(training.trees()["first"]["blocks.0.ffn.router.gate"]).max() > 1e-8


def test_one_expert_with_a_weight_of_its_own_is_trained():
    for router in (Switch(), OLMoE(1), DeepSeekV3(1, renormalise=False), Table(1, vocab_size=61)):
        begun("torch", config(router))


def test_the_job_refuses_too(tmp_path, capsys):
    from transformer_lab.cli import main

    (tmp_path / "text.txt").write_text("Once upon a time.\n<|endoftext|>\n" * 3000, encoding="utf-8")
    words = ["job=train", "model.weights=random", "ffn=moe", "backend=torch", "job.steps=1"]
    words += [f"data.path={tmp_path}/text.txt", f"hydra.run.dir={tmp_path}/run"]
    assert main([*words, "ffn.router.k=1"]) == 2
    assert "would learn nothing" in capsys.readouterr().err
    assert not list((tmp_path / "run").rglob("*.safetensors"))
