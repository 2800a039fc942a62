"""Named routers in whole layers: against transformers and loops, exact bits, and mistakes that would be noticed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from reference_layers import CASES, VOCAB, Batch, D, E
from small_models import small_model
from tolerances import OPERATION
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

import transformer_lab as lab
from transformer_lab.comparison.judging.training_loss import parameter_gradients
from transformer_lab.config import component, names
from transformer_lab.errors import ConfigurationError
from transformer_lab.ffn.clamped import Clamped
from transformer_lab.ffn.experts import Experts
from transformer_lab.language_model import assemble
from transformer_lab.model.init import initialise
from transformer_lab.model.parameters import nest, shapes
from transformer_lab.model.tokens import tokens_of
from transformer_lab.router import deepseek_v3 as v3
from transformer_lab.router.deepseek_v3 import DeepSeekV3
from transformer_lab.router.deepseek_v4 import DeepSeekV4
from transformer_lab.router.gates import at, renormalised
from transformer_lab.router.gpt_oss import GptOss
from transformer_lab.router.gshard import GShard
from transformer_lab.router.mixtral import Mixtral
from transformer_lab.router.noisy_top_k import NoisyTopK
from transformer_lab.router.olmoe import OLMoE
from transformer_lab.router.router import Router
from transformer_lab.router.switch import Switch
from transformer_lab.router.table import Table

BACKENDS = ("numpy", "torch", "jax")
B, T = 3, 800  # enough tokens that some are undecided by less than the bits of bfloat16


def drawn(case):
    """Random parameters, none of them 0, and a batch. The inner values of experts reach the clamp of GPT-OSS."""
    draw = np.random.default_rng(6)
    arrays = {}
    for name, shape in case.layer.shapes(D).items():
        arrays[name] = draw.normal(size=shape) * (0.3 if "router" in name or "balancer" in name else 1.0)
    if "router.table" in arrays:
        arrays["router.table"] = np.array([draw.permutation(E)[:3] for _ in range(VOCAB)], float)
    noise = {None: None, "normal": draw.normal(size=(B, T, E)), "uniform": draw.uniform(size=(B, T, E))}[case.noise]
    return arrays, Batch(draw.normal(size=(B, T, D)), draw.integers(0, VOCAB, (B, T)), noise)


def computed(case, backend, arrays, batch):
    """(ids, weights, out) as in `reference_layers`, of our layer."""
    ops, seen = component("backend", backend, precision="float64"), {}

    def look(name, x):
        seen[name] = ops.to_numpy(x)
        return x

    with ops.scope():
        tokens = tokens_of(ops, ops.asarray(batch.ids), ops.asarray(np.zeros(B, int)))
        tokens = tokens._replace(noise=None if batch.noise is None else ops.asarray(batch.noise))
        params = nest({name: ops.asarray(array) for name, array in arrays.items()})
        out = ops.to_numpy(case.layer(ops, params, ops.asarray(batch.x), look, tokens))
    ids, weights = seen["router.expert_ids"], seen["router.weights"]
    return ids.reshape(B * T, -1), weights.reshape(B * T, -1), out.reshape(B * T, D)


def judge(title, backend="numpy"):
    case = CASES[title]
    arrays, batch = drawn(case)
    found, right = computed(case, backend, arrays, batch), case.reference(case.layer, arrays, batch)
    orders = [np.argsort(ids, axis=-1) for ids, _, _ in (found, right)]
    for index, what in enumerate(("ids", "weights")):
        one, other = (
            np.take_along_axis(part[index], order, 1) for part, order in zip((found, right), orders, strict=True)
        )
        bound = 0.0 if what == "ids" else OPERATION[case.precision] * np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=bound, err_msg=what)
    np.testing.assert_allclose(found[2], right[2], rtol=0, atol=OPERATION[case.precision] * np.abs(right[2]).max())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("title", CASES)
def test_layers_are_those_of_others(title, backend):
    judge(title, backend)


def test_the_cases_show_what_they_are_there_for():
    """Tokens are dropped, clamps are reached, groups and biases change the choice, and not all experts are alike."""
    for title, change in (
        ("deepseek_v3", {"n_groups": 1, "top_groups": 1}),
        ("deepseek_v3 as it is", {"scale": 0.4}),
    ):
        case = CASES[title]
        arrays, batch = drawn(case)
        other = replace(case, layer=replace(case.layer, router=replace(case.layer.router, **change)))
        one, two = (computed(each, "numpy", arrays, batch) for each in (case, other))
        assert any((a != b).mean() > 0.1 for a, b in zip(one, two, strict=True))
    for title in ("switch", "gshard", "gshard with room"):
        _, weights, _ = computed(CASES[title], "numpy", *drawn(CASES[title]))
        assert 0.01 < (weights == 0.0).mean() < 0.5, title
    for title in ("gpt_oss", "deepseek_v4"):
        (arrays, batch), limit = drawn(CASES[title]), CASES[title].layer.experts.limit
        for part, kernel in (("gate", arrays["experts.gate.kernel"][0]), ("up", arrays["experts.up.kernel"][0])):
            inner = batch.x.reshape(-1, D) @ kernel
            assert (inner > limit).mean() > 0.01, (title, part)
            assert (inner < -limit).mean() > 0.01, (title, part)


# --- what would be noticed --------------------------------------------------------------------------------------------


def swapped(monkeypatch):
    right = Experts.__call__
    other = {"gate": "up", "up": "gate", "down": "down"}
    monkeypatch.setattr(Experts, "__call__", lambda self, ops, product, x: right(
        self, ops, lambda name, rows: product(other[name], rows), x
    ))  # fmt: skip


def clamped_after(monkeypatch):
    def call(self, ops, product, x):
        gate, up = product("gate", x), product("up", x)
        if self.sharpness is None:
            return product("down", ops.xp.clip(ops.silu(gate) * up, -self.limit, self.limit))
        return product("down", ops.xp.clip(gate * ops.sigmoid(gate * self.sharpness) * (up + 1.0), None, self.limit))

    monkeypatch.setattr(Experts, "__call__", call)


def sharp(monkeypatch):
    """GPT-OSS's form."""
    right = Experts.__call__
    monkeypatch.setattr(Experts, "__call__", lambda self, *rest: right(replace(self, sharpness=1.0), *rest))


def limited(experts=True, shared=True, gate_below=False):
    """Where the clamp is forgotten, or is for the gate at both ends."""

    def change(monkeypatch):
        for kind, kept in ((Experts, experts), (Clamped, shared)):
            right = kind.__call__
            if not kept:
                monkeypatch.setattr(kind, "__call__", lambda self, *rest, right=right: right(
                    replace(self, limit=1e9), *rest
                ))  # fmt: skip
        if gate_below:
            monkeypatch.setattr(Experts, "__call__", lambda self, ops, product, x: product(
                "down", ops.silu(ops.xp.clip(product("gate", x), -self.limit, self.limit))
                * ops.xp.clip(product("up", x), -self.limit, self.limit),
            ))  # fmt: skip

    return change


def weighed(kind, function):
    """The weights are function(what they were, self, ops, logits, ids)."""

    def change(monkeypatch):
        right = kind.weigh
        monkeypatch.setattr(kind, "weigh", lambda self, ops, params, logits, ids: function(
            right(self, ops, params, logits, ids), self, ops, logits, ids
        ))  # fmt: skip

    return change


def chosen(kind, function):
    """The choice is that by function(ops, logits), or of more than k."""

    def change(monkeypatch):
        right = kind.choose
        monkeypatch.setattr(kind, "choose", lambda self, ops, params, logits, state, tokens: right(
            *function(self, ops, params, logits, state, tokens)
        ))  # fmt: skip

    return change


def in_bfloat16(self, ops, params, logits, state, tokens):
    bits = np.asarray(logits, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return self, ops, params, rounded.astype(np.float64), state, tokens


def one_more(self, ops, params, logits, state, tokens):
    return replace(self, k=self.k + 1), ops, params, logits, state, tokens


def biased(title):
    """The bias of the balancer of this case, in the weights too."""
    bias = drawn(CASES[title])[0]["balancer.bias"]

    def weights(was, self, ops, logits, ids):
        return renormalised(ops, at(ops, self.scores(ops, logits) + bias, ids)) * self.scale

    return weights


MUTATIONS = {
    "softmax for sigmoid": ("deepseek_v3", lambda m: m.setattr(DeepSeekV3, "scores", Router.scores)),
    "sigmoid for sqrt(softplus)": ("deepseek_v4", lambda m: m.setattr(DeepSeekV4, "scores", DeepSeekV3.scores)),
    "no square root": ("table", lambda m: m.setattr(DeepSeekV4, "scores", lambda self, ops, x: v3.softplus(ops, x))),
    "softmax over the selected: olmoe": ("olmoe", lambda m: m.setattr(OLMoE, "weigh", Mixtral.weigh)),
    "softmax over the selected: switch": ("switch", lambda m: m.setattr(Switch, "weigh", Mixtral.weigh)),
    "softmax over all: gpt_oss": ("gpt_oss", lambda m: m.setattr(GptOss, "weigh", OLMoE.weigh)),
    "softmax over all: noisy_top_k": ("noisy_top_k", lambda m: m.setattr(NoisyTopK, "weigh", OLMoE.weigh)),
    "not renormalised: mixtral": ("mixtral", lambda m: m.setattr(Mixtral, "weigh", OLMoE.weigh)),
    "not renormalised: gshard": ("gshard without noise", lambda m: m.setattr(GShard, "weigh", OLMoE.weigh)),
    "renormalised without a second expert": (
        "gshard",
        weighed(GShard, lambda was, self, ops, logits, ids: np.where(was < 0.3, 0.0, np.round(was + 0.2))),
    ),
    "not renormalised: v3": (
        "deepseek_v3",
        weighed(DeepSeekV3, lambda was, self, ops, logits, ids: at(ops, self.scores(ops, logits), ids) * self.scale),
    ),
    "not renormalised: v4": (
        "deepseek_v4",
        weighed(DeepSeekV4, lambda was, self, ops, logits, ids: at(ops, self.scores(ops, logits), ids) * self.scale),
    ),
    "renormalised: v3": (
        "deepseek_v3 as it is",
        weighed(DeepSeekV3, lambda was, self, ops, logits, ids: renormalised(ops, was) * self.scale),
    ),
    "bias in the weights: v3": ("deepseek_v3", weighed(DeepSeekV3, biased("deepseek_v3"))),
    "bias in the weights: v4": ("deepseek_v4", weighed(DeepSeekV4, biased("deepseek_v4"))),
    "bias forgotten": (
        "deepseek_v3",
        chosen(DeepSeekV3, lambda self, ops, params, logits, state, tokens: (self, ops, params, logits, {}, tokens)),
    ),
    **{
        f"scale {how}: {title}": (
            title,
            weighed(kind, lambda was, self, *_, power=power: was * self.scale**power),
        )
        for how, power in (("dropped", -1), ("twice", 1))
        for title, kind in (
            ("deepseek_v3", DeepSeekV3),
            ("deepseek_v3 as it is", DeepSeekV3),
            ("deepseek_v4", DeepSeekV4),
            ("table", Table),
        )
    },
    "groups forgotten": (
        "deepseek_v3",
        chosen(DeepSeekV3, lambda self, *rest: (replace(self, n_groups=1, top_groups=1), *rest)),
    ),
    "groups by their best alone": (
        "deepseek_v3",
        lambda m: m.setattr(DeepSeekV3, "_of_the_best_groups", by_the_best_alone),
    ),
    **{
        f"gate and up swapped: {title}": (title, swapped)
        for title in ("mixtral", "olmoe", "deepseek_v3", "deepseek_v4", "gpt_oss")
    },
    "clamp after the product": ("gpt_oss", clamped_after),
    "clamp after the product: v4": ("deepseek_v4", clamped_after),
    "no clamp: experts": ("deepseek_v4", limited(experts=False)),
    "no clamp: shared": ("table", limited(shared=False)),
    "the gate clamped below too": ("deepseek_v4", limited(gate_below=True)),
    "one added to up": ("deepseek_v4", sharp),
    **{
        f"{title} with {what}": (title, chosen(type(CASES[title].layer.router), change))
        for what, change in (("k + 1 experts", one_more), ("bfloat16 before the choice", in_bfloat16))
        for title in ("switch", "mixtral", "olmoe", "deepseek_v3", "deepseek_v4", "gpt_oss", "noisy_top_k", "gshard")
    },
    "noise without its width": (
        "noisy_top_k",
        lambda m: m.setattr("transformer_lab.router.noisy_top_k.softplus", lambda ops, x: 1.0),
    ),
    "noise of the first expert": (
        "gshard",
        lambda m: m.setattr(GShard, "kept", lambda self, ops, logits, ids, state, tokens: np.stack(
            [ids[..., 0] >= 0, at(ops, tokens.noise, ids)[..., 0] < 2 * self.weigh(ops, {}, logits, ids)[..., 1]], -1
        )),
    ),
    "rows of other tokens": (
        "table",
        lambda m: m.setattr(Table, "choose", lambda self, ops, params, logits, state, tokens: params["table"][
            tokens.ids - 1
        ].astype(int)),
    ),
}  # fmt: skip


def by_the_best_alone(self, ops, biased):
    grouped = biased.reshape(*biased.shape[:2], self.n_groups, -1)
    best = ops.top_k(grouped.max(-1), self.top_groups)[1]
    inside = (best[..., None] == np.arange(self.n_groups)).any(-2)
    return np.where(inside[..., None], grouped, -np.inf).reshape(biased.shape)


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_what_is_wrong_is_noticed(mutation, monkeypatch):
    title, change = MUTATIONS[mutation]
    change(monkeypatch)
    refused = r"chose \d experts for a token, and its k says" if "k + 1" in mutation else "cannot be"
    with pytest.raises(
        (AssertionError, ConfigurationError), match=rf"Not equal|Mismatched|Arrays are not|shape|{refused}"
    ):
        judge(title)


# --- scores that vanish -----------------------------------------------------------------------------------------------

SMALL = np.array(
    [[[-46.0, -46.5, -47.0, -60.0], [-1000.0] * 4, [-90.0, -1000.0, -88.0, -95.0], [-44.0, 3.0, -2.0, -80.0]]]
)


def vanishing(precision="float64"):
    """The weights of scores near 1e-20 and far below are finite and those of the formula; shares sum to 1."""
    ops = component("backend", "numpy", precision=precision)
    router, logits = DeepSeekV3(2, scale=2.5), ops.asarray(SMALL)
    ids = router.choose(ops, {}, logits, {}, None)
    weights, shares = router.weigh(ops, {}, logits, ids), router.probabilities(ops, logits)
    scores = 1.0 / (1.0 + np.exp(-SMALL.clip(-700.0)))
    best = np.sort(scores, axis=-1)[..., :1:-1]
    right = best / (best.sum(-1, keepdims=True) + 1e-20) * 2.5
    np.testing.assert_allclose(weights, right, rtol=1e-4, atol=1e-14)
    np.testing.assert_allclose(np.sum(shares, -1), 1.0, rtol=1e-6)
    spread = (scores / scores.sum(-1, keepdims=True))[0, [0, 2, 3]]
    np.testing.assert_allclose(shares[0, [0, 2, 3]], spread, rtol=1e-4, atol=1e-30)
    router = DeepSeekV4(2)
    weights, shares = router.weigh(ops, {}, logits, ids), router.probabilities(ops, logits)
    np.testing.assert_allclose(np.sum(weights, -1), 1.5, rtol=3e-3)
    np.testing.assert_allclose(np.sum(shares, -1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_vanishing_scores_pass_the_normaliser(precision):
    vanishing(precision)


@pytest.mark.parametrize("backend", BACKENDS)
def test_vanishing_scores_weigh_as_in_transformers(backend):
    config = transformers.DeepseekV3Config(
        hidden_size=4, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, routed_scaling_factor=2.5
    )
    theirs = DeepseekV3TopkRouter(config)
    theirs.weight.data = torch.eye(4)
    with torch.no_grad():
        right = theirs(torch.tensor(SMALL[0], dtype=torch.float32))[1].numpy()
    ops, router = component("backend", backend, precision="float32"), DeepSeekV3(2, scale=2.5)
    with ops.scope():
        logits = ops.asarray(SMALL.astype(np.float32))
        found = ops.to_numpy(router.weigh(ops, {}, logits, router.choose(ops, {}, logits, {}, None)))[0]
    assert 0.1 < right[0].sum() < 2.4  # neither the sum nor what is added to it can be left out
    np.testing.assert_allclose(np.sort(found), np.sort(right), rtol=OPERATION["float32"], atol=1e-14)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.setattr(v3, "TINY", 0.0),
        lambda m: m.setattr(v3, "TINY", 1e-9),
        lambda m: m.setattr(DeepSeekV3, "probabilities", lambda self, ops, x: renormalised(ops, ops.sigmoid(x), 1e-20)),
    ],
    ids=["nothing added", "too much added", "added to shares too"],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_wrong_normaliser_is_noticed(change, monkeypatch):
    change(monkeypatch)
    with pytest.raises(AssertionError):
        vanishing()


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_gradients_stay_finite_where_scores_vanish(backend):
    ops = component("backend", backend, precision="float32")
    for router in (DeepSeekV3(2), DeepSeekV4(2)):

        def loss(given, ops=ops, router=router):
            ids = router.choose(ops, {}, given, {}, None)
            return ops.xp.sum(router.weigh(ops, {}, given, ids)[..., 0]) + ops.xp.sum(
                router.probabilities(ops, given) ** 2
            )

        _, gradient = ops.compile(ops.value_and_grad(loss))(ops.asarray(SMALL))
        assert np.isfinite(ops.to_numpy(gradient)).all()


# --- exact bits, files and refusals -----------------------------------------------------------------------------------

ROUTERS = {title: CASES[title].layer for title in CASES if " " not in title}
QUICK = ("deepseek_v3", "table")  # exact programs take long to compile


def model(title, backend):
    layer = ROUTERS[title]
    router = DeepSeekV3(2, n_groups=2, top_groups=1, scale=2.5) if title == "deepseek_v3" else layer.router
    layer = replace(layer, router=router, experts=replace(layer.experts, count=4))
    config = small_model(VOCAB, 10, D, 1, 2, layer)
    draw = np.random.default_rng(2)
    arrays = {name: array + draw.standard_normal(array.shape, np.float32) * 0.3 for name, array in initialise(config)}
    for name in arrays:
        if name.endswith("router.table"):
            arrays[name] = np.array([draw.permutation(4)[:3] for _ in range(VOCAB)], np.float32)
    return assemble(config, arrays, component("backend", backend, precision="exact"))


@pytest.mark.parametrize(("title", "backend"), [
    pytest.param(title, name, marks=[pytest.mark.full] if name == "jax" and title not in QUICK else [])
    for title in ROUTERS
    for name in ("torch", "jax")
])  # fmt: skip
def test_routers_have_the_same_bits_on_every_backend(title, backend):
    ids = np.random.default_rng(1).integers(0, VOCAB, (3, 8))
    found, right = (model(title, name) for name in (backend, "numpy"))
    assert found.logits(ids).tobytes() == right.logits(ids).tobytes()
    gradients = [parameter_gradients(each, ids) for each in (found, right)]
    gate = gradients[1]["blocks.0.ffn.router.gate"]
    assert np.abs(gate).max() > 0
    for name, array in gradients[1].items():
        assert array.tobytes() == gradients[0][name].tobytes(), name


def test_every_file_builds_its_router_and_layer():
    for name in names("router"):
        assert isinstance(component("router", name), Router), name
        assert type(component("router", name)).__module__ == f"transformer_lab.router.{name}"
        assert component("router", name) == type(component("router", name))(), name
    for name in ("switch", "gshard", "noisy_top_k", "deepseek_moe", "deepseek_v3", "deepseek_v4", "gpt_oss"):
        layer = component("ffn", name)
        assert layer.shapes(32)
        assert (layer.router.__module__.rpartition(".")[2] == name) == (name != "deepseek_moe")
    made = lab.load_model("storybook", weights="random", ffn="moe", router="deepseek_v3", backend="numpy")
    assert made.config.blocks[0].ffn.router == DeepSeekV3()


def test_a_table_begins_with_experts_that_differ_and_are_used_alike():
    config = small_model(VOCAB, 10, D, 1, 2, ROUTERS["table"])
    (table,) = [array for name, array in initialise(config) if name.endswith("router.table")]
    assert table.dtype == np.float32
    assert all(len(set(row)) == 3 for row in table.tolist())
    assert set(np.bincount(table.astype(int).ravel())) == {VOCAB * 3 // E}
    assert shapes(config)["blocks.0.ffn.router.table"] == (VOCAB, 3)


@pytest.mark.parametrize(
    ("fields", "experts", "words"),
    [
        ({"n_groups": 3}, 8, "n_groups is 3, and there are 8 experts"),
        ({"n_groups": 8}, 8, "at least 2"),
        ({"n_groups": 4, "top_groups": 5}, 8, "top_groups is 5; .* from 1 to 4"),
        ({"k": 5, "n_groups": 4, "top_groups": 2}, 8, "k is 5, .* of 2 experts have not so many"),
        ({"k": 9}, 8, "k is 9"),
    ],
)
def test_groups_that_do_not_fit_are_refused(fields, experts, words):
    with pytest.raises(ConfigurationError, match=words):
        DeepSeekV3(**{"k": 2} | fields).slots(experts)


def test_without_noise_every_slot_of_gshard_is_kept():
    ops = component("backend", "numpy", precision="float64")
    arrays, batch = drawn(CASES["gshard without noise"])
    seen = {}
    CASES["gshard without noise"].layer(
        ops,
        nest(arrays),
        batch.x,
        lambda name, x: seen.setdefault(name, x),
        tokens_of(ops, batch.ids, np.zeros(B, int)),
    )
    assert seen["router.kept"].all()
