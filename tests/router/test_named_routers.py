"""Named routers against transformers' own: the experts of each token, and what the whole layer gives.

transformers' modules run in float64 with random weights. Those without one there are held against their formulas.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tolerances import OPERATION

from transformer_lab.backends.plain.manual import identity
from transformer_lab.config import component
from transformer_lab.ffn.dense import Dense
from transformer_lab.ffn.experts import Experts
from transformer_lab.ffn.moe import MixtureOfExperts
from transformer_lab.model.parameters import nest
from transformer_lab.model.tokens import tokens_of
from transformer_lab.router.deepseek_v3 import DeepSeekV3
from transformer_lab.router.deepseek_v4 import DeepSeekV4
from transformer_lab.router.expert_choice import ExpertChoice
from transformer_lab.router.gpt_oss import GptOss
from transformer_lab.router.hash import Hash
from transformer_lab.router.mixtral import Mixtral
from transformer_lab.router.olmoe import OLMoE
from transformer_lab.router.remoe import ReMoE
from transformer_lab.router.switch import Switch
from transformer_lab.router.threshold import ExpertThreshold

transformers = pytest.importorskip("transformers")
BACKENDS = ("numpy", "torch", "jax")
WIDTH, SIZE, COUNT = 16, 6, 8  # narrow experts: no layout can be told by its sizes
X = np.random.default_rng(7).standard_normal((2, 12, WIDTH))
IDS = np.random.default_rng(8).integers(0, 50, (2, 12))


def module(kind):
    """(a module of transformers in float64, our layer, our parameters)."""
    torch.manual_seed(3)
    sizes = {"hidden_size": WIDTH, "num_local_experts": COUNT, "num_experts": COUNT}
    if kind == "mixtral":
        from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock as Block

        config = transformers.MixtralConfig(**sizes, intermediate_size=SIZE, num_experts_per_tok=3)
        ffn = MixtureOfExperts(Mixtral(3), Experts(COUNT, SIZE))
    elif kind == "olmoe":
        from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock as Block

        config = transformers.OlmoeConfig(**sizes, intermediate_size=SIZE, num_experts_per_tok=3)
        ffn = MixtureOfExperts(OLMoE(3), Experts(COUNT, SIZE))
    elif kind.startswith("deepseek_v3"):
        from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE as Block

        groups = {"n_group": 4, "topk_group": 2} if kind.endswith("groups") else {"n_group": 1, "topk_group": 1}
        config = transformers.DeepseekV3Config(
            **sizes, moe_intermediate_size=SIZE, n_routed_experts=COUNT, num_experts_per_tok=3,
            n_shared_experts=1, norm_topk_prob=True, routed_scaling_factor=2.5, **groups
        )  # fmt: skip
        router = DeepSeekV3(3, groups["n_group"], groups["topk_group"], True, 2.5)
        ffn = MixtureOfExperts(router, Experts(COUNT, SIZE), Dense(SIZE, "silu", gated=True, bias=False))
        ffn = replace(ffn, balancer=component("balancer", "sign_bias"))
    else:
        from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP as Block

        config = transformers.GptOssConfig(**sizes, intermediate_size=SIZE, num_experts_per_tok=3)
        ffn = MixtureOfExperts(GptOss(3), Experts(COUNT, SIZE, bias=True, limit=7.0))
    config._experts_implementation = "eager"
    block = Block(config).double().eval()
    for tensor in [*block.parameters(), *block.buffers()]:
        torch.nn.init.normal_(tensor, std=0.8 if tensor.ndim > 1 else 0.3)
    return block, ffn, parameters(kind, block)


def parameters(kind, block):
    state = {name: tensor.detach().numpy() for name, tensor in block.state_dict().items()}
    gate = "router" if kind == "gpt_oss" else "gate"
    found = {"router.gate": state[f"{gate}.weight"].T}
    both, down = state["experts.gate_up_proj"], state["experts.down_proj"]
    if kind == "gpt_oss":  # [E, in, out], gate and up in turn
        bias = state["experts.gate_up_proj_bias"]
        found |= {"router.bias": state["router.bias"], "experts.down.kernel": down}
        found |= {"experts.gate.kernel": both[..., ::2], "experts.up.kernel": both[..., 1::2]}
        found |= {"experts.gate.bias": bias[:, ::2], "experts.up.bias": bias[:, 1::2]}
        return found | {"experts.down.bias": state["experts.down_proj_bias"]}
    both, down = both.swapaxes(1, 2), down.swapaxes(1, 2)
    found |= {"experts.gate.kernel": both[..., :SIZE], "experts.up.kernel": both[..., SIZE:]}
    found |= {"experts.down.kernel": down}
    if kind.startswith("deepseek_v3"):
        found["balancer.bias"] = state["gate.e_score_correction_bias"]
        shared = {name: state[f"shared_experts.{name}_proj.weight"].T for name in ("gate", "up", "down")}
        found |= {f"shared.{name}.kernel": array for name, array in shared.items()}
    return found


def run(ffn, params, x=X, backend="numpy", precision="float64", lengths=None):
    """(what comes out, the taps)."""
    ops, seen = component("backend", backend, precision=precision), {}
    with ops.scope():
        placed = nest({name: ops.place(name, np.ascontiguousarray(array)) for name, array in params.items()})
        lengths = None if lengths is None else ops.asarray(np.asarray(lengths))
        tokens = tokens_of(ops, ops.asarray(IDS[: len(x), : x.shape[1]]), ops.asarray(np.zeros(len(x), int)), lengths)
        y = ffn(ops, placed, ops.asarray(x), lambda name, value: seen.setdefault(name, value), tokens)
        return np.array(ops.to_numpy(y)), {name: np.array(ops.to_numpy(value)) for name, value in seen.items()}


def of_transformers(kind, block):
    with torch.no_grad():
        y = block(torch.from_numpy(X))
        gate = block.router if kind == "gpt_oss" else block.gate
        _, weights, ids = gate(torch.from_numpy(X).reshape(-1, WIDTH))
    y = y[0] if isinstance(y, tuple) else y
    return y.numpy(), ids.numpy().reshape(*X.shape[:2], -1), weights.numpy().reshape(*X.shape[:2], -1)


KINDS = ("mixtral", "olmoe", "deepseek_v3", "deepseek_v3 groups", "gpt_oss")


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_that_of_transformers(kind):
    block, ffn, params = module(kind)
    expected, ids, _ = of_transformers(kind, block)
    for backend in BACKENDS:
        found, taps = run(ffn, params, backend=backend)
        assert (np.sort(taps["router.expert_ids"]) == np.sort(ids)).all()
        # transformers' gates compute in float32 where they say so, whatever the model is kept in
        tolerance = OPERATION["float64" if kind == "gpt_oss" else "float32"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=10 * tolerance * np.abs(expected).max())


@pytest.mark.parametrize("kind", KINDS)
def test_exact_bits_are_those_of_every_backend(kind):
    _, ffn, params = module(kind)
    bits = {run(ffn, params, backend=backend, precision="exact")[0].tobytes() for backend in BACKENDS}
    assert len(bits) == 1


WRONG = {
    "softmax for sigmoid": ("deepseek_v3", DeepSeekV3, "scores", lambda self, ops, logits: ops.softmax(logits)),
    "softmax over the selected": ("olmoe", OLMoE, "weigh", Mixtral.weigh),
    "not renormalised": ("mixtral", Mixtral, "weigh", OLMoE.weigh),
    "no bias of the logits": ("gpt_oss", GptOss, "logits", Mixtral.logits),
}


@pytest.mark.parametrize("title", WRONG)
def test_a_wrong_router_is_found(title, monkeypatch):
    kind, router, method, wrong = WRONG[title]
    block, ffn, params = module(kind)
    expected, _, _ = of_transformers(kind, block)
    monkeypatch.setattr(router, method, wrong)
    found, _ = run(ffn, params)
    assert np.abs(found - expected).max() > 1e-3 * np.abs(expected).max()


CHANGES = {
    "renormalisation forgotten": lambda ffn: replace(ffn, router=replace(ffn.router, renormalise=False)),
    "scale dropped": lambda ffn: replace(ffn, router=replace(ffn.router, scale=1.0)),
    "scale twice": lambda ffn: replace(ffn, router=replace(ffn.router, scale=2.5**2)),
    "one expert more": lambda ffn: replace(ffn, router=replace(ffn.router, k=4)),
    "no shared expert": lambda ffn: replace(ffn, shared=None),
}


@pytest.mark.parametrize("title", CHANGES)
def test_a_wrong_layer_is_found(title):
    block, ffn, params = module("deepseek_v3 groups")
    expected, _, _ = of_transformers("deepseek_v3 groups", block)
    found, _ = run(CHANGES[title](ffn), params)
    assert np.abs(found - expected).max() > 1e-3 * np.abs(expected).max()


def test_a_bias_chooses_and_does_not_weigh():
    """Also where it is below 0 for a whole group, and where all scores are so small that their sum is nothing."""
    _, ffn, params = module("deepseek_v3 groups")
    _, taps = run(ffn, params | {"balancer.bias": np.r_[np.full(6, -5.0), 0.0, 0.0]})
    assert (np.sort(taps["router.expert_ids"])[..., 1:] == [6, 7]).all()
    scores = 1 / (1 + np.exp(-np.take_along_axis(taps["router.logits"], taps["router.expert_ids"], -1)))
    np.testing.assert_allclose(taps["router.weights"], 2.5 * scores / scores.sum(-1, keepdims=True), rtol=1e-12)
    _, taps = run(ffn, params | {"router.gate": 0 * params["router.gate"] - 40.0}, np.abs(X))
    assert np.isfinite(taps["router.weights"]).all()
    assert (taps["router.weights"].sum(-1) <= 2.5 + 1e-9).all()


def test_deepseek_v4_scores_are_the_root_of_softplus():
    ffn = MixtureOfExperts(DeepSeekV4(3, 1.5), Experts(COUNT, SIZE), balancer=component("balancer", "sign_bias"))
    _, _, params = module("deepseek_v3")
    params = {name: array for name, array in params.items() if not name.startswith("shared")}
    for backend in BACKENDS:
        _, taps = run(ffn, params, backend=backend)
        scores = torch.nn.functional.softplus(torch.from_numpy(X @ params["router.gate"])).sqrt().numpy()
        ids = np.argsort(-(scores + params["balancer.bias"]), axis=-1, kind="stable")[..., :3]
        assert (taps["router.expert_ids"] == ids).all()
        chosen = np.take_along_axis(scores, ids, -1)
        expected = 1.5 * chosen / chosen.sum(-1, keepdims=True)
        np.testing.assert_allclose(taps["router.weights"], expected, rtol=1e-10)


def weights_by_expert(taps):
    """[B, T, E]."""
    found = np.zeros((*X.shape[:2], COUNT))
    np.put_along_axis(found, taps["router.expert_ids"], taps["router.weights"], -1)
    return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_routers_without_a_fixed_number_of_experts_follow_their_formulas(backend):
    _, _, params = module("olmoe")
    logits = X @ params["router.gate"]
    softmax = torch.softmax(torch.from_numpy(logits), -1).numpy()
    experts, real = Experts(COUNT, SIZE), np.arange(12) < np.array([[12], [7]])
    rank = np.argsort(np.argsort(-np.where(real[..., None], softmax, -1.0), axis=1, kind="stable"), axis=1)
    places = np.ceil(2 * real.sum(1) / COUNT)[:, None, None]
    threshold = np.linspace(0.0, 0.3, COUNT)
    expected = {
        ReMoE(): np.maximum(logits, 0.0),
        ExpertThreshold(): np.where(softmax > threshold, softmax, 0.0),
        ExpertChoice(2.0): np.where((rank < places) & real[..., None], softmax, 0.0),
        Switch(1): np.where(softmax == softmax.max(-1, keepdims=True), softmax, 0.0),
    }
    for router, weights in expected.items():
        moving = component("balancer", "threshold") if isinstance(router, ExpertThreshold) else None
        ffn, own = MixtureOfExperts(router, experts, balancer=moving), dict(params)
        if moving is not None:
            own |= {"balancer.seen": np.ones(1), "balancer.threshold": threshold}
        _, taps = run(ffn, own, backend=backend, lengths=[12, 7])
        found = weights_by_expert(taps)
        np.testing.assert_allclose(found[real], weights[real], rtol=0, atol=1e-12, err_msg=str(router))


def test_a_hash_needs_no_weights_and_its_experts_are_all_others():
    ffn = MixtureOfExperts(Hash(3, COUNT, seed=5), Experts(COUNT, SIZE))
    params = {name: array for name, array in module("olmoe")[2].items() if not name.startswith("router")}
    found = [run(ffn, params, backend=backend)[1]["router.expert_ids"] for backend in BACKENDS]
    assert (found[0] == found[1]).all()
    assert (found[0] == found[2]).all()
    assert all(len(set(ids)) == 3 for ids in found[0].reshape(-1, 3).tolist())
    by_token = {}
    for token, ids in zip(IDS.ravel().tolist(), found[0].reshape(-1, 3).tolist(), strict=True):
        assert by_token.setdefault(token, ids) == ids
    ops = component("backend", "numpy")
    many = [tuple(Hash(1, COUNT, seed).choose(ops, {}, None, {}, _Ids())[0, :, 0]) for seed in (0, 1)]
    assert many[0] != many[1]
    counts = np.bincount(many[0], minlength=COUNT)
    assert counts.min() > 0.7 * counts.mean()


class _Ids:
    ids = np.arange(4000)[None]


def test_of_equal_scores_the_lower_number_is_chosen():
    _, ffn, params = module("mixtral")
    for backend in BACKENDS:
        _, taps = run(ffn, params | {"router.gate": np.zeros((WIDTH, COUNT))}, backend=backend, precision="float32")
        assert (taps["router.expert_ids"] == [0, 1, 2]).all()


def test_the_identity_tap_shows_the_same():
    _, ffn, params = module("mixtral")
    ops = component("backend", "numpy", precision="float64")
    placed = nest({name: ops.place(name, np.ascontiguousarray(array)) for name, array in params.items()})
    assert (ffn(ops, placed, X, identity, tokens_of(ops, IDS, np.zeros(2, int))) == run(ffn, params)[0]).all()
