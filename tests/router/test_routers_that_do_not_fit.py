"""Routers, balancers and other parts of a mixture that are none for each other, and contracts that are broken."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
from reference_models import save_gpt2
from small_mixtures import built, ids, mixture, weights

import transformer_lab as lab
from transformer_lab.balancer.adaptive_l1 import AdaptiveL1
from transformer_lab.balancer.sign_bias import SignBias
from transformer_lab.balancer.threshold import Threshold
from transformer_lab.cli import main
from transformer_lab.config import names
from transformer_lab.errors import ConfigurationError
from transformer_lab.ffn.capacity import Capacity
from transformer_lab.ffn.experts import Experts
from transformer_lab.ffn.moe import MixtureOfExperts
from transformer_lab.router.deepseek_v4 import DeepSeekV4
from transformer_lab.router.expert_choice import ExpertChoice
from transformer_lab.router.hash import Hash
from transformer_lab.router.mixtral import Mixtral
from transformer_lab.router.remoe import ReMoE
from transformer_lab.router.room import room
from transformer_lab.router.router import Router
from transformer_lab.router.table import Table
from transformer_lab.router.threshold import ExpertThreshold

EXPERTS = Experts(4, 8)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"router": "olmoe"}, r"ffn\.router is 'olmoe'; it must be a part\. On the command line, router=NAME"),
        ({"balancer": "sign_bias"}, r"ffn\.balancer is 'sign_bias'; .*balancer=NAME"),
        ({"shared": "dense"}, r"ffn\.shared is 'dense'; it must be a part\."),
        ({"capacity": 1.0}, r"ffn\.capacity is 1\.0; it must be a part\."),
        ({"experts": 8}, r"ffn\.experts is 8; it must be a part\. .*ffn\.experts\.count=8"),
        ({"router": Mixtral}, r"ffn\.router is .*; it must be a part"),
        ({"balancer": AdaptiveL1()}, "AdaptiveL1, which moves the sparsity of a router, and Mixtral has none"),
        ({"balancer": Threshold()}, "Threshold, which moves the threshold of a router, and Mixtral has none"),
        ({"router": Hash(1, 4), "balancer": SignBias()}, "SignBias, which moves the bias .* Hash has none"),
        ({"router": Table(2), "balancer": SignBias()}, "SignBias, which moves the bias .* Table has none"),
        ({"router": ReMoE(), "balancer": SignBias()}, "SignBias, which moves the bias .* ReMoE has none"),
        ({"router": ExpertChoice(), "balancer": SignBias()}, "SignBias, which .* ExpertChoice has none"),
        ({"router": ExpertThreshold()}, "ExpertThreshold needs its balancer, .*Say balancer=threshold"),
    ],
)
def test_what_does_not_fit_is_refused(parts, said):
    with pytest.raises(lab.ConfigurationError, match=said):
        MixtureOfExperts(**{"router": Mixtral(2), "experts": EXPERTS} | parts)


def test_what_fits_is_taken_together():
    for router, balancer in ((ExpertThreshold(), Threshold()), (ReMoE(), AdaptiveL1()), (DeepSeekV4(2), SignBias())):
        MixtureOfExperts(router, EXPERTS, balancer=balancer)
    options = {"weights": "random", "ffn": MixtureOfExperts(Mixtral(2), EXPERTS)}
    model = lab.load_model("storybook", router="threshold", balancer="threshold", **options)
    assert isinstance(model.config.blocks[0].ffn.router, ExpertThreshold)


# --- routers from outside ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Late(Mixtral):
    """The second slot is used by every other token; it does not say so anywhere else."""

    def kept(self, ops, logits, ids, state, tokens):
        numbers = ops.xp.arange(ids.shape[1], dtype=ids.dtype, device=ops.array_device)
        return (ids * 0 + numbers[None, :, None]) % 2 < 1


@dataclass(frozen=True)
class Never(Mixtral):
    def kept(self, ops, logits, ids, state, tokens):
        return None


@dataclass(frozen=True)
class ThreeForTwo(Mixtral):
    def choose(self, ops, params, logits, state, tokens):
        return ops.top_k(logits, 3)[1]


@dataclass(frozen=True)
class WithoutWeights(Router):
    k: int = 2


@dataclass(frozen=True)
class WithoutSlots(Router):
    sharpness: float = 1.0


def test_a_router_that_keeps_fewer_slots_need_not_say_so():
    model = built(made=weights(mixture(experts=6, k=2)), precision="float64")
    config = replace(
        model.config,
        blocks=tuple(replace(block, ffn=replace(block.ffn, router=Late(2))) for block in model.config.blocks),
    )
    late = built(made=(config, weights()[1]), precision="float64")
    kept = late.record(ids(8), "blocks.0.ffn.router.kept")["blocks.0.ffn.router.kept"]
    assert kept[0].tolist() == [[True, True], [False, False]] * 4
    report = lab.routing(late, [ids(8).tolist()])
    assert report.layers[0]["dropped_slots"] == 0.0  # its own rule, and no lack of room
    assert sum(report.layers[0]["load"]) == 8
    assert lab.routing(model, [ids(8).tolist()]).layers[0]["load"] != report.layers[0]["load"]


def test_a_kept_that_says_nothing_keeps_all():
    config, arrays = weights(replace(mixture(), router=Never(2)))
    found = built(made=(config, arrays)).record(ids(6))
    assert found["blocks.1.ffn.router.kept"].all()
    np.testing.assert_array_equal(found["logits"], built(made=weights()).record(ids(6))["logits"])


def test_broken_contracts_are_named():
    with pytest.raises(lab.ConfigurationError, match="ThreeForTwo chose 3 experts for a token, and its k says 2"):
        built(made=weights(replace(mixture(), router=ThreeForTwo(2)))).logits(ids(4))
    with pytest.raises(lab.ConfigurationError, match="WithoutWeights has no weigh"):
        built(made=weights(replace(mixture(), router=WithoutWeights()))).logits(ids(4))
    with pytest.raises(lab.ConfigurationError, match=r"ffn\.router\.k is null"):
        WithoutSlots()


@dataclass(frozen=True)
class Beyond(Mixtral):
    """On torch, experts that there are not."""

    def choose(self, ops, params, logits, state, tokens):
        return super().choose(ops, params, logits, state, tokens) + (100 if ops.name == "torch" else 0)


def test_experts_that_there_are_not_are_a_defect(tmp_path):
    save_gpt2(tmp_path)
    options = {"weights": "random", "ffn": MixtureOfExperts(Beyond(2), Experts(4, 8))}
    words = {"exact": False, "gradients": False, "new_tokens": 0, "options": options}
    with pytest.raises(lab.ConfigurationError, match=r"A router chose expert 10\d of 4"):  # a row at a time
        lab.compare(tmp_path, [7, 8, 9], ["numpy", "torch"], **words)
    report = lab.compare(tmp_path, list(range(20)), ["numpy", "torch"], **words)
    assert report.status == "defect" and report.first_divergence.tap == "blocks.0.ffn.router.expert_ids"
    assert report.first_divergence.participant == "torch float32"


def test_arithmetic_is_judged_where_no_text_is_asked_for(tmp_path):
    save_gpt2(tmp_path)
    for ffn in (MixtureOfExperts(ExpertChoice(), EXPERTS), MixtureOfExperts(Mixtral(2), EXPERTS, capacity=Capacity())):
        options = {"weights": "random", "ffn": ffn}
        found = [
            lab.compare(tmp_path, [7, 8, 9, 4], ["numpy"], exact=False, new_tokens=count, options=options).status
            for count in (0, 2)
        ]
        assert found == ["sound", "not judged"]


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_room_is_that_of_the_factor_as_it_is_written():
    assert room(1.1, 40, 4) == 11 and room(2.2, 50, 10) == 11 and room(1.25, 3, 4) == 1 and room(0.07, 100) == 7
    assert [room(1.0, count, 4) for count in (0, 1, 4, 5)] == [0, 1, 1, 2]


def test_experts_choose_where_there_are_as_many_places_as_experts():
    places = {factor: [ExpertChoice(factor)._places(count, 6) for count in (5, 6, 100)] for factor in (1.0, 1.1, 0.29)}
    assert places == {1.0: [None, 1, 17], 1.1: [None, 2, 19], 0.29: [None, None, 5]}
    assert ExpertChoice(0.29)._places(100, 29) == 1  # 28.999999999999996 in binary


def test_upcycling_takes_the_name_of_a_router(tmp_path):
    save_gpt2(tmp_path)
    sparse = lab.upcycled(lab.load_model(tmp_path), experts=8, router="olmoe")
    assert type(sparse.config.blocks[0].ffn.router).__name__ == "OLMoE"
    with pytest.raises(lab.ConfigurationError, match="There is no router=olmo"):
        lab.upcycled(lab.load_model(tmp_path), experts=4, router="olmo")


MIXTURES = [name for name in names("ffn") if name not in ("dense", "packed", "clamped", "soft_moe")]


@pytest.mark.parametrize("name", MIXTURES)
def test_every_named_mixture_is_trained_from_the_command_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("The king said to his son that the old woman had a house in the wood.\n" * 100)
    words = ["job=train", f"ffn={name}", "ffn.experts.size=8", "data.path=text.txt", "job.batch_size=2", "job.steps=2"]
    words += ["model=new", "model.hidden_size=16", "model.num_layers=1", "model.num_heads=2", "model.context_length=16"]
    words += ["job.evaluation_tokens=64", "hydra.run.dir=run"]
    assert main(words) == 0
    assert np.isfinite(lab.load_model("run/model").logits([3, 4, 5])).all()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["balance_loss"]) for line in lines if "loss" in line)


@dataclass(frozen=True)
class OneWeightForAll(Router):
    k: int = 2

    def weigh(self, ops, params, logits, ids):
        return logits


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"])
def test_weights_of_another_shape_than_the_choice_are_refused(backend):
    model = built(backend, ffn=MixtureOfExperts(OneWeightForAll(), EXPERTS))
    with pytest.raises(ConfigurationError, match=r"OneWeightForAll gave weights of the shape \(1, \d+, 4\)"):
        model.logits(ids(5))


@pytest.mark.parametrize(
    ("gives", "said"),
    [
        (lambda state: {"bias": state["bias"][:2]}, r"moved gave \{'bias': \(2,\)\}; .* \{'bias': \(4,\)\}"),
        (lambda state: {"bais": state["bias"]}, r"moved gave \{'bais'"),
        (lambda state: None, r"moved gave None"),
    ],
)
def test_a_balancer_that_moves_something_else_is_told_so(gives, said):
    @dataclass(frozen=True)
    class Odd(SignBias):
        def moved(self, ops, state, found):
            return gives(state)

    mixture = MixtureOfExperts(Mixtral(), EXPERTS, balancer=Odd(0.01))
    with pytest.raises(ConfigurationError, match=said):
        mixture.moved(None, {"bias": np.zeros(4)}, {})


def test_a_balancer_that_adds_nothing_to_training_is_none():
    class NoTerms:
        def states(self, experts):
            return {"bias": (experts,)}

        def moved(self, ops, state, found):
            return state

    with pytest.raises(ConfigurationError, match=r"ffn\.balancer is .*; it must be a part"):
        MixtureOfExperts(Mixtral(), EXPERTS, balancer=NoTerms())


def test_a_router_that_gives_way_is_not_complained_of(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["ffn=moe", "ffn.experts.count=1", "ffn.experts.size=8", "model.weights=random", "max_new_tokens=2"]
    assert main([*words, "router=olmoe", "router.k=1", "prompt=The"]) == 0
    assert main([*words, "prompt=The"]) == 2
    assert "ffn.router.k is 2, and ffn.experts.count is 1" in capsys.readouterr().err
